"""Labels: which scored pairs are positive, by a column of numbers, truth values or words, or of the place in a list.

Takes scored rows and the label column's name, gives a truth value or a grade for each pair. A word counts for what it says in
English or for what the user says of it; any other is refused, because a wrong guess would turn positives into negatives.
"""

import numpy as np
import pyarrow as pa

from rerank_actor.errors import InputError
from rerank_actor.inputs.columns import decode_dictionary, is_list, is_text
from rerank_actor.inputs.syntax.label_words import grade_label
from rerank_actor.outputs.scored_columns import PairRows

SHOWN_LABELS, SHOWN_CHARACTERS = 5, 30


def mark_positives(
    rows: PairRows, name: str, min_relevance: float, positive_labels: tuple[str, ...] = ()
) -> np.ndarray:
    """Return which pairs are positive: bool [num_pairs]; a null label is none.

    Args:
        rows: scored rows.
        name: of the label column. Where documents are lists and labels are not, a label is the place of the positive one.
        min_relevance: number from which a pair is positive.
        positive_labels: labels that are positive, as text; all others are not.

    Raises:
        InputError: a label is neither a number nor a known word, or no document has its place.
    """
    grades = read_grades(rows, name, positive_labels)
    positive: np.ndarray = np.nan_to_num(grades, nan=-np.inf, posinf=np.inf, neginf=-np.inf) >= min_relevance
    return positive


def read_grades(rows: PairRows, name: str, positive_labels: tuple[str, ...] = ()) -> np.ndarray:
    """Return what the label of each pair says, NaN for null and infinite for words and places: float64 [num_pairs].

    Args:
        rows: scored rows.
        name: of the label column, as `mark_positives` takes it.
        positive_labels: labels that are positive, as text; all others are not.

    Raises:
        InputError: as of `mark_positives`.
    """
    label = rows.take(name)
    if rows.lengths is not None and not is_list(label.type):
        return np.where(_mark_places(label, rows.lengths, rows.uri, name), np.inf, -np.inf)
    return _read_grades(rows.spread(name), rows.uri, name, positive_labels)


def _read_grades(column: pa.ChunkedArray, uri: str, name: str, positive_labels: tuple[str, ...]) -> np.ndarray:
    """Return labels as numbers, NaN for null and infinite for words: float64 [num_labels]."""
    column = decode_dictionary(column)
    if positive_labels or is_text(column.type):
        return _read_words(column, uri, name, positive_labels)
    try:
        numbers = column.cast(pa.uint8()) if pa.types.is_boolean(column.type) else column
        grades: np.ndarray = numbers.cast(pa.float64()).fill_null(np.nan).to_numpy()
    except pa.ArrowException:
        raise InputError(
            f"{uri}: column `{name}` ({column.type}) holds no labels; give a column of numbers, truth values or words with "
            "--label-column",
            uri=uri,
            column=name,
        ) from None
    return grades


def _read_words(column: pa.ChunkedArray, uri: str, name: str, positive_labels: tuple[str, ...]) -> np.ndarray:
    encoded = pa.chunked_array(column.chunks, column.type).combine_chunks().dictionary_encode()
    words = ["" if value is None else _name_label(value) for value in encoded.dictionary.to_pylist()]
    grades = [grade_label(word) for word in words]
    unknown = [word for word, grade in zip(words, grades, strict=True) if grade is None]
    if positive_labels:
        wanted, unknown = {_name_label(label) for label in positive_labels}, []
        grades = [np.inf if word in wanted else -np.inf for word in words]
    if unknown:
        shown = ", ".join(f"`{word}`" for word in unknown[:SHOWN_LABELS] if len(word) <= SHOWN_CHARACTERS)
        raise InputError(
            f"{uri}: column `{name}` holds {len(unknown):,} labels that do not say what they mean ({shown or 'long ones'}); "
            "name the positive ones with --positive-labels NAME,...",
            uri=uri,
            column=name,
        )
    index = encoded.indices.fill_null(len(words)).to_numpy(zero_copy_only=False)
    values: np.ndarray = np.array([*grades, np.nan], np.float64)[index]
    return values


def _name_label(value: object) -> str:
    """Return a label as it is compared: numbers however they are written, words in lower case."""
    word = str(value).strip().casefold()
    try:
        return str(float(word))
    except ValueError:
        return word


def _mark_places(label: pa.ChunkedArray, lengths: np.ndarray, uri: str, name: str) -> np.ndarray:
    """Return which pairs are positive where a label says at what place of its row's list the positive one stands."""
    label = decode_dictionary(label)
    try:
        if pa.types.is_boolean(label.type):
            raise pa.ArrowTypeError("a truth value is no place")
        position: np.ndarray = label.cast(pa.float64()).fill_null(np.nan).to_numpy()
    except pa.ArrowException:
        raise InputError(
            f"{uri}: column `{name}` ({label.type}) holds one label for a list of documents, which is no place in it; give a "
            "list of labels, or the place of the positive one, from 0",
            uri=uri,
            column=name,
        ) from None
    known = np.isfinite(position)
    inside = (position[known] == np.floor(position[known])) & (position[known] >= 0)
    inside &= position[known] < lengths[known]
    if not inside.all():
        raise InputError(
            f"{uri}: column `{name}` holds one number for a list of documents, so it is the place of the positive one, from "
            f"0; {int((~inside).sum()):,} rows have no document there",
            uri=uri,
            column=name,
        )
    positive = np.zeros(int(lengths.sum()), bool)
    positive[((np.cumsum(lengths) - lengths)[known] + position[known]).astype(np.int64)] = True
    return positive
