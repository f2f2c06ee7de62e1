"""How far a long call is, told to a callable or on one line of stderr."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from time import monotonic

from tfm.errors import InputError

Progress = bool | Callable[[int, int], None]
"""Of a call that does one thing many times: whether to count on stderr, or what is told (done, total)."""

StepProgress = Callable[[int, int, str], None]
"""Of work in several steps: what is told (done, total, what is done now)."""

_TERMINAL, _LOG = 0.1, 10.0
"""Least seconds between two reports: rewriting a line on a terminal, and adding lines to a file."""


@contextlib.contextmanager
def reporter(progress: Progress, total: int) -> Iterator[Callable[[int], None]]:
    """Report how far a call is, while this context lasts.

    Args:
        progress: Called with (done, total) at each step; True: a line on stderr with the time left; False: nothing.
        total: How many things there are to do.

    Yields:
        What to call, from one thread, with how many more are done.

    Raises:
        InputError: progress is neither a bool nor callable.
    """
    if not isinstance(progress, bool) and not callable(progress):
        raise InputError(f"progress must be True, False or a callable of (done, total), but is {progress!r}")
    done = 0
    if callable(progress):

        def call(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        yield call
    elif not progress or sys.stderr is None:  # None: a program without a console
        yield lambda count: None
    else:
        stream, length = getattr(sys.stderr, "trusted", sys.stderr), 0  # the command line's shows \r as an escape
        start = shown = monotonic()
        rewrite = stream.isatty()

        def show(count: int) -> None:
            nonlocal done, shown, length
            done += count
            now = monotonic()
            if done == total or now - shown >= (_TERMINAL if rewrite else _LOG):
                shown, line = now, describe(done, total, now - start)
                # A shorter line is filled up with spaces, so that the end of the one before it goes too.
                stream.write(f"\r{line:<{length}}" if rewrite else f"{line}\n")
                stream.flush()
                length = len(line)

        try:
            yield show
        finally:
            # Also where the call fails: what is printed next begins on a line of its own.
            if rewrite and length:
                stream.write("\n")


def describe(done: int, total: int, elapsed: float) -> str:
    """Say how far it is: "120/600 (20%), 0:31 left", or in the end "600/600 (100%), 0:39"."""
    part = f"{done}/{total} ({100 * done // total if total else 100}%)"
    if done >= total:
        return f"{part}, {_clock(elapsed)}"
    return f"{part}, {_clock(elapsed / done * (total - done))} left" if done else part


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{int(seconds):02}" if hours else f"{minutes}:{int(seconds):02}"
