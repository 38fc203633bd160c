"""What is mined is what was scored, whatever layout the texts came from and whatever format they go into."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS, Layout, draw_layout
from mining_in_process import mine_in_process
from scoring_in_process import score_here

from rerank_actor import storage
from rerank_actor.errors import InputError, OutputConflictError
from rerank_actor.job import ScoreJob
from rerank_actor.job_file import check_job
from rerank_actor.mining.formats import SUFFIXES
from rerank_actor.mining.job import MineJob
from rerank_actor.mining.preflight import prepare_mining, refuse_older
from rerank_actor.mining.report import list_remarks
from rerank_actor.mining.scored import load_scored
from rerank_actor.outputs.export import FORMATS, ExportSpec, export_scores

NUM_NEGATIVES = 3
Mined = tuple[str, list[str], list[str]]  # a query, its positives and its negatives, in the order of the file


def make_job(scored: Path | str, output: Path, /, **values: Any) -> MineJob:
    given = {"scored": [str(scored)], "output": str(output), "label_column": "label", "num_negatives": NUM_NEGATIVES}
    rules = {"false_negatives": "report", "depth": "all"}
    return check_job(MineJob, {**given, **rules, **values}).normalized()


def read_rows(output: Path, kind: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for path in sorted(output.glob(f"part-*.{SUFFIXES[kind]}")):
        if path.suffix == ".parquet":
            rows += pq.read_table(path).to_pylist()
        elif path.suffix == ".arrow":
            rows += pa.ipc.open_stream(path).read_all().to_pylist()
        elif path.suffix == ".json":
            rows += json.loads(path.read_text())["data"]
        else:
            rows += map(json.loads, path.read_text().split("\n")[:-1])
    return rows


def list_mined(output: Path, kind: str) -> list[Mined]:
    """Return what a format holds of each of its rows."""
    rows = read_rows(output, kind)
    if kind == "triplet":
        return [(row["anchor"], [row["positive"]], [row["negative"]]) for row in rows]
    if kind == "n-tuple":
        names = [f"negative_{number + 1}" for number in range(NUM_NEGATIVES)]
        return [(row["anchor"], [row["positive"]], [row[name] for name in names]) for row in rows]
    if kind == "labeled-pair":
        sides: dict[str, tuple[list[str], list[str]]] = {}
        for row in rows:
            sides.setdefault(row["anchor"], ([], []))[1 - row["label"]].append(row["document"])
        return [(query, *documents) for query, documents in sides.items()]
    if kind == "labeled-list":
        return [(row["anchor"], row["documents"][:1], row["documents"][1:]) for row in rows]
    if kind == "flagembedding":
        return [(row["query"], row["pos"], row["neg"]) for row in rows]
    if kind == "tevatron":
        names = ["positive_passages", "negative_passages"]
        return [(row["query"], *([join_title(one) for one in row[name]] for name in names)) for row in rows]
    if kind == "tevatron-distillation":
        passages = [(row["query"], [join_title(one) for one in row["passages"]]) for row in rows]
        return [(query, texts[:1], texts[1:]) for query, texts in passages]
    corpus = {
        row["id"]: row["text"] for path in output.glob("corpus/*.parquet") for row in pq.read_table(path).to_pylist()
    }
    return [
        (row["question"], *([corpus[one["id"]] for one in row[name]] for name in ("pos_doc", "neg_doc")))
        for row in rows
    ]


def join_title(passage: dict[str, Any]) -> str:
    """Return the text that Tevatron trains on."""
    return f"{passage['title']} {passage['text']}" if passage["title"] else str(passage["text"])


def read_scored(folder: Path, layout: Layout, **values: Any) -> dict[tuple[str, str], float]:
    """Return the logit of each pair by its texts, of the same texts scored as two plain columns."""
    rows = [{"query": query, "document": document} for query, document in sorted(layout.texts)]
    plain = Layout(rows).make_job(folder / "plain", **values)
    score_here(plain)
    table = pq.read_table(plain.output).to_pylist()
    return {(row["query"], row["document"]): row["logit"] for row in table}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(LAYOUTS), st.sampled_from(sorted(SUFFIXES)), st.integers(0, 10**6), st.booleans())
def test_texts_of_any_layout_in_any_format_are_those_that_were_scored(
    tmp_path_factory: pytest.TempPathFactory, name: str, kind: str, seed: int, as_lines: bool
) -> None:
    folder = tmp_path_factory.mktemp("layout")
    layout = draw_layout(name, seed, folder)
    logits = read_scored(folder, layout)
    job = layout.make_job(folder, as_lines=as_lines)
    score_here(job)
    teacher = {"teacher": "logit"} if kind == "tevatron-distillation" else {}
    mine_in_process(make_job(job.output, folder / "mined", format=kind, **teacher))
    mined = list_mined(folder / "mined", kind)
    for query, positives, negatives in mined:
        assert {(query, text) for text in (*positives, *negatives)} <= layout.texts
        assert all(layout.ids[query, text][1].endswith("-0") for text in positives)
        assert not any(layout.ids[query, text][1].endswith("-0") for text in negatives)
        assert not {text.strip() for text in negatives} & {"", query.strip()}
        values = [logits[query, text] for text in negatives]
        assert values == sorted(values, reverse=True)
    assert mined
    shutil.rmtree(folder)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(LAYOUTS), st.sampled_from(FORMATS), st.integers(0, 10**6), st.booleans())
def test_exports_of_any_layout_sorted_by_their_number_give_the_order_of_logits(
    tmp_path_factory: pytest.TempPathFactory, name: str, kind: str, seed: int, as_lines: bool
) -> None:
    folder = tmp_path_factory.mktemp("layout")
    layout = draw_layout(name, seed, folder)
    ids = {ids: texts for texts, ids in layout.ids.items()}
    logits = read_scored(folder, layout)
    job = layout.make_job(folder, as_lines=as_lines)
    score_here(job)
    document_id = {"list of titles": "passages", "titles": "document.id", "renamed": None}.get(name)
    export_scores(ExportSpec(job.output, kind, str(folder / "ranking"), document_id_column=document_id))
    exported = read_ranking(folder / "ranking", kind)
    assert {query for query, _, _ in exported} == {query for query, _ in layout.ids.values()}
    for query, document, value in exported:
        if (query, document) in ids:  # texts that occur twice have one of their ids here
            assert value == pytest.approx(logits[ids[query, document]], abs=1e-6)
    assert len(exported) == len({(query, document) for query, document, _ in exported}) == 3 * 7
    shutil.rmtree(folder)


def read_ranking(path: Path, kind: str) -> list[tuple[str, str, float]]:
    """Return a ranking's entries."""
    if kind == "mteb-predictions":
        predictions = json.loads(path.read_text())["default"]["test"]
        return [(query, name, value) for query, names in predictions.items() for name, value in names.items()]
    fields = [line.split() for line in path.read_text().splitlines()]
    return [
        (row[0], row[2] if kind == "trec" else row[1], float(row[4] if kind == "trec" else row[2])) for row in fields
    ]


# What cannot be the text that was scored is refused.


def score_layout(name: str, folder: Path, **values: Any) -> Path:
    """Score a layout and return its output."""
    layout = draw_layout(name, 1, folder)
    job = layout.make_job(folder, **values)
    score_here(job)
    return Path(job.output)


def refuse(scored: Path, /, **values: Any) -> str:
    with pytest.raises(InputError) as error:
        load_scored(make_job(scored, scored.parent / "mined", **values))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_ids_are_no_texts(tmp_path: Path) -> None:
    scored = score_layout("ids", tmp_path)
    assert "--document-column document_id: holds ids" in refuse(scored, document_column="document_id")
    assert "--query-column query_id: holds ids" in refuse(scored, query_column="query_id")
    assert "are those of --corpus" in refuse(scored, document_column="label")
    assert "has the title already" in refuse(scored, title_column="label")


def test_texts_by_id_that_changed_or_are_gone_are_refused_and_may_be_elsewhere(tmp_path: Path) -> None:
    scored, corpus, moved = score_layout("ids", tmp_path), tmp_path / "corpus.jsonl", tmp_path / "moved.jsonl"
    mine_in_process(make_job(scored, tmp_path / "first"))
    shutil.copyfile(corpus, moved)
    with corpus.open("a") as file:
        file.write('{"_id": "more", "text": "text"}\n')
    assert f"--corpus {corpus}: changed since" in refuse(scored)
    assert "give those texts" in refuse(scored, corpus=[str(corpus)])
    corpus.unlink()
    assert "--corpus says where they are now" in refuse(scored)
    mine_in_process(make_job(scored, tmp_path / "second", corpus=[str(moved)]))
    assert read_rows(tmp_path / "first", "triplet") == read_rows(tmp_path / "second", "triplet") != []
    (scored / "_job/job.yaml").unlink()
    assert "files that it does not name; give --queries" in refuse(scored)


def test_texts_with_another_pair_key_are_refused(tmp_path: Path) -> None:
    scored, corpus = score_layout("ids", tmp_path, with_pair_key=True), tmp_path / "corpus.jsonl"
    mine_in_process(make_job(scored, tmp_path / "mined"))
    corpus.write_text(corpus.read_text().replace("0.1", "0.9"))
    with pytest.raises(InputError, match="not those that were scored"):
        mine_in_process(make_job(scored, tmp_path / "other", corpus=[str(corpus)]))


@pytest.mark.parametrize(("name", "flag"), [("template", "document_column"), ("query template", "query_column")])
def test_a_column_of_a_template_is_not_the_text(tmp_path: Path, name: str, flag: str) -> None:
    scored = score_layout(name, tmp_path)
    column = {"template": "title", "query template": "question"}[name]
    assert f"are those of --{flag[:-7]}-template" in refuse(scored, **{flag: column})
    if name == "template":
        assert "has the title already" in refuse(scored, title_column="title")


def test_another_column_than_the_scored_one_is_refused(tmp_path: Path) -> None:
    scored = score_layout("dotted", tmp_path)
    assert "are those of column `document.text`" in refuse(scored, document_column="document")
    load_scored(make_job(scored, tmp_path / "mined", document_column="document.text"))


def test_what_the_output_did_not_keep_of_a_text_is_refused(tmp_path: Path) -> None:
    fields = score_layout("list of titles", tmp_path / "fields", keep_fields=["id", "text"])
    assert "their field `title`, and --keep-fields left that out" in refuse(fields)
    column = score_layout("template", tmp_path / "column", drop_columns=["title"])
    assert "has no column `title`" in refuse(column)
    layout = draw_layout("list of titles", 1, tmp_path)
    for row in layout.rows:
        row["passages"] = [{"id": passage["id"], "text": passage["text"]} for passage in row["passages"]]
    job = layout.make_job(tmp_path, keep_fields=["text"])
    score_here(job)
    load_scored(make_job(job.output, tmp_path / "mined"))  # there was no title to lose


@pytest.mark.parametrize(
    ("rows", "template"),
    [
        ([{"number": 1, "name": "a"}, {"number": 2.5, "name": "b"}], "{number} {name}"),
        ([{"document": "x", "number": 1}, {"document": "y", "number": 2.5}], "{number}"),
    ],
)
def test_json_that_is_kept_otherwise_than_it_was_scored_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], template: str | None
) -> None:
    drop = ["document"] if template else []  # which the text is not made of
    layout = Layout(
        [{"query": "q", "label": 1, "document": "", **row} for row in rows], {"document_template": template}
    )
    job = layout.make_job(tmp_path, as_lines=True, drop_columns=drop)
    score_here(job)
    assert "its columns give 1 texts otherwise than they were scored" in refuse(Path(job.output))


def test_prompt_is_the_instruction_of_each_row(tmp_path: Path) -> None:
    layout = draw_layout("lists", 1, tmp_path)
    for number, row in enumerate(layout.rows):
        row["dataset"] = f"set {number}"
    instructions = {"set 0": "first task", "*": "other task"}
    job = layout.make_job(tmp_path, instruction_map=instructions, with_pair_key=True)
    score_here(job)
    mine_in_process(make_job(job.output, tmp_path / "mined", format="flagembedding"))
    mined = read_rows(tmp_path / "mined", "flagembedding")
    assert [row["prompt"] for row in mined] == ["first task", "other task", "other task"]
    dropped = layout.make_job(tmp_path / "dropped", instruction_map=instructions, drop_columns=["dataset"])
    score_here(dropped)
    for values in ({"format": "flagembedding", "prompt": "task"}, {"format": "triplet"}):
        assert "did not keep column `dataset`" in refuse(Path(dropped.output), **values)


def test_query_under_two_instructions_that_were_lost_is_refused(tmp_path: Path) -> None:
    rows = [
        {"task": f"Find {name}", "query": "q", "document": f"{name} {label}", "label": label}
        for name in "ab"
        for label in (1, 0)
    ]
    job = Layout(rows).make_job(tmp_path, instruction_column="task", keep_columns=["query", "document", "label"])
    score_here(job)
    assert "did not keep column `task`" in refuse(Path(job.output))


# Rules of another version.


def test_what_rules_of_an_earlier_version_left_half_done_is_refused_and_what_they_finished_stays(
    tmp_path: Path,
) -> None:
    scored = score_layout("flat", tmp_path)
    job = make_job(scored, tmp_path / "mined")
    prepared = prepare_mining(job)
    older = {**prepared.settings, "definition_version": 1}
    storage.write_bytes(prepared.output.at("plan.json"), json.dumps({"settings": older, "layout": {}}).encode())
    storage.write_bytes(f"{job.output}/part-00000.parquet", b"rows")
    with pytest.raises(OutputConflictError, match="definition-version: there 1, now 4"):
        prepare_mining(job)
    storage.write_bytes(prepared.output.success_uri, b"")
    finished = prepare_mining(job)
    assert finished.settings == older
    assert finished.stored is not None
    with pytest.raises(OutputConflictError, match="definition-version: there 1, now 4"):
        refuse_older(finished.output, finished.stored)  # where some of it is gone


def score_ids(folder: Path, language: str) -> Path:
    """Score pairs of ids, which are the same in each language, and return the output."""
    layout = Layout([{"query_id": "0", "document_id": str(number), "label": int(not number)} for number in range(3)])
    (folder / language).mkdir()
    queries, corpus = folder / language / "queries.jsonl", folder / language / "corpus.jsonl"
    queries.write_text(json.dumps({"_id": "0", "text": f"{language} query"}))
    documents = [{"_id": str(number), "text": f"{language} document {number}"} for number in range(3)]
    corpus.write_text("".join(json.dumps(document) + "\n" for document in documents))
    job = layout.make_job(folder / language, queries=[str(queries)], corpus=[str(corpus)])
    score_here(job)
    return Path(job.output)


def test_ids_of_two_corpora_are_never_looked_up_in_one(tmp_path: Path) -> None:
    first, second = score_ids(tmp_path, "de"), score_ids(tmp_path, "en")
    for mixed in (False, True):
        values = {"scored": [str(first), str(second)], "allow_mixed_scores": mixed}
        said = refuse(first, **values)
        assert "other --queries or --corpus each" in said
        assert "--allow-mixed-scores" not in said
    bare = tmp_path / "bare"
    shutil.copytree(second, bare, ignore=shutil.ignore_patterns("_*"))
    assert "other --queries" in refuse(first, scored=[str(first), str(bare)], allow_mixed_scores=True)


def test_part_that_was_scored_with_another_corpus_is_refused(tmp_path: Path) -> None:
    scored = score_ids(tmp_path, "de")
    columns = load_scored(make_job(scored, tmp_path / "mined")).columns
    schema = pq.read_schema(next(scored.glob("part-*")))
    settings = {**columns.texts.sources, "query_column": "query"}
    own = {f"rerank_actor.{name}": json.dumps(value) for name, value in settings.items()}
    columns.check("part", schema.with_metadata(own))
    with pytest.raises(InputError, match="another --corpus"):
        columns.check("part", schema.with_metadata({**own, "rerank_actor.corpus": '"other"'}))
    with pytest.raises(InputError, match="another --document-template"):
        columns.check("part", schema.with_metadata({**own, "rerank_actor.document_template": '"{title}"'}))


@pytest.mark.parametrize("as_lists", [False, True])
def test_id_of_two_queries_is_refused_by_name(tmp_path: Path, as_lists: bool) -> None:
    rows: list[dict[str, Any]] = []
    for language in ("de", "en"):
        ids, documents = ["0#0", "0#1"], [f"{language} document {number}" for number in range(2)]
        common = {"query_id": "0", "query": f"{language} query"}
        columns = {"document_id": ids, "document": documents, "label": [1, 0]}
        if as_lists:
            rows.append({**common, **columns})
        else:
            pairs = zip(*columns.values(), strict=True)
            rows += [{**common, **dict(zip(columns, values, strict=True))} for values in pairs]
    job = Layout(rows).make_job(tmp_path, unit_rows=len(rows) // 2)
    score_here(job)
    given = {"query_id_column": "query_id", "document_id_column": "document_id", "format": "tevatron"}
    with pytest.raises(InputError, match="query id '0' stands for queries of two texts"):
        mine_in_process(make_job(job.output, tmp_path / "mined", **given))
    for pairs_at_once in (1, 1000):
        with pytest.raises(InputError, match="query id '0' stands for queries of two texts"):
            export_scores(ExportSpec(job.output, "trec", str(tmp_path / "run"), pairs_at_once=pairs_at_once))
    mine_in_process(make_job(job.output, tmp_path / "apart"))  # by text
    assert len(read_rows(tmp_path / "apart", "triplet")) == 2


def test_an_id_that_a_shard_with_nulls_writes_as_a_fraction_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, ids in (("a", pa.array([7, 8])), ("b", pa.array([7.0, 9.5]))):
        columns = {"qid": ids, "query": ["q", f"of {name}"], "document": [name, name], "did": [name, f"{name}2"]}
        pq.write_table(pa.table({**columns, "label": [1, 0]}), tmp_path / f"in/{name}.parquet")
    job = ScoreJob(input=[str(tmp_path / "in")], output=str(tmp_path / "scored"), engine="fake").normalized()
    score_here(job)
    ids = {"query_id_column": "qid", "document_id_column": "did"}
    for unit_bytes in (1, 2**20):
        with pytest.raises(InputError, match=r"the query id '7.0' beside '7', which may be one"):
            mine_in_process(make_job(tmp_path / "scored", tmp_path / f"mined-{unit_bytes}", **ids), unit_bytes)
    for pairs_at_once in (1, 2**20):
        spec = ExportSpec(job.output, "trec", str(tmp_path / "run"), pairs_at_once=pairs_at_once, **ids)
        with pytest.raises(InputError, match=r"the query id '7.0' beside '7', which may be one"):
            export_scores(spec)


def test_ids_that_explode_repeated_are_refused_by_their_flag(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"query_id": n, "query": f"q{n}", "document": ["a", "b"], "document_id": [f"{n}a", f"{n}b"], "row": f"r{n}"}
        for n in range(2)
    ]
    given = {"explode": True}
    for folder, more in {"whole": given, "apart": {**given, "explode_columns": ["document_id"]}}.items():
        score_here(Layout(rows).make_job(tmp_path / folder, **more))
    for folder, name in (("whole", "document_id"), ("whole", "row"), ("apart", "row")):
        spec = ExportSpec(str(tmp_path / folder / "scored"), "trec", document_id_column=name)
        with pytest.raises(InputError, match=f"repeated column `{name}` for each candidate.*--explode-columns"):
            export_scores(spec)
    target = tmp_path / "run.tsv"
    export_scores(ExportSpec(str(tmp_path / "apart/scored"), "tevatron", str(target)))
    assert {line.rpartition("\t")[0] for line in target.read_text().splitlines()} == {
        "0\t0a",
        "0\t0b",
        "1\t1a",
        "1\t1b",
    }
    one = Layout([{"query_id": 0, "query": "q", "document": "a", "document_id": "d", "label": 1}])
    job = one.make_job(tmp_path / "one", explode=True)  # of which nothing is repeated
    score_here(job)
    export_scores(ExportSpec(job.output, "tevatron", str(target)))
    assert target.read_text().startswith("0\td\t")
    load_scored(make_job(job.output, tmp_path / "mined"))
    pairs = [{"query_id": "q", "query": "q", "document": "a", "document_id": ["a", "b"]}]
    flat = Layout(pairs).make_job(tmp_path / "flat")
    score_here(flat)
    with pytest.raises(InputError, match=r"column `document_id` \(list.*holds what is no id .neither text nor"):
        export_scores(ExportSpec(flat.output, "trec"))


@pytest.mark.parametrize("second", ["1", "7.0", None])
def test_query_text_of_two_ids_is_mined_as_one_and_told(tmp_path: Path, second: str | None) -> None:
    for name, query_id in (("one", "7"), ("other", second)):  # two sources, each with ids of its own
        rows = [
            {"query_id": query_id, "query": text, "document": f"{name} {place}", "label": int(place == 0)}
            for text in ("asked by both", f"asked by {name}")
            for place in range(2)
        ]
        score_here(Layout(rows).make_job(tmp_path / name))
    scored = [str(tmp_path / name / "scored") for name in ("one", "other")]
    for unit_bytes in (1, 2**20):
        job = make_job(scored[0], tmp_path / f"mined-{unit_bytes}", scored=scored)
        mined, tally, _ = mine_in_process(job, unit_bytes)
        assert len(mined) == 2 * 2 + 2, "both's positives with both's negatives"
        remarks = [one for one in list_remarks(tally, job, job.rules(), "") if one.startswith("--query-id-column: ")]
        assert [one.startswith("--query-id-column: 1 of 3 texts") for one in remarks] == [True] * (second is not None)
    apart = make_job(scored[0], tmp_path / "apart", scored=scored, query_id_column="query_id")
    if second == "1":
        with pytest.raises(InputError, match="query id '7' stands for queries of two texts"):
            mine_in_process(apart)


def test_one_question_under_two_instructions_is_two(tmp_path: Path) -> None:
    rows = [
        {"query_id": f"{task}-{n}", "query": "q", "task": task, "document": text, "label": int(text == task)}
        for task in ("a", "b")
        for n in range(2)
        for text in ("a", "b", "c")
    ]
    job = Layout(rows).make_job(tmp_path, instruction_map={"a": "find a", "b": "find b"}, dataset_column="task")
    score_here(job)
    for unit_bytes in (1, 2**20):
        output = tmp_path / f"mined-{unit_bytes}"
        mine_in_process(make_job(job.output, output, query_id_column="query_id", format="flagembedding"), unit_bytes)
        mined = {(row["prompt"], *row["pos"], *sorted(row["neg"])) for row in read_rows(output, "flagembedding")}
        assert mined == {("find a", "a", "b", "c"), ("find b", "b", "a", "c")}


@pytest.mark.parametrize("unit_bytes", [1, 2**20])
@pytest.mark.parametrize("source", ["label", "qrels", "score"])
def test_positives_of_a_question_are_no_negatives_of_it_under_any_id(
    tmp_path: Path, source: str, unit_bytes: int
) -> None:
    asked = {"1": "Caf\u00e9?", "2": "Caf\u00e9?", "3": "cafe\u0301", "4": "tea"}
    right = {"1": "A\u00e9", "2": "second", "3": "third", "4": "fourth"}
    texts = ["A\u00e9", "Ae\u0301!", "A\u00ad\u00e9", "second", "third", "fourth", "\uff23afe\u0301", "wrong"]
    rows = [
        {"query_id": query, "query": asked[query], "document_id": f"d{place}", "document": text}
        | {"label": int(text == right[query]), "logit": 9.0 if text == right[query] else 1.0, "score": 0.5}
        for place, text in enumerate(texts)
        for query in asked
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "scored.parquet", row_group_size=3)
    (tmp_path / "qrels").write_text("".join(f"{query} 0 d{texts.index(right[query])} 1\n" for query in asked))
    how: dict[str, Any] = {
        "label": {},
        "qrels": {"label_column": None, "qrels": str(tmp_path / "qrels")},
        "score": {"label_column": None, "min_positive_score": "5@logit"},
    }[source]
    ids = {"query_id_column": "query_id", "document_id_column": "document_id"}
    job = make_job(tmp_path / "scored.parquet", tmp_path / "mined", num_negatives=9, **how, **ids)
    mine_in_process(job, unit_bytes)
    mined = {(row["anchor"], row["positive"], row["negative"]) for row in read_rows(tmp_path / "mined", "triplet")}
    others = {"A\u00e9", "Ae\u0301!", "A\u00ad\u00e9", "second", "third", "\uff23afe\u0301", "wrong"}
    expected = {(asked[query], right[query], text) for query in "123" for text in ("fourth", "wrong")}
    expected |= {("tea", "fourth", text) for text in others}
    assert mined == expected
