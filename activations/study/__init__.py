"""A study: one model trained with each activation, deployed, and compared."""

from .run import Run
from .schedule import Schedule
from .statistics import Estimate, differences, mean_of
from .study import BASELINE, STUDIED, run_study
from .task import Task, load_task

__all__ = [
    "BASELINE",
    "STUDIED",
    "Estimate",
    "Run",
    "Schedule",
    "Task",
    "differences",
    "load_task",
    "mean_of",
    "run_study",
]
