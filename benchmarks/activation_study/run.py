"""One run of a study: an activation, a seed, and the folder that keeps what they came to."""

import dataclasses
import json
import platform
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from tfm.bundle import write_whole
from tfm.errors import InputError

from .schedule import Schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What is trained, and where it is kept.

    Attributes:
        activation: A name of `tfm.ops.ACTIVATIONS` or `tfm.ops.GATED`.
        seed: Of its training.
        schedule: How it is trained.
        folder: Its own: model.pt and what belongs to it, model.tfm, and the records of its stages.
        limit: On how many of the task's questions it is tested; None: all.
    """

    activation: str
    seed: int
    schedule: Schedule
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
        """Give the record of a finished stage, "train" or "deploy"; None: it is not finished.

        Raises:
            InputError: The folder holds another study's run.
        """
        file = self.folder / f"{stage}.json"
        if not file.exists():
            return None
        record: dict[str, Any] = json.loads(file.read_text())
        # Runs of different schedules side by side would compare nothing.
        if record["schedule"] != dataclasses.asdict(self.schedule):
            raise InputError(
                f"{file} is of another study, trained by {record['schedule']}: give another folder with --output, or "
                "delete that one"
            )
        return record

    def write(self, stage: str, record: dict[str, Any]) -> None:
        """Keep the record of a finished stage: whole, or not at all."""
        content = {"schedule": dataclasses.asdict(self.schedule), **record, "versions": versions()}
        write_whole(self.folder / f"{stage}.json", json.dumps(content, indent=1) + "\n")


def versions() -> dict[str, str]:
    """Name what the figures depend on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
