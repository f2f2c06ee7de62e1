"""What long work tells of itself while it runs."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

from tfm.runtime import StepProgress

Stage = Callable[[str], AbstractContextManager[StepProgress]]
"""Called with the name of each stage; entered while it runs, it gives what is told of every step."""


def silent(_: str) -> AbstractContextManager[StepProgress]:
    """The stage that nobody is told of."""
    return contextlib.nullcontext(lambda *_: None)
