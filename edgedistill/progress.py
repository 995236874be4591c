"""A progress line with rate and time left: live on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator

QUIET = os.environ.get("RANK", "0") != "0"  # of the processes that torchrun starts, the first one speaks


def clock(seconds: float) -> str:
    """Seconds as people say them: 45 s, 3 min 20 s, 2 h 05 min."""
    seconds = round(seconds)
    if seconds < 100:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def say(text: str = "") -> None:
    """A line for the user. On stderr, so that stdout stays free for results."""
    if not QUIET:
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Nothing is said inside."""
    global QUIET
    before, QUIET = QUIET, True
    try:
        yield
    finally:
        QUIET = before


class Progress:
    """Counts `total` units of work; `advance()` prints what a user wants to see while waiting.

    The first `settle` units say nothing about the time left: of units that run side by side, the first one comes late.
    """

    def __init__(self, title: str, total: int, unit: str, every: float = 15.0, settle: int = 0) -> None:
        self.title, self.total, self.unit, self.every, self.settle = title, total, unit, every, settle
        self.done = 0
        self.start = self.printed = time.monotonic()
        self.live = sys.stderr.isatty()

    def advance(self, n: int = 1, note: str = "") -> None:
        """Counts `n` more units; `note` is appended to the line (a loss, a share)."""
        self.done += n
        now = time.monotonic()
        if now - self.printed < (0.2 if self.live else self.every):
            return
        self.printed = now
        self._line(now, note, end="" if self.live else "\n")

    def close(self, note: str = "") -> None:
        """Prints the last line, with the rate over the whole."""
        self._line(time.monotonic(), note, end="\n")

    def _line(self, now: float, note: str, end: str) -> None:
        rate = self.done / max(now - self.start, 1e-9)
        left = f", {clock((self.total - self.done) / rate)} left" if self.settle < self.done < self.total else ""
        text = f"{self.title}: {self.done}/{self.total} {self.unit}, {rate:.3g}/s{left}{note and ', ' + note}"
        if not QUIET:
            print(f"\r\033[K{text}" if self.live else text, end=end, file=sys.stderr, flush=True)
