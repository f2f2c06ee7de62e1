"""fp32 ONNX → int8 ONNX."""

from .int8 import QuantizedWeight, quantize_int8
from .observe import Observed, observe

__all__ = ["Observed", "QuantizedWeight", "observe", "quantize_int8"]
