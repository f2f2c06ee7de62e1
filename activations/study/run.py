"""One run of a study: an activation, a seed, and the folder that keeps what they came to."""

import dataclasses
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from tfm.errors import InputError
from tfm.model import save_checkpoint

from .task import Task
from .training import Recipe, configure, train, units_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What is trained, and where it is kept.

    Attributes:
        activation: A name of `tfm.model.ACTIVATIONS` or `tfm.model.GATED`.
        seed: Of its training.
        recipe: How it is trained.
        folder: Its own: model.pt and what belongs to it, trained.json, model.tfm, deployed.json.
        limit: On how many of the task's questions it is tested; None: all.
    """

    activation: str
    seed: int
    recipe: Recipe
    folder: Path
    limit: int | None = None

    @property
    def checkpoint(self) -> Path:
        """The trained weights."""
        return self.folder / "model.pt"

    @property
    def bundle(self) -> Path:
        """What was exported from them."""
        return self.folder / "model.tfm"

    def read(self, stage: str) -> dict[str, Any] | None:
        """Give the record of a finished stage, "trained" or "deployed"; None: it is not finished.

        Raises:
            InputError: The folder holds another study's run.
        """
        file = self.folder / f"{stage}.json"
        if not file.exists():
            return None
        record: dict[str, Any] = json.loads(file.read_text())
        if record["recipe"] != dataclasses.asdict(self.recipe):
            raise InputError(
                f"{file} is of another study, trained by {record['recipe']}: give another folder with --output, or "
                "delete that one"
            )
        return record

    def write(self, stage: str, record: dict[str, Any]) -> None:
        """Keep the record of a finished stage: whole, or not at all."""
        name = {"activation": self.activation, "seed": self.seed, "recipe": dataclasses.asdict(self.recipe)}
        part = self.folder / f".{stage}.json"
        part.write_text(json.dumps({**name, **record, "versions": versions()}, indent=1) + "\n")
        os.replace(part, self.folder / f"{stage}.json")


def versions() -> dict[str, str]:
    """Name what the figures depend on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "onnxruntime": onnxruntime.__version__}


def train_run(task: Task, run: Run, tell: Callable[[int], None]) -> None:
    """Train, look at the units, and keep the checkpoint and "trained.json"."""
    run.folder.mkdir(parents=True, exist_ok=True)
    model, record = train(task, configure(task.CONFIG, run.activation), run.seed, run.recipe, tell)
    record["units"] = units_of(model, task.held_out())
    task.write_files(run.folder)
    save_checkpoint(model, run.checkpoint)
    run.write("trained", record)


STAGES = {"train": train_run}
