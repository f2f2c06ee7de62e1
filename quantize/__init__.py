"""fp32 ONNX → int8 ONNX."""

from .int8 import QuantizedWeight, quantize_int8

__all__ = ["QuantizedWeight", "quantize_int8"]
