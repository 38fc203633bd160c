"""Entry points run as a user would, and outputs read as a reader would."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parent.parent.parent


def run_command(
    module: str, *arguments: object, timeout: float = 500, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run an entry point as a user would and return what came of it."""
    command = [sys.executable, "-m", f"jobs.{module}", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, env={**os.environ, **environment}
    )


def wait_until(condition: Callable[[], Any], seconds: float = 300) -> bool:
    """Wait until something holds; return whether it came to that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def read_output(folder: Path) -> pa.Table:
    """Return the parts of an output as one table, in order of part names."""
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))])
