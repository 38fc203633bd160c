"""A command run with an eye on its memory: what the measurements in this folder have in common."""

import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent


def run_watched(command: list[str], log: Path) -> dict[str, Any]:
    """Run a command and return its seconds and peaks of memory in MiB."""
    started, peaks = time.time(), {"driver": 0, "largest_worker": 0, "all": 0}
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
        done = threading.Event()

        def watch() -> None:
            while not done.wait(1.0):
                total = 0
                for member in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
                    try:
                        used, name = member.memory_full_info().pss, " ".join(member.cmdline()[:1])
                    except psutil.Error:
                        continue
                    total += used
                    if member.pid == process.pid:
                        peaks["driver"] = max(peaks["driver"], used)
                    elif name.startswith("ray::"):
                        peaks["largest_worker"] = max(peaks["largest_worker"], used)
                peaks["all"] = max(peaks["all"], total)

        threading.Thread(target=watch, daemon=True).start()
        code = process.wait()
        done.set()
    seconds = round(time.time() - started, 1)
    return {"code": code, "seconds": seconds, **{f"{name}_mib": peak // 2**20 for name, peak in peaks.items()}}
