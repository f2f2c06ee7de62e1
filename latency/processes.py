"""Processes of ours: each imports what this one can, and nothing from the working directory.

`python -m` and `python -c` put the working directory first on sys.path, before the standard library, so that a
`random.py` of the user's own would run in place of Python's. Python 3.11 has an option against that, 3.10 has none: a
program that is started here takes the entry out itself before it imports anything that is not built in.

A process ends with the one that started it, also amid long work: a thread of it waits for the end of its stdin. Ctrl-C
is for its parent to act on. Its answers have a pipe of their own, so that what a library prints is not taken for one.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfm.errors import VerificationError

START_SECONDS = 300.0
"""How long importing what is run may take: torch from a cold disk takes tens of seconds."""

ANSWER_SECONDS = 3600.0
"""How long an answer may take: opening a model or one turn, which is at least one run. More is not timed, but hangs."""

_END_SECONDS = 120.0
"""How long a process that gives no more answers may take to end."""

_MARK = b"\x1e"
"""Begins an answer, as in RFC 7464; what a line has before it was printed by something else."""

_TOLD = 600
"""How many letters of what a process printed last are told."""

_KEPT = 1 << 14

WELL = "exit code 0"
"""How a process ends that did what it was to do."""

_PATH = """\
import sys
sys.path[:] = [place for place in sys.path if place]
sys.path += [place for place in {paths!r} if place not in sys.path]
"""

# Nothing but built-in modules and os, which Python itself has imported, so that timing an import is not falsified.
_BOOT = """\
import _signal, _thread, os
_signal.signal(_signal.SIGINT, _signal.SIG_IGN)
sys.argv.insert(1, str(os.dup(1)))
os.dup2(2, 1)
sys.stdout.reconfigure(line_buffering=True)
def watch(told, give):
    while data := os.read(told, 65536):
        os.write(give, data)
    os._exit(1)
read, write = os.pipe()
_thread.start_new_thread(watch, (os.dup(0), write))
os.dup2(read, 0)
"""


def python_command(program: str, *arguments: str) -> list[str]:
    """Make the command that runs a program in a Python like this one, without the working directory on its path."""
    return [*_python(), "-c", _PATH.format(paths=_import_paths()) + program, *arguments]


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give the environment of a process of ours: this one's, but no empty entry in PYTHONPATH.

    To Python an empty one is the working directory, and `PYTHONPATH=$PYTHONPATH:folder` leaves it by accident.
    """
    found = dict(os.environ)
    if "PYTHONPATH" in found:
        found["PYTHONPATH"] = os.pathsep.join(filter(None, found["PYTHONPATH"].split(os.pathsep)))
    return found | dict(changes or {})


class Child:
    """A process that answers.

    Attributes:
        name: For messages, such as "the engine eager".
        process: The process.
    """

    def __init__(
        self,
        name: str,
        program: str,
        arguments: Sequence[str] = (),
        *,
        changes: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        """Start it.

        Args:
            name: For messages.
            program: Source code, which answers by `Answers` and reads requests, if any, from stdin.
            arguments: Its sys.argv[2:]; sys.argv[1] is for its `Answers`.
            changes: Of its environment.
            log: Where all that it prints is kept; None: only the end of it is.

        Raises:
            VerificationError: It cannot be started.
        """
        self.name = name
        # _BOOT comes before the program's imports: what those print goes to stderr from then on.
        command = python_command(_BOOT + program, *arguments)
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self._log = None if log is None else log.open("wb")
        try:
            self.process = subprocess.Popen(command, env=environment(changes), **pipes)
        except OSError as error:
            self._close_log()
            raise VerificationError(f"{name} cannot be started: {error.strerror or error}") from error
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._printed, self._lock = b"", threading.Lock()
        # Both pipes are read all the time: a process whose pipe is full would wait for ever.
        self._readers = [
            threading.Thread(target=read, daemon=True) for read in (self._read_answers, self._read_printed)
        ]
        for reader in self._readers:
            reader.start()

    def send(self, line: str) -> None:
        """Send a request; that it has ended already is for `answer` to say."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()

    def answer(self, seconds: float, doing: str = "while it was timed") -> Any:
        """Give its next answer.

        Args:
            seconds: How long to wait for it.
            doing: What it is about, for messages.

        Raises:
            VerificationError: It has ended, or does not answer in time; the message holds what it printed.
        """
        found = self.next_answer(seconds, doing)
        if found is None:
            raise VerificationError(f"{self.name} broke down {doing}: {self.printed()} ({self.ending()})")
        try:
            return json.loads(found)
        except ValueError as error:
            raise VerificationError(f"{self.name} broke down {doing}: it answered {found[:80]!r}") from error

    def next_answer(self, seconds: float, doing: str = "while it worked") -> bytes | None:
        """Give its next answer as it is; None: it has ended.

        Raises:
            VerificationError: It does not answer in time.
        """
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):  # in parts, as Windows does not let Ctrl-C interrupt a wait
                return self._answers.get(timeout=min(left, 1.0))
        self.process.kill()
        raise VerificationError(f"{self.name} hangs: no answer came in {seconds:.0f} s {doing}; {self.printed()}")

    def printed(self) -> str:
        """Tell the end of what it has printed, on stdout or stderr."""
        self._readers[1].join(timeout=1.0)  # what it printed last may be on its way
        text = self._printed.decode(errors="replace").strip()
        if len(text) > _TOLD:
            # Whole lines, where there are any.
            _, _, whole = text[-_TOLD:].partition("\n")
            text = f"… {whole or text[-_TOLD:]}"
        return text or "it said nothing"

    def ending(self) -> str:
        """Tell in words how it ended; one that has torch in it takes seconds for that on a busy machine."""
        try:
            return describe_exit(self.process.wait(timeout=_END_SECONDS))
        except subprocess.TimeoutExpired:
            return "it closed its output, and has not ended"

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):  # a request that was not read
                self.process.stdin.close()
        for reader in self._readers:
            reader.join(timeout=1.0)  # a process that it started, and that outlives it, may keep a pipe open

    def _read_answers(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                # What a library printed without a newline may stand before an answer.
                noise, mark, answer = line.partition(_MARK)
                self._keep(noise)
                if mark:
                    self._answers.put(answer)
        # The end of its answers: whoever waits for one must not wait for ever.
        self._answers.put(None)

    def _read_printed(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            while data := os.read(stream.fileno(), 1 << 16):
                self._keep(data)
        self._close_log()

    def _keep(self, data: bytes) -> None:
        with self._lock:
            self._printed = (self._printed + data)[-_KEPT:]
            if self._log is not None:
                with contextlib.suppress(OSError):  # the disk is full; a pipe that nobody reads would block the process
                    self._log.write(data)
                    self._log.flush()

    def _close_log(self) -> None:
        if self._log is not None:
            with contextlib.suppress(OSError):
                self._log.close()


def describe_exit(code: int) -> str:
    """Tell in words how a process ended, by its return code."""
    if code >= 0:
        return f"exit code {code if code < 1 << 31 else hex(code)}"  # Windows tells a crash by 0xC0000005 and the like
    try:
        name = f" ({signal.Signals(-code).name})"
    except ValueError:
        name = ""
    cause = ", as a system does where memory runs out" if -code == getattr(signal, "SIGKILL", None) else ""
    return f"killed by signal {-code}{name}{cause}"


class Answers:
    """The child's side: where its answers go."""

    def __init__(self, descriptor: str) -> None:
        """Open it; the descriptor is the first argument that the process gets."""
        self._stream = os.fdopen(int(descriptor), "wb")

    def __call__(self, answer: object) -> None:
        """Answer with a value that JSON has."""
        self._stream.write(_MARK + json.dumps(answer).encode() + b"\n")
        self._stream.flush()


def _python() -> list[str]:
    """The interpreter, with the options of this one that decide what can be imported."""
    if getattr(sys, "frozen", False) or not sys.executable:
        raise VerificationError(
            "this needs processes of its own, and there is no Python to start them with (the app is frozen, or embeds "
            "Python); run it where tfm-export is installed, such as `tfm latency BUNDLE`"
        )
    # With other options the child would find other packages than this process has.
    flags = {
        "-I": sys.flags.isolated,
        "-E": sys.flags.ignore_environment,
        "-s": sys.flags.no_user_site,
        "-S": sys.flags.no_site,
    }
    return [sys.executable, *(flag for flag, given in flags.items() if given)]


def _import_paths() -> list[str]:
    """This process's sys.path without the working directory, unless this very package lies there.

    A child puts them after its own: what a script or a task has put first for itself is no one else's standard library.
    """
    try:
        here = os.path.realpath(os.getcwd())
    except FileNotFoundError:  # it was removed
        here = ""
    # As where `pip install --target .` put this very package into the working directory.
    home = os.path.realpath(Path(str(sys.modules["tfm"].__file__)).parents[1])
    found = [os.path.abspath(path) for path in sys.path if isinstance(path, str) and path and os.path.exists(path)]
    return [path for path in dict.fromkeys(found) if os.path.realpath(path) != here or here == home]
