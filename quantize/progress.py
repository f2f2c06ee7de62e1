"""What long work tells of itself while it runs."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

Progress = Callable[[int, int, str], None]
"""Told how much of how much is done, and what is being done."""

Stage = Callable[[str], AbstractContextManager[Progress]]
"""Called with the name of each stage; entered while it runs, it gives what is told of every step."""


def silent(_: str) -> AbstractContextManager[Progress]:
    """The stage that nobody is told of."""
    return contextlib.nullcontext(lambda *_: None)
