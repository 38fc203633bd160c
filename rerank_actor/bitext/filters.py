"""Rules that need no score: why a candidate is not worth an engine's time, from its two texts alone.

Takes columns of texts and a language pair, gives a reason for each row, null where it passes. All are counts of characters,
so that a core looks at some hundred thousand pairs a second; only the language identifier,
where one is installed, reads text by text. Letters are those of any script, with their combining marks. A side is of the
wrong language only where it is identified as the other side's, as in LASER's filter. Knows nothing of files or scores.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_actor.bitext.language_pairs import LanguagePair
from rerank_actor.bitext.languages import SCRIPTS, Language
from rerank_actor.errors import JobError

EMPTY_SOURCE, EMPTY_TARGET = "source is empty", "target is empty"
IDENTICAL = "sides are identical"
LENGTH_RATIO = "lengths differ too much"
FEW_LETTERS = "mostly punctuation or digits"
WRONG_SCRIPT = "wrong script"
WRONG_LANGUAGE = "wrong language"
REASONS = (EMPTY_SOURCE, EMPTY_TARGET, IDENTICAL, LENGTH_RATIO, FEW_LETTERS, WRONG_SCRIPT, WRONG_LANGUAGE)
IDENTIFIERS = {"py3langid": "py3langid", "lingua": "lingua-language-detector"}  # modules, and what installs them


@dataclass(frozen=True)
class CandidateFilters:
    """Which rules are in force.

    Attributes:
        max_length_ratio: of UTF-8 bytes, which differ less between scripts than characters do; 0 for no such rule.
        min_letters: least share of letters among what is not space, of each side.
        min_script: least share of a language's own scripts among the letters, of each side.
        drop_identical: whether sides that are one text are dropped.
        identifier: `auto`, `none`, or a module.
        identifier_version: of the module, once it is known.
    """

    max_length_ratio: float = 9.0
    min_letters: float = 0.5
    min_script: float = 0.5
    drop_identical: bool = True
    identifier: str = "auto"
    identifier_version: str | None = None

    def resolve(self) -> "CandidateFilters":
        """Return the rules with the identifier that is installed here.

        Raises:
            JobError: one is named and not installed.
        """
        installed = [name for name in IDENTIFIERS if importlib.util.find_spec(name) is not None]
        if self.identifier == "auto":
            identifier = installed[0] if installed else "none"
        elif self.identifier == "none" or self.identifier in installed:
            identifier = self.identifier
        else:
            raise JobError(
                f"--identifier {self.identifier}: it is not installed; pip install {IDENTIFIERS[self.identifier]} on the "
                "driver and on workers, or --identifier none"
            )
        version = importlib.metadata.version(IDENTIFIERS[identifier]) if identifier != "none" else None
        return replace(self, identifier=identifier, identifier_version=version)

    def define(self) -> dict[str, Any]:
        """Return the rules as JSON values."""
        return asdict(self)


def compute_reasons(source: pa.Array, target: pa.Array, pair: LanguagePair, rules: CandidateFilters) -> pa.Array:
    """Return why each pair is dropped, null where it is not: string [num_pairs], the first reason that holds.

    Args:
        source: string [num_pairs], null for what is missing.
        target: the same.
        pair: the languages of the sides.
        rules: in force.
    """
    source, target = pc.fill_null(source, ""), pc.fill_null(target, "")
    counts = [_count(*side) for side in ((source, pair.source), (target, pair.target))]
    rows: dict[str, np.ndarray] = {
        EMPTY_SOURCE: counts[0].shown == 0,
        EMPTY_TARGET: counts[1].shown == 0,
    }
    if rules.drop_identical:
        trimmed = (pc.utf8_trim_whitespace(source), pc.utf8_trim_whitespace(target))
        rows[IDENTICAL] = _to_numpy(pc.equal(*trimmed))
    if rules.max_length_ratio:
        lengths = [_to_numpy(pc.binary_length(side)).astype(np.float64) for side in (source, target)]
        rows[LENGTH_RATIO] = np.maximum(*lengths) > rules.max_length_ratio * np.minimum(*lengths)
    if rules.min_letters:
        rows[FEW_LETTERS] = np.any([side.letters < rules.min_letters * side.filled for side in counts], axis=0)
    if rules.min_script:
        rows[WRONG_SCRIPT] = np.any([side.of_script < rules.min_script * side.letters for side in counts], axis=0)
    reasons = np.full(len(source), None, object)
    for reason, holds in reversed(rows.items()):
        reasons[holds] = reason
    if rules.identifier != "none":
        left = np.flatnonzero(reasons == None)  # noqa: E711 - elementwise
        reasons[left[_is_other_language(source, target, left, pair, rules.identifier)]] = WRONG_LANGUAGE
    return pa.array(reasons, pa.string())


@dataclass(frozen=True)
class _Counts:
    """Characters of each text of a side: int64 [num_pairs] each.

    Attributes:
        shown: that can be seen.
        filled: that are no space.
        letters: of any script, with their combining marks.
        of_script: letters that are of the language's scripts, or of none, as combining marks are.
    """

    shown: np.ndarray
    filled: np.ndarray
    letters: np.ndarray
    of_script: np.ndarray


def _count(texts: pa.Array, language: Language) -> _Counts:
    scripts = "".join(SCRIPTS[script] for script in language.scripts)
    # Digits and signs of a script are not letters, but then the letters are of it too.
    letters = rf"[{scripts}]|\p{{Inherited}}" if scripts else r"[\p{L}\p{M}]"
    counter = make_counter(r"[^\s\p{Z}\p{C}]", r"[^\s\p{Z}]", r"[\p{L}\p{M}]", letters)
    return _Counts(*counter.count(texts))


def _to_numpy(values: pa.Array) -> np.ndarray:
    array: np.ndarray = values.to_numpy(zero_copy_only=False)
    return array


def _is_other_language(
    source: pa.Array, target: pa.Array, rows: np.ndarray, pair: LanguagePair, identifier: str
) -> np.ndarray:
    codes = [pair.source.short, pair.target.short]
    identify = _load_identifier(identifier, *codes)
    sides = [side.take(pa.array(rows)).to_pylist() for side in (source, target)]
    return np.array(
        [identify(first) == codes[1] or identify(second) == codes[0] for first, second in zip(*sides, strict=True)],
        bool,
    )


@lru_cache(maxsize=8)
def _load_identifier(name: str, first: str, second: str) -> Callable[[str], str | None]:
    """Return a function that gives the two-letter code of a text's language."""
    if name == "py3langid":
        import py3langid

        return lambda text: str(py3langid.classify(text)[0])
    from lingua import LanguageDetectorBuilder

    detector = LanguageDetectorBuilder.from_all_languages().build()

    def identify(text: str) -> str | None:
        language = detector.detect_language_of(text)
        return language.iso_code_639_1.name.lower() if language is not None else None

    return identify


_CODE_POINTS = 0x110000
_KNOWN = 7  # the bit that says that a character was looked up


class CharacterCounter:
    r"""Counts the characters of texts that are of some classes.

    Args:
        classes: as RE2 writes them, `[\p{L}\p{M}]`; seven at most.
    """

    def __init__(self, *classes: str) -> None:
        self._classes = classes
        self._flags = np.zeros(_CODE_POINTS, np.uint8)

    def count(self, texts: pa.Array) -> list[np.ndarray]:
        """Return how many characters of each text are of each class: int64 [num_texts] for each.

        Args:
            texts: string [num_texts] without nulls.
        """
        ends = np.cumsum(pc.utf8_length(texts).to_numpy(zero_copy_only=False).astype(np.int64))
        starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
        _, offsets, data = texts.buffers()
        begin, end = np.frombuffer(offsets, np.int32)[[texts.offset, texts.offset + len(texts)]]
        raw = data[int(begin) : int(end)].to_pybytes() if data is not None else b""
        codes = np.frombuffer(raw.decode().encode("utf-32-le"), np.uint32)
        flags = self._flags[codes]
        if not (flags >> _KNOWN).all():
            self._learn(np.unique(codes[flags >> _KNOWN == 0]))
            flags = self._flags[codes]
        counts = []
        for bit in range(len(self._classes)):
            reached = np.concatenate([[0], np.cumsum(flags >> bit & 1, dtype=np.int64)])
            counts.append(reached[ends] - reached[starts])
        return counts

    def _learn(self, codes: np.ndarray) -> None:
        characters = pa.array([chr(code) for code in codes.tolist()], pa.string())
        flags = np.full(len(codes), 1 << _KNOWN, np.uint8)
        for bit, pattern in enumerate(self._classes):
            matches = pc.match_substring_regex(characters, pattern).to_numpy(zero_copy_only=False)
            flags |= (matches.astype(np.uint8) << bit).astype(np.uint8)
        self._flags[codes] = flags


@lru_cache(maxsize=32)
def make_counter(*classes: str) -> CharacterCounter:
    """Return the counter of some classes, one a process, which remembers what it has learned."""
    return CharacterCounter(*classes)
