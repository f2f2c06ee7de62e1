"""The models that defects are planted in: tiny, of every form of attention and of positions."""

import functools
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from tests.support.graph_edits import Edit
from tfm.export import GraphReport, to_onnx, verify
from tfm.export.generic.open import open_generic
from tfm.export.graphs import Graph
from tfm.export.verify.samples import cases
from tfm.quantize import quantize_int8
from tfm.quantize.methods.fp16 import to_fp16

ENCODER = {"kind": "encoder", "activation": "gelu", "num_encoder_layers": 2, "pooling": "mean", "pooler": True}
QUICK = {"kind": "encoder", "activation": "quick_gelu", "norm_first": True}
DECODER = {"kind": "encoder-decoder", "activation": "silu", "norm_first": True, "num_decoder_layers": 2}
CAUSAL = {"kind": "decoder", "norm_first": True, "num_decoder_layers": 2}
LLAMA = CAUSAL | {"positions": "rotary", "norm": "rms", "activation": "swiglu"}
# Heads of size 8: GroupQueryAttention takes no others.
LLAMA |= {"d_model": 32, "nhead": 4, "num_kv_heads": 2}
ODD = LLAMA | {"d_model": 16}
GPT2 = CAUSAL | {"positions": "learned", "activation": "gelu_tanh", "scale_embeddings": False}
T5 = {"positions": "relative", "norm": "rms", "norm_first": True, "num_encoder_layers": 2, "qkv_bias": False}
ALIBI = CAUSAL | {"positions": "alibi", "num_decoder_layers": 1}
GEMMA = LLAMA | {"sandwich_norm": True, "sliding_window": 3, "sliding_layers": (0,), "logit_softcap": 2.0}

MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "encoder": (ENCODER, "model"),
    "quick": (QUICK, "model"),
    "decoder": (DECODER, "decoder"),
    "llama": (LLAMA, "model"),
    "odd": (ODD, "model"),
    "gpt2": (GPT2, "model"),
    "t5": (T5, "encoder"),
    "alibi": (ALIBI, "model"),
    "gemma": (GEMMA | {"attention_softcap": 5.0}, "model"),
    "long": (LLAMA | {"max_positions": 512}, "model"),
    "by_hand": ({}, "model"),  # of tests.support.generic_models
}


@functools.cache
def _by_hand() -> tuple[Graph, bytes]:
    graph = open_generic(None, "tests.support.generic_models:by_hand")
    return graph, ir.to_proto(to_onnx(graph)).SerializeToString()


def plant(
    export_tiny: Any, where: str, edit: Edit | None, folder: Path, *, precision: str = "fp32", **options: Any
) -> GraphReport:
    """Verify a copy of a correct export that was edited, and then quantized, or turned into float16."""
    if where == "by_hand":
        graph, content = _by_hand()
        model = ir.from_proto(onnx.ModelProto.FromString(content))
    else:
        config, role = MODELS[where]
        graph, path = export_tiny(**config)[role].graph, export_tiny(**config)[role].path
        model = ir.load(path)
    if edit is not None:
        edit(model)
    if precision == "int8":
        quantize_int8(model)
    if precision == "fp16":
        to_fp16(model)
    ir.save(model, folder / "edited.onnx")
    return verify(graph, folder / "edited.onnx", cases(graph), precision=precision, **options)
