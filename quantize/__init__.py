"""fp32 ONNX → int8 or int4 ONNX."""

from .blocks import quantize_blocks, quantize_to_blocks
from .edit import QuantizedWeight
from .int8 import quantize_int8

__all__ = ["QuantizedWeight", "quantize_blocks", "quantize_int8", "quantize_to_blocks"]
