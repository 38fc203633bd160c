"""The written material that training texts are made of: concepts, relations, frames and names in four languages.

Reads the text files of `words/`, which were written for the project. A concept is one meaning with its words in each
language, inflected forms and synonyms together; a relation is a kind of question with its answers; frames are the
function words around them. Nothing here is random and nothing knows of the queries that the model is measured on.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "words"
LANGUAGES = ("en", "de", "fr", "es")
CONCEPT_FILES = ("living", "home", "world", "actions", "qualities", "ideas")
NUMERALS = {
    name: str(value)
    for value, name in [
        *enumerate("one two three four five six seven eight nine ten eleven twelve".split(), 1),
        (15, "fifteen"), (20, "twenty"), (30, "thirty"), (40, "forty"), (50, "fifty"), (100, "hundred"), (1000, "thousand"),
    ]
}  # fmt: skip


@dataclass(frozen=True)
class Concept:
    """One meaning: its category and its words in each language."""

    category: str
    key: str
    forms: dict[str, list[str]] = field(hash=False)


@dataclass(frozen=True)
class Relation:
    """A kind of question: what it can be about, and question and answer patterns in each language."""

    name: str
    categories: list[str]
    questions: dict[str, list[str]]
    answers: dict[str, list[str]]


@cache
def load_concepts() -> list[Concept]:
    """Return all concepts, in the order of the files."""
    concepts = []
    for name in CONCEPT_FILES:
        for category, lines in _read_sections(FOLDER / f"{name}.txt"):
            for line in lines:
                columns = [[form.replace("_", " ") for form in column.split()] for column in line.split("|")]
                if len(columns) != len(LANGUAGES):
                    raise ValueError(f"{name}.txt: {len(columns)} languages in {line!r}")
                forms = dict(zip(LANGUAGES, columns, strict=True))
                if category == "number" and columns[0][0] in NUMERALS:
                    forms = {language: [*words, NUMERALS[columns[0][0]]] for language, words in forms.items()}
                key = f"{category} {columns[0][0]} {columns[1][0]}"
                concepts.append(Concept(category, key, forms))
    return concepts


@cache
def load_relations() -> list[Relation]:
    """Return all relations."""
    relations = []
    for heading, lines in _read_sections(FOLDER / "relations.txt"):
        name, *categories = heading.split()
        questions: dict[str, list[str]] = {}
        answers: dict[str, list[str]] = {}
        for line in lines:
            target = questions if line[2] == "?" else answers
            target[line[:2]] = [pattern.strip() for pattern in line[3:].split("|")]
        relations.append(Relation(name, categories, questions, answers))
    return relations


@cache
def load_frames() -> dict[str, dict[str, list[str]]]:
    """Return, for each language, the frames by kind."""
    return {
        language: {
            line.partition(":")[0]: [frame.strip() for frame in line.partition(":")[2].split("|")] for line in lines
        }
        for language, lines in _read_sections(FOLDER / "frames.txt")
    }


@cache
def load_function_words() -> dict[str, list[str]]:
    """Return the words of each language that carry no meaning of their own."""
    return {language: " ".join(lines).split() for language, lines in _read_sections(FOLDER / "noise.txt")}


@cache
def load_topics() -> list[list[Concept]]:
    """Return groups of concepts that are spoken of together, which their English words name."""
    by_word: dict[str, Concept] = {}
    for concept in load_concepts():
        for form in concept.forms["en"]:
            by_word.setdefault(form, concept)
    lines = (FOLDER / "topics.txt").read_text(encoding="utf-8").splitlines()
    words = [line.partition(":")[2].split() for line in lines]
    return [[by_word[word.replace("_", " ")] for word in mine if word.replace("_", " ") in by_word] for mine in words]


@cache
def load_names() -> dict[str, list[str]]:
    """Return first and last names, and the syllables that words of no language are made of."""
    return {kind: " ".join(lines).split() for kind, lines in _read_sections(FOLDER / "names.txt")}


def _read_sections(path: Path) -> list[tuple[str, list[str]]]:
    sections: list[tuple[str, list[str]]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            sections.append((line.strip("[] "), []))
        elif line.strip():
            sections[-1][1].append(line.strip())
    return sections
