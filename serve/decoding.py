"""A decoder's requests: generated side by side in one thread, each given out as it is made."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tfm.runtime import Decoder

from .batcher import overloaded

_REASONS = {None: None, "length": "length", "stop_token": "stop", "stop_string": "stop", "error": "error"}
"""Why a row ended → what OpenAI calls that."""


@dataclass(frozen=True)
class Part:
    """What one step added to an answer.

    Attributes:
        text: New text, which may be empty.
        reason: Why it ended: "stop" or "length"; None: it goes on.
        prompt_tokens: Tokens of the prompt.
        new_tokens: Tokens generated so far.
    """

    text: str
    reason: str | None
    prompt_tokens: int
    new_tokens: int


@dataclass(eq=False)
class _Request:
    input: Any
    most: int
    settings: Mapping[str, Any]
    loop: asyncio.AbstractEventLoop
    parts: "asyncio.Queue[Part | Exception]" = field(default_factory=asyncio.Queue)
    gone: threading.Event = field(default_factory=threading.Event)

    def give(self, part: Part | Exception) -> None:
        # The server ended meanwhile.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.parts.put_nowait, part)


class Decoding:
    """One decoder's thread."""

    def __init__(self, model: Decoder, *, most_rows: int, most_waiting: int) -> None:
        """Prepare it; it begins with the first request.

        Args:
            model: The decoder.
            most_rows: How many texts are generated side by side.
            most_waiting: How many may wait beside them.
        """
        generation = model.manifest.generation
        # A graph that reads short texts in another way than long ones reads each alone.
        alone = generation is not None and generation.short_length is not None
        self._model, self._most_rows, self._most_waiting = model, 1 if alone else most_rows, most_waiting
        self._waiting: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.rows = 0

    @property
    def waiting(self) -> int:
        """How many texts wait."""
        return self._waiting.qsize()

    async def generate(self, input: Any, most: int, settings: Mapping[str, Any]) -> AsyncGenerator[Part]:
        """Generate one text; whoever leaves the iterator ends it.

        Args:
            input: A text, token ids or a chat.
            most: New tokens, at most.
            settings: As for `Decoder.stream`.

        Raises:
            RefusedError: Too many wait.
            InputError: As for `Decoder.stream`.
        """
        if self._waiting.qsize() >= self._most_waiting:
            raise overloaded(1 + self._waiting.qsize() / self._most_rows)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="decoder", daemon=True)
            self._thread.start()
        request = _Request(input, most, settings, asyncio.get_running_loop())
        self._waiting.put(request)
        try:
            while True:
                part = await request.parts.get()
                if isinstance(part, Exception):
                    raise part
                yield part
                if part.reason is not None:
                    return
        finally:
            request.gone.set()

    async def close(self) -> None:
        """Finish what runs, and the thread."""
        if self._thread is not None:
            self._waiting.put(None)
            await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        side = _SideBySide(self._model)
        ending = False
        while side.running or not ending:
            # One prompt a step: who is being answered waits for one at most. With nothing to do it waits here.
            if len(side.running) < self._most_rows and not ending:
                with contextlib.suppress(queue.Empty):
                    request = self._waiting.get(block=not side.running)
                    ending = request is None
                    if request is not None:
                        side.add(request)
            side.step()
            self.rows = len(side.running)


class _SideBySide:
    """Requests that are being answered."""

    def __init__(self, model: Decoder) -> None:
        self._model, self._batch = model, model.continuous_batch()
        self.running: dict[Any, _Request] = {}

    def add(self, request: _Request) -> None:
        """Read a prompt, unless nobody waits for its answer any more."""
        if request.gone.is_set():
            return
        try:
            self.running[self._batch.add(request.input, request.most, **request.settings)] = request
        except Exception as error:  # what is asked for is at fault, or memory has ended: the others go on
            request.give(error)

    def step(self) -> None:
        """Give every answer one more token, and to whom it belongs."""
        for row in [row for row, request in self.running.items() if request.gone.is_set()]:
            self._batch.remove(row)
            del self.running[row]
        try:
            rows = self._batch.step()
        except Exception as error:  # as where memory ends: all end by it, and the thread goes on
            for request in self.running.values():
                request.give(error)
            self._batch, self.running = self._model.continuous_batch(), {}
            return
        for row in rows:
            request = self.running[row]
            if row.reason is not None:
                del self.running[row]
            # A token that completes no character yet is not worth a message.
            if row.text or row.reason is not None:
                request.give(row.error or Part(row.text, _REASONS[row.reason], row.prompt_tokens, row.new_tokens))
