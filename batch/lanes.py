"""Work of a mapper in processes that share its mapped weights; each ends when the process that started it does."""

import multiprocessing
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import pyarrow as pa

from tfm.errors import TfmError
from tfm.runtime import usable_cores

from .mapper import Mapped, Mapper

_PATIENCE = 10.0
"""Seconds in which a process that was asked to end does so."""


@dataclass(frozen=True)
class Job:
    """Some rows to put through.

    Attributes:
        number: Of the part.
        table: The rows.
        items: What the task takes of each.
    """

    number: int
    table: pa.Table
    items: list[Any]


def spread(mapper: Mapper, jobs: Iterator[Job], workers: int) -> Iterator[tuple[Job, Mapped]]:
    """Do jobs in so many processes; with one, in this.

    Args:
        mapper: What does them.
        jobs: Read one after the other, when somebody is free: no more than `workers` are held at once.
        workers: At least 1.

    Yields:
        Each job and what became of it, in the order in which they end.

    Raises:
        TfmError: One raised it, or a process died.
    """
    if workers == 1:
        for job in jobs:
            yield job, mapper.map_rows(job.items)
        return
    threads = mapper.threads or max(1, usable_cores() // workers)
    # Each opens the bundle itself, which must be the one that this process has looked at.
    theirs = replace(mapper, threads=threads, digest=mapper.model.manifest.digest)
    lanes = [_Lane(theirs, number) for number in range(workers)]
    try:
        for lane in lanes:
            lane.take(jobs)
        while busy := [lane for lane in lanes if lane.job is not None]:
            ready = wait([lane.connection for lane in busy])
            for lane in busy:
                if lane.connection in ready:
                    done = lane.result()
                    # Before what it gave is written, so that it does not wait for the disk.
                    lane.take(jobs)
                    yield done
    finally:
        for lane in lanes:
            lane.end()


class _Lane:
    """One process, and the job that it is at."""

    def __init__(self, mapper: Mapper, number: int) -> None:
        # Started anew and not forked, as onnxruntime's threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.job: Job | None = None
        self._process = context.Process(target=_work, args=(mapper, theirs), name=f"tfm map {number}", daemon=True)
        self._process.start()
        # The last one to hold that end is the process itself: when it dies, what is read here ends.
        theirs.close()

    def take(self, jobs: Iterator[Job]) -> None:
        """Begin the next job, if there is one."""
        self.job = next(jobs, None)
        if self.job is not None:
            try:
                self.connection.send(self.job.items)
            except OSError as error:
                raise self._died() from error

    def result(self) -> tuple[Job, Mapped]:
        """Give the job that is done.

        Raises:
            TfmError: It failed, or the process died.
        """
        assert self.job is not None
        try:
            found = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if isinstance(found, BaseException):
            raise found
        return self.job, found

    def end(self) -> None:
        """End the process, whatever it is at: nothing that it has not given is kept."""
        self.connection.close()
        self._process.terminate()
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _died(self) -> TfmError:
        self._process.join(_PATIENCE)
        return TfmError(
            f"{self._process.name} died (exit code {self._process.exitcode}), as of a lack of memory; what is finished "
            "is kept: run the same command again, with fewer workers or a smaller batch if it dies again"
        )


def _work(mapper: Mapper, connection: Connection) -> None:
    """Do jobs until the other end is closed, as by the death of its process."""
    # Ctrl-C reaches every process of a terminal: the one that was started by hand decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            items = connection.recv()
        except (EOFError, OSError):
            return
        found: Any
        try:
            found = mapper.map_rows(items)
        # Of any class: it is raised again where the result is asked for.
        except Exception as error:
            found = error
        try:
            connection.send(found)
        except OSError:
            return
