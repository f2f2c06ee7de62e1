"""fp32 ONNX → int8 ONNX."""

from .calibration import Calibration, read_calibration
from .int8 import QuantizedWeight, quantize_int8
from .observe import Observed, observe

__all__ = ["Calibration", "Observed", "QuantizedWeight", "observe", "quantize_int8", "read_calibration"]
