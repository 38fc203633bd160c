"""Languages: codes, English names and scripts of the two sides of a language pair.

Takes codes of ISO 639-1 or 639-3, also with a script (`zho_Hans`, as FLORES writes them), gives `LanguagePair`. Names come
from pycountry, the shortest that people use; a job may add languages of its own. Scripts are those of ISO 15924; a language
that is not in the table is taken to be written in Latin letters. Knows nothing of texts.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import pycountry

from rerank_actor.errors import InputError

_PAIR_FORM = re.compile(r"([A-Za-z]{2,3}(?:_[A-Za-z]{4})?)-([A-Za-z]{2,3}(?:_[A-Za-z]{4})?)")
_PAIR_IN_NAME = re.compile(rf"(?<![A-Za-z]){_PAIR_FORM.pattern}(?![A-Za-z])")

# Where ISO's name is not what a model will have read most often.
_NAMES = {
    "ell": "Greek",
    "khm": "Khmer",
    "kir": "Kyrgyz",
    "ori": "Odia",
    "ory": "Odia",
    "pan": "Punjabi",
    "pus": "Pashto",
}
_NAMES |= {"sin": "Sinhala", "uig": "Uyghur", "fas": "Persian", "pes": "Persian", "arb": "Arabic", "npi": "Nepali"}

# ISO 15924 codes by script, and the Unicode scripts that each is made of, in RE2's words.
SCRIPTS = {
    "Arab": r"\p{Arabic}", "Armn": r"\p{Armenian}", "Beng": r"\p{Bengali}", "Cyrl": r"\p{Cyrillic}",
    "Deva": r"\p{Devanagari}", "Ethi": r"\p{Ethiopic}", "Geor": r"\p{Georgian}", "Grek": r"\p{Greek}",
    "Gujr": r"\p{Gujarati}", "Guru": r"\p{Gurmukhi}", "Hang": r"\p{Hangul}", "Hebr": r"\p{Hebrew}", "Khmr": r"\p{Khmer}",
    "Knda": r"\p{Kannada}", "Laoo": r"\p{Lao}", "Latn": r"\p{Latin}", "Mlym": r"\p{Malayalam}", "Mymr": r"\p{Myanmar}",
    "Olck": r"\p{Ol_Chiki}", "Orya": r"\p{Oriya}", "Sinh": r"\p{Sinhala}", "Taml": r"\p{Tamil}", "Telu": r"\p{Telugu}",
    "Tfng": r"\p{Tifinagh}", "Thai": r"\p{Thai}", "Tibt": r"\p{Tibetan}", "Hans": r"\p{Han}", "Hant": r"\p{Han}",
    "Hani": r"\p{Han}", "Jpan": r"\p{Han}\p{Hiragana}\p{Katakana}", "Kore": r"\p{Hangul}\p{Han}",
}  # fmt: skip

# Scripts in which a language is written, where that is not Latin alone.
_WRITTEN_IN = {
    "Arab": "ara arb arz ary apc ajp acm acq aeb ars fas pes prs pbt pus urd snd uig ckb azb kas",
    "Armn": "hye", "Beng": "ben asm mni", "Deva": "hin mar nep npi san bho mai mag hne awa kok gom",
    "Cyrl": "rus ukr bel bul mkd kaz kir tgk mon khk bak tat chv oss udm myv mhr sah",
    "Ethi": "amh tir", "Geor": "kat", "Grek": "ell grc", "Gujr": "guj", "Guru": "pan", "Hebr": "heb yid ydd",
    "Hani": "zho cmn yue wuu nan hak lzh", "Jpan": "jpn", "Khmr": "khm", "Knda": "kan", "Kore": "kor", "Laoo": "lao",
    "Mlym": "mal", "Mymr": "mya shn", "Orya": "ori ory", "Sinh": "sin", "Taml": "tam", "Telu": "tel", "Thai": "tha",
    "Tibt": "bod dzo", "Olck": "sat",
}  # fmt: skip
_SEVERAL = "srp bos aze kur kmr uzb tuk crh ber tzm zgh kab ban jav sun msa min bjn ace hau kaz tat mon kas snd mni sat nan pan"


@dataclass(frozen=True)
class Language:
    """One side's language.

    Attributes:
        code: as the input writes it.
        name: in English, for the instruction.
        scripts: ISO 15924 codes; empty where a language has several and the code does not say which.
    """

    code: str
    name: str
    scripts: tuple[str, ...] = ()


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


def find_language(code: str, names: Mapping[str, str]) -> Language | None:
    """Return the language of a code, None where there is none.

    Args:
        code: of two or three letters, with or without a script behind `_`.
        names: names that the job gives to codes, which need not be known otherwise.
    """
    base, _, script = code.partition("_")
    if script and script.title() not in SCRIPTS:
        return None
    known = pycountry.languages.get(**{"alpha_2" if len(base) == 2 else "alpha_3": base.lower()})
    given = names.get(code) or names.get(base)
    if known is None:
        return Language(code, given, (script.title(),) if script else ()) if given else None
    alpha_3 = str(known.alpha_3)
    name = given or _NAMES.get(alpha_3) or re.sub(r"\s*\(.*?\)", "", str(getattr(known, "common_name", known.name)))
    return Language(code, name, (script.title(),) if script else _list_scripts(alpha_3))


def _list_scripts(alpha_3: str) -> tuple[str, ...]:
    if alpha_3 in _SEVERAL.split():
        return ()
    return tuple(script for script, codes in _WRITTEN_IN.items() if alpha_3 in codes.split()) or ("Latn",)


def parse_pair(text: str, names: Mapping[str, str], where: str) -> LanguagePair:
    """Return the language pair of `deu-eng`.

    Args:
        text: two codes with a hyphen between.
        names: that the job gives to codes.
        where: what to say of the place where it stands.

    Raises:
        InputError: it is none, or a code is unknown.
    """
    codes = _PAIR_FORM.fullmatch(text)
    if codes is None:
        raise InputError(
            f"{where}: `{text}` is no language pair; write two ISO 639 codes as in deu-eng or zho_Hans-eng"
        )
    return make_pair(codes[1], codes[2], names, where)


def make_pair(source: str, target: str, names: Mapping[str, str], where: str) -> LanguagePair:
    """Return the language pair of two codes.

    Raises:
        InputError: a code is unknown, or both are one language.
    """
    sides = []
    for code in (source, target):
        language = find_language(code, names)
        if language is None:
            raise InputError(
                f"{where}: language code `{code[:40]}` is unknown; use ISO 639 (deu, de, zho_Hans), or name it with "
                "--languages CODE=NAME",
                code=code,
            )
        sides.append(language)
    if source == target:
        raise InputError(f"{where}: source and target are both `{source}`; a pair has two languages")
    return LanguagePair(*sides)


def find_pair_in_name(name: str, names: Mapping[str, str]) -> LanguagePair | None:
    """Return the language pair that a file's name shows (`tatoeba.deu-eng.tsv`), None where it shows none or several."""
    pairs = []
    for match in _PAIR_IN_NAME.finditer(name):
        sides = [find_language(code, names) for code in match.groups()]
        if sides[0] is not None and sides[1] is not None and match[1] != match[2]:
            pairs.append(LanguagePair(sides[0], sides[1]))
    return pairs[0] if len(pairs) == 1 else None
