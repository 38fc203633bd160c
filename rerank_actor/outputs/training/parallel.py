"""Lists that run parallel to the documents of a training row, such as `pos_id`, `neg_id` or a first teacher's scores.

Where documents are left out, they lose the same places. One that is named like a side (`neg_...`) is of that side; one that is
not named so and is as long as a list of documents, or as all of them, may be parallel to it or not, so that its row is left
out. Takes a row and which documents stay. Knows nothing of scores.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from typing import Any

from rerank_actor.inputs.training.documents import NEGATIVE_SCORES, POSITIVE_SCORES

Kept = list[bool] | dict[str, list[bool]]  # whether each document stays, by system where there are several

_SIDE = re.compile(r"(pos|neg|positives?|negatives?)(?![a-z])")


def list_flags(kept: Kept) -> list[bool]:
    """Return whether each document stays, one system behind the other."""
    return [one for flags in kept.values() for one in flags] if isinstance(kept, dict) else kept


def select(values: Sequence[Any], kept: Kept) -> list[Any]:
    """Return the values of the documents that stay."""
    return list(compress(values, list_flags(kept)))


def cut_along(row: dict[str, Any], kept: Mapping[str, Kept], positives: str) -> bool:
    """Leave the values of documents that were left out of the lists beside them.

    Args:
        row: whose documents are cut already.
        kept: by the column of documents, those that stay.
        positives: the column of the positives; the others have negatives.

    Returns:
        Whether every list is cut, or has nothing to do with what was left out.
    """
    lacking = {name: one for name, one in kept.items() if not all(list_flags(one))}
    if not lacking:
        return True
    everything = [one for of_column in kept.values() for one in list_flags(of_column)]
    lengths = {len(everything), *(len(list_flags(one)) for one in lacking.values())} - {0}
    for name in [name for name in row if name not in {*kept, POSITIVE_SCORES, NEGATIVE_SCORES}]:
        side = _find_side(name, kept, positives)
        if side is None:
            if lengths.intersection(_iterate_lengths(row[name])):
                return False
        elif side in lacking and not _cut(row, name, lacking[side]):
            return False
    return True


def _iterate_lengths(value: Any) -> Iterator[int]:
    """Yield the lengths of lists that a value is or has in objects, also of those that are kept as JSON text."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if isinstance(value, list):
        yield len(value)
    for inner in value.values() if isinstance(value, dict) else ():
        yield from _iterate_lengths(inner)


def _find_side(name: str, documents: Mapping[str, Kept], positives: str) -> str | None:
    """Return the column of documents that a list is named after, itself or the side."""
    found = [column for column in documents if name.startswith(f"{column}_") or name.startswith(f"{column}-")]
    if not found and (match := _SIDE.match(name)):
        found = [column for column in documents if (column == positives) == match[1].startswith("pos")]
    return found[0] if len(found) == 1 else None


def _cut(row: dict[str, Any], name: str, kept: Kept) -> bool:
    """Cut a list that is as long as the documents; false where there are lists of another form."""
    values = row[name]
    if isinstance(values, list) and isinstance(kept, list) and len(values) == len(kept):
        row[name] = select(values, kept)
        return True
    return not any(_iterate_lengths(values))
