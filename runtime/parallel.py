"""Work spread over threads, that ends at once when a part of it fails or Ctrl-C is pressed."""

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import TypeVar

J = TypeVar("J")


def parallel_map(
    work: Callable[[J], object], jobs: Sequence[J], threads: int, stop: Callable[[], object] = lambda: None
) -> Iterator[J]:
    """Do jobs, each once, in the order in which they are, so many at a time.

    On one thread it is the caller's. On several the caller only waits, so that a signal's handler can run.

    Args:
        work: Does one job; from many threads at once.
        jobs: What it is called with.
        threads: At least 1.
        stop: Called when a job fails, or the caller is interrupted or ends: makes those that run end soon.

    Yields:
        Each job that is done, in the order in which they end.

    Raises:
        BaseException: The first that `work` raised; no job is begun after it, and none runs any more.
    """
    if threads == 1 or len(jobs) < 2:
        for job in jobs:
            work(job)
            yield job
        return
    waiting = iter(jobs)
    ended: SimpleQueue[tuple[J, BaseException | None]] = SimpleQueue()
    lock, stopped = threading.Lock(), threading.Event()

    # Each worker takes the next job when it has done its last: jobs are of different length, and
    # to divide them beforehand would let threads end at different times.
    def take() -> None:
        while not stopped.is_set():
            with lock:
                try:
                    job = next(waiting)
                except StopIteration:
                    return
            try:
                work(job)
            # Of any class: it is raised again below, in the thread of the caller.
            except BaseException as error:
                stopped.set()
                ended.put((job, error))
                return
            ended.put((job, None))

    workers = [threading.Thread(target=take, name="tfm spread") for _ in range(min(threads, len(jobs)))]
    completed = 0
    try:
        for worker in workers:
            worker.start()
        while completed < len(jobs):
            job, error = ended.get()
            if error is not None:
                raise error
            completed += 1
            yield job
    finally:
        stopped.set()
        # Also where the caller reads no further, or Ctrl-C ends the wait above.
        if completed < len(jobs):
            stop()
        for worker in workers:
            if worker.ident is not None:  # one that could not be started
                worker.join()
