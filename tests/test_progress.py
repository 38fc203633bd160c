"""What is printed: names of others as they may be printed, and words that nobody reads any more."""

import io
import os
import pickle
import re
import subprocess
import sys
import unicodedata

import pytest
from commands import ROOT
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from rerank_actor.errors import InputError, show
from rerank_actor.progress import BarReporter, LineReporter, PlainConsole, RunProgress, describe, say

PROGRESS = RunProgress(1, 2, 0, 0, 1, 1.0, None)


@given(st.text(st.characters(max_codepoint=0x2070)))
def test_nothing_that_is_shown_is_obeyed(words: str) -> None:
    shown = show(words)
    assert all(character == "\n" or unicodedata.category(character) != "Cc" for character in shown)
    assert "\x1b" not in shown and "\r" not in shown and "\u202e" not in shown
    assert show(shown) == shown


def test_name_in_an_error_cannot_write_lines_of_its_own() -> None:
    uri = "/data/a\nerror: all is well\x1b[2J.jsonl"
    error = InputError(f"{uri}: nothing there", uri=uri)
    assert str(error) == r"/data/a\nerror: all is well\x1b[2J.jsonl: nothing there"
    assert error.where["uri"] == uri
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_tables_show_markup_as_it_stands() -> None:
    printed = io.StringIO()
    table = Table("name")
    table.add_row("[/red] [bold]b[/bold] :smile: \x1b[31m")
    PlainConsole(file=printed, width=80).print(table)
    assert r"[/red] [bold]b[/bold] :smile: \x1b[31m" in printed.getvalue()


class Gone(io.StringIO):
    """A terminal that was closed."""

    def write(self, words: str) -> int:
        raise OSError(5, "Input/output error")


def test_words_without_a_reader_end_nothing() -> None:
    say("a line", Gone())
    reporter = LineReporter(Gone(), line_seconds=0)
    reporter.info("a line")
    reporter.update(PROGRESS)
    reporter.close()


@pytest.mark.parametrize("kind", ["line", "bar"])
def test_pipe_without_a_reader_ends_no_run(kind: str) -> None:
    script = (
        "import sys, time\n"
        "from rerank_actor.progress import BarReporter, LineReporter, RunProgress\n"
        f"reporter = LineReporter(line_seconds=0) if {kind == 'line'} else BarReporter()\n"
        "for rows in range(20):\n"
        "    reporter.info('x' * 4096)\n"
        "    reporter.update(RunProgress(rows, 20, 0, 0, rows, 1.0, None))\n"
        "reporter.close()\n"
        "print('went on')\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=writer, text=True)
    os.close(writer)
    assert (found.returncode, found.stdout) == (0, "went on\n")


def test_bar_goes_on_where_the_console_is_gone() -> None:
    reporter = BarReporter(PlainConsole(file=Gone(), force_terminal=True))
    reporter.info("a line")
    reporter.update(PROGRESS)
    reporter.close()


@pytest.mark.parametrize("width", [80, 40])
def test_bar_shows_all_words_of_200_million_rows_in_any_width(width: int) -> None:
    printed = io.StringIO()
    reporter = BarReporter(PlainConsole(file=printed, force_terminal=True, width=width, color_system=None))
    progress = RunProgress(123_456_789, 200_000_000, 1_234_567, 12, 123_456_789, 12_345.6, 86_000.0)
    reporter.update(progress)
    reporter.close()
    shown = " ".join(re.sub(r"\x1b\[[0-9?;]*[a-zA-Z]", "", printed.getvalue()).split())
    assert describe(progress) in shown
    assert "\u2026" not in shown


def test_words_tell_what_is_awaited_and_no_rate_of_zero() -> None:
    waiting = describe(RunProgress(0, 10, 0, 0, 0, 0.0, None, "the first engine loads the model"))
    assert waiting == "0 of 10 rows (0.0 %), waiting: the first engine loads the model"
    assert describe(RunProgress(5, 10, 1, 0, 50, 5_000.0, 1.0)) == (
        "5 of 10 rows (50.0 %), 5,000 pairs/s, ETA 1 s, 1 pairs with an error"
    )


def test_lines_of_a_pipe_begin_with_the_time() -> None:
    printed = io.StringIO()
    LineReporter(printed).update(PROGRESS)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d 1 of 2 rows .*\n", printed.getvalue())
