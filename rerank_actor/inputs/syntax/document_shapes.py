"""Shapes of documents: whether a row has one or a list, of texts or of objects, which is to be one in all rows of a job.

Takes values of JSON and types of columns, gives shapes and the first line of each, and refuses rows that are not alike: a list
beside a text would be read as the other, and give parts that are no one dataset. Knows nothing of files.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from rerank_actor.errors import InputError
from rerank_actor.inputs.columns import JSON_TEXT, is_list, is_text

LIST, OBJECT, TEXT = "a list", "an object", "a text or a number"
TEXTS, OBJECTS = "a list of texts", "a list of objects"
_APART = ((LIST, OBJECT, TEXT), (TEXTS, OBJECTS))

Shapes = dict[str, int]  # with the first line of each


def tell_shapes(value: Any) -> Iterator[str]:
    """Yield the shapes of a row's documents as JSON has them; none where there is nothing."""
    if isinstance(value, list):
        yield LIST
        if any(isinstance(item, str) for item in value):
            yield TEXTS
        if any(isinstance(item, dict) for item in value):
            yield OBJECTS
    elif value is not None:
        yield OBJECT if isinstance(value, dict) else TEXT


def tell_shapes_of(kind: pa.DataType | None) -> Iterator[str]:
    """Yield the shapes of the documents of a column; none where its type does not tell them."""
    if kind is None or pa.types.is_null(kind) or kind == JSON_TEXT:
        return
    if is_list(kind):
        yield LIST
        if pa.types.is_struct(kind.value_type):
            yield OBJECTS
        elif is_text(kind.value_type) and not pa.types.is_null(kind.value_type):
            yield TEXTS
    else:
        yield OBJECT if pa.types.is_struct(kind) else TEXT


def join_shapes(shapes: Shapes, others: Mapping[str, int]) -> None:
    """Add shapes that come later."""
    for shape, line in others.items():
        shapes[shape] = min(line, shapes.get(shape, line))


def refuse_mixed_shapes(shapes: Mapping[str, int], uri: str, column: str) -> None:
    """Refuse documents of several shapes in one file.

    Raises:
        InputError: there are.
    """
    for apart in _APART:
        found = sorted((line, shape) for shape, line in shapes.items() if shape in apart)
        if len(found) > 1:
            (first, shape), (line, other) = found[:2]
            raise InputError(
                f"{uri}, line {line:,}: `{column}` is {other}, and in line {first:,} {shape}; make it the same in all rows",
                uri=uri,
                line=line,
                column=column,
            )


def refuse_unlike(kinds: Iterable[tuple[str, pa.DataType | None]], column: str) -> None:
    """Refuse files of which some have lists of documents and others do not.

    Args:
        kinds: what each file is called, and the type of its documents.
        column: of the documents.

    Raises:
        InputError: there are such files.
    """
    lists: str | None = None
    others: tuple[str, str] | None = None
    for name, kind in kinds:
        if kind is not None and is_list(kind):
            lists = lists or name
        elif kind is not None:
            others = others or (name, "holds nothing" if pa.types.is_null(kind) else f"is {kind}")
        if lists and others:
            raise InputError(
                f"{others[0]}: column `{column}` {others[1]}, and in {lists} it is a list of documents; score them apart, each "
                "into an --output of its own",
                column=column,
            )
