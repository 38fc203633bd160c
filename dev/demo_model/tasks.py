"""Queries with labelled documents, made from meanings and relations: what the model is trained and tuned on.

A document answers a query when it says all that the query says and has what the query asks for, in whatever words and
language. Documents that fall short are made from the same words: another person, number, place or thing in the same
sentence, the thing asked for left out, another question's answer. Labels are probabilities, in between where the
document only lacks something. Each list is a function of the random state alone.
"""

import random
from dataclasses import dataclass, replace

from demo_model.fillers import Filler, group_concepts, make_name, make_number, make_town, make_word
from demo_model.sentences import (
    NUMBER_KINDS,
    UNKNOWN_SHARE,
    Meaning,
    Writer,
    Written,
    find_topic_mate,
    finish_sentence,
    make_filler,
    make_meaning,
    make_sibling,
    strew_function_words,
)
from demo_model.words import LANGUAGES, Relation, load_relations

FULL, FAR = 1.0, 0.01
LACKS_ANSWER, IS_QUESTION = 0.25, 0.3
QUESTION_SHARE = 0.04
# How relevant a document still is that leaves out one of a query's roles, and that says another thing in its place.
LEFT_OUT = {"W": 0.3, "V": 0.55, "N": 0.2, "A": 0.55, "P": 0.3, "T": 0.35, "M": 0.25}
REPLACED = {"W": 0.06, "V": 0.15, "N": 0.05, "A": 0.2, "P": 0.06, "T": 0.08, "M": 0.05}
ALIKE = {"W": 0.35, "V": 0.5, "N": 0.35, "A": 0.5, "P": 0.35, "T": 0.1, "M": 0.05}
STREWN_SHARE = 0.12
QUERY_ROLES = """WVN WVN WVN VN VN NA NA NP NP WN WN WV WVNP WVNP WNT VNP VNT VNA WVNA WVNT NM WNM VNM WNP NPT NAP WP
N VP NAT WM PM WVNPT WVNAP VNPM""".split()


@dataclass(frozen=True)
class Task:
    """One query and its documents with the probability that each is relevant."""

    kind: str
    query: str
    documents: list[str]
    labels: list[float]


def make_task(rng: random.Random, *, num_documents: int = 8, ease: float = 0.0) -> Task:
    """Return a task; with `ease` up to 1 more of them can be told by comparing words."""
    if rng.random() < ease:
        return make_word_task(rng, num_documents=num_documents)
    if rng.random() < 0.35 * (1 - ease):
        return make_relation_task(rng, num_documents=num_documents)
    return make_meaning_task(rng, num_documents=num_documents, ease=ease)


def make_word_task(rng: random.Random, *, num_documents: int = 8) -> Task:
    """Return a task of bare words of one language: a document has all words of the query, or all but one."""
    language = rng.choice(LANGUAGES)
    writer = Writer(rng, language, terse=True)
    names = rng.sample(["W", "V", "N", "A", "P", "T"], k=rng.randint(2, 4))
    words = [writer.write_word(make_filler(rng, name, unknown=0.1)) for name in names]
    num_right = rng.randint(1, num_documents // 2)
    documents: list[tuple[str, float]] = []
    for index in range(num_documents):
        kept = list(words)
        if index >= num_right:
            kept = kept[1:] if rng.random() < 0.7 else []
            rng.shuffle(words)
        others = [
            writer.write_word(make_filler(rng, rng.choice("WVNAPT"), unknown=0.1)) for _ in range(rng.randint(2, 5))
        ]
        text = kept + others
        rng.shuffle(text)
        documents.append((" ".join(text), FULL if index < num_right else REPLACED["N"]))
    return _finish_task(rng, "words", strew_function_words(rng, " ".join(words), language, 0.3), documents, False)


def make_meaning_task(rng: random.Random, *, num_documents: int = 8, ease: float = 0.0) -> Task:
    """Return a task about who does what, where and when."""
    language = rng.choice(LANGUAGES)
    names = rng.choice(QUERY_ROLES)
    asked = rng.choice("WPTMB") if rng.random() < 0.45 * (1 - ease) else ""
    if asked in names:
        names = names.replace(asked, "")
    if not set(names) & set("WVN") or len(names) < 2:
        asked = ""
        names = names or "N"
    meaning = make_meaning(rng, names, unknown=UNKNOWN_SHARE * (1 - ease))
    writer = Writer(rng, language, terse=rng.random() < 0.3)
    if asked:
        query, kind = writer.write_question(meaning, asked), "question"
    elif rng.random() < 0.4:
        query, kind = writer.write_keywords(meaning), "keywords"
    else:
        query, kind = writer.write_clause(meaning), "clause"
        if rng.random() < 0.25:
            query = writer.wrap_query(query)
    if kind != "keywords" and rng.random() < 0.5 * (1 - ease):
        query = strew_function_words(rng, query, language, STREWN_SHARE)
    documents: list[tuple[str, float]] = []
    num_right = rng.randint(1, max(1, num_documents // 2))
    for index in range(num_documents):
        if index < num_right:
            changed, label, loyalty = meaning, FULL, 0.25
        else:
            changed, label = _spoil_meaning(rng, meaning, bool(asked))
            loyalty = 0.7
        if asked:
            has_answer = index < num_right or (label < FULL and rng.random() < 0.6)
            if not has_answer:
                label = min(label, LACKS_ANSWER)
            if has_answer:
                changed = _add_role(rng, changed, asked)
        if rng.random() > ease:
            changed = _add_extras(rng, changed, names, asked)
        other = language if rng.random() < max(0.65, ease) else rng.choice(LANGUAGES)
        if index >= num_right and rng.random() < QUESTION_SHARE * (1 - ease):
            scribe = Writer(rng, other, known=writer.written, loyalty=0.8)
            text = scribe.write_question(meaning, rng.choice([role for role in "WPTMB" if role not in names + asked]))
            documents.append((f"{text[:1].upper()}{text[1:]}?", IS_QUESTION))
            continue
        documents.append((_write_document(rng, changed, other, writer.written, max(loyalty, ease), ease=ease), label))
    return _finish_task(rng, kind, query, documents, asked != "")


def _spoil_meaning(rng: random.Random, meaning: Meaning, is_question: bool) -> tuple[Meaning, float]:
    """Return a meaning that is not what was asked for, and how near it is."""
    names = list(meaning.roles)
    draw = rng.random()
    if is_question and draw < 0.3:
        return meaning, FULL  # the answer will be left out
    if draw < 0.15 or not names:
        return make_meaning(rng, rng.choice(QUERY_ROLES)), FAR
    if draw < 0.35 and len(names) > 1:
        left_out = rng.choice(names)
        return meaning.without(left_out), LEFT_OUT[left_out]
    roles = dict(meaning.roles)
    if draw < 0.45 and len(names) > 1:
        name = rng.choice(names)
        mate = find_topic_mate(rng, roles[name])
        if mate is not None:
            return replace(meaning, roles={**roles, name: mate}), ALIKE[name]
    num_changed = 1 if len(names) < 3 or rng.random() < 0.65 else 2
    label = FULL
    for name in rng.sample(names, min(num_changed, len(names))):
        roles[name] = make_sibling(rng, name, roles[name])
        label = min(label, REPLACED[name])
    return replace(meaning, roles=roles), label if num_changed == 1 < len(names) else FAR


def _add_role(rng: random.Random, meaning: Meaning, name: str) -> Meaning:
    if name == "B":
        return replace(meaning, reason=make_meaning(rng, rng.choice(["WVN", "VN", "NA", "WN", "WV"])))
    kind = rng.choice(NUMBER_KINDS)
    roles = {**meaning.roles, name: make_filler(rng, name, kind=kind)}
    return replace(meaning, roles=roles, number_kind=kind if name == "M" else meaning.number_kind)


def _add_extras(rng: random.Random, meaning: Meaning, names: str, asked: str) -> Meaning:
    """Say more than was asked, but not what was asked for."""
    for name in "WVNAPT":
        if name not in names and name != asked and name not in meaning.roles and rng.random() < 0.18:
            meaning = _add_role(rng, meaning, name)
    if asked not in ("", "M") and "M" not in meaning.roles and rng.random() < 0.08:
        meaning = _add_role(rng, meaning, "M")
    return meaning


def _write_document(
    rng: random.Random, meaning: Meaning, language: str, known: Written, loyalty: float, *, ease: float = 0.0
) -> str:
    writer = Writer(rng, language, known=known, loyalty=loyalty)
    text = writer.write_clause(meaning)
    if rng.random() < 0.6 * (1 - ease):
        text = strew_function_words(rng, text, language, STREWN_SHARE)
    if rng.random() < 0.25 * (1 - ease):
        text = f"{text}, {writer.write_filler()}" if rng.random() < 0.7 else f"{writer.write_filler()}, {text}"
    text = finish_sentence(rng, text)
    if rng.random() < 0.2 * (1 - ease):
        more = finish_sentence(rng, Writer(rng, language).write_clause(make_meaning(rng, rng.choice(QUERY_ROLES))))
        text = f"{text} {more}" if rng.random() < 0.5 else f"{more} {text}"
    return text


def make_relation_task(rng: random.Random, *, num_documents: int = 8) -> Task:
    """Return a task about a kind of question, such as what a thing costs."""
    language = rng.choice(LANGUAGES)
    relation = rng.choice(load_relations())
    fillers = _make_subjects(rng, relation)
    writer = Writer(rng, language, terse=rng.random() < 0.4)
    query = _fill_pattern(rng, rng.choice(relation.questions[language]), fillers, writer)
    if rng.random() < 0.3:
        query = strew_function_words(rng, query, language, STREWN_SHARE)
    documents: list[tuple[str, float]] = []
    num_right = rng.randint(1, max(1, num_documents // 2))
    for index in range(num_documents):
        other = language if rng.random() < 0.65 else rng.choice(LANGUAGES)
        if index < num_right:
            text = _answer(rng, relation, fillers, Writer(rng, other, known=writer.written, loyalty=0.25))
            documents.append((text, FULL))
            continue
        scribe = Writer(rng, other, known=writer.written, loyalty=0.75)
        draw = rng.random()
        if rng.random() < QUESTION_SHARE:
            asking = relation if rng.random() < 0.4 else rng.choice(load_relations())
            subjects = {**_make_subjects(rng, asking), **fillers}
            text = _fill_pattern(rng, rng.choice(asking.questions[other]), subjects, scribe)
            documents.append((f"{text[:1].upper()}{text[1:]}?", IS_QUESTION))
        elif draw < 0.35:
            changed = dict(fillers)
            name = rng.choice([name for name in fillers if name != "same"])
            changed[name] = _change_subject(rng, fillers[name])
            documents.append((_answer(rng, relation, changed, scribe), REPLACED["N"]))
        elif draw < 0.65:
            different = rng.choice([candidate for candidate in load_relations() if candidate.name != relation.name])
            documents.append(
                (_answer(rng, different, {**_make_subjects(rng, different), **fillers}, scribe), LACKS_ANSWER)
            )
        elif draw < 0.85:
            subject = fillers["x"]
            role = "W" if subject.head.kind == "name" else "N"
            meaning = _add_extras(
                rng, make_meaning(rng, rng.choice(["V", "V", "A" if role == "N" else "V"])), "WVN", ""
            )
            meaning = replace(meaning, roles={**meaning.roles, role: subject.head})
            documents.append((_write_document(rng, meaning, other, writer.written, 0.75), LACKS_ANSWER))
        else:
            different = rng.choice(load_relations())
            documents.append((_answer(rng, different, _make_subjects(rng, different), scribe), FAR))
    return _finish_task(rng, "relation", query, documents, True)


@dataclass(frozen=True)
class Subject:
    """What a question is about: a filler, perhaps with a quality and a name of its own."""

    head: Filler
    quality: Filler | None = None
    name: Filler | None = None
    clause: Meaning | None = None


def _make_subjects(rng: random.Random, relation: Relation) -> dict[str, Subject]:
    patterns = relation.questions["en"]
    names = [name for name in ("x", "x2", "c", "p", "s") if any("{" + name + "}" in pattern for pattern in patterns)]
    subjects = {}
    for name in names:
        if name == "c":
            subjects[name] = Subject(_make_place(rng))
        elif name == "p":
            subjects[name] = Subject(rng.choice(group_concepts()[rng.choice(["city", "nature", "house"])]))
        elif name == "s":
            clause = make_meaning(rng, rng.choice(["WVN", "NA", "WV", "VN", "WN"]))
            subjects[name] = Subject(next(iter(clause.roles.values())), clause=clause)
        else:
            subjects[name] = _make_subject(rng, rng.choice(relation.categories))
    subjects.setdefault("x", subjects.get("s") or _make_subject(rng, rng.choice(relation.categories)))
    return subjects


def _make_subject(rng: random.Random, category: str) -> Subject:
    if category == "person":
        return Subject(make_name(rng))
    if category == "place":
        return Subject(_make_place(rng))
    head = (
        make_word(rng)
        if rng.random() < 0.12
        else rng.choice(group_concepts().get(category) or group_concepts()["quality"])
    )
    quality = rng.choice(group_concepts()[rng.choice(["quality", "colour"])]) if rng.random() < 0.2 else None
    named = rng.random() < (0.4 if category in ("city", "art", "work", "sport") else 0.08)
    return Subject(head, quality, rng.choice([make_town, make_word])(rng) if named else None)


def _make_place(rng: random.Random) -> Filler:
    return make_town(rng) if rng.random() < 0.4 else rng.choice(group_concepts()[rng.choice(["place", "country"])])


def _change_subject(rng: random.Random, subject: Subject) -> Subject:
    if subject.clause is not None:
        changed, _ = _spoil_meaning(rng, subject.clause, False)
        return replace(subject, clause=changed if changed.roles != subject.clause.roles else make_meaning(rng, "WVN"))
    if subject.name is not None and rng.random() < 0.7:
        return replace(subject, name=rng.choice([make_town, make_word])(rng))
    return replace(subject, head=make_sibling(rng, "N", subject.head))


def _write_subject(rng: random.Random, subject: Subject, writer: Writer) -> str:
    if subject.clause is not None:
        return writer.write_clause(subject.clause)
    text = writer.write_noun(subject.head, subject.quality)
    return f"{text} {writer.write_word(subject.name)}" if subject.name is not None else text


def _fill_pattern(rng: random.Random, pattern: str, subjects: dict[str, Subject], writer: Writer) -> str:
    groups = group_concepts()
    while "{" in pattern:
        name = pattern[pattern.index("{") + 1 : pattern.index("}")]
        if name in subjects:
            text = _write_subject(rng, subjects[name], writer)
        elif name == "person":
            text = make_name(rng).key
        elif name == "city":
            text = writer.write_noun(_make_place(rng))
        elif name in ("c", "p"):
            text = writer.write_noun(rng.choice(groups[rng.choice(["city", "nature", "house"])]))
        elif name in ("s", "s2"):
            text = writer.write_clause(make_meaning(rng, rng.choice(["WVN", "NA", "WV", "VN"])))
        elif name == "time":
            text = writer.write_word(make_number(rng, "clock")) if rng.random() < 0.7 else str(rng.randint(1, 24))
        elif name == "year":
            text = make_number(rng, "year").key
        elif name == "date":
            text = _write_date(rng, writer)
        elif name == "money":
            amount = rng.choice(
                [str(rng.randint(1, 99)), str(rng.randint(100, 9999)), f"{rng.randint(1, 99)}.{rng.randint(10, 99)}"]
            )
            text = amount + rng.choice(
                [" euros", " euros", " €", " dollars"] if writer.language != "de" else [" Euro", " Euro", " €"]
            )
        elif name in ("number", "age"):
            text = (
                make_number(rng, "number").key
                if rng.random() < 0.7
                else writer.write_word(rng.choice(groups["number"]))
            )
        elif name == "phone":
            text = " ".join(str(rng.randint(10, 999)) for _ in range(rng.randint(2, 4)))
        elif name == "street":
            text = (
                writer.write_noun(rng.choice(groups["city"])) + f" {make_name(rng).forms[0][3]} {rng.randint(1, 200)}"
            )
        elif name == "language":
            text = rng.choice(groups["country"]).forms[LANGUAGES.index(writer.language)][1 % 2]
        else:
            category = {"job": "profession"}.get(name, name)
            text = writer.write_noun(rng.choice(groups[category]))
        pattern = pattern.replace("{" + name + "}", text, 1)
    return pattern


def _write_date(rng: random.Random, writer: Writer) -> str:
    month = writer.write_word(rng.choice(group_concepts()["month"]))
    day = str(rng.randint(1, 31))
    text = {
        "en": rng.choice([f"{day} {month}", f"{month} {day}"]),
        "de": f"{day}. {month}",
        "fr": f"{day} {month}",
        "es": f"{day} de {month}",
    }[writer.language]
    return f"{text} {rng.randint(1800, 2030)}" if rng.random() < 0.4 else text


def _answer(rng: random.Random, relation: Relation, subjects: dict[str, Subject], writer: Writer) -> str:
    text = _fill_pattern(rng, rng.choice(relation.answers[writer.language]), subjects, writer)
    if rng.random() < 0.5:
        text = strew_function_words(rng, text, writer.language, STREWN_SHARE)
    if rng.random() < 0.2:
        text = f"{text}, {writer.write_filler()}"
    text = finish_sentence(rng, text)
    if rng.random() < 0.2:
        meaning = make_meaning(rng, rng.choice(QUERY_ROLES))
        more = finish_sentence(rng, Writer(rng, writer.language).write_clause(meaning))
        text = f"{text} {more}" if rng.random() < 0.6 else f"{more} {text}"
    return text


def _finish_task(
    rng: random.Random, kind: str, query: str, documents: list[tuple[str, float]], is_question: bool
) -> Task:
    if rng.random() < 0.3:
        query = query[:1].upper() + query[1:]
    if is_question and rng.random() < 0.6:
        query += "?"
    rng.shuffle(documents)
    return Task(kind, query, [text for text, _ in documents], [label for _, label in documents])
