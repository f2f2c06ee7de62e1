"""fp32 ONNX → int8 or int4 ONNX."""

from .blocks import quantize_blocks, quantize_to_blocks
from .calibration import Calibration, read_calibration
from .edit import QuantizedWeight
from .int8 import quantize_int8
from .observe import Observed, observe

__all__ = [
    "Calibration",
    "Observed",
    "QuantizedWeight",
    "observe",
    "quantize_blocks",
    "quantize_int8",
    "quantize_to_blocks",
    "read_calibration",
]
