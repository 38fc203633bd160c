"""Fences of the protocol, each taken out once: whether the simulation of frozen runs finds that it is gone.

Copies package and tests, edits one fence out of the copy, and runs `tests/scoring/test_protocol.py` against it. Prints a line
a fence, `found` or `NOT FOUND`, and exits with 1 where one was not found. What guards stores that take no heed of conditions
(claims and pauses of the lease) is not among them, because the simulated store does.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
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


def is_found(fence: list[Edit], examples: int, seed: int, log: Path) -> bool:
    """Run the simulation without a fence; return whether a test failed."""
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
            return subprocess.run(command, cwd=folder, env=environment, stdout=words, stderr=words).returncode == 1


def main() -> None:
    """Take out each fence, or those named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="fences whose name holds this")
    parser.add_argument("--examples", type=int, default=40, help="examples of the stateful test")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logs = Path(tempfile.mkdtemp(prefix="fences-logs-"))
    missed = 0
    for number, (name, fence) in enumerate(FENCES.items()):
        if arguments.only in name:
            started = time.monotonic()
            found = is_found(fence, arguments.examples, arguments.seed, logs / f"{number}.log")
            missed += not found
            seconds = time.monotonic() - started
            print(f"{'found' if found else 'NOT FOUND'}: {name} ({seconds:.0f} s)", flush=True)
    print(f"{missed} not found; logs in {logs}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
