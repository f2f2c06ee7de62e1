"""How fast engines are beside each other: interleaved rounds in processes of their own, and what they show."""

from .graphs import Latency, Speed, Work, all_speeds, compare_speed, onnx_job, time_engines, try_engines
from .measure import measure_latency
from .report import LatencyReport, Line, Start, Timing
from .rounds import Job

__all__ = [
    "Job",
    "Latency",
    "LatencyReport",
    "Line",
    "Speed",
    "Start",
    "Timing",
    "Work",
    "all_speeds",
    "compare_speed",
    "measure_latency",
    "onnx_job",
    "time_engines",
    "try_engines",
]
