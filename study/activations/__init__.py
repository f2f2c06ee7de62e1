"""What an activation function costs and buys: each of the registry by itself, and a study that trains with each."""

from typing import TYPE_CHECKING

from tfm.lazy import lazily

if TYPE_CHECKING:
    from .rows import ActivationRow, ActivationTable
    from .study import STUDIED, Schedule, page_content, run_study, summarize
    from .study.statistics import Estimate
    from .table import tabulate

__all__ = [
    "STUDIED",
    "ActivationRow",
    "ActivationTable",
    "Estimate",
    "Schedule",
    "page_content",
    "run_study",
    "summarize",
    "tabulate",
]

# `worker`, which is timed, must not load torch
__getattr__, __dir__ = lazily(
    __name__,
    {
        "rows": "ActivationRow ActivationTable",
        "study": "STUDIED Schedule page_content run_study summarize",
        "study.statistics": "Estimate",
        "table": "tabulate",
    },
)
