"""How a command ends where it was not foreseen: an exit code of its own, one sentence, and where the details are.

Exit codes: 0 done, 1 a gate failed and nothing else, 2 bad usage or bad input, 3 anything unforeseen; above 128 a
signal, as shells count them, of which 141 is a pipe that nobody reads.
"""

import contextlib
import errno
import os
import platform
import re
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from .streams import OutputError, say

_UNFORESEEN = 3
_SIGNALS = 128
_PIPE_CLOSED = 141
_MOST = 300
"""Letters of an error's message that are printed; the details hold all of it."""

_NO_MEMORY = re.compile("bad_alloc|can(no|')t allocate memory|not enough memory|out of memory", re.IGNORECASE)
"""How libraries that raise no MemoryError say that there is none."""


def exit_code(name: str, work: Callable[[], int]) -> int:
    """Do the work of a command.

    Args:
        name: Of the command, for messages.
        work: Gives the exit code of what it foresees.

    Returns:
        The exit code. What nobody foresaw has been told on standard error.
    """
    # Kept to be compared with below: click may put another in its place.
    stream = sys.stdout
    try:
        code = work()
        # Here, not when Python ends: what cannot be written then could change the exit code no more.
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except OutputError as error:
        return _output_failed(name, error.reason)
    except SystemExit as end:  # by a signal; or by Python code of the user's, whose code must not pass for a verdict
        if isinstance(end.code, int) and end.code > _SIGNALS:
            return end.code
        broken = sys.stdout is not stream  # click puts another in its place, and exits by 1, where any pipe is closed
        return _unforeseen(name, BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) if broken else end)
    except Exception as error:
        return _unforeseen(name, error)


def _output_failed(name: str, reason: OSError) -> int:
    # Windows says EINVAL of a pipe that nobody reads.
    closed = reason.errno == errno.EPIPE or (os.name == "nt" and reason.errno == errno.EINVAL)
    # Nobody reads on, as after `| head`: a command ends quietly then.
    if closed:
        return _PIPE_CLOSED
    say(f"{name}: standard output cannot be written to: {reason.strerror or reason}", err=True)
    return _UNFORESEEN


def _unforeseen(name: str, error: BaseException) -> int:
    """Say in a sentence what happened, and where the details are."""
    if os.environ.get("TFM_DEBUG", "0") not in ("", "0"):
        say(_details(error), err=True, nl=False)
        where = "the details are above"
    elif isinstance(error, MemoryError | OSError) or _NO_MEMORY.search(str(error)):
        where = "TFM_DEBUG=1 shows the details"  # which rarely help: it is the machine that lacks something
    else:
        details = _details(error)
        log = _keep(details)
        where = "the details are above" if log is None else f"the details are in {log}"
        if log is None:
            say(details, err=True, nl=False)
    say(f"{name}: {_describe(error)}; {where}", err=True)
    return _UNFORESEEN


def _describe(error: BaseException) -> str:
    # One line, whatever the message is: the details have it as it was.
    message = " ".join(str(error).split())
    message = message if len(message) <= _MOST else f"{message[:_MOST]}…"
    if isinstance(error, MemoryError) or _NO_MEMORY.search(message):
        return f"there is not enough memory for this{message and f' ({message})'}"
    if isinstance(error, OSError) and error.strerror:
        return f"the system refused something: {error.strerror} ({_where(error)})"
    if isinstance(error, SystemExit):
        return f"Python code that was imported ended the command, with exit code {message or 'none'}"
    return f"something went wrong that tfm did not foresee: {type(error).__name__}{message and f': {message}'}"


def _where(error: OSError) -> str:
    return str(error.filename or f"temporary files are in {_temporary_folder() or 'no folder'}")


def _details(error: BaseException) -> str:
    try:
        about = f"tfm-export {version('tfm-export')}, Python {platform.python_version()}, {platform.platform()}"
        return f"{about}\n{sys.argv}\n" + "".join(traceback.format_exception(error))
    except MemoryError:  # what is left of it was too little for whatever went wrong, too
        return f"{type(error).__name__}: {error}\n"


def _temporary_folder() -> str | None:
    """The folder for temporary files; None: there is none that takes any."""
    try:
        return tempfile.gettempdir()
    except OSError:
        return None


def _keep(details: str) -> Path | None:
    """Write details into a file of the temporary folder, or of the user's; None: neither takes it."""
    # The folder for temporary files may be what is full.
    for folder in filter(None, (_temporary_folder(), str(Path.home()))):
        with contextlib.suppress(OSError, MemoryError):
            # A new file of a name that nobody could know, which only this user can read.
            descriptor, name = tempfile.mkstemp(prefix="tfm-", suffix=".log", dir=folder)
            try:
                with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(details)
            except OSError:
                # Where the disk is full, half of the details help nobody, and the next folder is
                # tried.
                os.unlink(name)
                raise
            return Path(name)
    return None
