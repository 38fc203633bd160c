"""JSON lines: the object of a line, and what a text is whose lines hold none.

Values are Python's, exactly what is written: a number that a float64 does not hold is a `Decimal`. Text that is not UTF-8 has
lone surrogates. Knows nothing of files or columns.
"""

import json
import math
from decimal import Decimal
from typing import Any

from rerank_actor.inputs.columns import as_text

LINES_TRIED = 16
MAX_NESTING = (
    200  # of a line's lists and objects; Python and others give up at some hundreds, where depends on the caller
)
SHORT_NUMBER = 16  # characters, of which at most fifteen are digits that count


def parse_float(text: str) -> float | Decimal:
    """Return a number that is not written as an integer, exactly."""
    value = float(text)
    if len(text) <= SHORT_NUMBER and "e" not in text and "E" not in text:
        return value
    exact = Decimal(text)
    return value if math.isfinite(value) and Decimal(repr(value)) == exact else exact


_DECODER = json.JSONDecoder(parse_float=parse_float)


def parse_object(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line, None where it holds none, or one that is nested more than `MAX_NESTING` deep."""
    try:
        value = _DECODER.decode(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or (line.count(b"[") + line.count(b"{") > MAX_NESTING and _is_too_deep(value)):
        return None
    return {str(as_text(name)): item for name, item in value.items()}


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_NESTING):
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, list | dict)
        ]
    return bool(level)


def find_no_lines(head: bytes, is_whole: bool) -> str | None:
    """Return what a text is whose first lines hold no object each, and what to do; None where some do, or there are none.

    Args:
        head: its first bytes.
        is_whole: whether these are all of it.
    """
    text = head.decode("utf-8", "replace").removeprefix("\ufeff").lstrip()
    lines = [line for line in text.split("\n") if line.strip()]
    if not is_whole and len(lines) > 1:
        del lines[-1]
    if not lines or (len(lines) == 1 and not is_whole and "\n" not in text and not text.startswith("[")):
        return None
    if text.startswith("[") and text[1:].lstrip()[:1] in ("{", ""):
        return "is one JSON array, not JSON lines; write an object a line (jq -c '.[]')"
    if lines[0].strip() == "{":
        return "holds JSON objects over several lines; write an object a line (jq -c .)"
    if any(parse_object(line.encode()) is not None for line in lines[:LINES_TRIED]):
        return None
    if _has_objects(lines[0]):
        return "holds JSON objects without line ends between them; write an object a line (jq -c .)"
    if text.startswith("["):
        return "holds JSON arrays, not objects; JSON lines are an object a line, with the names of the columns"
    if text.startswith("{"):
        return "holds no JSON object in a line; write an object a line (jq -c .)"
    return "is no JSON lines: none of its first lines is an object; name it by the format that it has"


def _has_objects(line: str) -> bool:
    """Whether a line begins with an object that another follows."""
    try:
        _, end = json.JSONDecoder().raw_decode(line.strip())
    except (ValueError, RecursionError):
        return False
    return line.strip()[end:].lstrip(", ").startswith("{")
