"""The bitext job over several language pairs: engines shared, partitions apart, ended and gone on with, in S3, reused."""

import csv
import gzip
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from commands import ROOT, read_output, wait_until
from s3_server import S3Server

from rerank_actor.bitext.estimate import estimate_bitext
from rerank_actor.bitext.job import BitextJob
from rerank_actor.bitext.run import score_bitext
from rerank_actor.bitext.selection.calibration import trace_curve
from rerank_actor.commands.bitext import bitext
from rerank_actor.commands.command_line import call_command
from rerank_actor.commands.status import status
from rerank_actor.commands.verify import verify
from rerank_actor.errors import InputError, JobError, OutputConflictError
from rerank_actor.outputs.folder import Output
from rerank_actor.outputs.verify import verify_output
from rerank_actor.storage.lease import hold_lease

LANGUAGES = ("ara", "deu", "fra")
COMMON = ("--engine", "fake", "--identifier", "none", "--min-script", "0", "--min-letters", "0")
COMMON_FIELDS: dict[str, Any] = {"engine": "fake", "identifier": "none", "min_script": 0, "min_letters": 0}


def write_pairs(folder: Path, language: str, start: int, end: int) -> Path:
    path = folder / f"{language}-eng.{start}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"Satz {i} {language}\tsentence {i}\n" for i in range(start, end)))
    return path


def read_manifest(output: Path, language: str) -> dict[str, Any]:
    return json.loads((output / f"lang_pair={language}-eng/_job/manifest.json").read_text())


def list_marks(output: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in output.glob("lang_pair=*/part-*.parquet")}


def test_partitions_share_engines_and_are_planned_and_finished_each_on_its_own(
    tmp_path: Path, local_ray: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    for language in LANGUAGES:
        write_pairs(tmp_path / "in", language, 0, 30)
    flags = ["--input", str(tmp_path / "in"), "--output", str(output), "--unit-rows", "10", *COMMON]
    notices = tmp_path / "notices"
    notice = ["--on-finish", f'echo "$RERANK_STATUS $RERANK_OUTPUT $RERANK_MESSAGE" >> {notices}']
    assert bitext([*flags, "--partitions", "ara-eng:deu-eng", *notice]) == 0
    assert notices.read_text() == f"complete {output} complete, 60 rows, 0 units failed\n", "one for the whole run"
    engines = [read_manifest(output, language)["engines"] for language in ("ara", "deu")]
    assert engines[0] == engines[1]
    assert len(engines[0]) == 1, "one engine for both partitions"
    assert not (output / "lang_pair=fra-eng").exists()
    folder = output / "lang_pair=deu-eng"
    assert (folder / "_SUCCESS").exists()
    first = read_output(folder)
    assert read_manifest(output, "deu")["fingerprint"] != read_manifest(output, "ara")["fingerprint"]

    # A third that is new, one that lost a part, one that lacks nothing: an engine for all that is to be done.
    before = list_marks(output)
    lost = sorted(folder.glob("part-*.parquet"))[1]
    lost.unlink()
    assert bitext(flags) == 0
    manifests = {language: read_manifest(output, language) for language in LANGUAGES}
    assert [manifests[language]["runs"][-1]["units"] for language in LANGUAGES] == [0, 1, 3]
    assert manifests["deu"]["engines"] == manifests["fra"]["engines"] != engines[0]
    assert len(manifests["fra"]["engines"]) == 1
    after = list_marks(output)
    assert {path for path in before if before[path] != after[path]} == {str(lost)}
    assert read_output(folder).equals(first)
    for language in LANGUAGES:
        found = verify_output(str(output / f"lang_pair={language}-eng"))
        assert (found.problems, found.rows, found.scored) == ([], 30, 60)

    assert verify([str(output)]) == 0
    capsys.readouterr()
    assert status([str(output), "--json"]) == 0
    assert [(one["state"], one["committed_rows"]) for one in json.loads(capsys.readouterr().out)] == [
        ("complete", 30)
    ] * 3
    lost.unlink()
    assert verify([str(output)]) == 1
    assert status([str(output)]) == 0
    assert re.search(r"lang_pair=deu-eng \W+ stopped +\W+ 20 +\W+ 30", capsys.readouterr().out)

    # What one set of engines costs is shared out among the partitions that had it.
    seconds = [manifests[language]["runs"][-1]["actor_seconds"] for language in LANGUAGES]
    assert seconds[0] == 0 < min(seconds[1:])


def test_partition_of_another_job_is_refused_before_any_is_scored(tmp_path: Path, local_ray: str) -> None:
    output = tmp_path / "out"
    flags = ["--output", str(output), *COMMON]
    assert bitext(["--input", str(write_pairs(tmp_path / "in", "fra", 0, 5)), *flags]) == 0
    write_pairs(tmp_path / "in", "deu", 0, 5)
    call = call_command(lambda: bitext(["--input", str(tmp_path / "in"), *flags, "--preset", "parallel"]))
    assert call == 3
    assert not (output / "lang_pair=deu-eng/_job").exists()


@pytest.mark.parametrize("held", ["lang_pair=deu-eng", "_known/lang_pair=deu-eng"])
def test_overwriting_what_another_run_scores_is_refused_and_leaves_its_candidates(tmp_path: Path, held: str) -> None:
    output = tmp_path / "out"
    write_pairs(tmp_path / "in", "deu", 0, 30)
    values = {"input": [str(tmp_path / "in")], "output": str(output), "target_languages": None, **COMMON_FIELDS}
    job = BitextJob(**{name: value for name, value in values.items() if value is not None}).normalized()
    known = {None: pa.table({"source": ["Satz"], "target": ["set"], "input_file": ["known"], "input_line": [1]})}

    def read_candidates() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in output.glob("**/_candidates/**/*.*")}

    first, folder = str(output / "lang_pair=deu-eng"), str(output / held)
    with (
        hold_lease(Output(first).lease_uri, first, "a run at work", lambda message: None),
        pytest.raises(OutputConflictError, match="another run is writing there"),
    ):
        score_bitext(job, known=known)  # which reads the candidates and finds the lease then
    before = read_candidates()
    assert len([path for path in before if path.suffix == ".bin"]) == 2
    with hold_lease(Output(folder).lease_uri, folder, "a run at work", lambda message: None):
        with pytest.raises(OutputConflictError, match="another run is writing there"):
            score_bitext(job.model_copy(update={"overwrite": True}), known=known)
        assert read_candidates() == before


def test_kill_leaves_finished_partitions_and_the_rest_goes_on_where_it_was(tmp_path: Path, local_ray: str) -> None:
    output = tmp_path / "out"
    rows = {"ara": 20, "deu": 160}  # the second takes longer than finishing the first does on a busy machine
    for language, count in rows.items():
        write_pairs(tmp_path / "in", language, 0, count)
    flags = ["--input", str(tmp_path / "in"), "--output", str(output), "--unit-rows", "4", *COMMON, "--engine-args"]
    command = [sys.executable, "-m", "jobs.bitext", *flags, '{"seconds_per_prompt": 0.05}', "--ray-address", local_ray]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    success = output / "lang_pair=ara-eng/_SUCCESS"
    second = output / "lang_pair=deu-eng"
    try:
        assert wait_until(lambda: (success.exists() and list(second.glob("part-*"))) or process.poll() is not None, 120)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = list_marks(output)
    assert success.exists()
    assert not (second / "_SUCCESS").exists()
    assert 5 < len(before) < 45
    candidates = {path: path.stat().st_mtime_ns for path in (output / "_candidates").rglob("*") if path.is_file()}
    assert bitext([*flags, "{}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in candidates} == candidates, "files are read once"
    after = list_marks(output)
    assert len(after) == 45
    assert {path: after[path] for path in before} == before
    for language, count in rows.items():
        found = verify_output(str(output / f"lang_pair={language}-eng"))
        assert (found.problems, found.scored) == ([], 2 * count)


def test_scores_are_reused_and_pairs_of_several_units_are_scored_once(tmp_path: Path, local_ray: str) -> None:
    flags = ["--unit-rows", "10", "--dedupe", "global", *COMMON]
    first = write_pairs(tmp_path / "in", "deu", 0, 20)
    assert bitext(["--input", str(first), "--output", str(tmp_path / "one"), *flags, "--with-pair-key"]) == 0
    one = read_output(tmp_path / "one/lang_pair=deu-eng")
    assert len({*one["forward_pair_key"].to_pylist(), *one["backward_pair_key"].to_pylist()}) == 40

    rows = [(f"Satz {i % 25} deu", f"sentence {i % 25}") for i in range(60)]
    second = tmp_path / "new/deu-eng.parquet"
    second.parent.mkdir()
    pq.write_table(pa.table({"source": [a for a, _ in rows], "target": [b for _, b in rows]}), second)
    french = write_pairs(tmp_path / "new", "fra", 0, 20)
    inputs = ["--input", str(second), str(french)]
    # Of the German candidates 20 were scored earlier and 5 are new, each in several units; the French have no earlier score.
    assert bitext([*inputs, "--output", str(tmp_path / "two"), *flags, "--reuse", str(tmp_path / "one")]) == 0
    totals = {language: read_manifest(tmp_path / "two", language)["totals"] for language in ("deu", "fra")}
    assert (totals["deu"]["scored"], totals["deu"]["reused"], totals["deu"]["forward_passes"]) == (120, 2 * 50, 2 * 5)
    assert (totals["fra"]["scored"], totals["fra"]["forward_passes"]) == (40, 40)
    assert bitext([*inputs, "--output", str(tmp_path / "fresh"), *COMMON, "--with-pair-key", "--dedupe", "none"]) == 0
    for language in ("deu", "fra"):
        again, fresh = (read_output(tmp_path / name / f"lang_pair={language}-eng") for name in ("two", "fresh"))
        assert sorted(map(repr, again.to_pylist())) == sorted(map(repr, fresh.to_pylist()))
        assert verify_output(str(tmp_path / f"two/lang_pair={language}-eng")).problems == []
    with pytest.raises(InputError, match="no scores of any language pair"):
        bitext([*inputs, "--output", str(tmp_path / "three"), *flags, "--reuse", str(tmp_path / "none")])


def test_candidates_in_s3_are_scored_into_s3(s3: S3Server, local_ray: str) -> None:
    s3.put("in/a.deu-eng.tsv.gz", gzip.compress("".join(f"1.1\tSatz {i}\tsentence {i}\n" for i in range(8)).encode()))
    s3.put("in/b.fra-eng.fra", b"phrase 0\nphrase 1\nphrase 2\nSatz 3\nphrase 4\n")
    s3.put("in/b.fra-eng.eng", "".join(f"sentence {i}\n" for i in range(5)).encode())
    flags = ["--input", s3.uri("in"), "--output", s3.uri("out"), "--unit-rows", "4", *COMMON]
    assert bitext(flags) == 0
    objects = s3.read_all("out/")
    parts = {name: data for name, data in objects.items() if "/part-" in name}
    assert {name.partition("lang_pair=")[2][:7] for name in parts} == {"deu-eng", "fra-eng"}
    assert len(parts) == 4
    for name, num_rows in (("deu-eng", 8), ("fra-eng", 5)):
        found = verify_output(s3.uri(f"out/lang_pair={name}"))
        assert (found.problems, found.rows, found.scored) == ([], num_rows, 2 * num_rows)
    assert bitext([*flags, "--ray-address", "127.0.0.1:1"]) == 0, "nothing is left to do"
    assert {name: data for name, data in s3.read_all("out/").items() if "/part-" in name} == parts

    s3.put("in/c.spa-eng.spa", b"una\ndos\n")
    s3.put("in/c.spa-eng.eng", b"one\n")
    s3.put("in/d.ita-eng.tsv", b"uno\tone\n")
    with pytest.raises(InputError, match=r"c\.spa-eng\.spa, line 2: has no partner"):
        bitext(flags)


TRAPS = (
    ("ara", "مرحبا\u200f بالعالم \u202bنص\u202c"),  # right to left, with marks of direction
    ("heb", "שָׁלוֹם עוֹלָם"),  # points over and under letters
    ("tha", "นี่คือปากกา"),  # no spaces, marks that combine
    ("jpn", "これはペンです。\u3000「全角」"),  # an ideographic space
    ("hin", "क्षत्रिय नमस्ते"),
    ("zho", "这是一支\U00020000笔"),  # beyond the first plane
    ("kor", "\u1112\u1161\u11ab국어"),  # a syllable as letters that combine
    (
        "deu",
        "U\u0308ber und \u00dcber, \ufb01n, \uff26\uff35\uff2c\uff2c",
    ),  # two spellings of a letter, a ligature, full-width letters
    ("fra", "famille 👨\u200d👩\u200d👧\u200d👦 et drapeau 🇫🇷"),  # emoji of several code points
    ("spa", "una\tdos\ntres\r\ncuatro\u2028cinco\x0bseis\x85siete"),  # what ends a field or a line, here or in Unicode
    ("ita", '"virgolette", \\n e \\t scritti, \ufeffcon un segno'),
)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_texts_of_all_scripts_come_out_as_they_went_in(tmp_path: Path, local_ray: str, kind: str) -> None:
    rows = [
        {"source_language": code, "target_language": "eng", "source": text, "target": f"{text} in English\n"}
        for code, text in TRAPS
    ]
    path = tmp_path / f"in/traps.{kind}"
    path.parent.mkdir()
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=place % 2 == 0) + "\n" for place, row in enumerate(rows)))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    assert bitext(["--input", str(path), "--output", str(tmp_path / "out"), *COMMON]) == 0
    for code, text in TRAPS:
        [row] = read_output(tmp_path / f"out/lang_pair={code}-eng").to_pylist()
        assert (row["source"], row["target"], row["error"]) == (text, f"{text} in English\n", None)
        assert row["forward_score"] is not None
        assert row["backward_score"] is not None


def test_texts_in_line_formats_end_where_a_newline_is_and_nowhere_else(tmp_path: Path, local_ray: str) -> None:
    texts = {code: text.translate({9: " ", 10: "\u2029"}) for code, text in TRAPS}
    for place, (code, text) in enumerate(texts.items()):
        name = tmp_path / f"in/c.{code}-eng"
        name.parent.mkdir(exist_ok=True)
        if place % 2:
            Path(f"{name}.tsv").write_bytes(f"1.07\t{text}\t{text} in English\r\n".encode())
        else:
            Path(f"{name}.{code}").write_bytes(f"{text}\n".encode())
            Path(f"{name}.eng").write_bytes(f"{text} in English\n".encode())
    assert bitext(["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), *COMMON]) == 0
    for code, text in texts.items():
        [row] = read_output(tmp_path / f"out/lang_pair={code}-eng").to_pylist()
        assert (row["source"], row["target"], row["error"]) == (text, f"{text} in English", None)


@pytest.mark.parametrize(
    ("key", "value"),
    [("explode", True), ("query_template", "{source}"), ("task", "bitext"), ("limit", 3), ("top_k", 5)],
)
def test_settings_of_the_scoring_job_alone_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps({"input": ["in"], "output": "out", "engine": "fake", key: value}))
    with pytest.raises(JobError, match=f"`{key}` is a setting of jobs.score, not of jobs.bitext"):
        bitext([str(path)])


def test_columns_are_renamed_and_dropped(tmp_path: Path, local_ray: str) -> None:
    path = tmp_path / "in/deu-eng.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps({"source": "Guten Tag", "target": "Good day", "error": "e", "url": "u", "x": 1}) + "\n")
    flags = ["--input", str(path), "--output", str(tmp_path / "out"), *COMMON]
    with pytest.raises(InputError, match=r"column `error` has the name .* rename it with --rename-columns error=NEW"):
        bitext(flags)
    assert bitext([*flags, "--rename-columns", "error=note", "--drop-columns", "url"]) == 0
    [row] = read_output(tmp_path / "out/lang_pair=deu-eng").to_pylist()
    assert (row["note"], row["x"], row["error"]) == ("e", 1, None)
    assert "url" not in row


def test_dry_run_counts_candidates_and_tokens_of_what_is_left_and_starts_nothing(
    tmp_path: Path, local_ray: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    for language in LANGUAGES:
        write_pairs(tmp_path / "in", language, 0, 30)
    with (tmp_path / "in/ara-eng.0.tsv").open("a") as file:
        file.write("\tempty\n" * 10)
    slow = ["--engine-args", '{"seconds_per_prompt": 0.002}']
    flags = ["--input", str(tmp_path / "in"), "--output", str(output), *slow, *COMMON]
    assert bitext([*flags, "--dry-run", "--tokens-per-second", "1000", "--deliver", str(tmp_path / "kept")]) == 0
    assert not output.exists()
    printed = capsys.readouterr().out
    assert re.search(r"ara-eng\W+1\W+40\W+40\W+25\.0 %", printed)
    assert "1,000 tokens/s of an actor (given)" in printed

    job = BitextJob(input=[str(tmp_path / "in")], output=str(output), **COMMON_FIELDS).normalized()
    before = estimate_bitext(job).budget
    assert (before.estimate.rows, before.estimate.pending_rows, before.estimate.is_counted) == (100, 100, True)
    assert before.pending_tokens == before.tokens

    assert bitext([*flags, "--partitions", "deu-eng"]) == 0
    left = estimate_bitext(job).budget
    assert (left.tokens, left.estimate.rows, left.estimate.pending_rows) == (before.tokens, 100, 70)
    assert bitext(flags) == 0
    tables = [read_output(output / f"lang_pair={language}-eng") for language in LANGUAGES]
    tokens = [sum(pc.sum(table[f"{one}_num_tokens"]).as_py() for one in ("forward", "backward")) for table in tables]
    assert before.tokens == sum(tokens), "all of them were sampled"
    assert left.pending_tokens == sum(tokens) - tokens[LANGUAGES.index("deu")]
    done = estimate_bitext(job).budget
    assert (done.pending_tokens, done.count_hours(1)) == (0, 0.0)
    runs = [read_manifest(output, language)["runs"][-1] for language in ("ara", "fra")]
    assert done.speed is not None
    assert done.speed.tokens_per_second == pytest.approx(
        sum(run["tokens"] for run in runs) / sum(run["engine_seconds"] for run in runs)
    )


def test_dry_run_reckons_large_files_from_their_beginnings(tmp_path: Path) -> None:
    lines = [f"Satz Nummer {i} mit Wort {i * 7919 % 10007}\tsentence {i}\n" for i in range(250_000)]
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.deu-eng.tsv").write_text("".join(lines))
    (folder / "b.fra-eng.tsv.gz").write_bytes(gzip.compress("".join(lines).encode()))
    rows = [
        {"source": "Satz", "target": "x", "source_language": code, "target_language": "eng"}
        for code in ["de", "fr", "ru"]
    ]
    pq.write_table(pa.Table.from_pylist(rows * 20_000), folder / "c.parquet")
    job = BitextJob(input=[str(folder)], output=str(tmp_path / "out"), **COMMON_FIELDS).normalized()
    found = {one.name: one for one in estimate_bitext(job).partitions}
    assert sorted(found) == ["de-eng", "deu-eng", "fr-eng", "fra-eng", "ru-eng"]
    assert not any(one.is_counted for one in found.values())
    assert [found[name].rows for name in ("deu-eng", "fra-eng")] == pytest.approx([250_000] * 2, rel=0.1)
    assert [found[name].rows for name in ("de-eng", "fr-eng", "ru-eng")] == pytest.approx([20_000] * 3, abs=10)
    chosen = estimate_bitext(job.model_copy(update={"partitions": ["f*"]}))
    assert [one.name for one in chosen.partitions] == ["fr-eng", "fra-eng"]


def test_known_pairs_that_are_no_candidates_are_scored_beside_them_and_calibrate(
    tmp_path: Path, local_ray: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for language in ("deu", "fra"):
        write_pairs(tmp_path / "in", language, 0, 30)
    rows = [(f"Beispiel {i // 4}", f"example {i // 4 + i % 4}", int(i % 4 == 0)) for i in range(80)]
    known = tmp_path / "held-out.deu-eng.tsv"
    known.write_text("".join(f"{source}\t{target}\t{label}\n" for source, target, label in rows))
    output, kept = tmp_path / "out", tmp_path / "kept"
    flags = ["--input", str(tmp_path / "in"), "--output", str(output), *COMMON]
    select = [
        "--deliver",
        str(kept),
        "--calibration",
        str(known),
        "--threshold",
        "auto",
        "--mode",
        "all",
        "--formats",
        "tsv",
    ]
    assert bitext([*flags, *select]) == 1, "nothing is known of the other language pair"
    told = capfd.readouterr().err
    assert "deu-eng: 80 known pairs are scored beside its candidates" in told
    assert "deu-eng: 20 known right and 60 known wrong pairs were scored beside them" in told
    assert "also to the command that scores (--input)" in told
    assert read_output(output / "lang_pair=deu-eng").num_rows == 30, "they are not among the candidates"
    assert not (output / "_known/lang_pair=fra-eng").exists()
    assert (
        read_manifest(output, "deu")["engines"]
        == json.loads((output / "_known/lang_pair=deu-eng/_job/manifest.json").read_text())["engines"]
    ), "one engine for both"

    beside = read_output(output / "_known/lang_pair=deu-eng")
    values = (beside["forward_logit"].to_numpy().astype(float) + beside["backward_logit"].to_numpy()) / 2
    labels = np.array([label for *_, label in rows])
    curve = trace_curve(values, labels)
    assert curve is not None
    threshold = float(curve.thresholds[curve.best])
    numbers = json.loads((kept / "_select/lang_pair=deu-eng/result.json").read_text())
    assert numbers["calibration"]["combined"]["best"]["threshold"] == pytest.approx(threshold)
    passes = values >= threshold
    assert numbers["estimated_precision"]["value"] == pytest.approx(labels[passes].mean())
    assert numbers["estimated_recall"]["value"] == pytest.approx(labels[passes].sum() / 20)
    candidates = read_output(output / "lang_pair=deu-eng")
    expected = {
        row["source"]
        for row in candidates.to_pylist()
        if (row["forward_logit"] + row["backward_logit"]) / 2 >= threshold
    }
    lines = (kept / "tsv/lang_pair=deu-eng/part-00000.tsv").read_text().splitlines()
    assert {line.split("\t")[1] for line in lines} == expected

    # Again, and by itself, it starts nothing; other known pairs are scored, and alone count from then on.
    assert bitext([*flags, *select]) == 1
    assert "starting" not in capfd.readouterr().err
    again = ["--deliver", str(tmp_path / "again"), *select[2:], "--partitions", "deu-eng"]
    assert bitext(["--scored", str(output), *again]) == 0
    found = json.loads((tmp_path / "again/_select/lang_pair=deu-eng/result.json").read_text())
    assert found["calibration"] == numbers["calibration"]
    known.write_text("".join(f"{source}!\t{target}\t{label}\n" for source, target, label in rows[:40]))
    assert bitext([*flags, *select, "--partitions", "deu-eng", "--reselect"]) == 0
    assert "10 known right and 30 known wrong pairs were scored beside them" in capfd.readouterr().err
    assert [path.name for path in (output / "lang_pair=deu-eng").glob("part-*")], "the candidates' parts stay"
    assert verify([str(output)]) == 0
