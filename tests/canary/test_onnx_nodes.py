"""A canary of the installed onnxruntime: the onnx package's own test cases of every op that our graphs hold.

Each case is one node with inputs and outputs, made by a numpy program beside the operator's specification. It is run at
each opset that we export, by the version of the op that holds there, at both ends of onnxruntime's optimization levels.
"""

import ast
import dataclasses
import json
import warnings
from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnx.backend.test.case.node
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper
from onnx.helper import np_dtype_to_tensor_dtype

from tfm.export import OPSET, graphs_of, to_onnx
from tfm.export import OPSETS as ALL_OPSETS
from tfm.export.generic.open import open_generic
from tfm.export.graphs import Graph
from tfm.model import Transformer
from tfm.model.activations import make_activation
from tfm.model.config import Head, Kind, Norm, Pooling, Positions, RotaryScaling, Scaling
from tfm.ops import ACTIVATIONS, GATED
from tfm.quantize import quantize_int8

REPO = Path(__file__).resolve().parents[2]
LEVELS = (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)

EXECUTED = {
    "Abs": (1, 1, 1),
    "Add": (8, 8, 8),
    "And": (8, 8, 8),
    "ArgMax": (16, 16, 16),
    "Attention": (67, 73, 88),
    "Cast": (7, 7, 7),
    "Clip": (12, 12, 12),
    "Concat": (12, 12, 12),
    "Constant": (1, 1, 1),
    "Conv": (6, 6, 6),
    "Cos": (2, 2, 2),
    "CumSum": (9, 9, 9),
    "DequantizeLinear": (5, 5, 5),
    "Div": (10, 10, 10),
    "DynamicQuantizeLinear": (3, 3, 3),
    "Elu": (3, 3, 3),
    "Equal": (8, 8, 8),
    "Erf": (1, 1, 1),
    "Exp": (2, 2, 2),
    "Expand": (2, 2, 2),
    "Gather": (4, 4, 4),
    "GatherElements": (3, 3, 3),
    "Gelu": (4, 4, 4),
    "Gemm": (11, 11, 11),
    "Greater": (8, 8, 8),
    "HardSigmoid": (3, 3, 3),
    "HardSwish": (1, 1, 1),
    "IsInf": (4, 4, 4),
    "IsNaN": (2, 2, 2),
    "LayerNormalization": (19, 19, 19),
    "LeakyRelu": (3, 3, 3),
    "Less": (8, 8, 8),
    "LessOrEqual": (8, 8, 8),
    "Log": (2, 2, 2),
    "MatMul": (7, 7, 7),
    "Max": (12, 12, 12),
    "Min": (12, 12, 12),
    "Mish": (1, 1, 1),
    "Mul": (9, 9, 9),
    "Neg": (2, 2, 2),
    "Not": (3, 3, 3),
    "Or": (8, 8, 8),
    "Pow": (10, 10, 10),
    "QuantizeLinear": (6, 6, 6),
    "RMSNormalization": (19, 19, 19),
    "Range": (2, 2, 2),
    "Reciprocal": (2, 2, 2),
    "ReduceL2": (9, 9, 9),
    "ReduceMax": (10, 10, 10),
    "ReduceMean": (8, 8, 8),
    "ReduceMin": (10, 10, 10),
    "ReduceSum": (12, 12, 12),
    "Relu": (1, 1, 1),
    "Reshape": (10, 10, 10),
    "RotaryEmbedding": (8, 8, 8),
    "Shape": (11, 11, 11),
    "Sigmoid": (2, 2, 2),
    "Sin": (2, 2, 2),
    "Slice": (8, 8, 8),
    "Softmax": (7, 7, 7),
    "Softplus": (2, 2, 2),
    "Split": (13, 13, 13),
    "Sqrt": (2, 2, 2),
    "Squeeze": (2, 2, 2),
    "Sub": (9, 9, 9),
    "Swish": (0, 1, 0),
    "Tanh": (2, 2, 2),
    "Transpose": (7, 7, 7),
    "Trilu": (18, 18, 18),
    "Unsqueeze": (7, 7, 7),
    "Where": (2, 2, 2),
}
"""Op → how many cases are run and agree at opsets 23, 24 and 25, as counted with onnx 1.23.2: never fewer."""

NO_CASES = {
    "com.microsoft": {
        "DynamicQuantizeMatMul": "tests/quantize compares it with its definition in numpy",
        "GroupQueryAttention": "tests/export/sweeps compares it with float64, by masks, lengths, room, heads and sizes",
        "QuickGelu": "tests/export compares it with eager",
    }
}
"""Ops of onnxruntime's own, which the onnx package knows nothing of."""


OPSETS = range(OPSET, ALL_OPSETS.stop)
"""Those that the exporter writes itself: what is for older ones is lowered from the first of them."""


@dataclasses.dataclass(frozen=True)
class Skip:
    """Cases that do not run, or do not agree, as long as that is what is said of each."""

    cases: str
    says: str
    reason: str
    opsets: tuple[int, ...] = tuple(OPSETS)


SKIPPED = [
    # What the opset does not have yet, or no longer
    Skip("test_attention_local_window_ext_cache_*", "input size 7", "nonpad_kv_seqlen comes with Attention-24", (23,)),
    Skip("test_attention_local_window_ext_cache_*", "left_window_size", "windows come with Attention-25", (24,)),
    Skip("test_attention_local_window", "left_window_size", "windows come with Attention-25", (23, 24)),
    Skip("test_attention_local_window_[!e]*", "left_window_size", "windows come with Attention-25", (23, 24)),
    Skip("test_attention_3d_local_window", "left_window_size", "windows come with Attention-25", (23, 24)),
    Skip("test_attention_bidirectional_window", "left_window_size", "windows come with Attention-25", (23, 24)),
    Skip("test_attention_4d_*nonpad_*", "input size 7", "nonpad_kv_seqlen comes with Attention-24", (23,)),
    Skip("test_attention_4d_*padded_kv*", "input size 7", "nonpad_kv_seqlen comes with Attention-24", (23,)),
    Skip("test_range_*float16_*", "has unsupported type", "these types come with Range-27"),
    Skip(
        "test_split_equal_parts_*_opset13",
        "Neither 'split' input nor 'num_outputs'",
        "Split-18 has to be told how many parts",
    ),
    Skip("test_swish", "No Op registered for Swish", "Swish comes with opset 24", (23,)),
    # What no CPU kernel takes
    Skip("test_attention_[34]d_*causal_bf16", "Could not find an implementation for", "no kernel takes bfloat16"),
    Skip(
        "test_attention_4d_*padded_kv_bf16",
        "Could not find an implementation for",
        "no kernel takes bfloat16",
        (24, 25),
    ),
    Skip("test_cast_FLOAT_to_BFLOAT16", "No corresponding Numpy type", "runs, but Python cannot read the result"),
    Skip("test_max_*int16", "Could not find an implementation for Max(13)", "no kernel for integers of 16 bits"),
    Skip("test_min_*int16", "Could not find an implementation for Min(13)", "no kernel for integers of 16 bits"),
    Skip("test_pow_types_float32_uint*", "Could not find an implementation for Pow(15)", "exponents are signed"),
    Skip(
        "test_reduce_max_empty_set_bool",
        "not defined for empty set with bool type",
        "it should be the least bool: False",
    ),
    Skip(
        "test_swish",
        "Could not find an implementation for Swish(24)",
        "no kernel; silu is exported as QuickGelu",
        (25,),
    ),
    # Where onnxruntime disagrees with the specification
    Skip(
        "test_attention_4d_with_past_and_present_qk_matmul_bias_[34]d_mask_causal",
        "inf location mismatch",
        "the scores, a fourth output that we never ask for, are finfo.min where they should be -inf; the others agree",
        (23, 24),
    ),
    Skip(
        "test_attention_4d_diff_heads_mask4d_padded_kv",
        "inconsistent total_sequence_length (between attn_mask",
        "a mask may be shorter than the keys, the rest being -inf, but the kernel wants it in full; ours are",
        (24,),
    ),
    Skip(
        "test_attention_4d_causal_fp16",
        "Mismatched elements: 1 / 192",
        "one entry is off by two steps of float16, of which the case's rtol of 1e-3 allows one",
        (23, 24),
    ),
]

SPLIT = {
    23: {"Constant", "HardSwish", "Mish"},
    24: {"Constant", "HardSwish", "Mish", "Swish"},
    25: {"Attention", "Constant", "HardSwish", "Mish"},
}
"""Opset → ops that run as no kernel of their own, but as the nodes of their definition (Constant as none at all)."""

# ------------------------------------------------ the cases


HELD = {
    TensorProto.BOOL,
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
    *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
    *(TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE),
}
"""Types of the cases that are run. Not: text, sequences, optionals, and numbers of 8 or fewer bits that numpy has no
type for, of which onnxruntime's Python interface takes and gives packed bytes; no graph of ours holds any."""


def is_held(value: onnx.ValueInfoProto) -> bool:
    return value.type.HasField("tensor_type") and value.type.tensor_type.elem_type in HELD


@cache
def cases() -> dict[str, Any]:
    """The cases of the ops of `EXECUTED`, by name. Function bodies ("…_expanded") are of other ops, and left out."""
    state = np.random.get_state()  # which the makers of the cases seed
    with warnings.catch_warnings():
        # casts that overflow and 1 / 0 are what some of the cases are about
        warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"onnx\.backend\.test\.case\.node\.")
        made = onnx.backend.test.case.node.collect_testcases(None)
    np.random.set_state(state)
    found = {}
    for case in made:
        graph = case.model.graph
        single = len(graph.node) == 1 and graph.node[0].domain == "" and "_expanded" not in case.name
        if single and graph.node[0].op_type in EXECUTED and all(map(is_held, [*graph.input, *graph.output])):
            found[case.name] = case
    return found


def array_of(value: Any) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def ort_value(value: Any) -> ort.OrtValue:
    array = array_of(value)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, np_dtype_to_tensor_dtype(array.dtype))


def at_opset(case: Any, opset: int) -> onnx.ModelProto:
    """The case's node as it is at another opset than the case was written for."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    model.opset_import[0].version, model.ir_version = opset, IR_VERSION
    return model


IR_VERSION = 10
"""Of the files that we export."""


def open_case(model: onnx.ModelProto, level: ort.GraphOptimizationLevel, profile: Path | None = None) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def feeds(case: Any, session: Any) -> dict[str, ort.OrtValue]:
    ((inputs, _),) = case.data_sets
    return {node.name: ort_value(value) for node, value in zip(session.get_inputs(), inputs, strict=True)}


def fault(case: Any, opset: int, level: ort.GraphOptimizationLevel) -> str:
    """What is wrong with a case, in the words of whoever says so; "" where it runs and agrees."""
    ((_, expected),) = case.data_sets
    model = at_opset(case, opset)
    try:  # whatever is raised is a fault
        onnx.checker.check_model(model, full_check=True)
        session = open_case(model, level)
        found = [value.numpy() for value in session.run_with_ort_values(None, feeds(case, session))]
        assert len(found) == len(expected) > 0
        for actual, value in zip(found, map(array_of, expected), strict=True):
            agree(actual, value, case.rtol, case.atol)
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    return ""


def agree(actual: np.ndarray, expected: np.ndarray, rtol: float, atol: float) -> None:
    """As the backend tests of onnx compare: NaN and infinity only at the same places."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    if expected.dtype.kind in "biu":
        np.testing.assert_array_equal(actual, expected)
    else:
        np.testing.assert_allclose(actual.astype(np.float64), expected.astype(np.float64), rtol=rtol, atol=atol)


@cache
def faults(name: str, opset: int) -> tuple[str, ...]:
    return tuple(fault(cases()[name], opset, level) for level in LEVELS)


def skips(name: str, opset: int) -> list[Skip]:
    return [skip for skip in SKIPPED if fnmatchcase(name, skip.cases) and opset in skip.opsets]


def names_of(op: str) -> list[str]:
    return [name for name, case in cases().items() if case.model.graph.node[0].op_type == op]


# ------------------------------------------------ they run, and agree


@pytest.mark.parametrize("op", EXECUTED)
def test_the_cases_of_an_op(op: str) -> None:
    executed = dict.fromkeys(OPSETS, 0)
    for name in names_of(op):
        for opset in OPSETS:
            found, listed = faults(name, opset), skips(name, opset)
            if not listed:
                assert not any(found), f"{name} at opset {opset} fails, and is not in SKIPPED: {max(found)}"
                executed[opset] += 1
                continue
            assert len(listed) == 1, f"{name} at opset {opset} is skipped twice"
            assert "" not in found, f"{name} at opset {opset} passes: take it off SKIPPED"
            for text in found:
                assert listed[0].says in text, f"{name} at opset {opset} fails in another way than SKIPPED says: {text}"
    for opset, least in zip(OPSETS, EXECUTED[op], strict=True):
        assert executed[opset] >= least, f"only {executed[opset]} cases of {op} at opset {opset}, where {least} were"


def test_nothing_is_skipped_that_is_not_there() -> None:
    for skip in SKIPPED:
        assert [name for name in cases() if fnmatchcase(name, skip.cases)], f"no case is called {skip.cases}"


@pytest.mark.parametrize("opset", OPSETS)
def test_which_ops_have_no_kernel_of_their_own(opset: int, tmp_path: Path) -> None:
    """Where an op is run node by node, as its definition, it is correct but slow."""
    split = set()
    for op in EXECUTED:
        name = next((name for name in names_of(op) if not skips(name, opset)), None)
        if name is not None and kernels(name, opset, tmp_path / op) != [op]:
            split.add(op)
    assert split == SPLIT[opset]


def kernels(name: str, opset: int, profile: Path) -> list[str]:
    """Op of every kernel that ran, as onnxruntime's profile says."""
    session = open_case(at_opset(cases()[name], opset), LEVELS[0], profile)
    session.run_with_ort_values(None, feeds(cases()[name], session))
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return [e["args"]["op_name"] for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]


# ------------------------------------------------ no op of ours goes unwatched


SIZES = {"d_model": 32, "nhead": 4, "dim_feedforward": 48, "vocab_size": 37}  # large enough to be quantized


def scaled(kind: Scaling, pairs: int = 4) -> RotaryScaling:
    long = {"short_factors": (1.0,) * pairs, "long_factors": (2.0,) * pairs} if kind == "longrope" else {}
    return RotaryScaling(kind=kind, factor=2.0, original_max_positions=8, **long)


MODELS: list[dict[str, Any]] = [
    {"kind": "encoder", "positions": "learned", "pooling": "cls", "embedding_norm": True, "activation": "glu"},
    {"kind": "encoder", "positions": "rotary", "rotary_scaling": scaled("linear"), "activation": "reglu"},
    {
        "kind": "encoder",
        "positions": "rotary",
        "rotary_scaling": scaled("llama3"),
        "head": "token",
        "labels": ("a", "b"),
    },
    {"kind": "encoder", "positions": "relative", "norm": "rms", "norm_first": True, "head": "masked-lm"},
    {"kind": "encoder", "positions": "learned", "head": "question-answering"},
    {"kind": "encoder", "positions": "alibi", "head": "sequence", "labels": ("a", "b"), "activation": "geglu"},
    {"kind": "encoder", "positions": "none", "pooling": "mean", "embedding_size": 24, "activation": "geglu_tanh"},
    *({"kind": "encoder", "pooling": pooling} for pooling in ("max", "mean_sqrt_len", "weightedmean", "lasttoken")),
    {"kind": "encoder", "positions": "learned", "image_size": 8, "patch_size": 4},
    {"kind": "decoder", "positions": "sinusoidal", "tie_embeddings": True, "attention_softcap": 20.0},
    {"kind": "decoder", "positions": "learned", "sliding_window": 3, "logit_softcap": 5.0, "logit_scale": 0.5},
    {"kind": "decoder", "positions": "rotary", "rotary_scaling": scaled("dynamic"), "num_kv_heads": 2},
    {"kind": "decoder", "positions": "relative", "norm_first": True, "sandwich_norm": True},
    {"kind": "decoder", "positions": "alibi", "norm_first": True, "parallel_blocks": True, "norm_bias": False},
    {"kind": "decoder", "positions": "none", "norm": "rms", "qk_norm": True, "activation": "swiglu"},
    {"kind": "decoder", "positions": "rotary", "rotary_scaling": scaled("longrope"), "norm_first": True}
    | {
        "sliding_window": 3,
        "sliding_layers": (0, 2),
        "local_rotary_base": 100.0,
        "rotary_layers": (0, 1),
        "num_decoder_layers": 3,
    }
    | {"parallel_blocks": True, "parallel_norms": True, "residual_scale": 0.5},
    {"kind": "decoder", "positions": "none", "norm": "rms", "qk_norm": True, "qk_norm_span": "all"}
    | {"norm_first": True, "sandwich_norm": True, "input_norm": False, "embedding_scale": 3.0},
    {"kind": "encoder", "positions": "rotary", "sliding_window": 3, "norm_first": True, "first_norm": False}
    | {"head": "sequence", "labels": ("a", "b"), "head_activation": "gelu", "head_norm": True, "head_pooling": "mean"},
    {"kind": "encoder", "positions": "relative", "position_table": True, "shared_layers": True},
    {"kind": "encoder", "positions": "rotary", "causal": True, "pooling": "lasttoken", "norm_first": True},
    {
        "kind": "encoder-decoder",
        "tgt_vocab_size": 7,
        "positions": "rotary",
        "rotary_scaling": scaled("yarn"),
        "rotary_dim": 4,
        "qkv_bias": False,
        "out_bias": False,
        "feed_forward_bias": False,
    },
]
FACTORIES = ("by_hand", "unbatched")
"""Of tests/support/generic_models.py: modules of a user's own."""


def name_of(options: dict[str, Any]) -> str:
    return "-".join(str(getattr(value, "kind", value)) for value in options.values())


def emitted(graph: Graph) -> set[tuple[str, str]]:
    """Domain and type of every op of the graph, in fp32 and in int8."""
    model = to_onnx(graph)
    assert model.ir_version == IR_VERSION
    nodes = [*ir.traversal.RecursiveGraphIterator(model.graph)]
    quantize_int8(model)
    nodes += ir.traversal.RecursiveGraphIterator(model.graph)
    assert "DynamicQuantizeMatMul" in {node.op_type for node in nodes}
    return {(node.domain, node.op_type) for node in nodes}


def unwatched(ops: set[tuple[str, str]]) -> set[tuple[str, str]]:
    return {(domain, op) for domain, op in ops if op not in (EXECUTED if domain == "" else NO_CASES.get(domain, {}))}


@pytest.mark.parametrize("options", MODELS, ids=name_of)
def test_every_op_that_we_export_is_watched(make_model: Callable[..., Transformer], options: dict[str, Any]) -> None:
    model = make_model(**(SIZES | options))
    for graph in graphs_of(model):
        ops = emitted(graph)
        # Over a cache, heads of 8 have the form that writes into it.
        cached = any(value.name.startswith("past_key_values.") for value in graph.inputs)
        assert ("com.microsoft", "GroupQueryAttention") in ops if cached else ("", "Attention") in ops
        assert ("", "Attention") in ops or graph.role == "model"
        assert unwatched(ops) == set()


def test_heads_of_no_multiple_of_8_are_watched(make_model: Callable[..., Transformer]) -> None:
    (graph,) = graphs_of(make_model(**(SIZES | {"d_model": 40}), kind="decoder"))
    ops = emitted(graph)
    assert ("", "Attention") in ops
    assert ("com.microsoft", "GroupQueryAttention") not in ops
    assert unwatched(ops) == set()


def test_every_op_of_every_activation_is_watched(make_model: Callable[..., Transformer]) -> None:
    model = make_model(
        **(SIZES | {"type_vocab_size": 2}),
        kind="encoder",
        num_encoder_layers=len(ACTIVATIONS),
        pooling="cls",
        normalize=True,
        pooler=True,
    )
    for layer, name in zip(model.encoder.layers, ACTIVATIONS, strict=True):
        layer.feed_forward.activation = make_activation(name)
    (graph,) = graphs_of(model)
    ops = emitted(graph)
    assert {("", "Elu"), ("", "Gelu"), ("", "Tanh"), ("com.microsoft", "QuickGelu")} <= ops
    assert unwatched(ops) == set()


@pytest.mark.parametrize("factory", FACTORIES)
def test_every_op_of_a_module_is_watched(factory: str) -> None:
    model = to_onnx(open_generic(None, f"tests.support.generic_models:{factory}"))
    assert unwatched({(node.domain, node.op_type) for node in model.graph}) == set()


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("kind", get_args(Kind)),
        ("positions", get_args(Positions)),
        ("norm", get_args(Norm)),
        ("pooling", get_args(Pooling)),
        ("head", get_args(Head)),
        ("rotary_scaling", get_args(Scaling)),
        ("activation", tuple(GATED)),
    ],
)
def test_every_form_of_model_is_exported_above(
    make_model: Callable[..., Transformer], option: str, values: tuple[str, ...]
) -> None:
    configs = [make_model(**(SIZES | options)).config for options in MODELS]
    used = {getattr(config, option) for config in configs}
    assert set(values) <= {getattr(value, "kind", value) for value in used}


def test_every_op_that_our_source_names_is_watched() -> None:
    """In strings, and as `op.Name` of onnxscript: passes and the quantizer make nodes that few models need."""
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    named = set()
    files = {*(REPO / "export").rglob("*.py"), *(REPO / "quantize").rglob("*.py")}
    # They name ops of any graph: to leave them in float32, and to refuse what means something else at another opset.
    # The first makes Casts alone, the second nothing.
    of_any_graph = {REPO / "quantize" / "methods" / "fp16.py", REPO / "export" / "passes" / "set_opset.py"}
    assert of_any_graph <= files
    for file in sorted(files - of_any_graph):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named.add(node.value)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "op":
                named.add(node.attr)
    assert {"Attention", "RotaryEmbedding", "RMSNormalization"} <= named & known
    only_recognized = {"MatMulInteger", "QLinearMatMul"}  # in graphs of others, which are refused as quantized already
    for_measuring = {"Identity", "If"}  # in graphs that are made to be looked at, and thrown away
    assert named & known - set(EXECUTED) == only_recognized | for_measuring
