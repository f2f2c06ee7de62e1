"""Signals that ask the command line to stop, and what is said then."""

import atexit
import signal
import sys
from pathlib import Path
from typing import NoReturn

from tfm.bundle import STOPPING, Patience


class StoppedError(SystemExit):
    """SIGTERM or SIGHUP came; its code is the shell's, 128 and the signal's number."""


def heed_signals() -> None:
    """Leave on SIGTERM and SIGHUP as on an error, so that what is half done is cleaned up.

    One that is ignored stays so, as SIGHUP under nohup.
    """
    # Commands may be called from Python one after the other: what an earlier one placed is not ours.
    _placed().clear()
    for number in STOPPING:
        if number != signal.SIGINT and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)


def end_undisturbed() -> None:
    """Let signals change nothing in Python's last steps, for which it has no handlers: the exit code stands."""

    def ignore() -> None:
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)

    atexit.register(ignore)


def explain_interruption() -> str:
    """Say what Ctrl-C left, and pass over what an impatient user presses while it is said."""
    Patience().start(heeded=True)
    if placed := _placed():
        return f"interrupted, but {placed[-1]} was complete, and is in place"
    return "interrupted; nothing was left behind but the figures of a search, to go on with"


def _stop(number: int, _: object) -> NoReturn:
    raise StoppedError(128 + number)


def _placed() -> list[Path]:
    """What was put in place, without importing what puts it."""
    # Where it was not imported, it has put nothing in place.
    staging = sys.modules.get("tfm.bundle.staging")
    return [] if staging is None else staging.placed
