"""The console script: every command by its name, in a wheel that takes no other name."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from rerank_actor import __version__
from rerank_actor.commands.console import COMMANDS, call_console

ROOT = Path(__file__).parents[1]


def test_commands_of_the_console_and_of_jobs_are_the_same() -> None:
    assert {path.stem for path in (ROOT / "jobs").glob("[a-z]*.py")} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_names_itself_as_it_was_called(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/anywhere/bin/rerank", name, "--help"])
    with pytest.raises(SystemExit) as ended:
        call_console([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: rerank {name}")


def test_version_list_and_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert call_console(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"
    assert call_console([]) == 0
    listed = capsys.readouterr().out
    assert [name for name in COMMANDS if f"\n  {name} " not in listed] == []
    assert call_console(["scroe"]) == 2
    assert "unknown command scroe (did you mean score?)" in capsys.readouterr().err


def test_wheel_holds_the_package_alone_and_its_script_runs_beside_a_package_called_jobs(tmp_path: Path) -> None:
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    built = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    with zipfile.ZipFile(tmp_path / built.stdout.split()[-1]) as wheel:
        names = wheel.namelist()
        wheel.extractall(tmp_path / "site")
    assert {name.split("/")[0].split("-")[0] for name in names} == {"rerank_actor"}
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"] == {
        "rerank": "rerank_actor.commands.console:main"
    }
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").write_text("raise RuntimeError('the package of the user')")
    paths = [str(tmp_path), str(tmp_path / "site")]
    script = f"import sys; sys.path[:0] = {paths}; sys.argv = ['rerank', 'tasks', '--json']"
    called = subprocess.run(
        [sys.executable, "-c", f"{script}; from rerank_actor.commands.console import main; main()"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert called.returncode == 0, called.stderr
    assert "instruction" in called.stdout
