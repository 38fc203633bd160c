"""Fences of the protocol, each taken out once: whether the simulation of frozen runs finds that it is gone.

Copies package and tests, edits one fence out of the copy, and runs `tests/scoring/test_protocol.py` against it. Prints a line
a fence, `found` and by which words, or `NOT FOUND`, and exits with 1 where one was not found. What guards stores that take no
heed of conditions (claims and pauses of the lease) is not among them, because the simulated store does.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
TESTS = "tests/scoring/test_protocol.py"
COMMIT, FOLDER, LEASE = "outputs/commit.py", "outputs/folder.py", "storage/lease.py"
MANIFEST, SCORED, PREFLIGHT, COMMITTER = (
    "outputs/manifest.py",
    "outputs/scored.py",
    "scoring/preflight.py",
    "scoring/committer.py",
)


class Edit(NamedTuple):
    """What stands in a file of the package, everywhere in it, and what is to stand there without the fence."""

    file: str
    old: str
    new: str


FENCES = {
    "a part is created": [
        Edit(
            COMMIT, "if storage.create_bytes(uri, data, scratch=scratch):", "if storage.write_bytes(uri, data) is None:"
        )
    ],
    "the lease is looked at before a part is created": [
        Edit(COMMIT, "            lease.check()\n", "            pass\n")
    ],
    "the lease is looked at behind a look at a part": [Edit(COMMIT, "lease.check()  # it may be", "pass  # it may be")],
    "a part is replaced on a condition": [
        Edit(
            COMMIT,
            "if storage.replace_bytes(uri, data, found.mark, scratch=scratch):",
            "if storage.write_bytes(uri, data) is None:",
        )
    ],
    "a part of another job gives way": [
        Edit(COMMIT, "if check.problem is None and _is_as_good(check, metadata):", "if check.facts or True:")
    ],
    "own objects are created": [
        Edit(
            FOLDER,
            "return storage.create_bytes(self.uri, data, scratch=self._scratch)",
            "return storage.write_bytes(self.uri, data) is None",
        )
    ],
    "own objects are replaced on a condition": [
        Edit(
            FOLDER,
            "return storage.replace_bytes(self.uri, data, self._seen.mark, scratch=self._scratch)",
            "return storage.write_bytes(self.uri, data) is None",
        )
    ],
    "the lease is looked at before an own object is written": [
        Edit(FOLDER, "check()  # behind the look", "pass  # behind the look")
    ],
    "the lease is looked at before an output is cleared": [Edit(FOLDER, "        check()\n", "        pass\n")],
    "the lease is created": [
        Edit(
            LEASE,
            "if not storage.create_bytes(self._uri, self._record()):\n            self._take_over(report)",
            "if storage.read_if_present(self._uri) is None:\n            storage.write_bytes(self._uri, self._record())\n"
            "        else:\n            self._take_over(report)",
        )
    ],
    "a stale lease is replaced on a condition": [
        Edit(
            LEASE,
            "if not storage.replace_bytes(self._uri, self._record(), stale.mark):",
            "if storage.write_bytes(self._uri, self._record()) is not None:",
        )
    ],
    "the holder rewrites its lease on a condition": [
        Edit(
            LEASE,
            "not storage.replace_bytes(self._uri, self._record(), lease.mark)",
            "storage.write_bytes(self._uri, self._record()) is not None",
        )
    ],
    "a holder leaves its epoch": [Edit(LEASE, "        self._leave_epoch()\n", "")],
    "a worker asks for a later epoch": [Edit(LEASE, "if get_epoch(later) > self.epoch:", "if get_epoch(later) < 0:")],
    "the driver asks for a later epoch": [
        Edit(LEASE, "if get_epoch(later) > self._epoch:", "if get_epoch(later) < 0:")
    ],
    "the driver looks at its lease": [Edit(COMMITTER, "self.lease.check(fresh=True)", "pass")],
    "job and parts are looked at again under the lease": [
        Edit(PREFLIGHT, "return prepared if is_up_to_date(prepared) else", "return prepared if prepared.job else")
    ],
    "a run that could not be told from its own is not deleted from": [
        Edit(COMMITTER, "        if names:\n            self._check_lease()\n", "        if names:\n")
    ],
    "records are of this job": [Edit(MANIFEST, 'and record["fingerprint"] in (None, fingerprint)', "")],
    "only what lies in the folder itself is a part": [
        Edit(name, "storage.list_children(self.uri)", "storage.list_objects(self.uri)") for name in (FOLDER,)
    ]
    + [Edit(COMMITTER, "storage.list_children(output.uri)", "storage.list_objects(output.uri)")]
    + [Edit(SCORED, "storage.list_children(uri)", "storage.list_objects(uri)")],
    "only what the plan names is deleted": [
        Edit(
            FOLDER,
            "return [parts[unit.part_name] for unit in stored[0].units() if unit.part_name in parts]",
            "return list(storage.list_objects(self.uri))",
        )
    ],
    "_SUCCESS is of the parts that are there": [Edit(SCORED, "if mark and (mark.get(", "if not mark and (mark.get(")],
    "a plan that was replaced is written again": [Edit(COMMITTER, "        self._restore_plan()\n", "")],
}


def take_out(fence: list[Edit], package: Path) -> None:
    """Edit a fence out of a copy of the package.

    Raises:
        ValueError: what is to be edited is not there, so that the list is to be brought up to date.
    """
    for edit in fence:
        path = package / edit.file
        text = path.read_text()
        if edit.old not in text:
            raise ValueError(f"{edit.file}: has no longer {edit.old!r}")
        path.write_text(text.replace(edit.old, edit.new))


def run_without(fence: list[Edit], examples: int, seed: int, log: Path) -> str | None:
    """Run the simulation without a fence; return the first words of the test that failed, None where none did."""
    with tempfile.TemporaryDirectory(prefix="fences-") as folder:
        for name in ("rerank_actor", "jobs", "tests"):
            shutil.copytree(ROOT / name, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        take_out(fence, Path(folder, "rerank_actor"))
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            f"--hypothesis-seed={seed}",
            TESTS,
        ]
        environment = {**os.environ, "PYTHONPATH": folder, "PROTOCOL_EXAMPLES": str(examples)}
        with log.open("wb") as words:
            code = subprocess.run(command, cwd=folder, env=environment, stdout=words, stderr=words).returncode
    said = [line[1:].strip() for line in log.read_text(errors="replace").splitlines() if line.startswith("E  ")]
    return None if code == 0 else said[0][:100] if said else f"exit {code}"


def main() -> None:
    """Take out each fence, or those named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[""], help="fences whose name holds one of these")
    parser.add_argument("--examples", type=int, default=40, help="examples of the stateful test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="fences taken out at a time")
    arguments = parser.parse_args()
    logs = Path(tempfile.mkdtemp(prefix="fences-logs-"))
    if (words := run_without([], arguments.examples, arguments.seed, logs / "whole.log")) is not None:
        sys.exit(f"the simulation fails with all fences: {words}; log in {logs}")
    chosen = [name for name in FENCES if any(part in name for part in arguments.only)]

    def judge(name: str) -> bool:
        started = time.monotonic()
        log = logs / f"{chosen.index(name)}.log"
        words = run_without(FENCES[name], arguments.examples, arguments.seed, log)
        said = "NOT FOUND" if words is None else f"found ({words})"
        print(f"{name}: {said}; {time.monotonic() - started:.0f} s", flush=True)
        return words is not None

    with ThreadPoolExecutor(arguments.at_once) as pool:
        missed = list(pool.map(judge, chosen)).count(False)
    print(f"{missed} not found; logs in {logs}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
