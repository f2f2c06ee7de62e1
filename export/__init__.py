"""torch → ONNX, and the proof that it is the same function."""

from tfm.ops import END_TO_END, Tolerance
from tfm.quantize import OPSET, OPSETS

from .bundle import PRECISIONS, ExportReport, export_checkpoint
from .graphs import Graph, Value, graphs_of
from .latency import eager_engines
from .manifest import COMPANIONS, generation_settings
from .plan import Plan, catalog, plan_export
from .sweeps import OpSweep, SweepReport, activation_curve, sweep
from .sweeps.subjects import OpGraph
from .to_onnx import to_onnx
from .user_code import import_file
from .verify.against_checkpoint import CheckpointReport, compare_with_checkpoint
from .verify.fidelity import eager_greedy
from .verify.optimized import optimize
from .verify.reports import GraphReport, OpReport, OutputReport
from .verify.verify import verify

__all__ = [
    "COMPANIONS",
    "END_TO_END",
    "OPSET",
    "OPSETS",
    "PRECISIONS",
    "CheckpointReport",
    "ExportReport",
    "Graph",
    "GraphReport",
    "OpGraph",
    "OpReport",
    "OpSweep",
    "OutputReport",
    "Plan",
    "SweepReport",
    "Tolerance",
    "Value",
    "activation_curve",
    "catalog",
    "compare_with_checkpoint",
    "eager_engines",
    "eager_greedy",
    "export_checkpoint",
    "generation_settings",
    "graphs_of",
    "import_file",
    "optimize",
    "plan_export",
    "sweep",
    "to_onnx",
    "verify",
]
