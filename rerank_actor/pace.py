"""The pace of an engine: how long a piece of work may take before the engine is taken for hung.

Takes what earlier work took, gives a limit in seconds. Knows nothing of who enforces it.
"""

from collections import deque

SLACK = 10.0  # a piece may be this much slower than the slowest of the last few
REMEMBERED = 8
START_SECONDS = 3600.0  # for an engine to start, weights fetched over a network included


class Pace:
    """What an engine's last pieces took.

    Args:
        stall_seconds: allowed on top, however small the work.
    """

    def __init__(self, stall_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self._seconds_per_token: deque[float] = deque(maxlen=REMEMBERED)

    def note(self, tokens: int, seconds: float) -> None:
        """Take down that a piece of so many tokens took so long."""
        if tokens:
            self._seconds_per_token.append(seconds / tokens)

    def allow(self, tokens: int) -> float:
        """Return the seconds that a piece of so many tokens may take."""
        return self._stall_seconds + SLACK * tokens * max(self._seconds_per_token, default=0.0)
