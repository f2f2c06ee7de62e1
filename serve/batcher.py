"""Requests that wait for one model, put together: whoever came while it was at work is its next batch.

Nobody waits for company: a request that finds the model idle is run at once, so that batching costs no latency, and
grows by itself with the load.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tfm.errors import InputError

from .refusals import RefusedError

Run = Callable[[Any, list[Any]], Sequence[Any]]
"""Computes the results of inputs: what is asked for, inputs → a result for each."""


@dataclass(eq=False)
class _Job:
    key: Hashable
    inputs: list[Any]
    cost: int
    found: "asyncio.Future[list[Any]]"


class Batcher:
    """One model's queue, and the thread that runs it."""

    def __init__(self, run: Run, *, batch_tokens: int, most_waiting: int) -> None:
        """Prepare it; it begins with the first request.

        Args:
            run: Runs in a thread of its own, one call at a time.
            batch_tokens: How much goes into one call, by the requests' cost, unless one has more by itself.
            most_waiting: How much may wait.
        """
        self._run, self._batch, self._most = run, batch_tokens, most_waiting
        self._queue: deque[_Job] = deque()
        self._thread = ThreadPoolExecutor(1, "batcher")
        self._worker: asyncio.Task[None] | None = None
        # Seconds a unit of cost takes, of late.
        self._pace = 0.0
        self.waiting = 0

    async def submit(self, key: Hashable, inputs: list[Any], cost: int) -> list[Any]:
        """Compute results, together with others of the same key.

        Args:
            key: What is asked for.
            inputs: For whose results.
            cost: Roughly how many tokens they have.

        Raises:
            RefusedError: Too much is waiting.
        """
        if self.waiting and self.waiting + cost > self._most:
            raise overloaded(self.waiting * self._pace)
        job = _Job(key, inputs, cost, asyncio.get_running_loop().create_future())
        self._queue.append(job)
        self.waiting += cost
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await job.found

    async def close(self) -> None:
        """Finish what waits."""
        if self._worker is not None:
            await asyncio.gather(self._worker, return_exceptions=True)
        self._thread.shutdown()

    async def _work(self) -> None:
        while jobs := self._next():
            cost, began = sum(job.cost for job in jobs), time.perf_counter()
            await self._answer(jobs)
            self.waiting -= cost
            self._pace = 0.8 * self._pace + 0.2 * (time.perf_counter() - began) / max(cost, 1)

    def _next(self) -> list[_Job]:
        """Take the first job, and others that go with it; what nobody waits for any more is dropped."""
        taken: list[_Job] = []
        rest: deque[_Job] = deque()
        total = 0
        # In their order, so that what cannot go with the first has the next turn, and nobody waits for ever.
        for job in self._queue:
            if job.found.cancelled():
                self.waiting -= job.cost
            elif not taken or (job.key == taken[0].key and total + job.cost <= self._batch):
                taken.append(job)
                total += job.cost
            else:
                rest.append(job)
        self._queue = rest
        return taken

    async def _answer(self, jobs: list[_Job]) -> None:
        try:
            inputs, loop = [item for job in jobs for item in job.inputs], asyncio.get_running_loop()
            results = list(await loop.run_in_executor(self._thread, self._run, jobs[0].key, inputs))
        except InputError as error:
            if len(jobs) == 1:
                _fail(jobs[0], error)
                return
            # One of them is at fault, and the others are not.
            for job in jobs:
                await self._answer([job])
        except Exception as error:
            for job in jobs:
                _fail(job, error)
        else:
            start = 0
            for job in jobs:
                # Its client may have left meanwhile.
                if not job.found.done():
                    job.found.set_result(results[start : start + len(job.inputs)])
                start += len(job.inputs)


def _fail(job: _Job, error: Exception) -> None:
    if not job.found.done():
        job.found.set_exception(error)


def overloaded(seconds: float) -> RefusedError:
    """Refuse what is too much, and say when to come again."""
    wait = max(1, round(seconds))
    return RefusedError(429, f"too much is waiting; try again in {wait} s", "overloaded", retry_after=wait)
