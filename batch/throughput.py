"""How far a long job is: rows a second, and the time left."""

import sys
from collections.abc import Callable
from time import monotonic

_TERMINAL, _LOG = 0.2, 10.0
"""Least seconds between two reports: rewriting a line on a terminal, and adding lines to a file."""


class Throughput:
    """A line on stderr, which is rewritten on a terminal.

    Its speed is that of this run: what an earlier one has done is counted as done, and not as fast.
    """

    def __init__(self) -> None:
        self._start: float | None = None
        self._first = self._length = 0
        self._shown = float("-inf")

    def __call__(self, done: int, total: int) -> None:
        """Show how far it is; the first call says where it begins."""
        now = monotonic()
        if self._start is None:
            self._start, self._first = now, done
            return
        # The command line's own stream shows \r as an escape, but for what it trusts.
        stream = getattr(sys.stderr, "trusted", sys.stderr)
        if stream is None:
            return
        rewrite = stream.isatty()
        if done < total and now - self._shown < (_TERMINAL if rewrite else _LOG):
            return
        self._shown, line = now, describe(done, total, done - self._first, now - self._start)
        stream.write(f"\r{line:<{self._length}}" if rewrite else f"{line}\n")
        if rewrite and done == total:
            stream.write("\n")
        stream.flush()
        self._length = len(line)


def describe(done: int, total: int, new: int, seconds: float) -> str:
    """Say how far it is: "2,048/10,000 rows (20%), 412 rows/s, 0:19 left"."""
    part = f"{done:,}/{total:,} rows ({100 * done // total if total else 100}%)"
    if not new or seconds <= 0:
        return part
    speed = new / seconds
    said = f"{part}, {speed:,.0f} rows/s" if speed >= 10 else f"{part}, {speed:.2g} rows/s"
    return f"{said}, {clock((total - done) / speed)} left" if done < total else f"{said}, {clock(seconds)}"


def clock(seconds: float) -> str:
    """Write a time as hours, minutes and seconds."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


Told = Callable[[int, int], None]
"""What is told (rows done, rows of all)."""
