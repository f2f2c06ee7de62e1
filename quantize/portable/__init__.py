"""Quantized ops in ONNX's own operators, in place of onnxruntime's: passes on an op's subgraph, one a file."""

from .lower_blocks import LowerBlocks
from .lower_integer_products import LowerIntegerProducts
from .own_weights import OwnWeights

__all__ = ["LowerBlocks", "LowerIntegerProducts", "OwnWeights"]
