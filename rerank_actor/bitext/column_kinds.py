"""Kinds of columns: what the fields of a file without a header are, by their shapes over its first rows.

Takes rows of fields, gives a kind a column, which may be shown because it holds no text, and the names of the columns where
these are unmistakable. A number is a score only where it has a fraction: whole numbers may be ids, counts or marks. Knows
nothing of files.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

from rerank_actor.bitext.languages import find_language
from rerank_actor.inputs.text import is_number

EMPTY, TEXT, LABEL, URL, CODE = "empty", "text", "label", "url", "language code"
NUMBER, WHOLE, ID = "number", "whole number", "id"
SEVERAL = 2  # rows, without which nothing is unmistakable
_URL = re.compile(r"[a-z][a-z0-9+.-]*://\S*|([a-z0-9_-]+\.)+[a-z]{2,}(:\d+)?([/?#]\S*)?", re.IGNORECASE)
_WHOLE = re.compile(r"[+-]?\d+")
_LABEL = re.compile(r"[!-~]*(\d|[_/:.-][!-~])[!-~]*")
_LARGEST_MARK = 100  # of whole numbers, what may be a mark or a percentage


def is_fraction(text: str) -> bool:
    """Whether a field is a number that no id is."""
    return is_number(text) and _WHOLE.fullmatch(text.strip()) is None


def tell_kinds(rows: Sequence[Sequence[str]], languages: Mapping[str, str]) -> list[str]:
    """Return what each column is, of rows of one length.

    Args:
        rows: at least one.
        languages: names that the job gives to codes.
    """
    return [_tell_kind([field.strip() for field in column], languages) for column in zip(*rows, strict=True)]


def _tell_kind(values: list[str], languages: Mapping[str, str]) -> str:
    found = [value for value in values if value]
    if not found:
        return EMPTY
    if all(map(is_number, found)):
        return _tell_number(found)
    if all(map(_URL.fullmatch, found)):
        return URL
    if len(set(found)) == 1 and find_language(found[0], languages) is not None:
        return CODE
    is_constant = len(set(found)) == 1 and len(values) >= SEVERAL and not re.search(r"\s", found[0])
    return LABEL if is_constant or all(map(_LABEL.fullmatch, found)) else TEXT


def _tell_number(found: list[str]) -> str:
    if any(map(is_fraction, found)):
        return NUMBER
    numbers = list(map(int, found))
    is_running = all(after == before + 1 for before, after in pairwise(numbers))
    return ID if len(numbers) >= SEVERAL and (is_running or max(numbers) > _LARGEST_MARK) else WHOLE


def name_kinds(kinds: Sequence[str], num_rows: int) -> list[str] | None:
    """Return the name of each column for `--columns`, None where they may be named in several ways."""
    if num_rows < SEVERAL or kinds.count(TEXT) != len(("source", "target")) or WHOLE in kinds:
        return None
    roles = {TEXT: ["source", "target"], NUMBER: ["score"]}
    if kinds.count(CODE) == len(("source", "target")):
        roles[CODE] = ["source_language", "target_language"]
    return [roles[kind].pop(0) if roles.get(kind) else "-" for kind in kinds]
