"""Layouts: which files of a folder are one source of candidates, and which lie beside them and are none.

Takes listed files and their language pairs, gives a `Source` for each two files that stand line by line for one another: named
by codes, as OPUS (`x.en-es.en`) and Open-NLLB (`eng_Latn-spa_Latn/x.eng_Latn`) have them, or by sides, as the Tatoeba
challenge (`eng-spa/train.src.gz`, `.trg.gz`); a file `.scores` beside them has a score a line. Knows nothing of texts.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rerank_actor import storage
from rerank_actor.bitext.language_pairs import FILE_WORDS, LanguagePair
from rerank_actor.bitext.languages import find_language, spell_tag
from rerank_actor.errors import InputError
from rerank_actor.inputs.formats import split_name
from rerank_actor.inputs.listing.left_out import is_note

Kind = Literal["parquet", "jsonl", "csv", "tsv", "laser", "pairs", "moses"]
_SIDES = {"src": "source", "trg": "target", "tgt": "target"}
_BESIDE = re.compile(r"(copying|[a-z0-9]+sums?)(\.txt)?|.*\.(ids|id|xml|scores)", re.IGNORECASE)  # and notes


@dataclass(frozen=True)
class Source:
    """A file of candidates, or the files of a Moses pair.

    Attributes:
        file: the file; of a Moses pair that of the source language.
        kind: its format.
        pair: language pair of all rows; None where language columns, or else the folder's name, say it.
        twin: the other file of a Moses pair.
        scores: of a Moses pair, a file with a score a line.
        header: names of the columns where the first line does not have them; `-` is none that is kept.
        folder_pair: language pair that the folder's name shows.
    """

    file: storage.StoredObject
    kind: Kind
    pair: LanguagePair | None
    twin: storage.StoredObject | None = None
    scores: storage.StoredObject | None = None
    header: tuple[str, ...] = ()
    folder_pair: LanguagePair | None = None

    @property
    def num_bytes(self) -> int:
        """Stored size."""
        return sum(file.size for file in self.files)

    @property
    def identity(self) -> list[list[Any]]:
        """What tells its files from others, and from themselves once they have changed, as JSON values."""
        return [file.identity for file in self.files]

    @property
    def files(self) -> list[storage.StoredObject]:
        """Its files, one to three."""
        return [file for file in (self.file, self.twin, self.scores) if file is not None]


@dataclass
class _Sides:
    """Files of one name but for what follows the last dot."""

    pair: LanguagePair
    by_code: dict[str, storage.StoredObject] = field(default_factory=dict)
    by_side: dict[str, storage.StoredObject] = field(default_factory=dict)


def join_moses(
    files: Mapping[str, storage.StoredObject], pairs: Mapping[str, LanguagePair | None]
) -> tuple[list[Source], list[storage.StoredObject]]:
    """Return the Moses pairs, and the files that are none.

    Args:
        files: by URI.
        pairs: by URI, the language pair that a flag, a name or a folder tells.

    Raises:
        InputError: a file's other side is not there, or there twice.
    """
    groups: dict[str, _Sides] = {}
    scores: dict[str, storage.StoredObject] = {}
    for uri, file in files.items():
        stem, suffix, _ = split_name(uri)
        pair, name = pairs[uri], suffix[1:]
        if name == "scores":
            _put(scores, stem, file, "the scores")
        elif pair is not None and name in _SIDES:
            _put(groups.setdefault(stem, _Sides(pair)).by_side, _SIDES[name], file, f"the {_SIDES[name]}")
        elif pair is not None and (side := _find_side(name, pair)) is not None:
            _put(groups.setdefault(stem, _Sides(pair)).by_code, side, file, f"the {side}")
    sources = [
        Source(sides["source"], "moses", group.pair, sides["target"], scores.get(stem))
        for stem, group in groups.items()
        for sides in _complete(group, stem)
    ]
    taken = {file.uri for source in sources for file in source.files}
    return sources, [file for uri, file in files.items() if uri not in taken]


def _put(files: dict[str, storage.StoredObject], key: str, file: storage.StoredObject, what: str) -> None:
    """Add a file, such as `x.en`; refuse another that would be the same, as `x.en.gz` beside it."""
    other = files.setdefault(key, file)
    if other is not file:
        raise InputError(
            f"{file.uri}: both this file and {other.uri.rpartition('/')[2]} would be {what} of one Moses pair; leave one of "
            "them out of --input",
            uri=file.uri,
        )


def _find_side(name: str, pair: LanguagePair) -> str | None:
    """Return which side's language a file's last name tells, in whatever code; `de` is `deu` here."""
    code = spell_tag(name)
    if code in (pair.source.code, pair.target.code):
        return "source" if code == pair.source.code else "target"
    language = find_language(name, {}) if name.lower() not in FILE_WORDS else None
    if language is None or pair.source.tag == pair.target.tag:
        return None
    return {pair.source.tag: "source", pair.target.tag: "target"}.get(language.tag)


def _complete(group: _Sides, stem: str) -> list[dict[str, storage.StoredObject]]:
    """Return the sides of each Moses pair of a name; a file `train.id` beside `train.src` holds no Indonesian."""
    whole = [sides for sides in (group.by_code, group.by_side) if len(sides) == 2]
    if not whole:
        side, file = next(iter((group.by_code or group.by_side).items()))
        other = group.pair.target if side == "source" else group.pair.source
        name = other.code if group.by_code else "trg" if side == "source" else "src"
        raise InputError(
            f"{file.uri}: its other side, {stem}.{name}, is not among the input; give both files", uri=file.uri
        )
    return whole


def names_side(uri: str) -> bool:
    """Whether a file is by its name one side of a Moses pair, whatever the language pair."""
    name = split_name(uri)[1][1:]
    return name in _SIDES or (name.lower() not in FILE_WORDS and find_language(name, {}) is not None)


def lies_beside(uri: str) -> bool:
    """Whether a file is by its name one of those that corpora have besides their texts, as `README` and OPUS's `.ids`."""
    stem, suffix, _ = split_name(uri)
    return is_note(uri) or _BESIDE.fullmatch((stem + suffix).rpartition("/")[2]) is not None
