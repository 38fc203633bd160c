"""Near-duplicates: which texts are nearly those of their query's positives, and which are these written in another way.

Likeness is the Jaccard similarity of the sets of 5-character pieces of two texts, folded and with runs of
everything but letters and digits as one blank. Computed exactly, in numpy, in chunks of bounded size. Characters rather
than words, because some languages do not part their words.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor.inputs.syntax.folding import fold_texts

PIECE = 5
CHUNK_CHARACTERS = 1_000_000
UNSEEN = r"^[\s\p{Z}\p{C}]*$"  # a text of blanks and of characters without a shape alone
SHAPELESS_START = r"^[\s\p{P}\p{Z}\p{C}]+"  # before the first letter of a text, of any length
HEAD_CHARACTERS, LETTER_CHARACTERS = 32, 8  # of a text, and from there on, in which the first letter is looked for
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_PIECE_BITS, _PIECE_SHIFT, _PIECE_MASK = np.uint64(40), np.uint64(24), np.uint64(2**40 - 1)


def mark_near_duplicates(
    texts: pa.Array, query: np.ndarray, positives: pa.Array, positive_query: np.ndarray, likeness: float
) -> np.ndarray:
    """Return which texts are as like one of their query's positives as asked: bool [num_texts].

    Args:
        texts: string [num_texts].
        query: int64 [num_texts], the query of each, not falling.
        positives: string [num_positives].
        positive_query: int64 [num_positives], the query of each, not falling.
        likeness: Jaccard similarity from which a text is a near-duplicate, above 0.
    """
    is_near = np.zeros(len(texts), bool)
    if not len(texts) or not len(positives):
        return is_near
    sizes = pc.utf8_length(texts).fill_null(0).to_numpy(zero_copy_only=False)
    cuts = np.searchsorted(
        np.cumsum(sizes), np.arange(CHUNK_CHARACTERS, sizes.sum() + CHUNK_CHARACTERS, CHUNK_CHARACTERS)
    )
    bounds = np.unique(np.concatenate([[0], cuts, [len(texts)]]))
    for start, end in zip(bounds[:-1], np.minimum(bounds[1:], len(texts)), strict=True):
        first, last = np.searchsorted(positive_query, [query[start], query[end - 1] + 1])
        is_near[start:end] = _compare(
            _cut(texts.slice(start, end - start)),
            query[start:end],
            _cut(positives.slice(first, last - first)),
            positive_query[first:last],
            likeness,
        )
    return is_near


def mark_variants(texts: pa.Array, query: np.ndarray, positives: pa.Array, positive_query: np.ndarray) -> np.ndarray:
    """Return which texts are one of their query's positives, but for what `strip_texts` takes away: bool [num_texts].

    Arguments as of `mark_near_duplicates`, in any order of queries.
    """
    # The first letter tells most texts apart, and all of a text is dear to look at.
    likely = np.flatnonzero(_mark_shared(_take_heads(texts), query, _take_heads(positives), positive_query))
    is_variant = np.zeros(len(texts), bool)
    some = _strip_once(texts.take(pa.array(likely)))
    is_variant[likely] = _mark_shared(some, query[likely], _strip_once(positives), positive_query)
    return is_variant


def _strip_once(texts: pa.Array) -> pa.Array:
    """Return `strip_texts` of texts of which many are equal, as documents are that several queries have."""
    encoded = texts.dictionary_encode()
    return strip_texts(encoded.dictionary).take(encoded.indices)


def _take_heads(texts: pa.Array) -> pa.Array:
    """Return the first letter of each text; only texts that hide it far behind are looked at as a whole."""
    start = pc.utf8_slice_codeunits(texts, 0, HEAD_CHARACTERS)
    is_cut = pc.equal(pc.utf8_length(start), HEAD_CHARACTERS)
    start = pc.replace_substring_regex(start, SHAPELESS_START, "")
    hidden = pc.and_(is_cut, pc.less(pc.utf8_length(start), LETTER_CHARACTERS))
    if hidden.true_count:
        whole = pc.replace_substring_regex(texts.filter(hidden), SHAPELESS_START, "")
        start = pc.replace_with_mask(start, hidden, whole)
    heads = pc.utf8_slice_codeunits(start, 0, LETTER_CHARACTERS).dictionary_encode()
    return pc.utf8_slice_codeunits(_trim(fold_texts(heads.dictionary)), 0, 1).take(heads.indices)


def _mark_shared(texts: pa.Array, query: np.ndarray, others: pa.Array, other_query: np.ndarray) -> np.ndarray:
    """Return which texts are one of the others of their query: bool [num_texts]."""
    known = pc.unique(others)

    def number(some: pa.Array, owners: np.ndarray) -> np.ndarray:
        places = pc.index_in(some, known).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        return np.where(places < 0, -1, owners.astype(np.int64) * len(known) + places)

    found = number(texts, query)
    is_shared: np.ndarray = np.isin(found, number(others, other_query)) & (found >= 0)
    return is_shared


def strip_texts(texts: pa.Array) -> pa.Array:
    """Return texts folded, each run of space as one blank, without punctuation at the ends: large_string [num_texts]."""
    return _trim(pc.replace_substring_regex(fold_texts(texts), r"[\s\p{Z}]+", " "))


def _trim(texts: pa.Array) -> pa.Array:
    """Return texts without punctuation and blanks at the ends; what is nothing else stays."""
    bare = pc.replace_substring_regex(texts, r"^[\s\p{P}\p{Z}]+|[\s\p{P}\p{Z}]+$", "")
    return pc.if_else(pc.equal(bare, ""), texts, bare)


def _cut(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct pieces of all texts, text after text, and how many each text has; shorter texts are one piece."""
    plain = pc.utf8_trim(pc.replace_substring_regex(fold_texts(texts.fill_null("")), r"[^\p{L}\p{M}\p{N}]+", " "), " ")
    plain = pc.utf8_rpad(plain, PIECE, "\x00")
    lengths = pc.utf8_length(plain).to_numpy(zero_copy_only=False).astype(np.int64)
    characters = np.frombuffer("".join(plain.to_pylist()).encode("utf-32-le", "surrogatepass"), np.uint32).astype(
        np.uint64
    )
    number = np.maximum(0, lengths - PIECE + 1)
    starts = np.cumsum(lengths) - lengths
    owner = np.repeat(np.arange(len(lengths)), number)
    position = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number) + starts[owner]
    piece = np.zeros(len(position), np.uint64)
    for offset in range(PIECE):
        piece = (piece ^ characters[position + offset]) * _FACTOR
        piece ^= piece >> np.uint64(29)
    keys = _sort_by_owner(owner, piece >> _PIECE_SHIFT)
    is_first = np.ones(len(keys), bool)
    is_first[1:] = keys[1:] != keys[:-1]
    keys = keys[is_first]
    return keys & _PIECE_MASK, np.bincount(_read_owner(keys), minlength=len(lengths))


def _sort_by_owner(owner: np.ndarray, piece: np.ndarray) -> np.ndarray:
    """Return sorted numbers of owner (24 bits) and piece (40 bits); one sort of numbers is far faster than by two keys."""
    keys: np.ndarray = (owner.astype(np.uint64) << _PIECE_BITS) | piece
    keys.sort()
    return keys


def _read_owner(keys: np.ndarray) -> np.ndarray:
    return (keys >> _PIECE_BITS).astype(np.int64)


def _compare(
    texts: tuple[np.ndarray, np.ndarray],
    query: np.ndarray,
    positives: tuple[np.ndarray, np.ndarray],
    positive_query: np.ndarray,
    likeness: float,
) -> np.ndarray:
    pieces, sizes = texts
    positive_pieces, positive_sizes = positives
    first = np.searchsorted(positive_query, query)
    number = np.searchsorted(positive_query, query, side="right") - first
    text = np.repeat(np.arange(len(query)), number)
    positive = expand(first, number)
    # The similarity is at most the smaller set's share of the larger; most pairs end here.
    small, large = np.minimum(sizes[text], positive_sizes[positive]), np.maximum(sizes[text], positive_sizes[positive])
    likely = small >= likeness * large
    text, positive = text[likely], positive[likely]
    is_near = np.zeros(len(query), bool)
    width = max(1, CHUNK_CHARACTERS // max(1, int(sizes.max(initial=1) + positive_sizes.max(initial=1))))
    for start in range(0, len(text), width):
        some, others = text[start : start + width], positive[start : start + width]
        shared = _count_shared(pieces, sizes, some, positive_pieces, positive_sizes, others)
        union = sizes[some] + positive_sizes[others] - shared
        is_near[some[shared >= likeness * union]] = True
    return is_near


def _count_shared(
    left: np.ndarray,
    left_sizes: np.ndarray,
    left_rows: np.ndarray,
    right: np.ndarray,
    right_sizes: np.ndarray,
    right_rows: np.ndarray,
) -> np.ndarray:
    """Return how many pieces each pair of a left and a right text shares."""
    pieces, pairs = [], []
    for values, sizes, rows in ((left, left_sizes, left_rows), (right, right_sizes, right_rows)):
        starts = np.cumsum(sizes) - sizes
        pieces.append(values[expand(starts[rows], sizes[rows])])
        pairs.append(np.repeat(np.arange(len(rows)), sizes[rows]))
    piece, pair = np.concatenate(pieces), np.concatenate(pairs)
    keys = _sort_by_owner(pair, piece)
    return np.bincount(_read_owner(keys[1:][keys[1:] == keys[:-1]]), minlength=len(left_rows))


def expand(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the concatenated ranges start, start + 1, ... of these lengths: int64 [sum of lengths]."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    positions: np.ndarray = np.arange(total) - np.repeat(ends - lengths - starts, lengths)
    return positions
