"""Languages: tags, English names and scripts of languages.

Takes tags of BCP 47 (`de`, `pt-BR`, `zh_Hant`) and codes of ISO 639-3, also with a script as FLORES writes them
(`zho_Hans`), gives `Language`. Two spellings of one tag are one language, two tags never are: langcodes knows them.
Names come from pycountry, the shortest that people use; a job may add languages of its own. Scripts are those of ISO 15924;
a language that is not in the table is taken to be written in Latin letters. Knows nothing of texts.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import langcodes
import pycountry

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


# What CLDR calls them; elsewhere the region stands behind the name. A script alone changes no name, because names are part
# of the fingerprints of outputs whose codes were FLORES's.
_REGIONAL = {
    "deu_AT": "Austrian German", "deu_CH": "Swiss German", "eng_AU": "Australian English", "eng_CA": "Canadian English",
    "eng_GB": "British English", "eng_US": "American English", "fra_CA": "Canadian French", "fra_CH": "Swiss French",
    "nld_BE": "Flemish", "por_BR": "Brazilian Portuguese", "por_PT": "European Portuguese", "ron_MD": "Moldovan",
    "spa_419": "Latin American Spanish", "spa_ES": "European Spanish", "spa_MX": "Mexican Spanish",
}  # fmt: skip
_AREAS = {"001": "World", "150": "Europe", "419": "Latin America"}  # of UN M.49
_CHINESE = {"Hans": "Simplified Chinese", "Hant": "Traditional Chinese"}


@dataclass(frozen=True)
class Language:
    """One side's language.

    Attributes:
        code: its tag in one spelling, subtags with `_` between: `deu`, `pt_BR`, `zho_Hans`.
        name: in English, for the instruction.
        scripts: ISO 15924 codes; empty where a language has several and the code does not say which.
        tag: as BCP 47 writes it: `de`, `pt-BR`, `zh-Hans`.
    """

    code: str
    name: str
    scripts: tuple[str, ...] = ()
    tag: str = ""

    @property
    def short(self) -> str:
        """ISO 639-1 code of the language alone, 639-3 where it has none."""
        return self.tag.partition("-")[0]


def spell_tag(text: str) -> str | None:
    """Return a tag in the one spelling that outputs have of it, `pt_BR` of `pt-br`; None where it has not a tag's form."""
    try:
        return langcodes.Language.get(text, normalize=False).to_tag().replace("-", "_") if text else None
    except ValueError:
        return None


def find_language(code: str, names: Mapping[str, str]) -> Language | None:
    """Return the language of a tag, None where there is none.

    Args:
        code: of BCP 47, also with `_` for `-` and with a code of ISO 639-3.
        names: names that the job gives to codes, which need not be known otherwise.
    """
    spelled = spell_tag(code)
    if spelled is None or not _is_registered(spelled):
        return None
    known, base = _find_iso(spelled), spelled.partition("_")[0]
    given = {spell_tag(key): name for key, name in names.items()}
    plain = given.get(base) or (_name_plainly(known) if known is not None else None)
    alpha_3 = str(known.alpha_3) if known is not None else base
    name = given.get(spelled) or (_name_regionally(plain, alpha_3, spelled) if plain else None)
    if name is None:
        return None
    script = langcodes.Language.get(spelled, normalize=False).script
    scripts = _list_scripts(alpha_3) if known is not None else ()
    if script is not None:
        scripts = (script,) if script in SCRIPTS else ()
    tag = "-".join([str(getattr(known, "alpha_2", alpha_3)), *spelled.split("_")[1:]])
    return Language(spelled, name, scripts, langcodes.standardize_tag(spelled) if _is_irregular(spelled) else tag)


def _is_irregular(code: str) -> bool:
    """Whether a tag begins with more than a language, as `zh_yue` and `i_klingon` do."""
    return re.match(r"[a-z]{2,3}(_(?![a-z]{3}(_|$))|$)", code) is None


@lru_cache(maxsize=4096)
def _is_registered(code: str) -> bool:
    """Whether all that a tag has behind its language is in the registry of BCP 47."""
    tag = langcodes.Language.get(code)
    rest = langcodes.Language.make(script=tag.script, territory=tag.territory, variants=tag.variants)
    return not tag.extlangs and rest.is_valid()


@lru_cache(maxsize=4096)
def _find_iso(code: str) -> Any:
    """Return pycountry's record of a tag's language, by what is written or else by what that is an old code of."""
    written, preferred = code.partition("_")[0], langcodes.Language.get(code).language or ""
    for base in (preferred, written) if _is_irregular(code) else (written, preferred):
        known = pycountry.languages.get(**{"alpha_2" if len(base) == 2 else "alpha_3": base})
        if known is not None:
            return known
    return None


def _name_plainly(known: Any) -> str:
    name = str(getattr(known, "common_name", known.name))
    return _NAMES.get(str(known.alpha_3)) or re.sub(r"\s*\(.*?\)", "", name)


def _name_regionally(plain: str, alpha_3: str, code: str) -> str:
    """Return a language's name with what tells it from others of that language; a script alone does not."""
    tag = langcodes.Language.get(code, normalize=False)
    territory = langcodes.Language.get(code).territory if tag.territory else None  # UK is GB
    if f"{alpha_3}_{territory}" in _REGIONAL:
        return _REGIONAL[f"{alpha_3}_{territory}"]
    details = [_name_region(territory)] if territory else []
    if alpha_3 == "zho" and territory:
        script = tag.maximize().script
        plain = _CHINESE.get(str(script), plain)
        if langcodes.Language.make("zh", script=script).maximize().territory == territory:
            details = []
    details += [*(tag.variants or []), *([tag.private] if tag.private else [])]
    return f"{plain} ({', '.join(details)})" if details else plain


def _name_region(territory: str) -> str:
    known = pycountry.countries.get(numeric=territory) or pycountry.countries.get(alpha_2=territory)
    name = str(getattr(known, "common_name", getattr(known, "name", territory)))
    return _AREAS.get(territory, name.partition(",")[0])


def _list_scripts(alpha_3: str) -> tuple[str, ...]:
    if alpha_3 in _SEVERAL.split():
        return ()
    return tuple(script for script, codes in _WRITTEN_IN.items() if alpha_3 in codes.split()) or ("Latn",)
