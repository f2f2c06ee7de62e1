"""torch → ONNX, and the proof that it is the same function."""

from .bundle import PRECISIONS, ExportReport, export_checkpoint
from .graphs import Graph, graphs_of
from .reports import GraphReport
from .to_onnx import OPSET, OPSETS, to_onnx
from .tolerances import Tolerance
from .verify import verify

__all__ = [
    "OPSET",
    "OPSETS",
    "PRECISIONS",
    "ExportReport",
    "Graph",
    "GraphReport",
    "Tolerance",
    "export_checkpoint",
    "graphs_of",
    "to_onnx",
    "verify",
]
