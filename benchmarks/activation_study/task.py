"""What a study trains: a folder with a `task.py`."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, cast

from torch import Tensor

from tfm.errors import InputError
from tfm.export import import_file
from tfm.model import Transformer, TransformerConfig

Batch = tuple[Tensor, ...]

_NAMES = ("CONFIG", "batches", "loss", "held_out", "evaluate", "write_files")


class Task(Protocol):
    """The names that a task's module has.

    Attributes:
        CONFIG: What is trained; the study replaces its activation, and its width where that one is gated.
    """

    CONFIG: TransformerConfig

    def batches(self, size: int, seed: int) -> Iterator[Batch]:
        """Give batches to train on, without an end: the same ones for the same seed."""

    def loss(self, model: Transformer, batch: Batch) -> Tensor:
        """Compute what training makes less, a scalar."""

    def held_out(self) -> Batch:
        """Give the arguments of the model's `forward` on what it is not trained on, to look at its units."""

    def evaluate(self, answer: Callable[[list[str]], list[str]], limit: int | None = None) -> dict[str, float]:
        """Measure how wrong the answers to test questions are, as fractions, what counts most first."""

    def write_files(self, folder: Path) -> None:
        """Write what a bundle needs beside the weights, such as tokenizer.json."""


def load_task(folder: Path) -> Task:
    """Import a task; what lies beside it can be imported by it.

    Raises:
        InputError: There is no task.py, it cannot be imported, or lacks a name.
    """
    file = folder / "task.py"
    if not file.is_file():
        raise InputError(f"{folder} is no task to study: it has no task.py (examples/g2p is one)")
    module = import_file(file)
    if missing := [name for name in _NAMES if not hasattr(module, name)]:
        raise InputError(f"{file} lacks {', '.join(missing)}; a task has {', '.join(_NAMES)}")
    return cast(Task, module)
