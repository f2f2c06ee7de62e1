"""Golden outputs as they are written: of eager PyTorch, small, and told from every defect planted in the graphs."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import nn

from tfm.export import Graph, Tolerance
from tfm.export.generic.graph import GenericGraph
from tfm.export.golden import golden_cases, write_golden
from tfm.export.graphs import graphs_of
from tfm.export.manifest import write_manifest
from tfm.export.to_onnx import to_onnx
from tfm.quantize import quantize_int8
from tfm.quantize.methods.fp16 import emulate_fp16, to_fp16
from tfm.runtime import GoldenReport, check_golden

BOTH = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "activation": "gelu", "norm_first": True}
KINDS: dict[str, dict[str, Any]] = {
    "encoder": {"kind": "encoder", "activation": "gelu"},
    "decoder": {"kind": "decoder", "activation": "silu"},
    "encoder-decoder": BOTH,
}


def write_bundle(folder: Path, graphs: list[Graph], config: Any, to_onnx: Callable[[Graph], ir.Model]) -> Path:
    """Make a bundle, without what else an export verifies and measures."""
    convert: dict[str, Callable[[ir.Model], object]] = {"fp32": id, "int8": quantize_int8, "fp16": to_fp16}
    files: dict[str, dict[str, Path]] = {precision: {} for precision in convert}
    (folder / "onnx").mkdir(parents=True)
    for graph in graphs:
        for precision, roles in files.items():
            model = to_onnx(graph)
            convert[precision](model)
            roles[graph.role] = folder / "onnx" / f"{graph.file}_{precision}.onnx"
            ir.save(model, roles[graph.role])
    write_golden(folder, graphs, files)
    write_manifest(folder, config, "toy", graphs, files, 23, gates=[])
    return folder


@pytest.fixture(scope="module")
def made(
    make_model: Any, to_onnx_once: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, list[Graph]]]:
    """A bundle of each of `KINDS`, made once, and its eager graphs."""
    done: dict[str, tuple[Path, list[Graph]]] = {}

    def make(kind: str) -> tuple[Path, list[Graph]]:
        if kind not in done:
            model = make_model(**KINDS[kind])
            graphs = graphs_of(model)
            folder = tmp_path_factory.mktemp("golden") / kind
            done[kind] = write_bundle(folder, graphs, model.config, to_onnx_once), graphs
        return done[kind]

    return make


@pytest.fixture
def planted(made: Any, tmp_path: Path) -> Callable[..., GoldenReport]:
    """Change one graph of the encoder-decoder's bundle, with its digest, and check it."""

    def plant(file: str, change: Callable[[ir.Model], object]) -> GoldenReport:
        bundle = tmp_path / "x.tfm"
        shutil.copytree(made("encoder-decoder")[0], bundle)
        model = ir.load(bundle / "onnx" / file)
        change(model)
        ir.save(model, bundle / "onnx" / file)
        redigest(bundle, f"onnx/{file}")
        return check(bundle)

    return plant


def redigest(bundle: Path, name: str) -> None:
    values = json.loads((bundle / "manifest.json").read_text())
    content = (bundle / name).read_bytes()
    values["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (bundle / "manifest.json").write_text(json.dumps(values))


def check(bundle: Path) -> GoldenReport:
    return check_golden(bundle, provider="cpu", threads=1)


# ------------------------------------------------ inputs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("positions", [16, 4])
def test_the_cases(make_model: Any, kind: str, positions: int) -> None:
    """Ragged rows with padding, one token, and a past where there is a cache; all within the model's limits."""
    for graph in graphs_of(make_model(**KINDS[kind], max_positions=positions)):
        names = [value.name for value in graph.inputs]
        cases = [dict(zip(names, case, strict=True)) for case in golden_cases(graph)]
        assert len(cases) == 3
        ids = [case["input_ids"] for case in cases]
        assert [tuple(x.shape) for x in ids[:2]] == [(2, min(8, positions)), (1, 1)]
        masks = [tensor for name, tensor in cases[0].items() if name.endswith("attention_mask")]
        assert masks
        for name, mask in cases[0].items():
            if name.endswith("attention_mask"):
                assert mask[0].all()
                # Targets are never padded on the left, and what is behind them is seen by nobody.
                assert bool(mask[1].all()) == (name == "decoder_attention_mask")
        if any(name.startswith("past_key_values") for name in names):
            past = next(
                x for n, x in cases[2].items() if n in ("past_key_values.0.key", "past_key_values.0.decoder.key")
            )
            assert past.shape[2] == 3 + 2  # 3 that are read, and room for the new one and one more
            assert past.abs().sum() > 0
            assert next(x for n, x in cases[2].items() if n.endswith("attention_mask")).shape == (2, 4)
        again = [dict(zip(names, case, strict=True)) for case in golden_cases(graph)]
        assert all(torch.equal(case[n], other[n]) for case, other in zip(cases, again, strict=True) for n in names)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_never_all_of_one_length(make_model: Any, kind: str) -> None:
    """Though their lengths are random."""
    for graph in graphs_of(make_model(**KINDS[kind])):
        names = [value.name for value in graph.inputs]
        places = [place for place, name in enumerate(names) if name.endswith("attention_mask") and name[0] != "d"]
        for seed in range(16):
            assert all(not golden_cases(graph, seed)[0][place].all() for place in places)


def test_wide_outputs_make_short_cases(make_model: Any) -> None:
    """Logits over 49152 words, as SmolLM2's, are 197 kB a token: 8 of them are more than a case may take."""
    (graph,) = graphs_of(make_model(kind="decoder", vocab_size=49152))
    cases = golden_cases(graph)
    assert [tuple(case[0].shape) for case in cases] == [(2, 2), (1, 1), (2, 1)]
    with torch.no_grad():
        assert all(sum(x.nbytes for x in graph(*case)) < 1 << 20 for case in cases)


def test_an_input_of_one_size_only_is_stored_once() -> None:
    class Square(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x

    graph = GenericGraph(Square(), {"x": torch.randn(4, 5)}, {})
    assert len(golden_cases(graph)) == 1
    # 0.72 MB a row, in and out: two rows are more than a case may take.
    graph = GenericGraph(Square(), {"x": torch.randn(2, 300, 300)}, {"x": {0: "batch"}})
    assert [tuple(case[0].shape) for case in golden_cases(graph)] == [(1, 300, 300)]


# ------------------------------------------------ what is written


@pytest.mark.parametrize("kind", KINDS)
def test_eager_outputs_to_the_last_bit(made: Any, kind: str) -> None:
    bundle, graphs = made(kind)
    with np.load(bundle / "golden.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    for graph in graphs:
        for number, case in enumerate(golden_cases(graph)):
            with torch.no_grad():
                results = graph(*case)
            for side, values, tensors in (("inputs", graph.inputs, case), ("outputs", graph.outputs, results)):
                for value, tensor in zip(values, tensors, strict=True):
                    array = arrays.pop(f"{graph.role}/{number}/{side}/{value.name}")
                    assert array.dtype == np.dtype(value.dtype)
                    np.testing.assert_array_equal(array, tensor.numpy(), strict=True)
    assert not arrays


@pytest.mark.parametrize("kind", KINDS)
def test_the_bundle_passes_where_it_was_made(made: Any, kind: str) -> None:
    report = check(made(kind)[0])
    assert report.passed, report.faults()
    assert report.cases == 3 * len({graph.role for graph in report.graphs})
    assert {graph.precision for graph in report.graphs} == {"fp32", "int8", "fp16"}


def test_what_the_exporting_machine_measured(made: Any) -> None:
    """NMSE over all cases together, by a formula of its own."""
    bundle, (_, graph) = made("encoder-decoder")
    values = json.loads((bundle / "golden.json").read_text())
    session = ort.InferenceSession(bundle / "onnx/decoder_int8.onnx", providers=["CPUExecutionProvider"])
    noise = signal = 0.0
    for case in golden_cases(graph):
        with torch.no_grad():
            expected = graph(*case)[0].double().numpy()
        feeds = {value.name: tensor.numpy() for value, tensor in zip(graph.inputs, case, strict=True)}
        noise += float(((session.run(["logits"], feeds)[0] - expected) ** 2).sum())
        signal += float((expected**2).sum())
    stored = values["precisions"]["int8"]["nmse"]["decoder"]["logits"]
    assert stored == pytest.approx(noise / signal, rel=6e-3)  # kept with three digits
    assert values["precisions"]["fp32"]["nmse"]["decoder"]["logits"] < 1e-10 < stored
    assert values["cases"] == {"encoder": 3, "decoder": 3}


def test_written_again_it_is_the_same(made: Any, tmp_path: Path) -> None:
    bundle, graphs = made("encoder-decoder")
    names = ("fp32", "int8", "fp16")
    files = {name: {g.role: bundle / "onnx" / f"{g.file}_{name}.onnx" for g in graphs} for name in names}
    write_golden(tmp_path, graphs, files)
    for name in ("golden.npz", "golden.json"):
        assert (tmp_path / name).read_bytes() == (bundle / name).read_bytes()


def test_the_tolerance_asked_for_is_kept(made: Any, tmp_path: Path) -> None:
    bundle, graphs = made("encoder")
    files = {"fp32": {"model": bundle / "onnx/model_fp32.onnx"}}
    write_golden(tmp_path, graphs, files, Tolerance(3e-4, 0.0))
    fp32 = json.loads((tmp_path / "golden.json").read_text())["precisions"]["fp32"]
    assert (fp32["atol"], fp32["rtol"]) == (3e-4, 0.0)


def test_what_nmse_tells_nothing_of(tmp_path: Path) -> None:
    """Integers, and an output that is zero throughout, where any error at all would be infinitely large."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(32, 32)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            y = self.linear(x)
            return {"y": y, "best": y.argmax(-1), "zero": y * 0}

    torch.manual_seed(0)
    graph = GenericGraph(Odd(), {"x": torch.randn(4, 5, 32)}, {"x": {0: "batch"}})
    bundle = write_bundle(tmp_path / "x.tfm", [graph], graph.config, to_onnx)
    nmse = json.loads((bundle / "golden.json").read_text())["precisions"]["int8"]["nmse"]["model"]
    assert nmse["y"] > 0
    assert (nmse["best"], nmse["zero"]) == (None, None)
    report = check(bundle)
    assert report.passed, report.faults()


def test_an_input_that_the_module_overwrites(tmp_path: Path) -> None:
    class InPlace(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.add_(1.0)

    graph = GenericGraph(InPlace(), {"x": torch.randn(4, 3)}, {"x": {0: "batch"}})
    files: dict[str, dict[str, Path]] = {}
    write_golden(tmp_path, [graph], files)
    with np.load(tmp_path / "golden.npz") as stored:
        np.testing.assert_array_equal(stored["model/0/outputs/output"], stored["model/0/inputs/x"] + np.float32(1))


# ------------------------------------------------ defects, planted where the digests say nothing


def weights(change: Callable[[np.ndarray], np.ndarray], dtype: ir.DataType) -> Callable[[ir.Model], None]:
    """Change every matrix of a dtype."""

    def apply(model: ir.Model) -> None:
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is not None and tensor.dtype == dtype and len(tensor.shape) == 2:
                value.const_value = ir.tensor(change(tensor.numpy()).astype(tensor.dtype.numpy()), name=name)

    return apply


def noise(array: np.ndarray) -> np.ndarray:
    """10 % of what the weights are, at random."""
    return array * (1 + 0.1 * np.random.default_rng(0).standard_normal(array.shape)).clip(0.8, 1.2)


def nan(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed.flat[0] = np.nan
    return changed


def attention(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.op_type == "Attention")


def drop_mask(model: ir.Model) -> None:
    attention(model).replace_input_with(3, None)


def scale(model: ir.Model) -> None:
    """One per cent more than 1 / √8, over the cache and over the source."""
    for node in model.graph:
        if "Attention" in node.op_type:
            node.attributes["scale"] = ir.AttrFloat32("scale", 1.01 / 8**0.5)


def tanh_gelu(model: ir.Model) -> None:
    node = next(node for node in model.graph if node.op_type == "Gelu")
    node.attributes["approximate"] = ir.AttrString("approximate", "tanh")


def saturate(model: ir.Model) -> None:
    """Have each int8 product computed as on x86 without VNNI: sums of two products (vpmaddubsw) end at ±2¹⁵."""
    graph = model.graph
    for number, node in enumerate([node for node in graph if node.op_type == "DynamicQuantizeMatMul"]):
        x, weight, w_scale, _, bias = [*node.inputs, None][:5]
        assert x is not None
        assert weight is not None
        assert weight.const_value is not None
        w_KN = weight.const_value.numpy().astype(np.float32)
        K, N = w_KN.shape
        nodes: list[ir.Node] = []

        def constant(array: Any, number: int = number, nodes: list[ir.Node] = nodes) -> ir.Value:
            value = ir.Value(name=f"saturated.{number}.{len(nodes)}.{len(graph.initializers)}")
            value.const_value = ir.tensor(array, name=value.name)
            graph.register_initializer(value)
            return value

        def op(kind: str, *inputs: ir.Value | None, nodes: list[ir.Node] = nodes, **attributes: Any) -> ir.Value:
            nodes.append(ir.node(kind, list(inputs), attributes))
            return nodes[-1].outputs[0]

        nodes.append(ir.node("DynamicQuantizeLinear", [x], num_outputs=3))
        quantized, x_scale, zero = nodes[0].outputs
        pairs = op("Reshape", op("Cast", quantized, to=ir.DataType.FLOAT), constant(np.array([-1, K // 2, 2, 1])))
        products = op("Mul", pairs, constant(w_KN.reshape(K // 2, 2, N)))
        sums = op("ReduceSum", products, constant(np.array([2])), keepdims=0)
        clipped = op("Clip", sums, constant(np.float32(-(2**15))), constant(np.float32(2**15 - 1)))
        total = op("ReduceSum", clipped, constant(np.array([1])), keepdims=0)
        offset = op("Mul", op("Cast", zero, to=ir.DataType.FLOAT), constant(w_KN.sum(0, keepdims=True)))
        result = op("Mul", op("Mul", op("Sub", total, offset), x_scale), w_scale)
        result = result if bias is None else op("Add", result, bias)
        shape = op("Concat", op("Shape", x, end=-1), constant(np.array([N])), axis=0)
        result = op("Reshape", result, shape)
        graph.insert_before(node, nodes)
        old = node.outputs[0]
        result.name, result.shape, result.dtype = old.name, old.shape, old.dtype
        old.name = f"{old.name}.old"
        ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
        graph.remove(node, safe=True)


FP32 = "decoder_fp32.onnx"
INT8 = "decoder_int8.onnx"
FP16 = "decoder_fp16.onnx"
FLOAT, HALF, BYTE = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT8


@pytest.mark.parametrize(
    ("file", "change"),
    [
        pytest.param(FP32, weights(noise, FLOAT), id="fp32 weights 10 % off"),
        pytest.param(INT8, weights(noise, BYTE), id="int8 weights 10 % off"),
        pytest.param(FP32, weights(nan, FLOAT), id="fp32 NaN"),
        pytest.param(INT8, weights(nan, FLOAT), id="int8 NaN"),
        pytest.param(FP32, drop_mask, id="fp32 mask dropped"),
        pytest.param(INT8, drop_mask, id="int8 mask dropped"),
        pytest.param(FP32, scale, id="fp32 scale 1 % off"),
        pytest.param(FP32, tanh_gelu, id="fp32 gelu by tanh"),
        pytest.param(INT8, saturate, id="int8 saturates"),
        pytest.param(FP16, weights(noise, HALF), id="fp16 weights 10 % off"),
        pytest.param(FP16, weights(nan, HALF), id="fp16 NaN"),
        pytest.param(FP16, drop_mask, id="fp16 mask dropped"),
        pytest.param(FP16, scale, id="fp16 scale 1 % off"),
    ],
)
def test_a_planted_defect(planted: Callable[..., GoldenReport], file: str, change: Callable[[ir.Model], None]) -> None:
    report = planted(file, change)
    (fault,) = report.faults()
    assert fault.startswith(f"{ {FP32: 'fp32', INT8: 'int8', FP16: 'fp16'}[file] } decoder: ")
    assert [graph.role for graph in report.graphs if not graph.passed] == ["decoder"]


def test_float16_may_round_every_result_where_it_runs(planted: Callable[..., GoldenReport]) -> None:
    """As CUDA does, and the CPU that its limits were measured on does not."""
    report = planted(FP16, emulate_fp16)
    assert report.passed, report.faults()


def test_saturating_changes_nothing_where_nothing_saturates(planted: Callable[..., GoldenReport]) -> None:
    """The emulation itself is right: with small weights, no sum reaches ±2¹⁵, and the NMSE is onnxruntime's own."""

    def halve(model: ir.Model) -> None:
        """Weights of 6 bits, their scales four times as large: the function is the same up to their rounding."""
        for node in [node for node in model.graph if node.op_type == "DynamicQuantizeMatMul"]:
            _, weight, w_scale, *_ = node.inputs
            for value, change in ((weight, lambda a: np.rint(a / 4).astype(np.int8)), (w_scale, lambda a: a * 4)):
                assert value is not None
                assert value.const_value is not None
                array = np.asarray(change(value.const_value.numpy()))
                value.const_value = ir.tensor(array, name=value.name)

    plain = planted(INT8, halve)
    shutil.rmtree(plain.bundle)
    emulated = planted(INT8, lambda model: (halve(model), saturate(model)))
    for one, other in zip(plain.graphs[-1].outputs, emulated.graphs[-1].outputs, strict=True):
        assert other.figures.nmse == pytest.approx(one.figures.nmse, rel=1e-3)
