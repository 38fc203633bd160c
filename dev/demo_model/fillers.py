"""What a sentence can be about: a concept, a name, a number or a word of no language, and how each may be written.

A filler has one identity and many ways to be written, in each language; two texts match where their fillers are the
same, however written. Words of no language stand for all that the lists lack: they teach the model to compare letters.
"""

import random
from dataclasses import dataclass
from functools import cache

from demo_model.words import LANGUAGES, Concept, load_concepts, load_names, load_topics

ENDINGS = {
    "en": ["", "", "s", "ed", "ing", "er", "ers", "ly"],
    "de": ["", "", "e", "en", "er", "ung", "es", "t"],
    "fr": ["", "", "s", "e", "es", "er", "ment", "eur"],
    "es": ["", "", "o", "a", "os", "as", "ar", "mente"],
}
INFLECTED_SHARE = 0.1
COGNATES = [
    ("tion", "tion", "tion", "ción"),
    ("ity", "ität", "ité", "idad"),
    ("ic", "isch", "ique", "ico"),
    ("ism", "ismus", "isme", "ismo"),
    ("logy", "logie", "logie", "logía"),
    ("ment", "ment", "ment", "mento"),
    ("ist", "ist", "iste", "ista"),
    ("al", "al", "al", "al"),
    ("y", "ie", "ie", "ía"),
    ("or", "or", "eur", "or"),
]


@dataclass(frozen=True)
class Filler:
    """One thing that a text is about.

    Attributes:
        kind: what may take its place: a category of concepts, or `name`, `town`, `word`, `year`, `clock`, `number`.
        key: its identity.
        forms: its written forms in each language.
    """

    kind: str
    key: str
    forms: tuple[tuple[str, ...], ...]

    def write(self, rng: random.Random, language: str) -> str:
        """Return one of its forms."""
        forms = self.forms[LANGUAGES.index(language)]
        form = forms[0] if len(forms) == 1 or rng.random() < 0.3 else rng.choice(forms)
        if rng.random() < INFLECTED_SHARE and form.isalpha() and self.kind not in ("name", "town"):
            stem = form[: -rng.randint(1, 2)] if len(form) > 5 and rng.random() < 0.5 else form
            form = stem + rng.choice(ENDINGS[language])
        return form


def make_concept_filler(concept: Concept) -> Filler:
    """Return the filler of a concept."""
    return Filler(concept.category, concept.key, tuple(tuple(concept.forms[language]) for language in LANGUAGES))


@cache
def group_topics() -> list[dict[str, list[Filler]]]:
    """Return the fillers of each topic by category."""
    topics = []
    for concepts in load_topics():
        groups: dict[str, list[Filler]] = {}
        for concept in concepts:
            groups.setdefault(concept.category, []).append(make_concept_filler(concept))
        topics.append(groups)
    return topics


@cache
def group_concepts() -> dict[str, list[Filler]]:
    """Return the fillers of all concepts by category."""
    groups: dict[str, list[Filler]] = {}
    for concept in load_concepts():
        groups.setdefault(concept.category, []).append(make_concept_filler(concept))
    return groups


def make_word(rng: random.Random, *, most: int = 4) -> Filler:
    """Return a word of no language with inflected forms, some with the endings that languages share."""
    stem = "".join(rng.choices(load_names()["syllable"], k=rng.randint(2, most)))
    if rng.random() < 0.4:
        forms = tuple((stem + ending,) for ending in rng.choice(COGNATES))
    else:
        forms = tuple(tuple(stem + ending for ending in ENDINGS[language]) for language in LANGUAGES)
    forms = (forms[0], tuple(form.capitalize() for form in forms[1]), *forms[2:])
    return Filler("word", stem, forms)


def make_name(rng: random.Random, *, like: Filler | None = None) -> Filler:
    """Return a person; with `like`, another person who shares the first or the last name."""
    names = load_names()
    first, last = rng.choice(names["first"]), rng.choice(names["last"])
    if rng.random() < 0.4:
        last = "".join(rng.choices(names["syllable"], k=rng.randint(2, 3))).capitalize()
    if like is not None:
        if rng.random() < 0.75:
            first = like.key.split()[0]
        else:
            last = like.key.split()[-1]
    full = f"{first} {last}"
    return Filler("name", full, ((full, full, full, last),) * len(LANGUAGES))


def make_town(rng: random.Random) -> Filler:
    """Return a town of no country."""
    names = load_names()
    name = "".join(rng.choices(names["syllable"], k=rng.randint(1, 3))) + rng.choice(["", *names["town_end"]])
    return Filler("town", name, ((name.capitalize(),),) * len(LANGUAGES))


def make_number(rng: random.Random, kind: str, *, like: Filler | None = None) -> Filler:
    """Return a year, a time of day or a number; with `like`, one that is easily mistaken for it."""
    if like is not None and rng.random() < 0.5:
        digits = list(like.key)
        indices = [index for index, digit in enumerate(digits) if digit.isdigit() and (index or kind == "number")]
        index, other = rng.choice(indices or [len(digits) - 1]), rng.choice(indices or [0])
        if digits[index] != digits[other] and "0" not in (digits[index], digits[other]):
            digits[index], digits[other] = digits[other], digits[index]
        else:
            digits[index] = rng.choice([digit for digit in "123456789" if digit != digits[index]])
        key = "".join(digits)
    elif kind == "year":
        key = str(rng.randint(1200, 2029))
    elif kind == "clock":
        key = f"{rng.randint(0, 23)}:{rng.choice(['00', '15', '30', '45', f'{rng.randint(0, 59):02d}'])}"
    else:
        key = str(rng.choice([rng.randint(2, 99), rng.randint(2, 999), rng.randint(100, 99999)]))
    forms: tuple[tuple[str, ...], ...] = ((key,),) * len(LANGUAGES)
    if kind == "clock":
        hour, minute = key.split(":")
        forms = (
            (key, key, f"{hour}.{minute}"),
            (key, f"{hour}.{minute}", f"{hour}:{minute} Uhr"),
            (key, f"{hour}h{minute}", f"{hour} h {minute}"),
            (key, f"{hour}.{minute}", f"{hour}:{minute} h"),
        )
    elif kind == "number" and len(key) > 3:
        marks = (",", ".", " ", ".")
        forms = tuple((key, f"{key[:-3]}{mark}{key[-3:]}") for mark in marks)
    return Filler(kind, key, forms)
