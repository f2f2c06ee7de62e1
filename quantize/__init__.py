"""fp32 ONNX → int8 or int4 ONNX."""

from tfm.lazy import lazily

from .bundle import Quantized, budget_gate, quantize
from .calibration.domains import one_of_each
from .calibration.hooked import open_hooked
from .calibration.observe import Observed, observe
from .calibration.read import Calibration, read_calibration
from .calibration.samples import SampleReader, split_of
from .existing import BundleReport, quantize_bundle
from .for_web import save_for_web
from .golden import GOLDEN_NMSE, measure_nmse
from .lowest_onnxruntime import lowest_of_graphs
from .merged import sorted_caches, write_merged
from .methods.blocks import BlockOptions, quantize_blocks, quantize_to_blocks
from .methods.dynamic import Dynamic
from .methods.edit import QuantizedWeight, initializer, replace
from .methods.fp16 import emulate_fp16, to_fp16
from .methods.int8 import quantize_int8
from .methods.ops import find_ops
from .methods.rounding import round_symmetric
from .progress import Stage, silent
from .quantize_options import QuantizeKeywords, QuantizeOptions
from .recipe import Recipe, read_recipe
from .search.journal import drop_journal, journal_of
from .search.tune import BUDGETS, tune
from .storage import save_in_one_file, save_onnx, size_of
from .target import OPSET, OPSETS, Target, target_of
from .workloads import bundle_workloads, steps_of

__all__ = [
    "BUDGETS",
    "GOLDEN_NMSE",
    "OPSET",
    "OPSETS",
    "BlockOptions",
    "BundleReport",
    "Calibration",
    "Dynamic",
    "Observed",
    "QuantizeKeywords",
    "QuantizeOptions",
    "Quantized",
    "QuantizedWeight",
    "Recipe",
    "SampleReader",
    "Stage",
    "Target",
    "budget_gate",
    "bundle_workloads",
    "drop_journal",
    "emulate_fp16",
    "find_ops",
    "initializer",
    "journal_of",
    "lowest_of_graphs",
    "measure_nmse",
    "observe",
    "one_of_each",
    "open_hooked",
    "quantize",
    "quantize_blocks",
    "quantize_bundle",
    "quantize_int8",
    "quantize_to_blocks",
    "read_calibration",
    "read_recipe",
    "replace",
    "round_symmetric",
    "save_for_web",
    "save_in_one_file",
    "save_onnx",
    "silent",
    "size_of",
    "sorted_caches",
    "split_of",
    "steps_of",
    "target_of",
    "to_fp16",
    "tune",
    "write_merged",
]

__getattr__, __dir__ = lazily(
    __name__, {}, {"Quantised": "Quantized", "quantise": "quantize", "quantise_bundle": "quantize_bundle"}
)
