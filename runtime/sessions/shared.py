"""Sessions that several models have in common: opened once, and only once what they are made of has been proved."""

import os
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any

from tfm.bundle import HeldFile


class OpenGraph:
    """A graph that is open, and the files that it has mapped into memory.

    Attributes:
        session: The `onnxruntime.InferenceSession`.
        arena: Whether it keeps memory of a run for the next one.
    """

    def __init__(self, session: Any, mapped: tuple[HeldFile, ...] = (), *, arena: bool = True) -> None:
        self.session, self.arena = session, arena
        self._mapped = mapped

    @property
    def is_unchanged(self) -> bool:
        """Whether the weights are still those that were proved: who writes to a mapped file changes them."""
        return all(file.is_unchanged for file in self._mapped)


_shared: "weakref.WeakValueDictionary[Hashable, OpenGraph]" = weakref.WeakValueDictionary()
_sharing = threading.Lock()


def share(key: Hashable, opened: Callable[[], OpenGraph]) -> OpenGraph:
    """Give the graph that some other model in this process has open for the same content, or open it.

    A graph lives as long as anything refers to it, so that no model can close it under another. Sessions may be run
    from many threads at once. Of MiniLM's fp32 graph (90 MB) a first session took 94 to 105 MiB, or 43 with its weights
    in a file beside it; a second one of its own 96 or 42 MiB more, a shared one none (resident set, onnxruntime 1.32).

    Args:
        key: Everything that the session depends on: digests of its files, provider, threads, options.
        opened: Opens the graph and proves that it is what the key says; raises where it is not, and then nothing is
            shared.
    """
    with _sharing:  # while it opens, too: two threads that load one bundle must not hold its weights twice
        found = _shared.get(key)
        if found is None or not found.is_unchanged:
            found = opened()
            # Not before: what `opened` refused must not be found by the next one that asks.
            _shared[key] = found
    return found


def _forget() -> None:
    """Start anew in a forked child, which has none of the parent's threads: a session, or a lock held, would hang."""
    global _shared, _sharing
    _shared, _sharing = weakref.WeakValueDictionary(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
