"""Graphs for older onnxruntimes and of standard operators: the same function, in forms that these have."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from tfm.bundle import read_manifest
from tfm.errors import ConfigError, ExportError, QuantizeError
from tfm.export import export_checkpoint, graphs_of, to_onnx, verify
from tfm.export.graphs import DecoderGraph
from tfm.export.passes import LowerAttention, LowerGelu, LowerRMSNormalization, LowerRotaryEmbedding, SetOpset
from tfm.export.verify.samples import cases
from tfm.model import Transformer, save_checkpoint
from tfm.ops import ATTENTION
from tfm.quantize import Target, quantize_bundle, target_of
from tfm.runtime import Decoder, load

MakeModel = Callable[..., Transformer]


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency has its own tests, and takes longer than all the rest."""
    monkeypatch.setattr("tfm.export.bundle.measure_latency", lambda *_: [])


KINDS: dict[str, dict[str, Any]] = {
    "encoder": {"kind": "encoder", "activation": "gelu", "num_encoder_layers": 2, "pooling": "mean"},
    "learned": {"kind": "decoder", "activation": "gelu_tanh", "positions": "learned", "num_decoder_layers": 2},
    "llama": {
        "kind": "decoder",
        "activation": "swiglu",
        "norm_first": True,
        "positions": "rotary",
        "norm": "rms",
        "num_kv_heads": 1,
        "num_decoder_layers": 2,
    },
    "encoder-decoder": {"kind": "encoder-decoder", "tgt_vocab_size": 7},
}
TARGETS = {
    "1.17": target_of("1.17"),
    "1.22": target_of("1.22"),
    "portable": target_of(portable=True),
    "portable, opset 18": target_of(portable=True, opset=18),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TARGETS)
def test_every_form_is_the_same_function(make_model: MakeModel, name: str, kind: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    for graph in graphs_of(make_model(**KINDS[kind])):
        if isinstance(graph, DecoderGraph) and not target.has_room:
            graph = graph.without_room()
        model, path = to_onnx(graph, target=target), tmp_path / f"{graph.role}.onnx"
        ir.save(model, path)
        assert target.refusal(model) is None
        assert (model.opset_imports[""], model.ir_version) == (target.opset, target.ir_version)
        onnx.checker.check_model(str(path), full_check=True)
        if target.portable:
            assert {node.domain for node in model.graph.all_nodes()} == {""}
        report = verify(graph, path, cases(graph))
        assert report.passed, report.first_fault
        forms = {op.form for op in report.ops if op.op.kind == ATTENTION}
        assert forms <= {"MatMul·Softmax·MatMul", "GroupQueryAttention"}


def test_what_is_wrong_in_a_form_is_named(make_model: MakeModel, tmp_path: Path) -> None:
    """An attention that was written out is judged by itself, as one node is."""
    (graph,) = graphs_of(make_model(**KINDS["encoder"]))
    model = to_onnx(graph, target=TARGETS["1.17"])
    scale = next(node for node in model.graph if node.op_type == "Mul" and "self_attn" in str(node.metadata_props))
    scale.replace_input_with(1, _constant(model.graph, "wrong", np.array(0.3, np.float32)))
    ir.save(model, tmp_path / "model.onnx")
    report = verify(graph, tmp_path / "model.onnx", cases(graph))
    assert not report.passed
    assert "encoder.layers.0.self_attn" in str(report.first_fault)


def _constant(graph: ir.Graph, name: str, array: Any) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


# ------------------------------------------------ attention beside a formula


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """An attention: N heads, K of keys, S queries, T keys, P past, and its options."""

    heads: int = 4
    kv_heads: int = 4
    queries: int = 3
    keys: int = 3
    past: int = 0
    mask: str = ""
    causal: int = 0
    softcap: float = 0.0
    merged: bool = True


CASES = {
    "plain": Case(),
    "by heads": Case(merged=False),
    "cross": Case(queries=2, keys=5),
    "groups": Case(kv_heads=2, mask="bool"),
    "groups, by heads": Case(kv_heads=2, mask="bool", merged=False),
    "a mask for each head of groups": Case(kv_heads=2, mask="heads"),
    "a mask of numbers": Case(mask="float"),
    "rows that see nothing": Case(mask="blind"),
    "rows that see nothing, in numbers": Case(mask="blind float"),
    "causal": Case(causal=1),
    "causal, with a mask": Case(causal=1, mask="bool"),
    "past": Case(past=4, causal=1),
    "past, groups and a mask": Case(past=4, causal=1, kv_heads=2, mask="bool"),
    "past, by heads": Case(past=4, causal=1, mask="blind", merged=False),
    "an empty past": Case(past=-1, causal=1, mask="bool"),
    "softcap": Case(softcap=2.0, mask="bool"),
}
B, H = 2, 8


@pytest.mark.parametrize("name", CASES)
def test_attention_written_out(name: str) -> None:
    case = CASES[name]
    feeds = inputs_of(case)
    model = attention(case, feeds)
    LowerAttention()(model)
    SetOpset(18, 8)(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    found = ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feeds)
    for mine, theirs in zip(found, expected(case, feeds), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-6)


def inputs_of(case: Case) -> dict[str, Any]:
    random = np.random.default_rng(0)
    past = max(case.past, 0)

    def draw(heads: int, length: int) -> Any:
        shape = (B, length, heads * H) if case.merged else (B, heads, length, H)
        return random.standard_normal(shape).astype(np.float32)

    feeds = {"q": draw(case.heads, case.queries)}
    feeds |= {name: draw(case.kv_heads, case.keys) for name in "kv"}
    if case.past:
        for name in ("past_k", "past_v"):
            feeds[name] = random.standard_normal((B, case.kv_heads, past, H)).astype(np.float32)
    if case.mask:
        feeds["mask"] = mask_of(case, random, case.keys + past)
    return feeds


def mask_of(case: Case, random: Any, total: int) -> Any:
    heads = case.heads if case.mask == "heads" else 1
    seen = random.random((B, heads, case.queries, total)) < 0.6
    seen[..., 0] = True
    if case.mask.startswith("blind"):
        seen[1, :, 1] = False
    if case.mask == "blind float":
        return np.where(seen, 0.0, -np.inf).astype(np.float32)
    return random.standard_normal(seen.shape).astype(np.float32) if case.mask == "float" else seen


def attention(case: Case, feeds: dict[str, Any]) -> ir.Model:
    names = ["q", "k", "v", "mask", "past_k", "past_v"]
    inputs = [name if name in feeds else "" for name in names]
    while not inputs[-1]:
        inputs.pop()
    attributes = {"is_causal": case.causal, "softcap": case.softcap, "scale": 0.2}
    if case.merged:
        attributes |= {"q_num_heads": case.heads, "kv_num_heads": case.kv_heads}
    outputs = ["y", "present_k", "present_v"] if case.past else ["y"]
    node = onnx.helper.make_node("Attention", inputs, outputs, name="attention", **attributes)
    graph = onnx.helper.make_graph(
        [node],
        "attention",
        [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), _symbols(name, x))
            for name, x in feeds.items()
        ],
        [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list("abcd")[: 3 if case.merged else 4])
            if name == "y"
            else onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["a", "b", "c", "d"])
            for name in outputs
        ],
    )
    opsets = [onnx.helper.make_opsetid("", 23)]
    model: ir.Model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10))
    return model


def _symbols(name: str, array: Any) -> list[Any]:
    """Lengths have names, as in what is exported: those of keys another than those of queries."""
    if array.ndim == 3:
        return ["batch", f"length_{name}", array.shape[2]]
    return ["batch", array.shape[1], f"length_{name}", f"total_{name}" if name == "mask" else array.shape[3]]


def expected(case: Case, feeds: dict[str, Any]) -> list[Any]:
    """The formula, in float64, one query of one head after the other."""
    q, k, v = (_by_heads(feeds[name].astype(np.float64), case) for name in "qkv")
    if case.past:
        k, v = (np.concatenate([feeds[f"past_{name}"], x], 2) for name, x in (("k", k), ("v", v)))
    presents = [k, v] if case.past else []
    group, past = case.heads // case.kv_heads, max(case.past, 0)
    y = np.zeros((B, case.heads, case.queries, H))
    for b, n, s in np.ndindex(y.shape[:3]):
        scores = k[b, n // group] @ q[b, n, s] * 0.2
        scores = case.softcap * np.tanh(scores / case.softcap) if case.softcap else scores
        seen = np.ones(len(scores), bool)
        if case.causal:
            seen &= np.arange(len(scores)) <= s + past
        if case.mask:
            mask = feeds["mask"][b, n if case.mask == "heads" else 0, s]
            seen &= mask if mask.dtype == bool else mask > -np.inf
            scores = scores if mask.dtype == bool else scores + mask
        if seen.any():
            weights = np.where(seen, np.exp(scores - scores[seen].max()), 0.0)
            y[b, n, s] = weights / weights.sum() @ v[b, n // group]
    return [y.transpose(0, 2, 1, 3).reshape(B, case.queries, -1) if case.merged else y, *presents]


def _by_heads(x: Any, case: Case) -> Any:
    return x.reshape(B, x.shape[1], -1, H).transpose(0, 2, 1, 3) if case.merged else x


def test_attention_of_unknown_heads_is_refused() -> None:
    model = attention(CASES["by heads"], inputs_of(CASES["by heads"]))
    for value in model.graph.inputs:
        value.shape = ir.Shape(["b", "n", "s", "h"])
    with pytest.raises(ExportError, match=r"numbers of heads are not known.*1\.23 and later have Attention"):
        LowerAttention().call(model)


# ------------------------------------------------ other ops beside the op itself


def one(op_type: str, feeds: dict[str, Any], **attributes: Any) -> ir.Model:
    node = onnx.helper.make_node(op_type, list(feeds), ["y"], name="op", **attributes)
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in feeds.items()
    ]
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, next(iter(feeds.values())).shape)
    graph = onnx.helper.make_graph([node], "op", inputs, [y])
    opsets = [onnx.helper.make_opsetid("", 23)]
    model: ir.Model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10))
    return model


def run(model: ir.Model, feeds: dict[str, Any]) -> Any:
    return ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feeds)[0]


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("part", [0, 4])
@pytest.mark.parametrize("table", [False, True])
def test_rotary_positions_written_out(merged: bool, interleaved: int, part: int, table: bool) -> None:
    random = np.random.default_rng(0)
    heads, length = 3, 5
    shape = (B, length, heads * H) if merged else (B, heads, length, H)
    angles = (
        random.standard_normal((9, (part or H) // 2))
        if table
        else random.standard_normal((B, length, (part or H) // 2))
    )
    feeds = {"x": random.standard_normal(shape), "cos": np.cos(angles), "sin": np.sin(angles)}
    feeds = {name: x.astype(np.float32) for name, x in feeds.items()}
    if table:
        feeds["places"] = random.integers(0, 9, (B, length))
    attributes = {"interleaved": interleaved, "rotary_embedding_dim": part}
    model = one("RotaryEmbedding", feeds, **attributes, **({"num_heads": heads} if merged or part else {}))
    theirs = run(model, feeds)
    LowerRotaryEmbedding()(model)
    SetOpset(18, 8)(model)
    np.testing.assert_allclose(run(model, feeds), theirs, atol=1e-6)


@pytest.mark.parametrize("axis", [-1, -2, 1])
def test_rms_normalization_written_out(axis: int, tmp_path: Path) -> None:
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32)}
    feeds["w"] = np.linspace(0.5, 2, 8, dtype=np.float32) if axis == -1 else np.ones((3, 8), np.float32)
    model = one("RMSNormalization", feeds, axis=axis, epsilon=0.1)
    x = feeds["x"].astype(np.float64)
    over = -1 if axis == -1 else (-2, -1)
    expected = x / np.sqrt((x**2).mean(over, keepdims=True) + 0.1) * feeds["w"]
    LowerRMSNormalization()(model)
    SetOpset(18, 8)(model)
    np.testing.assert_allclose(run(model, feeds), expected, atol=1e-6)
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    fused = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert (fused == ["SimplifiedLayerNormalization"]) == (axis == -1)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("portable", [False, True])
def test_gelu_in_older_forms(approximate: str, portable: bool) -> None:
    feeds = {"x": np.linspace(-8, 8, 4001, dtype=np.float32)}
    model = one("Gelu", feeds, approximate=approximate)
    theirs = run(model, feeds)
    LowerGelu(portable=portable)(model)
    SetOpset(18, 8)(model)
    np.testing.assert_allclose(run(model, feeds), theirs, atol=1e-6)


# ------------------------------------------------ what cannot be


def test_what_has_no_older_form_is_refused_by_name() -> None:
    feeds = {"x": np.zeros((2, 4), np.float32), "s": np.ones(4, np.float32), "b": np.ones(4, np.float32)}
    model = one("GroupNormalization", feeds, num_groups=2)
    with pytest.raises(ExportError, match=r"GroupNormalization \(op\) has no form in opset 20: ask for --opset 21"):
        SetOpset(20, 9).call(model)
    model = one("Swish", {"x": feeds["x"]})
    model.graph.opset_imports[""] = 24
    with pytest.raises(ExportError, match=r"Swish \(op\) has no form in opset 23: ask for --opset 24"):
        SetOpset(23, 10).call(model)


def test_an_attribute_that_says_nothing_new_goes() -> None:
    model = one("Cast", {"x": np.zeros(3, np.float32)}, to=onnx.TensorProto.FLOAT, saturate=1)
    SetOpset(18, 8)(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    model = one("Cast", {"x": np.zeros(3, np.float32)}, to=onnx.TensorProto.FLOAT, saturate=0)
    with pytest.raises(ExportError, match=r"Cast .* has no form in opset 18"):
        SetOpset(18, 8).call(model)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runtime": "1.16"}, r"no onnxruntime '1\.16' is known; choose one of 1\.17 to 1\.32"),
        ({"runtime": "newest"}, "no onnxruntime 'newest' is known"),
        ({"runtime": "1.17", "opset": 21}, r"onnxruntime 1\.17\.0 opens opsets up to 20, not 21"),
        ({"opset": 17}, "opset 17 is not supported; choose one of 18 to 25"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_read(
    options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        export_checkpoint(tmp_path / "none.pt", tmp_path / "out.tfm", **options)


@pytest.mark.parametrize(
    ("target", "opset", "ir_version", "room"),
    [
        (target_of("1.17"), 20, 9, False),
        (target_of("1.18"), 21, 10, False),
        (target_of("1.21"), 22, 10, False),
        (target_of("1.22"), 22, 10, True),
        (target_of("1.23"), 23, 10, True),
        (target_of("1.24"), 23, 10, True),
        (target_of(), 23, 10, True),
        (target_of(opset=18), 18, 8, True),
        (target_of(portable=True), 21, 10, False),
        (target_of("1.17", portable=True), 20, 9, False),
    ],
)
def test_what_an_engine_opens(target: Target, opset: int, ir_version: int, room: bool) -> None:
    assert (target.opset, target.ir_version, target.has_room) == (opset, ir_version, room)


# ------------------------------------------------ whole bundles


@pytest.fixture
def checkpoint(make_model: MakeModel, tmp_path: Path) -> Path:
    save_checkpoint(make_model(**KINDS["llama"], max_positions=32), tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.mark.parametrize(
    ("options", "product"), [({"runtime": "1.17"}, "DynamicQuantizeMatMul"), ({"portable": True}, "DequantizeLinear")]
)
def test_a_whole_bundle(checkpoint: Path, tmp_path: Path, options: dict[str, Any], product: str) -> None:
    """Both precisions open where they are to, say so, and generate."""
    output = tmp_path / "out.tfm"
    export_checkpoint(checkpoint, output, search="none", force=True, **options)
    target = target_of(**options)
    for precision, file in (("fp32", "model.onnx"), ("int8", "model_int8.onnx")):
        model = ir.load(output / "onnx" / file)
        assert target.refusal(model) is None
        assert (model.opset_imports[""], model.ir_version) == (target.opset, target.ir_version)
        onnx.checker.check_model(str(output / "onnx" / file), full_check=True)
        if precision == "int8":
            assert product in {node.op_type for node in model.graph}
        with load(output, precision=precision, provider="cpu") as bundle:
            assert isinstance(bundle, Decoder)
            (found,) = bundle.generate([[1, 2, 3]], max_new_tokens=4)
            assert 1 <= len(found) <= 4
    manifest = read_manifest(output)
    if "runtime" in options:
        assert manifest.requires == {"fp32": {"model": "1.17.0"}, "int8": {"model": "1.17.0"}}
    # A cache that one buffer holds needs an attention that writes into it, and genai wants such a buffer.
    assert not any("total_sequence" in spec.shape for spec in manifest.signature["model"].inputs)
    assert not (output / "genai_config.json").exists()
    # What is quantized anew keeps to the engine that is named, and names graphs that it does not open.
    if target.portable:
        with pytest.raises(QuantizeError, match=r"graphs of opset 21, and onnxruntime 1\.17\.0 opens none above 20"):
            quantize_bundle(output, runtime="1.17", search="none")
    else:
        quantize_bundle(output, runtime="1.17", search="none", force=True)
        assert read_manifest(output).requires["int8"] == {"model": "1.17.0"}
