"""What an activation function costs and buys: each of the registry by itself, and a study that trains with each."""

from .formulas import FORMULAS, Formula
from .rows import ActivationRow, ActivationTable
from .study import STUDIED, Schedule, page_content, run_study, summarize
from .study.statistics import Estimate
from .table import tabulate

__all__ = [
    "FORMULAS",
    "STUDIED",
    "ActivationRow",
    "ActivationTable",
    "Estimate",
    "Formula",
    "Schedule",
    "page_content",
    "run_study",
    "summarize",
    "tabulate",
]
