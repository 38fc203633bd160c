"""What comes of a task: its report, or why it failed, and how a report travels from the worker to the driver.

A report holds JSON values and, at any depth, NumPy arrays, which travel as bytes beside the JSON and come back flat.
Knows nothing of Ray or of the work.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

INDEX, DTYPE = "array", "dtype"  # of an array that stands beside the JSON


@dataclass(frozen=True)
class TaskFailure:
    """Why a task failed.

    Attributes:
        reason: a sentence for the user.
        kind: name of the error's class.
    """

    reason: str
    kind: str


def pack_report(report: dict[str, Any]) -> tuple[str, list[bytes]]:
    """Return a report as JSON, and the bytes of its arrays."""
    arrays: list[bytes] = []

    def set_aside(value: Any) -> dict[str, Any]:
        if not isinstance(value, np.ndarray):
            raise TypeError(f"a report cannot hold a {type(value).__name__}")
        arrays.append(value.tobytes())
        return {INDEX: len(arrays) - 1, DTYPE: value.dtype.str}

    return json.dumps(report, default=set_aside), arrays


def unpack_report(text: str, arrays: list[bytes]) -> dict[str, Any]:
    """Rebuild the report that `pack_report` packed; arrays are flat and cannot be written to."""

    def restore(values: dict[str, Any]) -> Any:
        return np.frombuffer(arrays[values[INDEX]], values[DTYPE]) if values.keys() == {INDEX, DTYPE} else values

    report: dict[str, Any] = json.loads(text, object_hook=restore)
    return report
