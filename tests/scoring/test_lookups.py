"""Pairs of ids: texts are found by id in queries and corpus, whatever these look like and however many there are."""

import dataclasses
import gzip
import json
import os
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import read_output
from s3_server import S3Server
from scoring_in_process import score_here

from rerank_actor import Reranker, storage
from rerank_actor.commands.score import score
from rerank_actor.errors import InputError, OutputConflictError, ShardError
from rerank_actor.inputs.ids import read_id, read_ids
from rerank_actor.inputs.lookups import TextLookup
from rerank_actor.inputs.rankings.qrels import load_judgements
from rerank_actor.inputs.text_sources import SourcePiece, TextSource, list_sources
from rerank_actor.job import ScoreJob
from rerank_actor.outputs.export import ExportSpec, export_scores
from rerank_actor.outputs.scored_columns import PairRows
from rerank_actor.outputs.verify import verify_output
from rerank_actor.progress import QuietReporter
from rerank_actor.runtime.store_builder import build_store, run_here
from rerank_actor.scoring.estimate import estimate_job
from rerank_actor.scoring.preflight import prepare_job
from rerank_actor.scoring.run import run_job
from rerank_actor.storage.keyed_store import KEPT_SECONDS, BucketLayout, KeyedStore, name_bucket

QUERIES = [{"_id": "q1", "text": "what is rain"}, {"_id": "q2", "text": "who wrote it"}, {"_id": "7", "text": "seven"}]
CORPUS = [
    {"_id": "a", "title": "Rain", "text": "Water falls.", "metadata": {}},
    {"_id": "b", "title": "", "text": " untitled "},
    {"_id": "c", "text": "no title at all"},
    {"_id": 12, "title": "Twelve", "text": "a number for an id"},
]
TEXTS = {"a": "Rain Water falls.", "b": "untitled", "c": "no title at all", "12": "Twelve a number for an id"}


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def make_job(tmp_path: Path, pairs: list[Any], corpus: list[Any] = CORPUS, **settings: Any) -> ScoreJob:
    """Return a job whose pairs are ids, for the fake engine."""
    values: dict[str, Any] = {
        "input": [str(write_lines(tmp_path / "pairs.jsonl", pairs))],
        "queries": [str(write_lines(tmp_path / "beir/queries.jsonl", QUERIES))],
        "corpus": [str(write_lines(tmp_path / "beir/corpus.jsonl", corpus))],
        "output": str(tmp_path / "out"),
        "engine": "fake",
    }
    return ScoreJob(**{**values, **settings}).normalized()


def score_texts(pairs: list[tuple[str, str]]) -> list[float]:
    """Return the scores of texts, without any job."""
    with Reranker(engine="fake") as reranker:
        return reranker.score(pairs).tolist()


def make_source(*paths: Path, role: Any = "document") -> TextSource:
    job = ScoreJob(input=["x"], output="y", corpus=[str(path) for path in paths])
    return dataclasses.replace(list_sources(job.source_specs(), job.output)[0], role=role)


def make_store(tmp_path: Path, source: TextSource, layout: BucketLayout, uri: str = "") -> KeyedStore:
    uri = uri or str(tmp_path / "store")
    return KeyedStore(build_store(uri, source.digest, layout, source.cut(), source.read, run_here))


def test_ids_are_joined_with_beir_files_and_missing_ones_are_errors_by_reason(tmp_path: Path, local_ray: str) -> None:
    corpus = [*CORPUS, {"_id": "d", "text": "one"}, {"_id": "d", "text": "another"}, {"_id": "e", "text": 5}, "{broken"]
    good = [("q1", "a"), ("q1", "b"), ("q2", "c"), ("7", "12")]
    bad = [("q1", "zz"), ("zz", "a"), ("zz", "zz"), ("q1", "d"), ("q1", "e"), ("q1", None), (None, "a")]
    pairs = [{"query_id": query, "document_id": document} for query, document in [*good, *bad]]
    job = make_job(tmp_path, pairs, corpus)

    assert run_job(job).status == "complete"
    table = read_output(tmp_path / "out")
    assert table.column_names[:2] == ["query_id", "document_id"]
    assert table.select(["query_id", "document_id"]).to_pylist() == pairs
    texts = {row["_id"]: row["text"] for row in QUERIES}
    expected = score_texts([(texts[query], TEXTS[document]) for query, document in good])
    assert table["score"].to_pylist() == [*expected, *[None] * len(bad)]
    assert table["error"].to_pylist()[len(good) :] == [
        "document id is not in --corpus",
        "query id is not in --queries",
        "query id is not in --queries",
        "document id has more than one text in --corpus",
        "document is not text",
        "document id is null",
        "query id is null",
    ]
    manifest = json.loads((tmp_path / "out/_job/manifest.json").read_text())
    assert manifest["totals"]["errors_by_reason"]["query id is not in --queries"] == 2
    joined = manifest["joins"]["document"]
    assert (joined["rows"], joined["broken"]) == (7, 1)
    assert joined["first_left_out"].endswith("corpus.jsonl, line 8")
    assert not (tmp_path / "out/_job/stores").exists()
    assert verify_output(str(tmp_path / "out")).problems == []


FORMS: dict[str, Any] = {
    "text": pa.array(["7", "12", "9007199254740993"]),
    "dictionary": pa.array(["7", "12", "9007199254740993"]).dictionary_encode(),
    "integer": pa.array([7, 12, 9007199254740993]),
    "unsigned": pa.array([7, 12, 9007199254740993], pa.uint64()),
    "decimal": pa.array([Decimal("7.00"), Decimal("12.00"), Decimal("9007199254740993.00")]),
    "float": pa.array([7.0, 12.0, None]),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_id_is_the_same_in_whatever_type_and_reader(tmp_path: Path, form: str) -> None:
    wanted = ["7", "12", None if form == "float" else "9007199254740993"]
    table = pa.table({"query_id": FORMS[form], "document_id": FORMS[form], "text": ["x", "y", "z"], "logit": [1.0] * 3})
    assert [read_id(value) for value in FORMS[form].to_pylist()] == wanted
    assert PairRows(table, "logit", "x").spread_ids("query_id", "--x").to_pylist() == wanted
    assert read_ids(table["document_id"]).to_pylist() == wanted
    pq.write_table(table.slice(0, 2).select(["query_id", "document_id"]), tmp_path / "qrels.parquet")
    assert load_judgements(str(tmp_path / "qrels.parquet")) == {"7": {"7": 1}, "12": {"12": 1}}
    pq.write_table(table.slice(0, 2).select(["document_id", "text"]), tmp_path / "corpus.parquet")
    source = make_source(tmp_path / "corpus.parquet")
    texts = next(iter(source.read(source.cut()[0])))
    assert texts["key"].to_pylist() == wanted[:2]
    lists = pa.array([[value] for value in FORMS[form][1:2].to_pylist()], pa.list_(FORMS[form].type))
    pq.write_table(pa.table({"query_id": FORMS[form][:1], "document_id": lists}), tmp_path / "pairs.parquet")
    job = make_job(tmp_path, [], input=[str(tmp_path / "pairs.parquet")])
    score_here(job)
    export_scores(ExportSpec(job.output, "tevatron", str(tmp_path / "run.tsv")))
    assert (tmp_path / "run.tsv").read_text().startswith("7\t12\t")


@pytest.mark.parametrize(
    "column", [pa.array([1.5]), pa.array([True]), pa.array([""]), pa.array([float("inf")]), pa.array([2.0**53 + 2])]
)
def test_what_is_no_id_is_none_in_any_reader(column: pa.Array) -> None:
    rows = PairRows(pa.table({"query_id": column, "logit": [1.0]}), "logit", "x")
    assert [read_id(value) for value in column.to_pylist()] == [None]
    with pytest.raises(InputError, match="holds what is no id"):
        rows.spread_ids("query_id", "--query-id-column")


@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: [value, value]])
def test_ids_of_text_beside_numbers_are_kept_as_they_are_looked_up(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    uris = []
    for number, one in enumerate([7.0, "7", 7, "7.0"]):
        row = {"query_id": one, "document_id": wrap(12.0 if isinstance(one, float) else "12")}
        uris.append(str(write_lines(tmp_path / f"in-{number}.jsonl", [row])))
    score_here(make_job(tmp_path, [], input=uris))
    rows = [row for uri in (tmp_path / "out").glob("part-*") for row in pq.read_table(uri).to_pylist()]
    assert sorted(row["query_id"] for row in rows) == ["7", "7", "7", "7.0"]
    assert all(row["document_id"] == wrap("12") for row in rows)


def test_lists_of_ids_give_aligned_lists_and_texts_may_stand_beside_ids(tmp_path: Path, local_ray: str) -> None:
    rows = [{"query": "what is rain", "document_id": ["a", "zz", "c"]}, {"query": "seven", "document_id": []}]
    run_job(make_job(tmp_path, rows, queries=[]))
    table = read_output(tmp_path / "out")
    found = table["score"].to_pylist()
    first, last = score_texts([("what is rain", TEXTS["a"]), ("what is rain", TEXTS["c"])])
    assert found == [[first, None, last], []]
    assert table["error"].to_pylist()[0] == [None, "document id is not in --corpus", None]


def test_lists_of_ids_are_exploded_with_an_instruction_for_each_dataset(tmp_path: Path, local_ray: str) -> None:
    rows = [
        {"query_id": "q1", "document_id": ["a", "zz"], "label": [1, 0], "set": "x"},
        {"query_id": "q2", "document_id": [], "label": [], "set": "x"},
        {"query_id": "7", "document_id": ["c"], "label": [2], "set": "y"},
    ]
    layout = {"explode": True, "explode_columns": ["label"], "dataset_column": "set", "with_pair_key": True}
    run_job(make_job(tmp_path, rows, instruction_map={"x": "task x", "*": "any"}, **layout))
    table = read_output(tmp_path / "out")
    assert table["document_id"].to_pylist() == ["a", "zz", None, "c"]
    assert table["label"].to_pylist() == [1, 0, None, 2]
    assert table["candidate_index"].to_pylist() == [0, 1, None, 0]
    errors = [None, "document id is not in --corpus", "document list is empty", None]
    assert table["error"].to_pylist() == errors
    assert [key is None for key in table["pair_key"].to_pylist()] == [False, True, True, False]
    with Reranker(engine="fake") as reranker:
        first = reranker.score([("what is rain", TEXTS["a"])], instruction="task x")[0]
        last = reranker.score([("seven", TEXTS["c"])], instruction="any")[0]
    assert table["score"].to_pylist() == [first, None, None, last]


def test_a_template_writes_queries_beside_ids_of_documents(tmp_path: Path, local_ray: str) -> None:
    rows = [{"who": "rain", "document_id": "a"}]
    run_job(make_job(tmp_path, rows, queries=[], query_template="what is {who}"))
    assert read_output(tmp_path / "out")["score"].to_pylist() == score_texts([("what is rain", TEXTS["a"])])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"document_template": "{title}"}, "--corpus and --document-template both say what the text of a document is"),
        ({"query_template": "{who}"}, "--queries and --query-template both say"),
        ({"queries": ["hf://owner/name"]}, "--queries takes files, folders and globs, .* no hf:// dataset"),
    ],
)
def test_flags_that_say_the_same_or_cannot_be_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_job(tmp_path, [], **settings)


def test_a_changed_corpus_is_another_job_and_the_same_one_resumes(
    tmp_path: Path, local_ray: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_job(tmp_path, [{"query_id": "q1", "document_id": "a"}])
    run_job(job)
    before = (tmp_path / "out/_job/manifest.json").read_text()
    assert run_job(job.model_copy(update={"ray_address": "127.0.0.1:1"})).status == "complete"
    assert json.loads(before)["joins"] == json.loads((tmp_path / "out/_job/manifest.json").read_text())["joins"]
    write_lines(tmp_path / "beir/corpus.jsonl", [*CORPUS, {"_id": "new", "text": "new"}])
    with pytest.raises(OutputConflictError, match="corpus: there '1 objects"):
        prepare_job(job)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("corpus.jsonl", [{"name": "a", "text": "b"}], "no column of ids; it has `name`, `text`"),
        ("corpus.jsonl", [{"_id": "a", "words": "b"}], "no column of texts"),
        ("corpus.parquet", ["no Parquet"], "cannot be read"),
        ("corpus.bin", [{"_id": "a", "text": "b"}], "the name does not tell its format"),
        ("corpus.arrow", [{"_id": "a", "text": "b"}], "is arrow by its name, which holds no texts by id"),
    ],
)
def test_a_source_that_cannot_be_one_is_refused_by_name(
    tmp_path: Path, name: str, rows: list[Any], message: str
) -> None:
    path = write_lines(tmp_path / name, rows)
    with pytest.raises(InputError, match=message) as found:
        prepare_job(
            make_job(tmp_path, [{"query_id": "q1", "document_id": "a"}], corpus=[], **{}).model_copy(
                update={"corpus": [str(path)]}
            )
        )
    assert "--corpus" in str(found.value)
    assert str(path) in str(found.value)


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([b"1"]),
        pa.array([True]),
        pa.array([[1]]),
        pa.array([1], pa.int32()).cast(pa.date32()),
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"x" * 16], pa.binary(16))),
    ],
    ids=lambda ids: str(ids.type),
)
def test_ids_of_a_type_that_is_none_are_refused_where_the_texts_are(tmp_path: Path, ids: pa.Array) -> None:
    pq.write_table(pa.table({"_id": ids, "text": ["a"]}), tmp_path / "queries.parquet")
    job = make_job(tmp_path, [{"query_id": "q1", "document_id": "a"}])
    with pytest.raises(InputError, match=r"--queries .*column `_id` is .*, expected ids .*; write it as text"):
        prepare_job(job.model_copy(update={"queries": [str(tmp_path / "queries.parquet")]}))


@pytest.mark.parametrize("ids", [pa.array([""] * 16 + ["1"]), pa.array([float("nan")] * 16 + [1.0])])
def test_ids_that_the_first_rows_lack_are_no_matter_of_their_type(tmp_path: Path, ids: pa.Array) -> None:
    pq.write_table(pa.table({"_id": ids, "text": ["a"] * 17}), tmp_path / "corpus.parquet")
    source = make_source(tmp_path / "corpus.parquet")
    *tables, counts = [found for piece in source.cut() for found in source.read(piece)]
    assert [table["key"].to_pylist() for table in tables] == [["1"]] and counts["without_id"] == 16


def test_missing_source_and_missing_id_column_end_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = write_lines(tmp_path / "pairs.jsonl", [{"query": "x", "docid": "a"}])
    corpus = write_lines(tmp_path / "corpus.jsonl", CORPUS)
    flags = ["--input", str(pairs), "--output", str(tmp_path / "out"), "--engine", "fake"]
    with pytest.raises(InputError, match=r"--corpus .*nothing there"):
        score([*flags, "--corpus", str(tmp_path / "none.jsonl")])
    with pytest.raises(InputError, match=r"no column `document_id`.*choose with --document-id-column"):
        score([*flags, "--corpus", str(corpus)])


def test_dry_run_counts_tokens_of_joined_texts(tmp_path: Path) -> None:
    job = make_job(tmp_path, [{"query_id": "q1", "document_id": name} for name in ("a", "b", "zz")])
    found = estimate_job(job, QuietReporter())
    assert len(found.num_tokens) == 2
    assert found.errors == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet", "csv", "tsv"])
def test_every_format_of_a_corpus_gives_the_same_texts(tmp_path: Path, suffix: str) -> None:
    rows = [{"_id": f"d{i}", "title": f"T{i}", "text": f"body {i}, so"} for i in range(50)]
    path = tmp_path / f"corpus.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    elif suffix in ("csv", "tsv"):
        mark, quote = (",", '"') if suffix == "csv" else ("\t", "")
        write_lines(path, [mark.join(["_id", "title", "text"])])
        with path.open("a") as file:
            file.writelines(mark.join(f"{quote}{value}{quote}" for value in row.values()) + "\n" for row in rows)
    else:
        write_lines(path, rows)
    store = make_store(tmp_path, make_source(path), BucketLayout(3, 5))
    found = {row["key"]: row["text"] for row in store.find([f"d{i}" for i in range(60)])}
    assert found == {f"d{i}": f"T{i} body {i}, so" for i in range(50)}


def test_tsv_of_two_columns_without_a_header_is_ids_and_texts(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "collection.tsv", ["0\tfirst passage", "1\tsecond"])
    store = make_store(tmp_path, make_source(path), BucketLayout(1, 1))
    assert {row["key"]: row["text"] for row in store.find(["0", "1"])} == {"0": "first passage", "1": "second"}


TWO_IDS = {
    "indexed": [{"id": number, "docid": str(2 - number), "text": f"text {number}"} for number in range(3)],
    "passages": [{"pid": f"p{n}", "passage": f"text {n}", "spans": "(0,9)", "docid": f"d{n // 2}"} for n in range(3)],
}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(("rows", "column"), [("indexed", "docid"), ("indexed", "id"), ("passages", "pid")])
def test_of_several_ids_one_is_named_or_the_corpus_is_refused(
    tmp_path: Path, rows: str, column: str, suffix: str
) -> None:
    corpus, path = TWO_IDS[rows], tmp_path / f"corpus.{suffix}"
    pq.write_table(pa.Table.from_pylist(corpus), path) if suffix == "parquet" else write_lines(path, corpus)
    run = tmp_path / "one.run"
    run.write_text("".join(f"q1 Q0 {row[column]} 1 1.5 t\n" for row in corpus))

    def make(**settings: Any) -> ScoreJob:
        return make_job(tmp_path, [], input=[str(run)], **settings).model_copy(update={"corpus": [str(path)]})

    with pytest.raises(InputError, match=r"(line|row|byte) \d has several ids, .*--document-id-column"):
        prepare_job(make())
    job = make(document_id_column=column)
    score_here(job)
    part = pq.read_table(next((tmp_path / "out").glob("part-*.parquet")))
    assert part[column].to_pylist() == [str(row[column]) for row in corpus]
    expected = score_texts([("what is rain", row.get("text") or row["passage"]) for row in corpus])
    assert part["score"].to_pylist() == pytest.approx(expected)


def test_several_ids_further_down_are_refused_when_read(tmp_path: Path) -> None:
    rows = [
        *({"_id": str(number), "id": number, "text": "same"} for number in range(40)),
        {"_id": "x", "id": 7, "text": ""},
    ]
    source = make_source(write_lines(tmp_path / "corpus.jsonl", rows))
    with pytest.raises(InputError, match="has several ids, 'x' in `_id` and '7' in `id`"):
        list(source.read(source.cut()[0]))


def test_notes_beside_texts_are_none_of_them(tmp_path: Path) -> None:
    for name in ("README.md", "LICENSE", ".gitattributes"):
        write_lines(tmp_path / "corpus" / name, ["how it was made"])
    with pytest.raises(InputError, match=r"--corpus .*corpus: (holds no texts|nothing there)"):
        make_source(tmp_path / "corpus")
    path = write_lines(tmp_path / "corpus/part.jsonl", CORPUS)
    source = make_source(tmp_path / "corpus")
    assert ([item.uri for item in source.objects], source.num_notes) == (
        [str(path)],
        2,
    )  # names that begin with a dot are hidden
    write_lines(tmp_path / "corpus/more.bin", ["?"])
    with pytest.raises(InputError, match=r"more\.bin: the name does not tell its format"):
        make_source(tmp_path / "corpus")


def test_a_query_of_a_passage_is_none_of_its_ids(tmp_path: Path) -> None:
    source = make_source(
        write_lines(tmp_path / "c.jsonl", [{"qid": 5, "pid": 7, "text": "x"}, {"qid": 6, "text": "y"}])
    )
    table = next(iter(source.read(source.cut()[0])))
    assert table["key"].to_pylist() == ["7", "6"]


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.tsv"])
def test_pieces_of_a_file_hold_each_line_once_wherever_they_are_cut(tmp_path: Path, name: str) -> None:
    rows: list[Any] = [{"_id": str(i), "text": "ä" * (i % 5)} for i in range(23)]
    if name.endswith("tsv"):
        rows = ["id\ttext", *(f"{row['_id']}\t{row['text']}" for row in rows)]
    path = write_lines(tmp_path / name, rows)
    source = make_source(path)
    item = source.objects[0]
    for parts in range(1, item.size // 2):
        keys: list[str] = []
        for part in range(parts):
            *tables, counts = source.read(SourcePiece(item.uri, item.size, item.etag, part, parts))
            keys += [key for table in tables for key in table["key"].to_pylist()]
            assert counts["broken"] == 0
        assert keys == [str(i) for i in range(23)], parts


def test_a_store_in_s3_is_read_by_block_or_from_copies(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RERANK_ACTOR_CACHE", str(tmp_path / "cache"))
    rows = [{"_id": f"d{i}", "text": f"text {i}"} for i in range(400)]
    source = make_source(write_lines(tmp_path / "corpus.jsonl", rows))
    store = make_store(tmp_path, source, BucketLayout(4, 8), s3.uri("store"))
    lookup = TextLookup("document", store.spec)
    wanted = ["d3", "d399", "nope", "d7", "d3"]
    expected = ["text 3", "text 399", None, "text 7", "text 3"]
    assert lookup.load_texts(wanted) == (expected, {2: "document id is not in --corpus"})
    assert not (tmp_path / "cache/stores").exists()

    for name, age in (("of-a-job-long-ended", 3 * KEPT_SECONDS), ("of-another-job", 60.0)):
        folder = tmp_path / "cache/stores" / name
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - age,) * 2)
    copying = TextLookup("document", dataclasses.replace(store.spec, keeps_copies=True))
    assert copying.load_texts(wanted)[0] == expected
    copies = {path.name for path in (tmp_path / "cache/stores").rglob("bucket-*.bin")}
    assert copies
    kept = {path.name for path in (tmp_path / "cache/stores").iterdir()}
    assert kept == {store.spec.digest, "of-another-job"}, "copies that nobody reads any more do not fill the disk"
    storage.delete_objects([storage.join_uri(store.spec.uri, name) for name in copies])
    assert copying.load_texts(wanted)[0] == expected  # from the copies alone
    assert build_store(
        store.spec.uri, source.digest, BucketLayout(1, 1), [], source.read, run_here
    ).layout == BucketLayout(4, 8)


def test_a_damaged_store_says_where(tmp_path: Path) -> None:
    source = make_source(write_lines(tmp_path / "corpus.jsonl", CORPUS))
    store = make_store(tmp_path, source, BucketLayout(1, 1))
    path = Path(store.spec.uri) / name_bucket(0)
    path.write_bytes(b"\0" * 100 + path.read_bytes()[100:])
    with pytest.raises(ShardError, match=f"{path}: is damaged"):
        list(store.find(["a"]))


def test_a_job_on_s3_goes_on_with_the_store_that_is_there(
    tmp_path: Path, s3: S3Server, local_ray: str, write_shard: Callable[..., Path]
) -> None:
    for name, rows in (("queries", QUERIES), ("corpus", CORPUS)):
        s3.put(f"beir/{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    pairs = [{"query_id": "q1", "document_id": "a"}, {"query_id": "q2", "document_id": "b"}]
    s3.put("pairs/one.jsonl", "".join(json.dumps(row) + "\n" for row in pairs).encode())
    job = ScoreJob(
        input=[s3.uri("pairs")],
        queries=[s3.uri("beir/queries.jsonl")],
        corpus=[s3.uri("beir/corpus.jsonl")],
        output=s3.uri("out"),
        engine="fake",
    ).normalized()
    source = prepare_job(job).sources[1]
    # As an earlier run left it; of other texts, so that it shows where they came from.
    other = make_source(write_lines(tmp_path / "corpus.jsonl", [{"_id": key, "text": "other"} for key in TEXTS]))
    uri = s3.uri(f"out/_job/stores/document-{source.digest}")
    build_store(uri, source.digest, BucketLayout(1, 1), other.cut(), other.read, run_here)

    assert run_job(job).status == "complete"
    parts = [item for item in storage.list_objects(s3.uri("out")) if item.uri.endswith(".parquet")]
    table = pq.read_table(pa.BufferReader(storage.read_bytes(parts[0].uri)))
    assert table["score"].to_pylist() == score_texts([("what is rain", "other"), ("who wrote it", "other")])
    assert storage.list_objects(s3.uri("out/_job/stores")) == []
