"""Quotes and escapes of CSV and TSV: records of lines by RFC 4180 to the letter, and whether a TSV looks quoted.

What is no record is a line with a reason. Where a quote in it does not close as it should, and a later line closes one that
it did not open, the lines up to that are too: nothing tells rows from text there. Where a record ends follows from where it
begins alone, so that a file reads the same from any of its records on. Source: RFC 4180, section 2; unquoted fields may hold
quotes, as all readers take them, but for one that blanks alone stand before. Knows nothing of files or columns.
"""

import csv
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Quoting = Literal["auto", "csv", "none"]
Fields = list[str | None] | str

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

STRAY = "row is not CSV: a quote in it is neither doubled nor at the end of a field"
ESCAPED = r"row is not CSV: a backslash stands before a quote (--csv-escape '\' reads it as an escape, none as text)"
UNCLOSED = "row is not CSV: a quote in it is never closed"
BEHIND = "row is not CSV: it lies behind a quote that is not closed as it should be"
LONE_RETURN = "row is not CSV: a carriage return stands alone in it"
ODD_ESCAPE = "an escape stands before what needs none, which may be one character or two"
LOOKS_QUOTED = "a field is in quotes, as CSV has them (--quoting csv takes them off, none keeps them)"
DUMPED_NULL = r"a field is \N, which is null in dumps of databases (--csv-escape '\' reads it so, none as text)"
ENDS_TRIED = 1_000  # lines of a record at which another reading may end it
RECORD_LINES = 100_000  # of a record at most, and how far a quote's end is looked for where one is broken

CSV_FAULTS = (STRAY, ESCAPED, UNCLOSED, BEHIND, LONE_RETURN, ODD_ESCAPE, LOOKS_QUOTED, DUMPED_NULL)

_QUOTED = re.compile(r'"(?:[^"\\]|""|\\.)*+"?+', re.DOTALL)  # closed or going on in the next line, by whichever escape
_INNER_QUOTE = re.compile(r'.+(?:""|\\").*"', re.DOTALL)


@dataclass(frozen=True)
class Dialect:
    """How fields of CSV and TSV are written.

    Attributes:
        quoting: `csv`, with quotes where they are needed; `none`, where quotes are text; `auto`, which is csv for CSV and
            none for TSV, of which one that looks quoted is refused.
        escape: a character that takes its meaning from the next; `none`; or empty where nobody said, and rows that have two
            readings are faults.
    """

    quoting: Quoting = "auto"
    escape: str = ""

    def list_given(self) -> list[str]:
        """Return what somebody said, nothing where it is all at its default."""
        return [] if self == AUTO else [self.quoting, self.escape]


AUTO = Dialect()


class Line(NamedTuple):
    """A line with its end; bytes are those of the text, lines count from the first that was read."""

    start: int
    end: int
    number: int
    content: bytes


class Syntax:
    """The grammar of a record.

    Args:
        delimiter: between fields.
        dialect: with quotes or without; `auto` is with them.
        field_bytes: of a field at most.
        is_written: whether it is held to what a CSV writer makes, which leaves no quote in an unquoted field.
    """

    def __init__(self, delimiter: str, dialect: Dialect, field_bytes: int, is_written: bool = False) -> None:
        self._field_bytes = field_bytes
        self.escape = "" if dialect.escape == "none" else dialect.escape
        self.may_escape = dialect.escape == "" and dialect.quoting != "none"
        self._has_quotes = dialect.quoting != "none"
        self._marks = {'"', delimiter, self.escape, "\r", "\n"}
        self._delimiter = delimiter
        mark = re.escape(delimiter)
        field = _write_field(mark, re.escape(self.escape), self._has_quotes, is_written)
        self._field = re.compile(f"({field})({mark}|$)", re.DOTALL)
        self._record = re.compile(f"{field}(?:{mark}{field})*+", re.DOTALL)
        escaped = _write_field(mark, r"\\", True, is_written)
        going_on = r'"(?:[^"\\]|\\.|"")*+'
        self._escaped_whole = re.compile(f"(?:{escaped}{mark})*+{escaped}", re.DOTALL)
        self._escaped_record = re.compile(f"(?:{escaped}{mark})*+(?:{escaped}|{going_on})", re.DOTALL)
        self._escaped = re.compile(f"{re.escape(self.escape)}(.)", re.DOTALL)
        self._special = re.compile(f'{re.escape(self.escape)}(.)|""', re.DOTALL)
        escape = re.escape("\\" if self.may_escape else self.escape)
        behind = f"(?<!{escape})" if escape else ""
        self._opening, self._closing = re.compile(f'(?:^|(?<={mark}))"'), re.compile(f'{behind}"(?={mark}|$)')

    def parse(self, lines: Iterable[str]) -> Iterator[list[str]]:
        """Yield the fields of records, as Python's reader has them.

        Raises:
            csv.Error: what is there is no record.
        """
        csv.field_size_limit(self._field_bytes)
        delimiter, escape = self._delimiter, self.escape or None
        if self._has_quotes:
            return csv.reader(lines, delimiter=delimiter, escapechar=escape, strict=True)
        return csv.reader(lines, delimiter=delimiter, escapechar=escape, strict=True, quoting=csv.QUOTE_NONE)

    def check(self, text: str, fields: list[str]) -> Fields:
        """Return the fields of a record that was parsed, or why it is none after all."""
        if not (self._has_quotes and '"' in text) and not (self.escape and self.escape in text):
            return list(fields)
        text = text[:-1] if text.endswith("\n") else text
        text = text[:-1] if text.endswith("\r") else text
        if not self._record.fullmatch(text):
            return STRAY
        if self.may_escape and '\\"' in text and self._may_be_escaped(text):
            return ESCAPED
        return self._split(text) if self.escape else list(fields)

    def _may_be_escaped(self, text: str) -> bool:
        """Whether a record would be one too, or end at an earlier line, if a backslash took its meaning from a quote."""
        if self._escaped_record.fullmatch(text):
            return True
        end = text.find("\n", text.find('\\"'))
        for _ in range(ENDS_TRIED):
            if end < 0:
                break
            if self._escaped_whole.fullmatch(text[:end].removesuffix("\r")):
                return True
            end = text.find("\n", end + 1)
        return False

    def _split(self, text: str) -> Fields:
        """Return the fields of a record with escapes; a null of an escaped N, as databases write it."""
        fields: list[str | None] = []
        at = 0
        while match := self._field.match(text, at):
            is_quoted = self._has_quotes and match[1].startswith('"')
            raw, special = (match[1][1:-1], self._special) if is_quoted else (match[1], self._escaped)
            if not is_quoted and raw == f"{self.escape}N":
                fields.append(None)
            elif {found[1] or '"' for found in special.finditer(raw)} <= self._marks:
                fields.append(special.sub(lambda found: found[1] or '"', raw))
            else:
                return ODD_ESCAPE
            at = match.end()
            if not match[2]:
                break
        return fields

    def leaves_open(self, text: str, is_open: bool) -> bool:
        """Whether a quote may be open after a line, if those inside of fields are not doubled."""
        text = text.rstrip("\r\n")
        at = 0
        while found := (self._closing if is_open else self._opening).search(text, at):
            is_open, at = not is_open, found.end()
        return is_open and self._has_quotes

    def closes(self, text: str) -> bool | None:
        """Whether the first quote at a field's edge in a line closes a field that began before; None where there is none."""
        text = text.rstrip("\r\n")
        opening, closing = self._opening.search(text), self._closing.search(text)
        if opening is None and closing is None:
            return None
        return closing is not None and (opening is None or closing.start() <= opening.start())


def _write_field(mark: str, escape: str, has_quotes: bool, is_written: bool) -> str:
    """Return the pattern of a field; delimiter and escape are escaped for it."""
    marks = mark + escape + ('"' if is_written else "")
    plain = rf"(?:[^{marks}\r\n]|{escape}.)*+" if escape else rf"[^{marks}\r\n]*+"
    if not has_quotes:
        return plain
    quoted = rf'"(?:[^"{escape}]|{escape}.|"")*+"' if escape else r'"[^"]*+(?:""[^"]*+)*+"'
    return rf'(?:{quoted}|(?!(?:(?!{mark})[ \t])*+"){plain})'


def iterate_quoted(lines: Iterator[Line], syntax: Syntax) -> Iterator[tuple[Line, Line, Fields]]:
    """Yield first line, last line and fields of each record that is not blank, or why the line is none."""
    waiting: deque[Line] = deque()  # lines to be looked at again
    held: list[tuple[Line, str]] = []  # those of the record that is being read
    is_at_end = False

    def take(count: int) -> Iterator[Line]:
        while count and (line := waiting.popleft() if waiting else next(lines, None)) is not None:
            count -= 1
            yield line

    def feed() -> Iterator[str]:
        nonlocal is_at_end
        is_at_end = False
        while len(held) < RECORD_LINES and (line := next(take(1), None)) is not None:
            held.append((line, _decode(line, is_first=not held)))
            yield held[-1][1]
        is_at_end = True

    while True:
        found: Fields = []
        try:
            for fields in syntax.parse(feed()):
                if fields:
                    found = syntax.check("".join(text for _, text in held), fields)
                    if isinstance(found, str):
                        break
                    yield held[0][0], held[-1][0], found
                held.clear()
            else:
                return
        except csv.Error:
            found = _explain(held[0][1], syntax, is_at_end)
        first, text = held[0]
        waiting.extendleft(line for line, _ in reversed(held[1:]))
        held.clear()
        yield first, first, found
        is_open = syntax.leaves_open(text, False)
        while is_open:
            ahead: list[Line] = []
            closes = None
            for line in take(RECORD_LINES):
                ahead.append(line)
                closes = syntax.closes(_decode(line))
                if closes is not None:
                    break
            if not closes:
                waiting.extendleft(reversed(ahead))
                break
            yield from ((line, line, BEHIND) for line in ahead if line.content.strip())
            is_open = syntax.leaves_open(_decode(ahead[-1]), True)


def _explain(text: str, syntax: Syntax, is_at_end: bool) -> str:
    if syntax.may_escape and '\\"' in text:
        return ESCAPED
    if not syntax.leaves_open(text, False) and "\r" in text.rstrip("\r\n"):
        return LONE_RETURN
    return UNCLOSED if is_at_end else STRAY


def _decode(line: Line, is_first: bool = True) -> str:
    content = line.content.removeprefix(BYTE_ORDER_MARK) if is_first else line.content
    return content.decode("utf-8", "surrogateescape")


def find_quotes(lines: Sequence[Line], is_whole: bool) -> Literal["quoted", "text", "unclear"]:
    """Return what the first lines of a TSV show: that a CSV writer put fields in quotes, that quotes are text, or neither.

    Args:
        lines: the first ones, whole.
        is_whole: whether there are no others.
    """
    texts = [line.content.decode("utf-8", "surrogateescape").rstrip("\r\n") for line in lines]
    if not any('"' in text for text in texts):
        return "unclear"
    if any(looks_quoted(text, is_text=True) for text in texts):
        return "quoted"
    for escape in ("none", "\\"):
        syntax = Syntax("\t", Dialect("csv", escape), sum(map(len, texts)) + len(texts), is_written=True)
        faults = {found for _, _, found in iterate_quoted(iter(lines), syntax) if isinstance(found, str)}
        if not faults:
            return "quoted"
        if not is_whole and faults <= {UNCLOSED, BEHIND}:
            return "unclear"
    return "text"


def looks_quoted(line: str, is_text: bool) -> bool:
    """Whether a field of a line of TSV looks like one in quotes: with inner ones doubled or escaped, where others are text."""
    pattern = _INNER_QUOTE if is_text else _QUOTED
    return '"' in line and any(
        field.startswith('"') and _QUOTED.fullmatch(field) and pattern.fullmatch(field) for field in line.split("\t")
    )
