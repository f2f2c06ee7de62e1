"""A study: one model trained with each activation, deployed, and compared."""

from .page import page_content
from .run import Run
from .schedule import Schedule
from .statistics import Estimate, differences, mean_of
from .study import BASELINE, STUDIED, run_study
from .summary import Line, markdown, summarize
from .task import Task, load_task

__all__ = [
    "BASELINE",
    "STUDIED",
    "Estimate",
    "Line",
    "Run",
    "Schedule",
    "Task",
    "differences",
    "load_task",
    "markdown",
    "mean_of",
    "page_content",
    "run_study",
    "summarize",
]
