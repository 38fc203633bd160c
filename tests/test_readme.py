"""The README: its commands do what it says, and what it names exists."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import reference
from conftest import ROOT, read_output, run_command
from datasets import load_dataset

from jobs.demo import demo
from jobs.mine import mine

README = (ROOT / "README.md").read_text()


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
    assert table.num_rows == 205
    rows = [row for row in table.to_pylist() if row["error"] is None]
    assert len(rows) == 200
    expected, logits = reference.score(folder / "model", [(row["query"], row["document"]) for row in rows])
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
    assert "3 committed already" in second.stderr
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


def test_readme_flags_modules_and_files_exist() -> None:
    shown = "".join(run_command(module, "--help").stdout for module in ("score", "mine", "bitext", "benchmark"))
    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) - {"--help", "--working-dir", "--json"}:
        assert flag in shown, flag
    for module in set(re.findall(r"python -m jobs\.(\w+)", README)):
        assert (ROOT / "jobs" / f"{module}.py").exists(), module
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path
