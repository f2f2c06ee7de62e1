"""Does one stage of one run in a process of its own, on one thread; answers how far it is, a number at a time."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from tfm.errors import TfmError
from tfm.latency import Answers

from .deployment import deploy_run
from .run import Run
from .schedule import Schedule
from .task import load_task
from .training import train_run

STAGES = {"train": train_run, "deploy": deploy_run}


def main(answers: str, stage: str, task: str, told: str) -> None:
    """Do it; an error of ours is one line on stderr and exit code 1.

    Args:
        answers: Where to answer, as `tfm.latency.processes` tells it.
        stage: Of `STAGES`.
        task: The task's folder.
        told: The run as JSON: activation, seed, schedule, folder, limit.
    """
    answer = Answers(answers)
    # All is imported: what comes now is as long as the user's task is.
    answer(0)
    # Runs stand side by side, and spinning threads of each would slow all of them down.
    torch.set_num_threads(1)
    values: dict[str, Any] = json.loads(told)
    run = Run(**{**values, "schedule": Schedule(**values["schedule"]), "folder": Path(values["folder"])})
    try:
        STAGES[stage](load_task(Path(task)), run, answer)
    except TfmError as error:
        sys.exit(f"{run.activation}, seed {run.seed}: {error}")
