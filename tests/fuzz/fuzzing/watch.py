"""One case in a process of its own, under limits of memory and time, and what became of it.

The process is forked from one that has imported everything and run nothing: a case costs milliseconds, and none knows
of another.
"""

import contextlib
import dataclasses
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from .pickle_edits import CANARY

SECONDS = 10.0
"""What any file may take."""

MEMORY = 3 << 30
"""Bytes of address space beyond what the process has when it begins."""

LARGE = 256
"""Megabytes after which the next case gets a process of its own."""

_BUSY = 6
"""How many times as long who waits for a processor may take."""

KINDS = ("refused", "accepted", "untyped", "signal", "hang", "silent", "ran code")
FAULTS = KINDS[2:]


@dataclasses.dataclass(kw_only=True)
class Outcome:
    """What became of a case.

    Attributes:
        kind: One of `KINDS`.
        what: The error, the signal, or what went unnoticed.
        where: The last line of ours that an error went through.
        done: What was changed.
        seconds: Of wall clock.
        megabytes: Most memory that it had, beyond what it began with.
    """

    kind: str
    what: str = ""
    where: str = ""
    done: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    megabytes: int = 0

    @property
    def failed(self) -> bool:
        """Whether it must not be."""
        return self.kind in FAULTS


Workload = Callable[[Path], tuple[list[str], str]]
"""Called with a folder; gives what was changed, and what went unnoticed."""


def watched(box: Path, work: Workload, seconds: float = SECONDS) -> Outcome:
    """Do one thing in a forked process; see `watch_many`."""
    return watch_many(box, [work], seconds)[0]


def watch_many(
    box: Path, workloads: Sequence[Workload], seconds: float = SECONDS, memory: int = MEMORY
) -> list[Outcome]:
    """Do things in a forked process, one after the other, until one fails.

    Args:
        box: A folder, empty for each of them, which becomes the working directory. What failed leaves its files there.
        workloads: What is to be done.
        seconds: After these the process is ended; for each of the works.
        memory: Bytes that each may have beyond what it begins with.

    Returns:
        What became of the first of them, at least one.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run(box, workloads, writing, memory)
    os.close(writing)
    outcomes: list[Outcome] = []
    said = b""
    while True:
        said, state = _read(reading, said, child, seconds)
        while b"\n" in said:
            line, _, said = said.partition(b"\n")
            outcomes.append(Outcome(**json.loads(line)))
        if state != "more":
            break
    os.close(reading)
    if state == "late":
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if len(outcomes) < len(workloads) and (state == "late" or status):
        outcomes.append(_ended(state, status, seconds))
    if (box / CANARY).exists() or (box / "inside" / CANARY).exists():
        outcomes[-1].kind = "ran code"
    if outcomes[-1].kind == "harness":
        raise HarnessError(outcomes[-1].what)
    return outcomes


def fresh(box: Path) -> Path:
    """Empty a folder, or make it."""
    shutil.rmtree(box, ignore_errors=True)
    box.mkdir(parents=True)
    return box


def _run(box: Path, workloads: Sequence[Workload], writing: int, memory: int) -> NoReturn:
    """What the forked process does."""
    status = 1
    try:
        printed = os.open(box.with_name(f"{box.name}.printed"), os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for work in workloads:
            os.chdir("/")
            os.chdir(fresh(box))
            os.ftruncate(printed, 0)
            outcome = _measure(box, work, memory)
            os.write(writing, json.dumps(dataclasses.asdict(outcome)).encode() + b"\n")
            if outcome.failed or outcome.kind == "harness" or outcome.megabytes > LARGE:
                break
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _measure(box: Path, work: Workload, memory: int) -> Outcome:
    """Do one thing within its memory, and tell how much of it it took."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    total = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (total, resource.RLIM_INFINITY))
    before, start = _status("VmRSS"), time.monotonic()
    outcome = _classify(box, work)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    outcome.seconds = time.monotonic() - start
    outcome.megabytes = max(0, _status("VmHWM") - before) >> 10
    if (box / CANARY).exists() or (box / "inside" / CANARY).exists():
        outcome.kind = "ran code"
    return outcome


def _status(name: str) -> int:
    """A figure of this process's, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise HarnessError(f"this system tells no {name}")


class HarnessError(Exception):
    """The harness itself broke down."""


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Tell errors of the harness, which mutates, from those of who reads."""
    try:
        yield
    except Exception as error:
        raise HarnessError(traceback.format_exc()) from error


def _classify(box: Path, work: Workload) -> Outcome:
    from tfm.errors import TfmError

    try:
        done, unnoticed = work(box)
    except HarnessError as error:
        return Outcome(kind="harness", what=str(error))
    except TfmError as error:
        return Outcome(kind="refused", what=f"{type(error).__name__}: {error}"[:400], done=_done(box))
    except BaseException as error:
        what = f"{type(error).__module__}.{type(error).__name__}: {error}"[:400]
        return Outcome(kind="untyped", what=what, where=_where(error), done=_done(box))
    return Outcome(kind="silent" if unnoticed else "accepted", what=unnoticed, done=done)


def _done(box: Path) -> list[str]:
    file = box / "done"
    return json.loads(file.read_text()) if file.is_file() else []


def _where(error: BaseException) -> str:
    root = Path(__file__).parents[3]
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        frame
        for frame in frames
        if frame.filename.startswith(str(root)) and "/tests/" not in frame.filename and "/.venv/" not in frame.filename
    ]
    frame = (ours or frames)[-1]
    return f"{frame.filename.removeprefix(str(root) + '/')}:{frame.lineno} {frame.name}"


def _read(reading: int, said: bytes, child: int, seconds: float) -> tuple[bytes, str]:
    """Read what a process says: some "more", or it is at its "end", or the time is up and it is "late".

    On a machine that is busy with other things, the time of who waits for a processor is not up; up to a limit.
    """
    start, worked = time.monotonic(), _cpu(child)[0]
    while True:
        ready, _, _ = select.select([reading], [], [], seconds / 10)
        if ready:
            block = os.read(reading, 65536)
            return said + block, "more" if block else "end"
        spent, waits = _cpu(child)
        elapsed = time.monotonic() - start
        if spent - worked > seconds or elapsed > _BUSY * seconds or (elapsed > seconds and not waits):
            return said, "late"


def _cpu(process: int) -> tuple[float, bool]:
    """Seconds of a processor that a process took, and whether it could use one now."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), fields[0] == "R"


def _ended(state: str, status: int, seconds: float) -> Outcome:
    """What became of who said nothing any more."""
    if state == "late":
        return Outcome(kind="hang", what=f"still at it after {seconds:g} s", seconds=seconds)
    if os.WIFSIGNALED(status):
        return Outcome(kind="signal", what=signal.Signals(os.WTERMSIG(status)).name)
    return Outcome(kind="signal", what=f"it ended itself with {os.waitstatus_to_exitcode(status)}")
