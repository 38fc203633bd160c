"""Bitext: candidates of all formats, scored in both directions, a folder for each language pair, and on again."""

import gzip
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from commands import read_output

from rerank_actor import Reranker
from rerank_actor.bitext.filters import CandidateFilters, CharacterCounter, compute_reasons
from rerank_actor.bitext.ingest import ReadSpec, ShardSize, name_record, read_candidates
from rerank_actor.bitext.job import BitextJob
from rerank_actor.bitext.language_pairs import parse_pair
from rerank_actor.bitext.sources import choose_partitions, list_sources
from rerank_actor.commands.bitext import bitext
from rerank_actor.errors import InputError, JobError, OutputConflictError
from rerank_actor.inputs.rows import ReadLimits
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.part import check_part
from rerank_actor.outputs.verify import verify_output

PAIRS = [("Guten Morgen allerseits.", "Good morning everyone."), ("Das ist ein Haus.", "This is a house.")]


def make_job(tmp_path: Path, *inputs: Path, **values: Any) -> BitextJob:
    return BitextJob(
        input=[str(one) for one in inputs], output=str(tmp_path / "out"), engine="fake", **values
    ).normalized()


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read_all(job: BitextJob, folder: Path, **bounds: Any) -> list[dict[str, Any]]:
    for source in list_sources(job):
        read_candidates(source, replace(ReadSpec.of_job(job, str(folder)), **bounds))
    tables = [pq.ParquetFile(path).read().to_pylist() for path in sorted(folder.glob("lang_pair=*/*.bin"))]
    return [row for table in tables for row in table]


def test_worker_with_a_language_identifier_goes_by_the_rules_of_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    job = make_job(tmp_path, write(tmp_path / "c.deu-eng.tsv", "Guten Tag, Welt\tGood day, world\n"), format="pairs")
    spec = ReadSpec.of_job(job, str(tmp_path / "read"))
    site = tmp_path / "site"  # of a worker where one is installed, to which all is English
    write(site / "py3langid.py", "def classify(text):\n    return 'en', 1.0\n")
    write(site / "py3langid-0.3.dist-info/METADATA", "Metadata-Version: 2.1\nName: py3langid\nVersion: 0.3\n")
    monkeypatch.syspath_prepend(site)
    request.addfinalizer(lambda: sys.modules.pop("py3langid", None))
    assert (job.rules().identifier, job.rules().identifier_version) == ("py3langid", "0.3")
    [source] = list_sources(job)
    record = read_candidates(source, spec)
    assert (record["reasons"], record["settings"]) == ({}, spec.settings)
    record = read_candidates(source, replace(spec, rules=job.rules()))
    assert list(record["reasons"]) == ["wrong language"]


def write_format(kind: str, folder: Path) -> list[Path]:
    name = folder / "c.deu-eng"
    lines = ["\t".join(pair) + "\n" for pair in PAIRS]
    if kind == "pairs":
        return [write(name.with_suffix(".deu-eng.tsv"), "".join(lines))]
    if kind == "laser":
        return [write(name.with_suffix(".deu-eng.tsv.gz"), "".join(f"1.25\t{line}" for line in lines))]
    if kind == "tsv":
        return [write(name.with_suffix(".deu-eng.tsv"), "source\ttarget\n" + "".join(lines))]
    if kind == "moses":
        sides = ["".join(pair[side] + "\n" for pair in PAIRS) for side in (0, 1)]
        return [write(folder / f"c.deu-eng.{code}", text) for code, text in zip(("deu", "eng"), sides, strict=True)]
    rows = [{"source": a, "target": b, "score": 0.5} for a, b in PAIRS]
    path = folder / f"lang_pair=deu-eng/c.{kind}"
    path.parent.mkdir(parents=True)
    if kind == "jsonl":
        return [write(path, "".join(json.dumps(row) + "\n" for row in rows))]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return [path]


@pytest.mark.parametrize("kind", ["pairs", "laser", "tsv", "moses", "jsonl", "parquet"])
def test_candidates_are_the_same_in_every_format(tmp_path: Path, kind: str) -> None:
    files = write_format(kind, tmp_path / "in")
    rows = read_all(make_job(tmp_path, *files), tmp_path / "read")
    assert [(row["source"], row["target"]) for row in rows] == PAIRS
    assert all(row["dropped"] is None for row in rows)
    first = 2 if kind == "tsv" else 1
    assert [row["input_line"] for row in rows] == [first, first + 1]
    expected = {"laser": 1.25, "jsonl": 0.5, "parquet": 0.5}.get(kind)
    assert rows[0].get("candidate_score") == expected


def test_moses_sides_of_other_lengths_are_refused_with_file_and_line(tmp_path: Path) -> None:
    files = [write(tmp_path / "in/c.deu-eng.deu", "a\nb\nc\n"), write(tmp_path / "in/c.deu-eng.eng", "x\ny\n")]
    with pytest.raises(InputError, match=r"c\.deu-eng\.deu, line 3: has no partner"):
        read_all(make_job(tmp_path, *files), tmp_path / "read")


def test_language_columns_part_the_rows_and_unknown_codes_are_refused(tmp_path: Path) -> None:
    rows = [("deu", "eng", *PAIRS[0]), ("fra", "eng", "Bonjour à tous.", "Hello everyone.")]
    header = "source_language\ttarget_language\tsource\ttarget\n"
    path = write(tmp_path / "in/c.tsv", header + "".join("\t".join(row) + "\n" for row in rows))
    assert len(read_all(make_job(tmp_path, path), tmp_path / "read")) == 2
    assert sorted(one.name for one in (tmp_path / "read").glob("lang_pair=*")) == [
        "lang_pair=deu-eng",
        "lang_pair=fra-eng",
    ]
    write(path, header + "\t".join(rows[0]) + "\nzzx\teng\ta\tb\n")
    with pytest.raises(InputError, match=r"c\.tsv, line 3: language code `zzx` is unknown"):
        read_all(make_job(tmp_path, path), tmp_path / "again")


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("Das ist gut.", "This is good.", None),
        ("", "This is good.", "source is empty"),
        ("Das ist gut.", " \u200b\u3000", "target is empty"),
        ("Amen.", "Amen.", "sides are identical"),
        ("Ja", "y" * 19, "lengths differ too much"),
        ("12:30 - 14:45", "half past", "mostly punctuation or digits"),
        ("Это хорошо", "This is good", "wrong script"),
        ("Das ist gut 🎉", "This \uff49\uff53 good", None),
        ("Zwei\tTabs\nund Zeilen", "Two tabs and lines", None),
    ],
)
def test_rules_give_the_first_reason_that_holds(source: str, target: str, reason: str | None) -> None:
    pair = parse_pair("deu-eng", {}, "here")
    rules = CandidateFilters(identifier="none")
    assert compute_reasons(pa.array([source]), pa.array([target]), pair, rules).to_pylist() == [reason]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("hin", "नमस्ते दुनिया"),
        ("ara", "كان سامي يريد المال فقط"),
        ("jpn", "これはペンです"),
        ("tha", "นี่คือปากกา"),
        ("zho", "这是一支笔"),
    ],
)
def test_scripts_with_marks_and_without_spaces_pass(code: str, text: str) -> None:
    pair = parse_pair(f"{code}-eng", {}, "here")
    rules = CandidateFilters(identifier="none")
    assert compute_reasons(pa.array([text]), pa.array(["This is a pen"]), pair, rules).to_pylist() == [None]


def test_partitions_are_named_by_glob_and_range() -> None:
    present = ["fra-eng", "ara-eng", "deu-eng", "deu-fra"]
    assert choose_partitions([], present) == sorted(present)
    assert choose_partitions(["deu-*"], present) == ["deu-eng", "deu-fra"]
    assert choose_partitions(["ara-eng:deu-eng", "fra-eng"], present) == ["ara-eng", "deu-eng", "fra-eng"]
    with pytest.raises(JobError, match="no such language pair"):
        choose_partitions(["xxx-*"], present)


def test_job_scores_both_directions_resumes_and_adds_a_partition(tmp_path: Path, local_ray: str) -> None:
    first = write(tmp_path / "in/a.deu-eng.tsv", "".join(f"{a}\t{b}\n" for a, b in PAIRS) + "Nur hier\t\n")
    flags = ["--output", str(tmp_path / "out"), "--engine", "fake", "--identifier", "none"]
    assert bitext(["--input", str(first), *flags]) == 0
    folder = tmp_path / "out/lang_pair=deu-eng"
    table = read_output(folder)
    assert table["error"].to_pylist() == [None, None, "target is empty"]
    for direction, names, pairs in (
        ("forward", ("German", "English"), PAIRS),
        ("backward", ("English", "German"), [(b, a) for a, b in PAIRS]),
    ):
        instruction = f"Given a sentence in {names[0]}, retrieve its translation in {names[1]}"
        expected = Reranker(engine="fake").logits(pairs, instruction=instruction)
        assert table[f"{direction}_logit"].to_pylist() == [*expected.tolist(), None]
    both = np.array([table[f"{one}_logit"].to_pylist()[:2] for one in ("forward", "backward")])
    assert table["logit"].to_pylist()[:2] == both.mean(axis=0).astype(np.float32).tolist()
    found = verify_output(str(folder))
    assert (found.problems, found.scored, found.errors) == ([], 4, 1)

    part = next(folder.glob("part-*"))
    unit = next(Output(str(folder)).require_plan()[0].units())
    sound = pq.read_table(part)
    for name, problem in (("backward_score", "backward scores that are not the sigmoid"), ("forward_logit", "sigmoid")):
        place = sound.schema.get_field_index(name)
        other = sound.set_column(place, name, pa.array([0.25, 0.25, None], pa.float32()))
        sink = io.BytesIO()
        pq.write_table(other, sink)
        fingerprint = sound.schema.metadata[b"rerank_actor.fingerprint"].decode()
        assert problem in str(check_part(unit, sink.getvalue(), fingerprint).problem)

    before = {path: path.stat().st_mtime_ns for path in folder.glob("part-*")}
    second = write(tmp_path / "in/b.fra-eng.tsv", "Bonjour à tous.\tHello everyone.\n")
    assert bitext(["--input", str(first), str(second), *flags]) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("part-*")} == before
    assert read_output(tmp_path / "out/lang_pair=fra-eng").num_rows == 1

    with pytest.raises(OutputConflictError, match="other columns or rules"):
        bitext(["--input", str(first), *flags, "--min-letters", "0.9"])
    with pytest.raises(OutputConflictError, match="belongs to another job"):
        bitext(["--input", str(first), *flags, "--preset", "parallel"])
    write(first, "Etwas anderes.\tSomething else.\n")
    with pytest.raises(OutputConflictError, match="changed since its candidates were read"):
        bitext(["--input", str(first), *flags])


def test_one_direction_is_scored_alone(tmp_path: Path, local_ray: str) -> None:
    path = write(tmp_path / "in/a.deu-eng.tsv", "".join(f"{a}\t{b}\n" for a, b in PAIRS))
    flags = ["--input", str(path), "--output", str(tmp_path / "out"), "--engine", "fake", "--identifier", "none"]
    assert bitext([*flags, "--direction", "backward"]) == 0
    table = read_output(tmp_path / "out/lang_pair=deu-eng")
    assert "forward_logit" not in table.column_names
    assert table["logit"].to_pylist() == table["backward_logit"].to_pylist()


def test_characters_are_counted_as_a_match_counts_them() -> None:
    texts = [
        "",
        "Ünï 12, x\u0301!",
        "これはペン",
        "",
        "नमस्ते\u200d",
        "a\tb\u2028c\x85",
        "👨\u200d👩",
        "\U00020000\u0645\u0640",
        "",
    ]
    column = pa.array(["outside", *texts, "outside too"]).slice(1, len(texts))
    classes = (r"[\p{L}\p{M}]", r"[^\s\p{Z}]", r"[\p{Han}\p{Hiragana}]|\p{Inherited}", r"[^\s\p{Z}\p{C}]")
    counter = CharacterCounter(*classes)
    for _ in range(2):  # what is new, and what was looked up before
        for pattern, found in zip(classes, counter.count(column), strict=True):
            assert found.tolist() == pc.count_substring_regex(column, pattern).to_pylist()
    assert [found.tolist() for found in counter.count(pa.array([], pa.string()))] == [[]] * 4


@pytest.mark.parametrize("flags", [{}, {"source_id_column": "number"}])
def test_ids_are_kept_as_text_under_their_own_names(tmp_path: Path, flags: dict[str, str]) -> None:
    name = flags.get("source_id_column", "source_id")
    path = tmp_path / "in/deu-eng.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"source": ["Guten Tag"], "target": ["Good day"], name: [7], "target_id": ["t"]}), path)
    [row] = read_all(make_job(tmp_path, path, identifier="none", **flags), tmp_path / "read")
    assert (row["source_id"], row["target_id"]) == ("7", "t")
    assert "number" not in row


def test_rows_that_rules_drop_are_no_errors_that_stop_a_run(tmp_path: Path) -> None:
    job = make_job(tmp_path, tmp_path / "in").to_scoring(parse_pair("deu-eng", {}, "here"), "in", "out")
    assert job.directions().count_errors({"sides are identical": 7, "wrong script": 2}) == 0
    assert (
        job.directions().count_errors({"not valid Unicode": 3, "forward: query does not fit": 2, "wrong script": 2})
        == 5
    )


def test_broken_rows_without_languages_are_errors_of_the_first_pair_of_the_file(tmp_path: Path) -> None:
    rows = [{"source": a, "target": b, "source_language": "de", "target_language": "en"} for a, b in PAIRS]
    rows[1]["source_language"] = "fr"
    broken = '{"source": "Hallo", "tar'
    lines = [broken, json.dumps(rows[0]), broken, *[json.dumps(rows[1])] * 3, broken]
    path = write(tmp_path / "in/c.jsonl", "\n".join(lines) + "\n")
    found = read_all(make_job(tmp_path, path, identifier="none"), tmp_path / "read", limits=ReadLimits(batch_rows=3))
    of_first = [row for row in found if row["dropped"] is not None]
    assert [row["input_line"] for row in of_first] == [1, 3, 7]
    assert len(found) == 7
    assert pq.ParquetFile(next((tmp_path / "read/lang_pair=de-en").iterdir())).metadata.num_rows == 4
    write(path, json.dumps({**rows[0], "source_language": None}))
    with pytest.raises(InputError, match="language code `None` is unknown"):
        read_all(make_job(tmp_path, path, identifier="none"), tmp_path / "again")


def test_file_with_rows_of_many_languages_is_read_in_bounded_memory(tmp_path: Path) -> None:
    codes = ["deu", "fra", "spa", "ita"]
    rows = [f"{codes[i * i % 4]}\teng\tsource {i}\ttarget {i}\n" for i in range(300)]
    path = write(tmp_path / "in/c.tsv", "source_language\ttarget_language\tsource\ttarget\n" + "".join(rows))
    bounds = {"limits": ReadLimits(batch_rows=8), "size": ShardSize(1000, held_rows=40)}
    found = read_all(make_job(tmp_path, path, identifier="none"), tmp_path / "read", **bounds)
    assert sorted(row["input_line"] for row in found) == list(range(2, 302))
    assert all(row["source"] == f"source {row['input_line'] - 2}" for row in found)
    shards = [pq.read_metadata(shard).num_rows for shard in (tmp_path / "read").glob("lang_pair=*/*.bin")]
    assert max(shards) <= 40
    assert len(shards) >= 300 // 40


def test_shards_of_a_file_that_was_read_half_are_not_scored(tmp_path: Path, local_ray: str) -> None:
    path = write(tmp_path / "in/a.deu-eng.tsv", "Guten Morgen\tGood morning\n")
    output = tmp_path / "out"
    [source] = list_sources(make_job(tmp_path, path))
    stale = output / f"_candidates/lang_pair=deu-eng/{name_record(source)}-00001.bin"
    write(stale, "what a killed run left of a longer file")
    assert bitext(["--input", str(path), "--output", str(output), "--engine", "fake", "--identifier", "none"]) == 0
    assert not stale.exists()
    assert read_output(output / "lang_pair=deu-eng").num_rows == 1


@pytest.mark.parametrize("glob", ["", "/*/*/*"])
def test_columns_of_folders_are_kept_beside_those_of_languages(tmp_path: Path, glob: str) -> None:
    row = json.dumps(dict(zip(("source", "target"), PAIRS[0], strict=True)))
    for domain in ("news", "w%2Fb"):
        write(tmp_path / f"in/lang_pair=deu-eng/domain={domain}/x.jsonl", row)
    rows = read_all(make_job(tmp_path, Path(f"{tmp_path}/in{glob}")), tmp_path / "read")
    assert sorted(row["domain"] for row in rows) == ["news", "w/b"]
    assert "lang_pair" not in rows[0]
    rows = read_all(make_job(tmp_path, tmp_path / "in", drop_columns=["domain"]), tmp_path / "dropped")
    assert [row.get("domain") for row in rows] == [None, None]
