"""How fast engines are beside each other: interleaved rounds in processes of their own, and what they show."""

from typing import TYPE_CHECKING

from tfm.lazy import lazily

from .graphs import (
    Latency,
    Speed,
    Workload,
    all_speeds,
    compare_speed,
    onnx_job,
    save_arrays,
    time_engines,
    try_engines,
)
from .latency_options import LatencyOptions
from .measure import measure_latency
from .onnx_engine import read_arrays
from .processes import Answers, Child
from .ratios import FASTER, LEAST_ROUNDS, NOISE_LIMIT, Ratio, bootstrap_median, noise_of, ratio_of
from .report import LatencyReport, Line, Start, Timing
from .rounds import ROUNDS, Job, take_turns
from .shelf import shelf, writing
from .text import english_sentences, english_words
from .workloads import CORPUS, random_inputs

if TYPE_CHECKING:
    from .latency_page import write_latency

__all__ = [
    "CORPUS",
    "FASTER",
    "LEAST_ROUNDS",
    "NOISE_LIMIT",
    "ROUNDS",
    "Answers",
    "Child",
    "Job",
    "Latency",
    "LatencyOptions",
    "LatencyReport",
    "Line",
    "Ratio",
    "Speed",
    "Start",
    "Timing",
    "Workload",
    "all_speeds",
    "bootstrap_median",
    "compare_speed",
    "english_sentences",
    "english_words",
    "measure_latency",
    "noise_of",
    "onnx_job",
    "random_inputs",
    "ratio_of",
    "read_arrays",
    "save_arrays",
    "shelf",
    "take_turns",
    "time_engines",
    "try_engines",
    "write_latency",
    "writing",
]

# A page needs jinja2, which measuring and the runtime's install do without.
__getattr__, __dir__ = lazily(__name__, {"latency_page": "write_latency"}, {"Work": "Workload"})
