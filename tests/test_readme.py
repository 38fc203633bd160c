"""The README and the pages that it leads to: commands do what they say, and what is named exists."""

import io
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import reference
from commands import ROOT, read_output, run_command
from datasets import Dataset, DatasetDict, load_dataset
from demo import LEAST_NDCG, measure_ndcg
from hub_server import HubServer

from rerank_actor.benchmark.sample import DEMO_MODEL
from rerank_actor.commands.console import COMMANDS, call_console
from rerank_actor.commands.demo import demo
from rerank_actor.commands.evaluate import evaluate
from rerank_actor.commands.export import export
from rerank_actor.commands.mine import mine
from rerank_actor.commands.retrieve import retrieve
from rerank_actor.commands.score import score
from rerank_actor.commands.verify import verify

NAMES = ["input", "output", "models", "retrieval", "evaluation", "mining", "bitext", "watching", "faults"]
DOCS = [ROOT / f"docs/{name}.md" for name in NAMES]
PAGES = [ROOT / "README.md", *DOCS]
README = "\n".join(page.read_text() for page in PAGES)


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=500, env=environment)


@pytest.mark.vllm
def test_readme_demo_command_scores_with_vllm_and_resumes(tmp_path: Path) -> None:
    assert "\nmake demo\n" in README
    folder = tmp_path / "demo"
    first = make("demo", f"FOLDER={folder}")
    assert first.returncode == 0, first.stderr
    assert "pairs/s" in first.stdout
    assert f"{folder}/scores" in first.stdout
    table = read_output(folder / "scores")
    assert table.num_rows == 205 + 64 * 20
    rows = [row for row in table.to_pylist() if row["error"] is None]
    assert len(rows) == table.num_rows - 5
    ndcg = measure_ndcg(rows)
    assert ndcg >= LEAST_NDCG
    assert f"written by hand, none of them in the model's training: {ndcg:.3f}" in first.stdout
    rows = rows[::7]
    expected, logits = reference.score(DEMO_MODEL, [(row["query"], row["document"]) for row in rows])
    # float16 on a random model: standard error 0.06 for log-odds with a spread of 22.
    found = np.array([row["logit"] for row in rows])
    assert np.std(found - logits) < 0.02 + 0.06 / 22 * np.std(logits)
    assert np.corrcoef([row["score"] for row in rows], expected)[0, 1] > 0.999
    manifest = json.loads((folder / "scores/_job/manifest.json").read_text())
    assert manifest["dtype"] == "float16"
    assert 0 < manifest["engines"][0]["max_difference"] < 0.1
    part = next((folder / "scores").glob("part-*.parquet"))
    assert pq.read_schema(part).metadata[b"rerank_actor.dtype"] == b"float16"

    second = make("demo", f"FOLDER={folder}")
    assert second.returncode == 0, second.stderr
    assert "6 committed already" in second.stderr
    assert "starting" not in second.stderr
    assert run_command("verify", folder / "scores").returncode == 0


def test_readme_test_command_is_what_ci_runs() -> None:
    assert "\nmake test\n" in README
    lines = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[-1] == "exec make test"
    assert "pytest" in make("--dry-run", "test").stdout


def test_readme_mining_commands_do_what_they_say(
    tmp_path: Path, local_ray: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo(["--engine", "fake", "--folder", str(tmp_path / "demo-out")]) == 0
    commands = re.findall(r"^\.venv/bin/python -m jobs\.mine (.+?(?:\\\n.+?)*)$", README, re.M)
    assert len(commands) == 2
    for command in commands:
        flags = shlex.split(command.replace("\\\n", " ").replace("demo-out/", f"{tmp_path}/demo-out/"))
        assert mine(flags) == 0
    mined = tmp_path / "demo-out/mined"
    rows = load_dataset(str(mined))["train"]
    assert set(rows.column_names) == {"anchor", "positive", "negative", "scores"}
    assert all(first - second >= 0.1 - 1e-6 for first, second in rows["scores"])
    assert (mined / "_mine/report.html").exists()
    shown = capsys.readouterr().out
    for name in ("as given", "perc-pos=0.95", "perc-pos=0.95 depth=all", "margin-pos=1@logit", "mean margin"):
        assert name in shown


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the demo leaves, scored by the fake engine."""
    folder = tmp_path_factory.mktemp("demo") / "demo-out"
    assert demo(["--engine", "fake", "--folder", str(folder)]) == 0
    return folder


def test_readme_rows_are_read_as_it_says(demo_folder: Path) -> None:
    code = re.search(r"```python\n(import pyarrow\.dataset.+?)```", README, re.S)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1].replace('"scores"', repr(str(demo_folder / "scores"))), names)
    assert names["rows"].num_rows == 200 + 64 * 20
    logits = names["rows"]["logit"].to_pylist()
    assert logits == sorted(logits, reverse=True)


def test_readme_grouped_sample_gives_the_scores_of_the_pairs(demo_folder: Path, local_ray: str) -> None:
    folder = demo_folder
    command = re.search(r"^\.venv/bin/python -m jobs\.score (.*demo-out/grouped .+?(?:\\\n.+?)*)$", README, re.M)
    assert command is not None
    flags = shlex.split(command[1].replace("\\\n", " ").replace("demo-out/", f"{folder}/"))
    assert score([*flags, "--engine", "fake", "--ray-address", local_ray]) == 0
    pairs = {(row["query"], row["document"]): row["score"] for row in read_output(folder / "scores").to_pylist()}
    rows = read_output(folder / "grouped-scores").to_pylist()
    assert sum(len(row["documents"]) for row in rows) == 203
    for row in rows:
        assert len(row["relevant"]) == len(row["documents"]) == len(row["score"])
        assert row["score"] == [pairs[row["query"], found["text"]] for found in row["documents"]]


def test_readme_sample_of_ids_gives_the_scores_of_the_texts(
    demo_folder: Path, local_ray: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = r"^\.venv/bin/python -m jobs\.(score|export|evaluate) (.*demo-out/(?:beir|id-scores).+?(?:\\\n.+?)*)$"
    found = [
        (name, text)
        for name, text in re.findall(command, README, re.M)
        if not re.search("demo-out/(retrieved|evaluation)", text)
    ]
    assert [name for name, _ in found] == ["score", "export", "evaluate"]
    flags, to_export, to_evaluate = (
        shlex.split(text.replace("\\\n", " ").replace("demo-out/", f"{demo_folder}/")) for _, text in found
    )
    assert score([*flags, "--engine", "fake", "--ray-address", local_ray]) == 0
    assert export(to_export) == 0
    capsys.readouterr()
    assert evaluate(to_evaluate) == 0
    table = capsys.readouterr().out
    assert table.startswith("64 queries\n")
    assert "| best possible order | 100.00 " in table
    assert "| candidates' own order | " in table
    of_texts = {
        (row["query"], row["document"]): row["score"] for row in read_output(demo_folder / "scores").to_pylist()
    }
    texts = {}
    for name in ("queries", "corpus"):
        lines = (demo_folder / "beir" / f"{name}.jsonl").read_text().splitlines()
        texts[name] = {record["_id"]: record["text"] for record in map(json.loads, lines)}
    rows = read_output(demo_folder / "id-scores").to_pylist()
    judged = (demo_folder / "beir/qrels/test.tsv").read_text().splitlines()[1:]
    assert len(rows) == len(judged) == 64 * 20
    for row in rows:
        pair = texts["queries"][row["query_id"]], texts["corpus"][row["document_id"]]
        assert row["score"] == of_texts[pair]
    first = (demo_folder / "reranked.trec").read_text().splitlines()[0].split()
    mine = [row for row in rows if row["query_id"] == first[0]]
    assert first[2] == max(mine, key=lambda row: row["score"])["document_id"]


def test_readme_evaluation_command_leads_from_a_folder_to_a_table(demo_folder: Path, local_ray: str) -> None:
    page = (ROOT / "docs/evaluation.md").read_text()
    command = re.search(r"^\.venv/bin/python -m jobs\.evaluate (.+?\\\n.+?)$", page, re.M)
    assert command is not None
    flags = shlex.split(command[1].replace("\\\n", " ").replace("demo-out/", f"{demo_folder}/"))
    assert evaluate([*flags, "--engine", "fake"]) == 0
    record = json.loads((demo_folder / "evaluation/evaluation.json").read_text())
    assert [row["order"] for row in record["rows"]] == ["reranked", "retrieved", "best"]
    assert record["rows"][2]["tasks"]["beir"] == 1
    assert record["rows"][0]["scores"]["beir"]["pairs"] == 64 * 20


def test_readme_retrieval_commands_lead_from_texts_to_scores(
    demo_folder: Path, local_ray: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = re.findall(
        r"^\.venv/bin/python -m jobs\.(retrieve|score|evaluate) (.*demo-out/(?:beir|retrieved).+?(?:\\\n.+?)*)$",
        (ROOT / "docs/retrieval.md").read_text(),
        re.M,
    )
    assert [name for name, _ in found] == ["retrieve", "score", "evaluate"]
    for name, text in found[:2]:
        flags = shlex.split(text.replace("\\\n", " ").replace("demo-out/", f"{demo_folder}/"))
        flags = [flag for flag in flags if flag not in ("--model", "Qwen/Qwen3-Embedding-0.6B")]
        command = {"retrieve": retrieve, "score": score}[name]
        assert command([*flags, "--engine", "fake", "--ray-address", local_ray]) == 0
    rows = read_output(demo_folder / "retrieved-scores").to_pylist()
    assert len(rows) == 64 * 20
    assert all(row["score"] is not None for row in rows)
    capsys.readouterr()
    assert evaluate(shlex.split(found[2][1].replace("demo-out/", f"{demo_folder}/"))) == 0
    table = capsys.readouterr().out
    assert table.startswith("64 queries\n")
    assert "| candidates' own order | " in table


def test_readme_reuse_and_export_commands_do_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_ray: str
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        json.dumps({"query_id": "q", "document_id": f"d{i}", "query": "capital?", "document": f"{i}"}) for i in range(5)
    ]
    Path("monday.jsonl").write_text("\n".join(lines[:3]))
    Path("tuesday.jsonl").write_text("\n".join(lines))
    commands = re.findall(r"^\.venv/bin/python -m jobs\.score (.*(?:monday|tuesday).*)$", README, re.M)
    assert len(commands) == 2
    for command in commands:
        assert score([*shlex.split(command), "--engine", "fake", "--ray-address", local_ray]) == 0
    totals = json.loads(Path("tuesday/_job/manifest.json").read_text())["totals"]
    assert (totals["scored"], totals["reused"]) == (5, 3)
    command = re.search(r"^\.venv/bin/python -m jobs\.export scores (.*)$", README, re.M)
    assert command is not None
    assert export(["tuesday", *shlex.split(command[1])]) == 0
    rows = sorted(read_output(tmp_path / "tuesday").to_pylist(), key=lambda row: -row["logit"])
    assert [line.split()[2] for line in Path("reranked.trec").read_text().splitlines()] == [
        row["document_id"] for row in rows
    ]


def list_layouts() -> list[tuple[str, dict[str, str], list[str], list[dict[str, Any]]]]:
    """Return name, input by file, flags and output rows of each line of the README's table of layouts."""
    table = README.partition("| your data | input |")[2].partition("\n\n")[0]
    found = []
    for line in table.splitlines()[2:]:
        name, given, flags, shown = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
        files: dict[str, list[str]] = {}
        parsed = shlex.split(flags.strip("`"))
        place = parsed[parsed.index("--input") + 1]
        for text in (cell.strip("`") for cell in given.split("<br>")):
            if re.fullmatch(r"[\w.]+:", text):
                place = text[:-1]
            else:
                files.setdefault(place, []).append(text)
        rows = [json.loads(cell.strip("`")) for cell in shown.split("<br>")]
        found.append((name, {file: "\n".join(lines) + "\n" for file, lines in files.items()}, parsed, rows))
    return found


def round_figures(value: Any) -> Any:
    if isinstance(value, list):
        return [round_figures(item) for item in value]
    return round(value, 2) if isinstance(value, float) else value


def to_hub_files(splits: DatasetDict) -> dict[str, bytes]:
    """Return the files that the datasets library would push to the hub."""
    files = {}
    for split, dataset in splits.items():
        sink = io.BytesIO()
        dataset.to_parquet(sink)
        files[f"data/{split}-00000-of-00001.parquet"] = sink.getvalue()
    return files


@pytest.mark.parametrize("layout", list_layouts(), ids=lambda layout: layout[0])
def test_readme_layout_gives_the_output_that_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_ray: str, layout: Any
) -> None:
    _, files, flags, expected = layout
    monkeypatch.chdir(tmp_path)
    known = {"Dataset": Dataset, "DatasetDict": DatasetDict}
    hub = HubServer()
    for name, text in files.items():
        if ".save_to_disk(" in text:
            eval(text, known)
        elif ".push_to_hub(" in text:
            made, _, repository = text.strip().rstrip(")").partition(".push_to_hub(")
            hub.commit(json.loads(repository), to_hub_files(eval(made, known)))
        else:
            Path(name).write_text(text)
    flags = [*flags, "--output", str(tmp_path / "scores"), "--engine", "fake", "--ray-address", local_ray]
    if hub.repositories:  # the datasets library looks for its hub when it is imported
        assert (
            run_command("score", *flags, HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path), HF_TOKEN="").returncode == 0
        )
    else:
        score(flags)
    hub.close()
    rows = read_output(tmp_path / "scores").to_pylist()
    assert len(rows) == len(expected)
    for row, shown in zip(rows, expected, strict=True):
        found = {name: round_figures(row[name]) for name in shown}
        if shown.get("error"):
            found["error"] = found["error"].replace(f"{tmp_path}/", "")
        assert found == shown
    assert verify(["scores"]) == 0


def test_readme_flags_modules_and_files_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            call_console([name, "--help"])
    shown = capsys.readouterr().out
    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) - {"--help", "--working-dir", "--json"}:
        assert flag in shown, flag
    for module in set(re.findall(r"python -m jobs\.([a-z]+)", README)):
        assert (ROOT / "jobs" / f"{module}.py").exists(), module
    for page in [*PAGES, *(ROOT / "docs").glob("*.md")]:
        for path in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / path).exists(), (page, path)
