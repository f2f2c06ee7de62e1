"""Does one stage of one run in a process of its own, on one thread; writes how far it is to stdout, a number a line.

    python -m tfm.activations.study.worker STAGE TASK RUN

RUN is JSON: activation, seed, schedule, folder, limit.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from tfm.errors import TfmError
from tfm.runtime.stopping import end_with_parent

from .deployment import deploy_run
from .run import Run
from .schedule import Schedule
from .task import load_task
from .training import train_run

STAGES = {"train": train_run, "deploy": deploy_run}


def main(stage: str, task: str, told: str) -> None:
    """Do it; an error of ours is one line on stderr and exit code 2."""
    end_with_parent()
    torch.set_num_threads(1)
    values: dict[str, Any] = json.loads(told)
    run = Run(**{**values, "schedule": Schedule(**values["schedule"]), "folder": Path(values["folder"])})
    try:
        STAGES[stage](load_task(Path(task)), run, lambda done: print(done, flush=True))
    except TfmError as error:
        sys.exit(f"{run.activation}, seed {run.seed}: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
