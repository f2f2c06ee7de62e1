"""fp32 ONNX → int8 or int4 ONNX."""

from .blocks import quantize_blocks, quantize_to_blocks
from .bundle import Quantized, quantize
from .calibration import Calibration, read_calibration
from .edit import QuantizedWeight
from .existing import BundleReport, quantize_bundle
from .int8 import quantize_int8
from .observe import Observed, observe
from .recipe import Recipe, read_recipe
from .tune import BUDGETS, tune

__all__ = [
    "BUDGETS",
    "BundleReport",
    "Calibration",
    "Observed",
    "Quantized",
    "QuantizedWeight",
    "Recipe",
    "observe",
    "quantize",
    "quantize_blocks",
    "quantize_bundle",
    "quantize_int8",
    "quantize_to_blocks",
    "read_calibration",
    "read_recipe",
    "tune",
]
