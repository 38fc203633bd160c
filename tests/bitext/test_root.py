"""The folder of a whole bitext job, given to commands that take a scored output: done for each language pair, or refused."""

from pathlib import Path

import pytest
from scoring_in_process import score_here

from rerank_actor.bitext.ingest import ReadSpec, read_candidates
from rerank_actor.bitext.job import BitextJob
from rerank_actor.bitext.language_pairs import parse_pair
from rerank_actor.bitext.sources import list_sources
from rerank_actor.commands.export import export
from rerank_actor.commands.mine import mine
from rerank_actor.commands.report import report
from rerank_actor.errors import InputError, JobError

NAMES = ("lang_pair=deu-eng", "lang_pair=fra-eng")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two language pairs, scored as the job scores them."""
    folder = tmp_path_factory.mktemp("bitext")
    (folder / "in").mkdir()
    for name in NAMES:
        lines = [f"Satz {number} hier\tsentence {number} here\n" for number in range(3)]
        (folder / "in" / f"c.{name.removeprefix('lang_pair=')}.tsv").write_text("source\ttarget\n" + "".join(lines))
    job = BitextJob(input=[str(folder / "in")], output=str(folder / "out"), engine="fake").normalized()
    for source in list_sources(job):
        read_candidates(source, ReadSpec.of_job(job, f"{job.output}/_candidates"))
    for name in NAMES:
        pair = parse_pair(name.removeprefix("lang_pair="), {}, "here")
        score_here(job.to_scoring(pair, f"{job.output}/_candidates/{name}", f"{job.output}/{name}"))
    return folder / "out"


def test_a_report_is_made_of_each_language_pair(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report([str(root)]) == 0
    assert capsys.readouterr().out.split() == [str(root / name / "_job/report.html") for name in NAMES]
    assert all((root / name / "_job/report.html").exists() for name in NAMES)
    with pytest.raises(JobError, match=rf"--to takes one report.*name one \({', '.join(NAMES)}\)"):
        report([str(root), "--to", str(root.parent / "report.html")])


def test_what_takes_one_output_names_those_of_the_language_pairs(root: Path, tmp_path: Path) -> None:
    words = f"name one of these folders in it: {', '.join(NAMES)}"
    with pytest.raises(InputError, match=words):
        export([str(root), "--format", "trec"])
    with pytest.raises(InputError, match=words):
        mine(["--scored", str(root), "--output", str(tmp_path / "mined"), "--label-column", "label"])
    with pytest.raises(InputError, match=r"no candidates to rank; jobs\.bitext --scored"):
        export([str(root / NAMES[0]), "--format", "trec", "--partial"])


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "nothing"])
def test_a_file_that_is_no_scored_output_is_said_to_be_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"query": "q", "document": "d", "score": 1}\n')
    (tmp_path / "rows.csv").write_text("query,document,score\nq,d,1\n")
    place = str(tmp_path / name)
    with pytest.raises(JobError, match=f"{name}: (holds no scored parts|nothing there)"):
        export([place, "--format", "trec"])
    with pytest.raises(InputError, match=f"{name}: (1 objects, no Parquet file among them|nothing there)"):
        mine(["--scored", place, "--output", str(tmp_path / "mined"), "--label-column", "label"])
    with pytest.raises(InputError, match=f"{name}: no job has written here"):
        report([place])
