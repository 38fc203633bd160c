"""Texts of a pair: the form in which two are the same, hashes that stand for them, and the forms that files can hold.

Normalized texts are equal where NFKC form, case, space and punctuation are all that differs; punctuation before a digit
stays, for 3.5 is not 35. Hashes have 128 bits, so that two texts are one only if they are. Line formats get each run of
control characters as one space; XML 1.0 cannot hold most of these either. Knows nothing of scores.
"""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor.inputs.syntax.folding import fold_texts

LINE_BREAKING = r"[\x00-\x1f\x7f-\x{9f}\x{2028}\x{2029}]+"
NOT_XML = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x{fffe}\x{ffff}]+"
_PUNCTUATION = r"(\p{P}+\p{Nd})|\p{P}+"
_SPACE = r"[\s\p{Z}\p{Cc}]+"
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0xD6E8FEB86659FD93))


def normalize_texts(texts: pa.Array) -> pa.Array:
    """Return texts as they are compared: string [num_texts]; one of punctuation alone keeps it."""
    visible = fold_texts(texts).cast(pa.string())
    bare = pc.replace_substring_regex(visible, _PUNCTUATION, r"\1")
    bare = pc.utf8_trim_whitespace(pc.replace_substring_regex(bare, _SPACE, " "))
    kept = pc.utf8_trim_whitespace(pc.replace_substring_regex(visible, _SPACE, " "))
    return pc.if_else(pc.equal(bare, ""), kept, bare)


def hash_texts(texts: pa.Array) -> np.ndarray:
    """Return a 128-bit hash of each text, the same in every process: uint64 [num_texts, 2]."""
    digests = b"".join(
        hashlib.blake2b(text, digest_size=16).digest() for text in texts.cast(pa.large_binary()).to_pylist()
    )
    return np.frombuffer(digests, "<u8").reshape(-1, 2)


def mix_hashes(first: np.ndarray, second: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return one 64-bit hash of two, in which their order counts: uint64 [num_hashes]."""
    with np.errstate(over="ignore"):
        mixed: np.ndarray = first * _MIX[0]
        mixed = mixed + second * _MIX[1] + np.uint64(seed)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * _MIX[2]
        mixed = mixed ^ (mixed >> np.uint64(32))
    return mixed


def flatten_texts(texts: pa.Array) -> tuple[pa.Array, int]:
    """Return texts of one line without tabs, and how many were not: each run of control characters becomes a space."""
    return _replace(texts, LINE_BREAKING)


def clean_for_xml(texts: pa.Array) -> tuple[pa.Array, int]:
    """Return texts that XML 1.0 can hold, and how many it could not: each run of forbidden characters becomes a space."""
    return _replace(texts, NOT_XML)


def _replace(texts: pa.Array, pattern: str) -> tuple[pa.Array, int]:
    replaced = pc.replace_substring_regex(texts, pattern, " ")
    return replaced, pc.sum(pc.not_equal(replaced, texts)).as_py() or 0
