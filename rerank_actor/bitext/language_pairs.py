"""Language pairs: two languages as a partition of the output, and what texts and names of files say of them.

Takes `deu-eng`, `en-pt_BR`, `zh-Hant-en`, gives `LanguagePair`. A hyphen parts two tags and may also stand within one: what
can be read in several ways is refused, or told by the case that BCP 47 recommends (`en-pt-BR`). A name of a file holds other
words too, so that of these less is believed. Knows nothing of files.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from rerank_actor.bitext.languages import Language, find_language
from rerank_actor.errors import InputError

# Words in names of files that are codes of rare languages too.
FILE_WORDS = frozenset(
    [
        "all",
        "app",
        "bpe",
        "csv",
        "dev",
        "doc",
        "hyp",
        "new",
        "off",
        "old",
        "out",
        "par",
        "pdf",
        "raw",
        "ref",
        "set",
        "src",
        "sub",
        "ted",
        "tgt",
        "tmx",
        "tok",
        "top",
        "trg",
        "tsv",
        "txt",
        "web",
        "wmt",
        "xml",
    ]
)
_LONGEST_TAG = 4  # subtags, in names


@dataclass(frozen=True)
class LanguagePair:
    """Source and target language: a partition of the output."""

    source: Language
    target: Language

    @property
    def name(self) -> str:
        """`deu-eng`."""
        return f"{self.source.code}-{self.target.code}"

    @property
    def folder(self) -> str:
        """Name of its folder in the input and the output."""
        return f"lang_pair={self.name}"


def parse_pair(text: str, names: Mapping[str, str], where: str) -> LanguagePair:
    """Return the language pair of `deu-eng`, also of `zh-Hant-en`.

    Args:
        text: two tags with a hyphen between.
        names: that the job gives to codes.
        where: what to say of the place where it stands.

    Raises:
        InputError: it is none, may be several, or a code is unknown.
    """
    if text.count("-") == 1 and all(re.fullmatch(r"[A-Za-z]{2,3}(_[A-Za-z0-9_]+)?", side) for side in text.split("-")):
        source, target = text.split("-")
        return make_pair(source, target, names, where)
    pairs = settle_by_case(text, _list_splits(text, names))
    if len(pairs) != 1:
        what = "is no language pair; write two language tags as in deu-eng, en-pt_BR or zho_Hans-eng"
        if pairs:
            readings = " or ".join(f"{pair.source.code} and {pair.target.code}" for pair in pairs)
            what = f"may be {readings}; write {' or '.join(pair.name for pair in pairs)}"
        raise InputError(f"{where}: `{text}` {what}")
    return make_pair(pairs[0].source.code, pairs[0].target.code, names, where)


def _list_splits(text: str, names: Mapping[str, str]) -> list[LanguagePair]:
    """Return each way in which a text is two tags with a hyphen between."""
    pieces = text.split("-")
    couples = [
        [find_language("-".join(side), names) for side in (pieces[:at], pieces[at:])] for at in range(1, len(pieces))
    ]
    return [LanguagePair(first, second) for first, second in couples if first is not None and second is not None]


def settle_by_case(text: str, pairs: list[LanguagePair]) -> list[LanguagePair]:
    """Return the readings of a text, the one alone that is written in the case of BCP 47 where a capital tells it."""
    proper = [pair for pair in pairs if pair.name.replace("_", "-") in text.replace("_", "-")]
    return proper if len(pairs) > 1 and len(proper) == 1 and proper[0].name.lower() != proper[0].name else pairs


def make_pair(source: str, target: str, names: Mapping[str, str], where: str) -> LanguagePair:
    """Return the language pair of two tags.

    Raises:
        InputError: a code is unknown, or both are one language.
    """
    sides = []
    for code in (source, target):
        language = find_language(code, names)
        if language is None:
            raise InputError(
                f"{where}: language code `{code[:40]}` is unknown; use ISO 639 (deu, de, zho_Hans) or BCP 47 (pt_BR), or "
                "name it with --languages CODE=NAME",
                code=code,
            )
        sides.append(language)
    if sides[0].code == sides[1].code:
        raise InputError(f"{where}: source and target are both `{source}`; a pair has two languages")
    return LanguagePair(*sides)


def find_pair_in_name(name: str, names: Mapping[str, str]) -> LanguagePair | None:
    """Return the language pair that a file's name shows (`tatoeba.deu-eng.tsv`), None where it shows none or several."""
    pairs = read_name(name, names)
    return pairs[0] if len(pairs) == 1 else None


def read_name(name: str, names: Mapping[str, str]) -> list[LanguagePair]:
    """Return the language pairs that a file's name may mean."""
    found: dict[str, LanguagePair] = {}
    for word in re.findall(r"[A-Za-z0-9_-]+", name):
        found |= {pair.name: pair for pair in settle_by_case(word, _read_word(word, names))}
    return list(found.values())


def _read_word(word: str, names: Mapping[str, str]) -> list[LanguagePair]:
    """Return the language pairs in a word: around each hyphen the longest tags."""
    pieces = re.split(r"([_-])", word)
    subtags, marks = pieces[::2], [*pieces[1::2], ""]
    pairs = []
    for at in (index + 1 for index, mark in enumerate(marks) if mark == "-"):
        before = [(first, at) for first in range(max(0, at - _LONGEST_TAG), at)]
        behind = [(at, last) for last in range(min(len(subtags), at + _LONGEST_TAG), at, -1)]
        sides = [_take_longest(subtags, spans, names) for spans in (before, behind)]
        if sides[0] is None or sides[1] is None or sides[0][0].code == sides[1][0].code:
            continue
        first, last = sides[0][1], sides[1][2]
        is_cut = first > 0 and marks[first - 1] == "_" and _is_code(subtags[first - 1], names, (2,))
        if not is_cut and (last == len(subtags) or not _may_be_subtag(subtags[last])):
            pairs.append(LanguagePair(sides[0][0], sides[1][0]))
    return pairs


def _take_longest(
    subtags: list[str], spans: list[tuple[int, int]], names: Mapping[str, str]
) -> tuple[Language, int, int] | None:
    """Return the first of some spans that is a tag, longest first; numbers are those of files, but for `es_419`."""
    for first, last in spans:
        base, *rest = subtags[first:last]
        is_number = any(subtag.isdigit() and (base, subtag) != ("es", "419") for subtag in rest)
        if not is_number and min(map(len, subtags[first:last])) > 1 and base.lower() not in FILE_WORDS:
            language = find_language("_".join(subtags[first:last]), names)
            if language is not None:
                return language, first, last
    return None


def _is_code(subtag: str, names: Mapping[str, str], lengths: tuple[int, ...]) -> bool:
    return len(subtag) in lengths and find_language(subtag, names) is not None


def _may_be_subtag(subtag: str) -> bool:
    """Whether what stands behind a language may be a part of its tag that nobody has registered, as `CHS` of `zh_CHS`."""
    return re.fullmatch(r"[A-Za-z]{2,4}", subtag) is not None and subtag.lower() not in FILE_WORDS | {
        "test",
        "part",
        "full",
    }
