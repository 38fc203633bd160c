"""Progress: what a person sees while a run is at work; a bar on a terminal, plain lines elsewhere.

Takes counts, prints to standard error. Words go on to where there is still somebody to read them: a pipe or a terminal that is
gone ends no run. Knows nothing of where the counts come from.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from rerank_actor.errors import show

LINE_SECONDS = 10.0


class PlainConsole(Console):
    """A console for words that hold names and texts of others: no markup in them, and no control character is obeyed."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **arguments)

    def render_str(self, text: str, **arguments: Any) -> Text:
        """Return words ready to print."""
        return super().render_str(show(text), **arguments)

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError:  # a pipe without a reader, a terminal that was closed
            self.quiet = True

    def on_broken_pipe(self) -> None:
        """Go on without a reader."""
        self.quiet = True


def say(words: str, stream: TextIO | None = None) -> None:
    """Print a line to standard error, or to a stream, as long as somebody reads it."""
    try:
        print(show(words), file=stream or sys.stderr, flush=True)
    except OSError:  # a pipe without a reader, a terminal that was closed
        return


@dataclass(frozen=True)
class RunProgress:
    """How far a run is. Rows count what is committed, those of earlier runs included.

    Attributes:
        awaited: what has to happen before the first pairs are scored, empty from then on.
    """

    rows: int
    total_rows: int
    failed_pairs: int
    failed_units: int
    pairs: int
    pairs_per_second: float
    eta_seconds: float | None
    awaited: str = ""


class Reporter(Protocol):
    """Where a run tells how it is doing."""

    def info(self, message: str) -> None:
        """Tell one thing that happened."""

    def warn(self, message: str) -> None:
        """Tell what needs a person's eye."""
        self.info(message)

    def update(self, progress: RunProgress) -> None:
        """Tell how far the run is."""

    def close(self) -> None:
        """End the telling."""


class QuietReporter(Reporter):
    """Tells nothing."""

    def info(self, message: str) -> None:
        """Ignore it."""

    def update(self, progress: RunProgress) -> None:
        """Ignore it."""

    def close(self) -> None:
        """Nothing to end."""


class LineReporter(Reporter):
    """Plain lines, for logs; progress every few seconds."""

    def __init__(self, stream: TextIO | None = None, line_seconds: float = LINE_SECONDS) -> None:
        self._stream = stream or sys.stderr
        self._line_seconds = line_seconds
        self._last: RunProgress | None = None
        self._printed_at = float("-inf")
        self._printed: RunProgress | None = None

    def info(self, message: str) -> None:
        """Print a line."""
        say(message, self._stream)

    def update(self, progress: RunProgress) -> None:
        """Print a line when the last is old enough and something changed."""
        self._last = progress
        if time.monotonic() - self._printed_at >= self._line_seconds and progress != self._printed:
            self._print(progress)

    def close(self) -> None:
        """Print the last progress."""
        if self._last is not None and self._last != self._printed:
            self._print(self._last)

    def _print(self, progress: RunProgress) -> None:
        self._printed_at, self._printed = time.monotonic(), progress
        self.info(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {describe(progress)}")


class _BarAboveWords(Progress):
    """A bar with words below it, which go on in the next line where a terminal is narrow."""

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yield the bar, then the words."""
        yield self.make_tasks_table(self.tasks)
        yield from (Text(task.fields["note"]) for task in self.tasks)


class BarReporter(Reporter):
    """A progress bar on a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or PlainConsole(stderr=True)
        self._bar = _BarAboveWords(
            TextColumn("scoring"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), console=self._console
        )
        self._task: TaskID | None = None

    def info(self, message: str) -> None:
        """Print a line above the bar."""
        self._console.print(message)

    def update(self, progress: RunProgress) -> None:
        """Move the bar."""
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task("scoring", total=progress.total_rows, note="")
        self._bar.update(self._task, completed=progress.rows, total=progress.total_rows, note=describe(progress))

    def close(self) -> None:
        """Leave the bar where it is."""
        self._bar.stop()


def make_reporter() -> Reporter:
    """Return a bar where standard error is a terminal, lines elsewhere."""
    return BarReporter() if sys.stderr.isatty() else LineReporter()


def describe(progress: RunProgress) -> str:
    """Return progress as a line."""
    share = 100 * progress.rows / progress.total_rows if progress.total_rows else 100.0
    parts = [f"{progress.rows:,} of {progress.total_rows:,} rows ({share:.1f} %)"]
    if progress.awaited:
        parts.append(f"waiting: {progress.awaited}")
    elif rate := progress.pairs_per_second:
        parts.append(f"{rate:,.{0 if rate >= 10 else 1}f} pairs/s")
    if progress.eta_seconds is not None and progress.rows < progress.total_rows:
        parts.append(f"ETA {format_seconds(progress.eta_seconds)}")
    if progress.failed_pairs:
        parts.append(f"{progress.failed_pairs:,} pairs with an error")
    if progress.failed_units:
        parts.append(f"{progress.failed_units:,} failed units")
    return ", ".join(parts)


def format_seconds(seconds: float) -> str:
    """Return a duration for people: 42 s, 3 min 5 s, 2 h 10 min, 3 d 4 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
