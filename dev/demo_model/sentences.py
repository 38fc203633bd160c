"""Sentences from meanings: what is said, as fillers by role, written in a language in one of many ways.

A meaning says who does what, to what of which quality, where, when, how many and why. The grammar is rough, articles
and endings are often wrong: the model is to learn which words mean the same and which carry the meaning, not grammar.
"""

import random
from dataclasses import dataclass, field, replace

from demo_model.fillers import Filler, group_concepts, group_topics, make_name, make_number, make_town, make_word
from demo_model.words import load_frames, load_function_words

NOUNS = """food drink kitchen house furniture clothes material tool vehicle animal plant technology art money school sport
health body travel society weather work nature city""".split()
CATEGORIES = {
    "W": ["family", "profession", "profession", "animal"],
    "V": ["motion", "daily", "speech", "mind", "doing", "doing"],
    "N": NOUNS,
    "A": ["quality", "quality", "colour", "number"],
    "P": ["city", "city", "nature", "place", "country", "house", "vehicle", "furniture", "direction"],
    "T": ["weekday", "month", "time"],
}
NUMBER_KINDS = ["year", "clock", "number", "money", "measure"]
UNKNOWN_SHARE = 0.18
TOPIC_SHARE = 0.4
COMPOUND_SHARE = 0.08
Written = dict[tuple[str, str], str]


@dataclass(frozen=True)
class Meaning:
    """Fillers by role, the noun's second noun, and the kind of number and the reason where there is one."""

    roles: dict[str, Filler]
    number_kind: str = "number"
    reason: "Meaning | None" = field(default=None)

    def without(self, *names: str) -> "Meaning":
        """Return it with fewer roles."""
        return replace(self, roles={name: filler for name, filler in self.roles.items() if name not in names})


Topic = dict[str, list[Filler]]


def make_filler(
    rng: random.Random,
    role: str,
    *,
    kind: str | None = None,
    unknown: float = UNKNOWN_SHARE,
    topic: Topic | None = None,
) -> Filler:
    """Return a random filler of a role, of a topic if there is one; `kind` says which kind of number."""
    if role == "M":
        return make_number(rng, kind if kind in ("year", "clock") else "number")
    if topic is not None and rng.random() < 0.85:
        fitting = [filler for category in CATEGORIES[role] for filler in topic.get(category, [])]
        if fitting:
            return rng.choice(fitting)
    if rng.random() < unknown:
        if role == "W":
            return make_name(rng)
        if role == "P":
            return make_town(rng)
        if role in "NVA":
            return make_word(rng)
    if role == "W" and rng.random() < 0.3:
        return make_name(rng)
    return rng.choice(group_concepts()[rng.choice(CATEGORIES[role])])


def make_sibling(rng: random.Random, role: str, filler: Filler) -> Filler:
    """Return a filler that could stand in the place of another and is not it."""
    while True:
        if filler.kind == "name":
            other = make_name(rng, like=filler if rng.random() < 0.5 else None)
        elif filler.kind in ("year", "clock", "number"):
            other = make_number(rng, filler.kind, like=filler)
        elif filler.kind == "town":
            other = make_town(rng) if rng.random() < 0.5 else rng.choice(group_concepts()["place"])
        elif filler.kind == "word":
            other = make_word(rng) if rng.random() < 0.5 else make_filler(rng, role)
        elif rng.random() < 0.6:
            other = rng.choice(group_concepts()[filler.kind])
        else:
            other = make_filler(rng, role)
        if other.key != filler.key and not _share_a_form(other, filler):
            return other


def _share_a_form(one: Filler, other: Filler) -> bool:
    return any(set(mine) & set(yours) for mine, yours in zip(one.forms, other.forms, strict=True))


def make_meaning(rng: random.Random, names: str, *, unknown: float = UNKNOWN_SHARE, reason: bool = False) -> Meaning:
    """Return a meaning with these roles."""
    kind = rng.choice(NUMBER_KINDS)
    topic = rng.choice(group_topics()) if rng.random() < TOPIC_SHARE else None
    roles = {name: make_filler(rng, name, kind=kind, unknown=unknown, topic=topic) for name in names}
    because = make_meaning(rng, rng.choice(["WVN", "VN", "NA", "WN"])) if reason else None
    return Meaning(roles, kind, because)


class Writer:
    """Writes meanings in one language; the words that it is given are taken again where `loyalty` says so."""

    def __init__(
        self,
        rng: random.Random,
        language: str,
        *,
        known: Written | None = None,
        loyalty: float = 0.0,
        terse: bool = False,
    ) -> None:
        self._rng = rng
        self.language = language
        self._frames = load_frames()[language]
        self._known = known or {}
        self._loyalty = loyalty
        self._terse = terse
        self.written: Written = {}

    def write_word(self, filler: Filler) -> str:
        """Return the filler in one of its forms."""
        key = (filler.key, self.language)
        if key in self._known and self._rng.random() < self._loyalty:
            form = self._known[key]
        else:
            form = filler.write(self._rng, self.language)
        self.written[key] = form
        return form

    def write_noun(self, filler: Filler, quality: Filler | None = None) -> str:
        """Return a noun with or without article and adjective."""
        rng = self._rng
        word = self.write_word(filler)
        if filler.kind in ("name", "town", "place", "country", "year", "clock", "number"):
            return word
        if self.language == "de" and filler.kind != "word" and " " not in word and rng.random() < COMPOUND_SHARE:
            other = rng.choice(group_concepts()[rng.choice(NOUNS)]).write(rng, "de")
            word = word + other.lower() if rng.random() < 0.5 else other + word.lower()
        if quality is not None:
            adjective = self.write_word(quality)
            after = self.language in ("fr", "es") and rng.random() < 0.7
            word = f"{word} {adjective}" if after else f"{adjective} {word}"
        if self._terse or rng.random() < 0.25:
            return word
        article = rng.choice(self._frames["determiner"])
        return f"{article}{word}" if article.endswith("'") else f"{article} {word}"

    def fill(self, frame: str, meaning: Meaning) -> str:
        """Return a frame with its roles written."""
        roles = meaning.roles
        for name in "WVNPTM":
            slot = "{" + name + "}"
            if slot in frame:
                filler = roles[name]
                if name == "N":
                    text = self.write_noun(filler, roles.get("A"))
                elif name in "WP":
                    text = self.write_noun(filler)
                else:
                    text = self.write_word(filler)
                frame = frame.replace(slot, text, 1)
        return frame

    def write_core(self, meaning: Meaning) -> str:
        """Return who does what to what, as far as the meaning says so."""
        roles = meaning.roles
        present = "".join(name for name in "WVN" if name in roles)
        kind = {
            "WVN": "clause", "VN": "without_W", "WV": "without_N", "WN": "without_V",
            "N": "only_N", "V": "only_V", "W": "only_W",
        }.get(present)  # fmt: skip
        if kind is None:
            return self.write_word(roles["A"]) if "A" in roles else ""
        text = self.fill(self._rng.choice(self._frames[kind]), meaning)
        if "A" in roles and "N" not in roles:
            text = f"{text} {self.write_word(roles['A'])}"
        return text

    def write_circumstances(self, meaning: Meaning) -> list[str]:
        """Return the phrases of place, time and number."""
        roles, phrases = meaning.roles, []
        if "P" in roles:
            phrases.append(self.fill(self._rng.choice(self._frames["place"]), meaning))
        if "T" in roles:
            phrases.append(self.fill(self._rng.choice(self._frames["time"]), meaning))
        if "M" in roles:
            phrases.append(self.fill(self._rng.choice(self._frames[meaning.number_kind]), meaning))
        self._rng.shuffle(phrases)
        return phrases

    def write_clause(self, meaning: Meaning) -> str:
        """Return the whole meaning as one clause."""
        rng = self._rng
        core, phrases = self.write_core(meaning), self.write_circumstances(meaning)
        cut = rng.randint(0, len(phrases)) if rng.random() < 0.5 else 0
        text = " ".join(part for part in [*phrases[:cut], core, *phrases[cut:]] if part)
        if meaning.reason is not None:
            reason = rng.choice(self._frames["because"]).replace("{C}", self.write_clause(meaning.reason))
            text = f"{reason}, {text}" if rng.random() < 0.2 else f"{text} {reason}"
        return text

    def write_keywords(self, meaning: Meaning) -> str:
        """Return the fillers alone, in any order."""
        fillers = list(meaning.roles.values())
        self._rng.shuffle(fillers)
        return " ".join(self.write_word(filler) for filler in fillers)

    def write_question(self, meaning: Meaning, asked: str) -> str:
        """Return the question for a role that the meaning lacks."""
        roles = meaning.roles
        usable = [
            frame
            for frame in self._frames[f"ask_{asked}"]
            if all("{" + name + "}" not in frame or name in roles for name in "WVN")
        ]
        if not usable:
            word = self._rng.choice(self._frames[f"ask_{asked}"]).split(" {")[0]
            return f"{word} {self.write_clause(meaning)}"
        frame = self._rng.choice(usable)
        left = [role for role in roles if "{" + role + "}" not in frame and not (role == "A" and "{N}" in frame)]
        rest = Meaning({name: roles[name] for name in left}, meaning.number_kind)
        return " ".join(part for part in [self.fill(frame, meaning), self.write_clause(rest) if left else ""] if part)

    def wrap_query(self, clause: str) -> str:
        """Return a clause as a person might type it into a search box."""
        return self._rng.choice(self._frames["query"]).replace("{C}", clause)

    def write_filler(self) -> str:
        """Return a phrase that says nothing."""
        return self._rng.choice(self._frames["filler"])


def finish_sentence(rng: random.Random, text: str) -> str:
    """Return a clause with capital letter and full stop, mostly."""
    if rng.random() < 0.9:
        text = text[:1].upper() + text[1:]
    return text + rng.choice([".", ".", ".", ".", "!", ""])


def strew_function_words(rng: random.Random, text: str, language: str, share: float) -> str:
    """Return a text with words that carry no meaning put between its words."""
    words = []
    for word in text.split(" "):
        if rng.random() < share:
            words.extend(rng.choices(load_function_words()[language], k=rng.choice([1, 1, 2])))
        words.append(word)
    return " ".join(words)


def find_topic_mate(rng: random.Random, filler: Filler) -> Filler | None:
    """Return another filler that is spoken of together with this one, if there is one."""
    topics = [topic for topic in group_topics() if filler in topic.get(filler.kind, [])]
    if not topics:
        return None
    mates = [mate for group in rng.choice(topics).values() for mate in group if mate.key != filler.key]
    return rng.choice(mates) if mates else None
