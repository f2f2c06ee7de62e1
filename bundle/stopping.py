"""Signals that ask to stop: the first is heeded, those of an impatient user do not cut short what it sets off."""

import contextlib
import math
import signal
from collections.abc import Iterator
from time import monotonic
from types import FrameType
from typing import Any

STOPPING = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What asks a process to stop; Windows has no SIGHUP."""

_PAUSE = 3.0
"""Seconds in which a second signal is the first, sent again: whoever means it tries later as well."""


class Patience:
    """Between `start` and `stop`, signals that ask to stop are heeded once, and not at all while they are held back.

    Python handles signals in its main thread alone; in another this does nothing, as nothing disturbs it there.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._heeded = -math.inf
        self._held = 0
        self._came: int | None = None

    def start(self, *, heeded: bool = False) -> None:
        """Begin.

        Args:
            heeded: Whether one came just now.
        """
        self._heeded = monotonic() if heeded else -math.inf
        for number in STOPPING:
            handler = signal.getsignal(number)
            earlier = getattr(handler, "__self__", None)
            # One that was left in place, as a signal came in its time: to go through it would be to
            # wait for its pause as well.
            if isinstance(earlier, Patience):
                handler = earlier._before[number]
            # Neither ignored, as under nohup, nor the system's own way to end a process.
            if callable(handler):
                self._before[number] = handler
                # Not the main thread.
                with contextlib.suppress(ValueError):
                    signal.signal(number, self._handle)

    def stop(self) -> None:
        """End, unless a signal came: then this process is about to, and the same one again is still passed over."""
        # The handlers stay: nothing is to end the clean-up that the signal has set off.
        if self._heeded > -math.inf:
            return
        for number, handler in self._before.items():
            # Where somebody else has put a handler meanwhile, it stays.
            if signal.getsignal(number) == self._handle:
                with contextlib.suppress(ValueError):
                    signal.signal(number, handler)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Let nothing disturb the body; what came meanwhile is heeded when it is done."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            if self._came is not None and not self._held:
                # Sent anew, so that the handler runs where the body is done, as if it came now.
                number, self._came = self._came, None
                signal.raise_signal(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._held:
            self._came = number if self._came is None else self._came
        elif monotonic() - self._heeded >= _PAUSE:
            self._heeded = monotonic()
            self._before[number](number, frame)
