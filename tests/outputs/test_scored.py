"""Scored outputs as input: each shape that scoring writes is described rightly, and every reader takes the same parts of it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import read_output
from mining_in_process import load_with_lookups
from scoring_in_process import score_here

from rerank_actor.bitext.job import REASON_COLUMN, BitextJob
from rerank_actor.bitext.language_pairs import parse_pair
from rerank_actor.bitext.selection.job import SelectJob
from rerank_actor.bitext.selection.read_pairs import read_pairs as read_translations
from rerank_actor.bitext.selection.scored import load_scored as load_translations
from rerank_actor.bitext.selection.scored import name_columns
from rerank_actor.errors import InputError, JobError, OutputConflictError
from rerank_actor.inputs.directions import BACKWARD, FORWARD
from rerank_actor.job import ScoreJob
from rerank_actor.job_file import check_job
from rerank_actor.mining.job import MineJob
from rerank_actor.mining.pairs import TEXT_ROLES, read_pairs
from rerank_actor.mining.scored import load_scored
from rerank_actor.outputs.export import ExportSpec, export_scores
from rerank_actor.outputs.report.facts import gather_facts
from rerank_actor.outputs.report.rows import sample_rows
from rerank_actor.outputs.row_groups import RowGroups, SizedGroup, batch_by_size, open_part, open_runs, share_out_groups
from rerank_actor.outputs.scored import compare_fingerprints, open_scored, read_schema, require_scored
from rerank_actor.outputs.scored_columns import ScoredColumns, describe_columns
from rerank_actor.outputs.status import read_status
from rerank_actor.outputs.verify import verify_output
from rerank_actor.scoring.preflight import prepare_job
from rerank_actor.scoring.reuse import load_reused

QUERIES = {f"q{number}": f"what is {number}?" for number in range(4)}
DOCUMENTS = {f"d{number}": f"document {number}" for number in range(3)}
LOST = ("q3", "d2")  # the pair without a document
LISTS = ("document_id", "document", "label")
UNIT_ROWS = 3


def make_flat() -> list[dict[str, Any]]:
    """Return a row for each pair; the first document of each query is positive."""
    return [
        {
            "query_id": query,
            "query": QUERIES[query],
            "document_id": document,
            "document": None if (query, document) == LOST else DOCUMENTS[document],
            "label": int(document == "d0"),
        }
        for query in QUERIES
        for document in DOCUMENTS
    ]


def make_grouped() -> list[dict[str, Any]]:
    """Return a row for each query, with lists."""
    rows: dict[str, dict[str, Any]] = {}
    for pair in make_flat():
        row = rows.setdefault(pair["query_id"], {name: pair[name] for name in ("query_id", "query")})
        for name in LISTS:
            row.setdefault(name, []).append(pair[name])
    return list(rows.values())


def make_structs() -> list[dict[str, Any]]:
    """Return a row for each query, with a list of structs."""
    return [
        {**row, "document": [None if text is None else {"text": text} for text in row["document"]]}
        for row in make_grouped()
    ]


def make_ids() -> list[dict[str, Any]]:
    """Return a row for each pair with ids alone; one names a document that there is not."""
    return [
        {
            "query_id": row["query_id"],
            "document_id": "nowhere" if row["document"] is None else row["document_id"],
            "label": row["label"],
        }
        for row in make_flat()
    ]


def write_shard(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def make_job(folder: Path, rows: list[dict[str, Any]], name: str = "scored", **settings: Any) -> ScoreJob:
    shard = write_shard(folder / f"input/{name}.parquet", rows)
    values = {"input": [shard], "output": str(folder / name), "engine": "fake", "unit_rows": UNIT_ROWS}
    return ScoreJob(**{**values, "with_pair_key": True, **settings}).normalized()


def make_flat_job(folder: Path) -> ScoreJob:
    return make_job(folder, make_flat())


def make_grouped_job(folder: Path) -> ScoreJob:
    return make_job(folder, make_grouped())


def make_struct_job(folder: Path) -> ScoreJob:
    return make_job(folder, make_structs())


def make_exploded_job(folder: Path) -> ScoreJob:
    return make_job(folder, make_grouped(), explode=True, explode_columns=["document_id", "label"])


def make_renamed_job(folder: Path) -> ScoreJob:
    renamed = {"query": "question", "document": "passage", "query_id": "qid"}
    return make_job(folder, make_flat(), rename_columns=renamed)


def make_id_job(folder: Path) -> ScoreJob:
    for name, texts in (("queries", QUERIES), ("corpus", DOCUMENTS)):
        lines = [json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    sources = {"queries": [str(folder / "queries.jsonl")], "corpus": [str(folder / "corpus.jsonl")]}
    return make_job(folder, make_ids(), **sources)


JOBS: dict[str, Callable[[Path], ScoreJob]] = {
    "flat": make_flat_job,
    "grouped": make_grouped_job,
    "structs": make_struct_job,
    "exploded": make_exploded_job,
    "renamed": make_renamed_job,
    "ids": make_id_job,
}
FLAT = ScoredColumns(
    query="query",
    document="document",
    query_id="query_id",
    document_id="document_id",
    instruction=None,
    values=("score", "logit"),
    directions=(),
    keyed_logits=(("pair_key", "logit"),),
    is_grouped=False,
    documents="texts",
    is_exploded=False,
)
COLUMNS = {
    "flat": FLAT,
    "grouped": replace(FLAT, is_grouped=True),
    "structs": replace(FLAT, is_grouped=True, documents="structs"),
    "exploded": replace(FLAT, is_exploded=True),
    "renamed": replace(FLAT, query="question", document="passage", query_id="qid"),
    "ids": replace(FLAT, documents="ids"),
}


@pytest.fixture(params=JOBS)
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def output(shape: str, tmp_path: Path) -> Path:
    """An output of each shape, of the same pairs and so of the same logits."""
    job = JOBS[shape](tmp_path)
    score_here(job)
    return Path(job.output)


def read_logits(folder: Path) -> dict[tuple[str, str], float]:
    """Return the logit of each scored pair by its texts, from the flat output of the same pairs."""
    score_here(make_flat_job(folder))
    rows = read_output(folder / "scored").to_pylist()
    return {(row["query"], row["document"]): row["logit"] for row in rows if row["logit"] is not None}


@pytest.fixture
def logits(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], float]:
    return read_logits(tmp_path_factory.mktemp("flat"))


def make_mine_job(*scored: Path, output: Path, **values: Any) -> MineJob:
    given = {"scored": [str(uri) for uri in scored], "output": str(output), "label_column": "label", "num_negatives": 1}
    return check_job(MineJob, {**given, "teacher": "logit", **values}).normalized()


def read_for_mining(job: MineJob) -> tuple[dict[tuple[str, str], float], int, int]:
    """Return the logits of the pairs that are mined, how many have none, and how many are positive."""
    scored = load_with_lookups(job)
    groups = [
        SizedGroup(number, group, 1, 1)
        for number, part in enumerate(scored.parts)
        for group in range(count_groups(part))
    ]
    logits: dict[tuple[str, str], float] = {}
    unscored = positives = 0
    for unit in share_out_groups(groups, 2):
        for file, uri, numbers, start in open_runs(unit, scored.parts):
            pairs = read_pairs(file, uri, numbers, scored.columns, TEXT_ROLES, start)
            rows = pairs.table.to_pylist()
            logits |= {(row["query"], row["document"]): row["logit"] for row in rows}
            unscored += pairs.unscored
            positives += sum(row["positive"] for row in rows)
    return logits, unscored, positives


def count_groups(part: Any) -> int:
    with open_part(part) as file:
        return int(file.metadata.num_row_groups)


def test_columns_are_described_as_the_job_wrote_them(shape: str, output: Path) -> None:
    scored = open_scored(str(output))
    assert not scored.missing
    assert {describe_columns(scored.settings, read_schema(part)) for part in scored.parts} == {COLUMNS[shape]}


def test_parts_are_complete_sound_and_counted(shape: str, output: Path) -> None:
    scored = require_scored(str(output))
    assert [part.uri.rpartition("/")[2] for part in scored.parts] == [unit.part_name for unit in scored.units]
    assert scored.rows_by_part == tuple(unit.num_rows for unit in scored.plan.units())
    found = verify_output(str(output))
    assert (found.problems, found.scored) == ([], 11)
    status = read_status(str(output))
    assert (status.state, status.committed_units) == ("complete", scored.num_planned)
    rows = sample_rows(gather_facts(str(output)))
    assert len(rows.scored) == 11
    assert sum(map(len, rows.errors.values())) == 1


def test_mining_reads_the_texts_that_were_scored(
    output: Path, logits: dict[tuple[str, str], float], tmp_path: Path
) -> None:
    job = make_mine_job(output, output=tmp_path / "mined")
    assert read_for_mining(job) == (logits, 1, 4)


def test_export_writes_the_logits_of_all_pairs(
    output: Path, logits: dict[tuple[str, str], float], tmp_path: Path
) -> None:
    target = tmp_path / "ranking.tsv"
    result = export_scores(ExportSpec(str(output), "tevatron", str(target), space="logit"))
    assert (result.candidates, result.unscored) == (11, 1)
    lines = [line.split("\t") for line in target.read_text().splitlines()]
    exported = {(QUERIES[query], DOCUMENTS[document]): float(logit) for query, document, logit in lines}
    assert exported == pytest.approx(logits)


def test_reuse_reads_the_logits_of_all_pairs(
    output: Path, logits: dict[tuple[str, str], float], tmp_path: Path
) -> None:
    source = load_reused(str(output), prepare_job(make_job(tmp_path, make_flat(), "other")).settings)
    *tables, told = [item for piece in source.cut() for item in source.read(piece)]
    assert told == {"rows": 11}
    keys = {key for table in tables for key in table["key"].to_pylist()}
    assert len(keys) == 11
    assert sorted(value for table in tables for value in table["logit"].to_pylist()) == sorted(logits.values())


# Directions.


def make_translations(folder: Path, direction: str = "both") -> Path:
    """Score translation pairs as the bitext job does; returns the folder of all language pairs."""
    rows = [
        {"source": f"Satz {number}", "target": f"line {number}", REASON_COLUMN: "empty source" if number == 4 else None}
        for number in range(5)
    ]
    write_shard(folder / "candidates/pairs.parquet", rows)
    values = {"input": [str(folder / "candidates")], "output": str(folder / "out"), "lang_pair": "deu-eng"}
    job = check_job(
        BitextJob, {**values, "engine": "fake", "unit_rows": 2, "direction": direction, "with_pair_key": True}
    )
    scoring = job.to_scoring(
        parse_pair("deu-eng", {}, ""), str(folder / "candidates"), str(folder / "out/lang_pair=deu-eng")
    )
    score_here(scoring.normalized())
    return folder / "out"


def make_select_job(folder: Path, **values: Any) -> SelectJob:
    return check_job(SelectJob, {"scored": [str(folder)], "deliver": str(folder.parent / "selected"), **values})


def test_directions_are_described_selected_from_and_reused(tmp_path: Path) -> None:
    folder = make_translations(tmp_path)
    scored = require_scored(str(folder / "lang_pair=deu-eng"))
    columns = describe_columns(scored.settings, read_schema(scored.parts[0]))
    assert columns.directions == (FORWARD, BACKWARD)
    assert columns.keyed_logits == (("forward_pair_key", "forward_logit"), ("backward_pair_key", "backward_logit"))
    assert (columns.query, columns.document, columns.is_grouped) == ("source", "target", False)

    rows = read_output(folder / "lang_pair=deu-eng").to_pylist()
    job = make_select_job(folder)
    (pair,) = load_translations(job, [str(folder)]).values()
    assert (pair.num_rows, pair.parts) == (5, scored.parts)
    names = name_columns(job, read_schema(pair.parts[0]), "")
    hashed, counts = read_translations(0, pair.units[0], pair.parts, names, job.rules(), None)
    assert (len(pair.units), counts.rows, counts.reasons.total()) == (1, 5, 1)
    assert hashed is not None
    for direction in (FORWARD, BACKWARD):
        logits = [row[f"{direction}_logit"] for row in rows if row["logit"] is not None]
        assert sorted(getattr(hashed, direction).tolist()) == sorted(logits)

    source = load_reused(scored.uri, scored.settings)
    assert [item for piece in source.cut() for item in source.read(piece)][-1] == {"rows": 8}
    assert verify_output(scored.uri).problems == []
    mined = load_scored(
        make_mine_job(Path(scored.uri), output=tmp_path / "mined", label_column=None, min_positive_score=0.5)
    )
    texts = mined.columns.texts
    assert (texts.query, texts.document, mined.prompt) == ("source", "target", None)


def test_one_direction_is_described_alone_and_the_other_refused(tmp_path: Path) -> None:
    folder = make_translations(tmp_path, "forward")
    part = require_scored(str(folder / "lang_pair=deu-eng")).parts[0]
    assert describe_columns({}, read_schema(part)).directions == (FORWARD,)
    with pytest.raises(InputError, match="was scored forward alone, so that --direction backward"):
        name_columns(make_select_job(folder, direction="backward"), read_schema(part), part.uri)


# Which parts.


def make_shards(folder: Path, **settings: Any) -> ScoreJob:
    """Return a job over several shards, whose parts are named in another order than they are planned in."""
    rows = make_flat()
    for number in range(6):
        write_shard(folder / f"shards/{number}.parquet", rows[2 * number : 2 * number + 2])
    return make_job(folder, rows, input=[str(folder / "shards")], **settings)


def list_uris(parts: Any) -> list[str]:
    return [part.uri for part in parts]


def test_parts_stand_in_the_order_of_the_plan(tmp_path: Path) -> None:
    job = make_shards(tmp_path)
    score_here(job)
    scored = open_scored(job.output)
    assert [unit.uri for unit in scored.units] == [str(tmp_path / f"shards/{number}.parquet") for number in range(6)]
    assert list_uris(scored.parts) != sorted(list_uris(scored.parts))
    assert load_scored(make_mine_job(Path(job.output), output=tmp_path / "mined")).parts == scored.parts
    assert load_reused(job.output, scored.settings).parts == scored.parts


def test_incomplete_output_is_refused_by_who_needs_all_of_it_and_counted_by_the_others(tmp_path: Path) -> None:
    job = make_shards(tmp_path)
    score_here(job)
    folder = Path(job.output)
    lost = open_scored(job.output).units[2]
    (folder / lost.part_name).unlink()
    scored = open_scored(job.output)
    assert (scored.missing, scored.num_planned, len(scored.parts)) == ((lost,), 6, 5)

    with pytest.raises(InputError) as error:
        load_scored(make_mine_job(folder, output=tmp_path / "mined"))
    assert str(error.value) == (
        f"--scored {folder}: 1 of 6 parts are not scored yet; run jobs.score to the end, or give --allow-incomplete to mine "
        "what is there"
    )
    allowed = make_mine_job(folder, output=tmp_path / "mined", allow_incomplete=True)
    assert load_scored(allowed).parts == scored.parts
    (folder / "_SUCCESS").unlink()
    with pytest.raises(InputError, match="is not complete"):
        export_scores(ExportSpec(job.output, "tevatron", str(tmp_path / "x")))
    exported = export_scores(ExportSpec(job.output, "tevatron", str(tmp_path / "x"), partial=True))
    assert (exported.candidates, exported.unscored) == (9, 1)
    assert load_reused(job.output, scored.settings).parts == scored.parts
    assert read_status(job.output).state == "stopped"
    assert verify_output(job.output).problems == [
        f"{lost.part_name}: missing (rows 0 to 2 of {lost.uri}); run the job again"
    ]
    for part in scored.parts:
        Path(part.uri).unlink()
    with pytest.raises(InputError, match=r"nothing is scored there yet; run jobs\.score first"):
        load_scored(allowed)


def test_incomplete_language_pair_is_refused_unless_allowed(tmp_path: Path) -> None:
    folder = make_translations(tmp_path)
    scored = require_scored(str(folder / "lang_pair=deu-eng"))
    Path(scored.parts[0].uri).unlink()
    with pytest.raises(InputError) as error:
        load_translations(make_select_job(folder), [str(folder)])
    assert str(error.value) == (
        f"{scored.uri}: 1 of 3 parts are not scored yet; score to the end, or give --allow-incomplete to select from what is "
        "there"
    )
    (pair,) = load_translations(make_select_job(folder, allow_incomplete=True), [str(folder)]).values()
    assert (pair.parts, pair.num_rows) == (scored.parts[1:], 5 - scored.units[0].num_rows)


def test_parts_that_are_in_no_plan_are_read_by_nobody(tmp_path: Path) -> None:
    job = make_shards(tmp_path)
    score_here(job)
    folder = Path(job.output)
    before = open_scored(job.output)
    shutil.copy(before.parts[0].uri, folder / "part-stray-00000.parquet")
    scored = open_scored(job.output)
    assert (scored.parts, scored.strays) == (before.parts, ("part-stray-00000.parquet",))
    assert load_scored(make_mine_job(folder, output=tmp_path / "mined")).parts == before.parts
    assert load_reused(job.output, scored.settings).parts == before.parts
    exported = export_scores(ExportSpec(job.output, "tevatron", str(tmp_path / "x")))
    assert (exported.candidates, exported.doubled) == (11, 0)
    assert read_status(job.output).committed_rows == 12
    assert verify_output(job.output).problems == [
        "part-stray-00000.parquet: in no plan, though whoever reads the folder reads it; move or delete it"
    ]


def test_part_with_other_rows_than_planned_is_read_as_it_is_and_told_by_verify(tmp_path: Path) -> None:
    job = make_shards(tmp_path)
    score_here(job)
    scored = open_scored(job.output)
    table = pq.read_table(scored.parts[0].uri)
    pq.write_table(table.slice(1), scored.parts[0].uri, write_page_checksum=True)
    assert open_scored(job.output).rows_by_part == (2,) * 6
    (problem,) = verify_output(job.output).problems
    assert problem == f"{scored.units[0].part_name}: has 1 rows, the plan 2; run the job again"
    logits, unscored, positives = read_for_mining(make_mine_job(Path(job.output), output=tmp_path / "mined"))
    assert (len(logits), unscored, positives) == (10, 1, 3)


# What they were scored with.


def test_outputs_of_two_fingerprints_are_refused_with_what_differs(tmp_path: Path) -> None:
    jobs = [make_job(tmp_path, make_flat(), name, instruction=name) for name in ("first", "second")]
    for job in jobs:
        score_here(job)
    folders = [Path(job.output) for job in jobs]
    with pytest.raises(InputError) as error:
        load_scored(make_mine_job(*folders, output=tmp_path / "mined"))
    assert str(error.value) == (
        f"--scored {folders[0]} and {folders[1]} have different fingerprints, so that their scores may not be comparable "
        "(instruction: 'first' and 'second'); mine them apart, or give --allow-mixed-scores"
    )
    mixed = load_scored(make_mine_job(*folders, output=tmp_path / "mined", allow_mixed_scores=True))
    assert mixed.parts == open_scored(str(folders[0])).parts + open_scored(str(folders[1])).parts
    with pytest.raises(OutputConflictError, match="instruction: there 'first', now 'second'"):
        load_reused(str(folders[0]), open_scored(str(folders[1])).settings)


def test_files_of_two_fingerprints_are_refused_by_name() -> None:
    compare_fingerprints({"f": "a.parquet"}, "--scored", "part them")
    with pytest.raises(InputError) as error:
        compare_fingerprints({"f": "a.parquet", None: "b.parquet"}, "--scored", "part them")
    assert str(error.value) == (
        "--scored: b.parquet has the fingerprint None, a.parquet has f, so that their scores may not be comparable; part them"
    )


# Bare Parquet.


def test_bare_parquet_is_taken_by_names_and_has_no_settings(
    tmp_path: Path, logits: dict[tuple[str, str], float]
) -> None:
    job = make_shards(tmp_path)
    score_here(job)
    bare = tmp_path / "bare"
    bare.mkdir()
    for number, part in enumerate(open_scored(job.output).parts):
        shutil.copy(part.uri, bare / f"{number}.parquet")
    (bare / "notes.txt").write_text("of no use")
    (bare / "empty.parquet").touch()
    scored = open_scored(str(bare))
    assert list_uris(scored.parts) == [str(bare / f"{number}.parquet") for number in range(6)]
    assert scored.strays == (str(bare / "empty.parquet"), str(bare / "notes.txt"))
    assert (scored.settings, scored.num_planned, scored.rows_by_part) == ({}, 0, (None,) * 6)
    assert open_scored(str(bare / "1.parquet")).parts == scored.parts[1:2]
    assert read_for_mining(make_mine_job(bare, output=tmp_path / "mined")) == (logits, 1, 4)
    with pytest.raises(InputError, match="no job has written here"):
        require_scored(str(bare))
    with pytest.raises(JobError) as error:
        load_scored(make_mine_job(bare / "*.txt", output=tmp_path / "mined"))
    expected = "1 objects, no Parquet file among them; it takes outputs of jobs.score and Parquet files"
    assert str(error.value) == f"--scored {bare}/*.txt: {expected}"
    with pytest.raises(JobError) as error:
        load_scored(make_mine_job(bare / "notes.txt", output=tmp_path / "mined"))
    assert str(error.value) == f"--scored {bare}/notes.txt: {expected}"
    with pytest.raises(InputError, match="holds no scored parts"):
        export_scores(ExportSpec(str(bare), "tevatron"))


# Row groups.


def test_row_groups_are_shared_out_by_their_bytes_and_keep_their_positions() -> None:
    groups = [SizedGroup(0, 0, 5, 4), SizedGroup(0, 1, 5, 4), SizedGroup(0, 2, 5, 4), SizedGroup(1, None, 7, 9)]
    assert share_out_groups([*groups, SizedGroup(2, 0, 1, 0)], 8) == [
        (RowGroups(0, (0, 1), 0),),
        (RowGroups(0, (2,), 10),),
        (RowGroups(1, None, 15),),
        (RowGroups(2, (0,), 22),),
    ]
    assert share_out_groups([], 8) == []
    assert batch_by_size(range(5), lambda _: 1, 100, 2) == [[0, 1], [2, 3], [4]]


def test_score_that_is_no_sigmoid_of_the_logit_is_not_taken_for_one() -> None:
    plain = pa.schema(
        [("query", TEXT := pa.string()), ("document", TEXT), ("score", pa.float32()), ("logit", pa.float32())]
    )
    describe_columns({}, plain).refuse_scaled("out", "--space probability", "give --space logit")
    metadata = {"rerank_actor.score_scale": "5.0", "rerank_actor.score_shift": "0.0"}
    with pytest.raises(
        InputError, match=r"^out: its score is the sigmoid of \(logit - 0\) / 5, and --space probability"
    ):
        describe_columns({}, plain.with_metadata(metadata)).refuse_scaled(
            "out", "--space probability", "give --space logit"
        )
