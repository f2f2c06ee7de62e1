"""float16 graphs against float32 ones: as onnxruntime's CPU runs them, and rounded node by node as CUDA stores them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from tests.support.planting import MODELS
from tfm.errors import QuantizeError
from tfm.export import to_onnx
from tfm.export.generic.open import open_generic
from tfm.export.verify.samples import all_padding, cases
from tfm.quantize import quantize_blocks
from tfm.quantize.methods.fp16 import emulate_fp16, to_fp16
from tfm.runtime import ErrorStats

Array = np.ndarray
Feeds = dict[str, Array]
FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
LOWEST = float(np.finfo(np.float32).min)

# Measured over every output of the tiny models: at most 4.3e-6 on the CPU, 9.5e-6 rounded node by node.
NMSE = 2e-5


def open_model(model: ir.Model) -> Callable[[Feeds], list[Array]]:
    content = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


def run(model: ir.Model, **feeds: Array) -> list[Array]:
    return open_model(model)(feeds)


def halves(make: Callable[[], ir.Model]) -> dict[str, ir.Model]:
    """The model in float16, and one that computes in float32 and rounds like it; both valid ONNX."""
    half, emulated = make(), make()
    for model in (half, emulated):
        to_fp16(model)
    emulate_fp16(emulated)
    for model in (half, emulated):
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return {"half": half, "emulated": emulated}


def parse(body: str, inputs: str, outputs: str, **constants: Any) -> Callable[[], ir.Model]:
    def make() -> ir.Model:
        text = f'<ir_version: 10, opset_import: ["" : 23]> g ({inputs}) => ({outputs}) {{ {body} }}'
        proto = onnx.parser.parse_model(text)
        for name, array in constants.items():
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))

    return make


def floats(*shape: int, scale: float = 1.0) -> Array:
    return (np.random.default_rng(0).standard_normal(shape) * scale).astype(np.float32)


def types(model: ir.Model) -> dict[str, str]:
    return {str(value.name): str(value.dtype) for node in model.graph for value in node.outputs}


def nmse(actual: Array, expected: Array) -> float:
    figures = ErrorStats()
    figures.add(actual, expected)
    return figures.nmse


# ------------------------------------------------ whole models


def exported(export_tiny: Any, where: str) -> dict[str, tuple[Any, Callable[[], ir.Model]]]:
    """Role → eager graph, and what gives a fresh copy of its export."""
    if where in MODELS:
        made = export_tiny(**MODELS[where][0])
        return {role: (one.graph, lambda path=one.path: ir.load(path)) for role, one in made.items()}
    graph = open_generic(None, f"tests.support.generic_models:{where}")
    content = ir.to_proto(to_onnx(graph)).SerializeToString()
    return {"model": (graph, lambda: ir.from_proto(onnx.ModelProto.FromString(content)))}


def feeds_of(graph: Any, case: list[Any]) -> Feeds:
    return {value.name: tensor.numpy() for value, tensor in zip(graph.inputs, case, strict=True)}


@pytest.mark.parametrize(
    "where", ["encoder", "decoder", "llama", "t5", "alibi", "gemma", "attends", "by_hand", "unbatched"]
)
def test_a_model(export_tiny: Any, where: str) -> None:
    for graph, make in exported(export_tiny, where).values():
        exact = make()
        run_exactly = open_model(exact)
        for name, model in halves(make).items():
            for old, new in ((exact.graph.inputs, model.graph.inputs), (exact.graph.outputs, model.graph.outputs)):
                assert [(v.name, v.dtype, v.shape) for v in old] == [(v.name, v.dtype, v.shape) for v in new]
            run_model = open_model(model)
            for case in cases(graph):
                feeds = feeds_of(graph, case)
                for value, a, e in zip(exact.graph.outputs, run_model(feeds), run_exactly(feeds), strict=True):
                    assert a.dtype == e.dtype
                    assert nmse(a, e) <= NMSE, (name, value.name)


@pytest.mark.parametrize("where", ["encoder", "decoder", "t5"])  # a decoder by itself takes no mask
def test_padding(export_tiny: Any, where: str) -> None:
    """What is masked does not count, to the last bit; a row of nothing but padding is what it is in float32.

    But for t5, which masks by adding numbers: those of float16 do not swallow the scores, and that row, which nobody
    reads, is a mean of the values by its scores where float32 has the plain mean.
    """
    for graph, make in exported(export_tiny, where).values():
        case = all_padding(graph)
        assert case is not None
        feeds = feeds_of(graph, case)
        run_exactly = open_model(make())
        for name, model in halves(make).items():
            run_model = open_model(model)
            found = run_model(feeds)
            for value, a, e in zip(model.graph.outputs, found, run_exactly(feeds), strict=True):
                rows = slice(1 if where == "t5" else None)
                assert np.isfinite(a).all()
                assert nmse(a[rows], e[rows]) <= NMSE, (name, value.name)
            if "attention_mask" not in feeds:  # what is masked is not ids
                continue
            mask = feeds["attention_mask"][:, -feeds["input_ids"].shape[1] :]
            assert (mask == 0).any()
            other = np.where(mask == 0, (feeds["input_ids"] + 1) % 19, feeds["input_ids"])
            for value, a, b in zip(model.graph.outputs, found, run_model(feeds | {"input_ids": other}), strict=True):
                if value.name in ("last_hidden_state", "logits"):
                    np.testing.assert_array_equal(a[mask == 1], b[mask == 1])


def test_a_file_is_half_as_large_and_tied_tables_are_stored_once(export_tiny: Any, tmp_path: Path) -> None:
    """Weights in a file beside the model too."""
    options = MODELS["llama"][0] | {"vocab_size": 4000, "d_model": 32, "tie_embeddings": True}
    path = export_tiny(**options)["model"].path
    ir.save(ir.load(path), tmp_path / "beside.onnx", external_data="beside.onnx.data")
    files = []
    for source in (path, tmp_path / "beside.onnx"):
        model = ir.load(source)
        to_fp16(model)
        tables = [value.name for value in model.graph.initializers.values() if 4000 in value.shape.numpy()]
        assert len(tables) == 1
        ir.save(model, tmp_path / "half.onnx")
        files.append((tmp_path / "half.onnx").read_bytes())
    assert files[0] == files[1]
    assert 0.49 < len(files[0]) / path.stat().st_size < 0.6  # a third of a percent are names and nodes: it is tiny


# ------------------------------------------------ what stays in float32


def test_angles_of_positions_that_float16_cannot_count() -> None:
    """An angle, and a rotation by it, at positions up to 30,000: float16 has whole numbers to 2048 only."""
    frequency = (10_000.0 ** -np.linspace(0, 0.9, 8)).astype(np.float32)
    make = parse(
        "p = Cast<to = 1>(position) f = Expand(frequency, shape) a = MatMul(p, f) c = Cos(a) y = Mul(x, c)",
        "float[T, 8] x, int64[T, 1] position, int64[2] shape",
        "float[T, 8] y",
        frequency=frequency[None],
    )
    position = np.array([[3], [2049], [5001], [29_999]])
    x = floats(4, 8)
    for model in halves(make).values():
        (y,) = run(model, x=x, position=position, shape=np.array([1, 8]))
        # half a place of x, of the cosine and of their product, at most 3 · 2⁻¹² each; and the angle in float32
        exact = x * np.cos(position.astype(np.float64) * frequency)
        np.testing.assert_allclose(y, exact, atol=6e-3, rtol=0)
        assert types(model)["f"] == types(model)["a"] == "FLOAT"


def test_norms_by_hand() -> None:
    """x / √(mean x² + ε) where x² overflows float16, or is smaller than it has; and a length of zero."""
    make = parse(
        "s = Pow(x, two) m = ReduceMean(s, axis) e = Add(m, epsilon) r = Sqrt(e) i = Reciprocal(r) n = Mul(x, i)"
        " y = Mul(n, gamma) q = Mul(x, x) t = ReduceSum(q, axis) l = Sqrt(t) b = Clip(l, least) z = Div(x, b)",
        "float[B, 300] x",
        "float[B, 300] y, float[B, 300] z",
        two=np.float32(2),
        epsilon=np.float32(1e-12),
        least=np.float32(1e-12),
        gamma=np.linspace(0.5, 1.5, 300, dtype=np.float32),
        axis=np.array([-1]),
    )
    x = floats(4, 300) * np.float32([[6000], [1], [1e-4], [0]])
    exact = x.astype(np.float64)
    rms = exact / np.sqrt(np.square(exact).mean(-1, keepdims=True) + 1e-12) * np.linspace(0.5, 1.5, 300)
    unit = exact / np.maximum(np.linalg.norm(exact, axis=-1, keepdims=True), 1e-12)
    for model in halves(make).values():
        y, z = run(model, x=x)
        for row in range(4):
            assert nmse(y[row], rms[row]) < 1e-6  # measured: 1.1e-7
            assert nmse(z[row], unit[row]) < 1e-6


@pytest.mark.parametrize("score", [1.0, 40.0])
@pytest.mark.parametrize("variant", ["added", "chosen", "table"])
def test_masks_that_float16_has_not(variant: str, score: float) -> None:
    """The lowest float32 masks, alone and twice; a row of nothing else stays a distribution, as in float32."""
    bodies = {
        "added": "k = Cast<to = 1>(keep) o = Sub(one, k) m = Mul(o, lowest) n = Add(x, m) s = Add(n, m)",
        "chosen": "k = Cast<to = 9>(keep) s = Where(k, x, lowest)",
        "table": "s = Add(x, table)",
    }
    keep = np.array([[1, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]])
    constants = {"one": np.float32(1), "lowest": np.float32(LOWEST)}
    if variant == "table":
        constants = {"table": np.where(keep, 0, LOWEST).astype(np.float32)}
    make = parse(f"x = MatMul(a, b) {bodies[variant]} y = Softmax(s)", "float[3, 8] a, float[8, 4] b, int64[3, 4] keep",
                 "float[3, 4] y", **constants)  # fmt: skip
    a, b = floats(3, 8, scale=score), floats(8, 4)
    exact = np.where(keep, np.exp((a @ b) - (a @ b).max(-1, keepdims=True)), 0)[:2]
    for model in halves(make).values():
        (y,) = run(model, a=a, b=b, keep=keep)
        np.testing.assert_array_equal(y[:2][keep[:2] == 0], 0)
        # a score of 40 is off by 2⁻⁶, and e to it by as much of itself
        np.testing.assert_allclose(y[:2], exact / exact.sum(-1, keepdims=True), atol=1e-3 * score)
        assert y[2].sum() == pytest.approx(1, abs=2e-3)


def test_bounds_and_fills_are_no_masks() -> None:
    make = parse(
        "c = Clip(x, lowest) f = ConstantOfShape<value = float[1] {-3e38}>(shape) t = Trilu<upper = 1>(f, k)"
        " a = Add(c, t) y = Softmax(a)",
        "float[4, 4] x, int64[2] shape",
        "float[4, 4] c, float[4, 4] y",
        lowest=np.float32(LOWEST),
        k=np.array(1),
    )
    x = np.full((4, 4), -40_000, np.float32)
    for model in halves(make).values():
        c, y = run(model, x=x, shape=np.array([4, 4]))
        np.testing.assert_array_equal(c, x)
        np.testing.assert_allclose(y, np.tril(np.ones((4, 4))) / [[1], [2], [3], [4]], atol=3e-4)  # 2⁻¹² of 1/3


def test_weights_that_are_too_small_stay_as_they_are() -> None:
    make = parse("y = MatMul(x, w)", "float[2, 20] x", "float[2, 20] y", w=floats(20, 20, scale=1e-7))
    x = floats(2, 20)
    for model in halves(make).values():
        assert nmse(run(model, x=x)[0], run(make(), x=x)[0]) < 1e-12


def test_what_stays_hangs_together() -> None:
    """Nothing is rounded between two ops in float32, and one cast serves all who want it."""
    make = parse(
        "h = MatMul(x, w) e = Exp(h) n = Neg(e) l = Abs(n) s = Log(l) a = Relu(h) b = Relu(h) y = Add(a, b)"
        " z = Mul(s, y)",
        "float[2, 20] x",
        "float[2, 20] z",
        w=floats(20, 20),
    )
    model = halves(make)["half"]
    found = types(model)
    assert {found[name] for name in "enls"} == {"FLOAT"}
    assert {found[name] for name in ("h", "a", "b", "y", "z_half")} == {"FLOAT16"}
    assert [node.op_type for node in model.graph].count("Cast") == 4  # in, h to Exp, s to Mul, out


def test_sums_that_overflow_show_in_the_emulation() -> None:
    make = parse(
        "a = MatMul(x, w) y = MatMul(a, v)",
        "float[1, 16] x",
        "float[1, 16] y",
        w=np.full((16, 16), 1000, np.float32),
        v=np.full((16, 16), 1e-3, np.float32),
    )
    models = halves(make)
    assert np.isinf(run(models["emulated"], x=np.full((1, 16), 50, np.float32))[0]).all()
    # 16 · 1000 · 3.3 = 52,800, stored to 32; 0.001 is 0.0010004 in float16
    x = np.full((1, 16), 3.3003, np.float32).astype(np.float16)
    sums = np.float16(np.float64(x[0, 0]) * 16_000)
    products = np.float16(np.float64(sums) * 16 * np.float64(np.float16(1e-3)))
    np.testing.assert_array_equal(run(models["emulated"], x=x.astype(np.float32))[0], np.full((1, 16), products))


# ------------------------------------------------ what is refused


def weights(value: float) -> Array:
    array = floats(20, 20)
    array[3, 4] = value
    return array


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            parse("y = MatMul(x, w)", "float[2, 20] x", "float[2, 20] y", w=weights(70_000)),
            "the weight 'w' holds 70000, and float16 ends at ±65504; leave out fp16",
        ),
        (
            parse("y = MatMul(x, w)", "float[2, 20] x", "float[2, 20] y", w=weights(-70_000)),
            "the weight 'w' holds -70000, and float16 ends",
        ),
        (
            parse("y = MatMul(x, w)", "float[2, 20] x", "float[2, 20] y", w=weights(np.nan)),
            "the weight 'w' holds NaN",
        ),
        (
            parse("h = Cast<to = 10>(x) y = Cast<to = 1>(h)", "float[2] x", "float[2] y"),
            "'h' at 'h' is float16 already; a float32 graph was expected",
        ),
    ],
    ids=["above", "below", "NaN", "float16"],
)
def test_refusals(make: Callable[[], ir.Model], message: str) -> None:
    with pytest.raises(QuantizeError) as caught:
        to_fp16(make())
    assert message in str(caught.value)


def test_graphs_that_are_refused() -> None:
    make = parse("y = MatMul(x, w)", "float[2, 20] x", "float[2, 20] y", w=floats(20, 20))
    quantized, twice, untyped = make(), make(), make()
    quantize_blocks(quantized)
    with pytest.raises(QuantizeError, match="is quantized already"):
        to_fp16(quantized)
    to_fp16(twice)
    with pytest.raises(QuantizeError, match="is float16 already"):
        to_fp16(twice)
    untyped.graph.outputs[0].type = None
    with pytest.raises(QuantizeError, match="'y' at 'y' has no type; infer types first"):
        to_fp16(untyped)
    branch = make()
    inner = ir.Graph([], [], nodes=[], name="inner")
    branch.graph[0].attributes["then"] = ir.AttrGraph("then", inner)
    with pytest.raises(QuantizeError, match="'y', a MatMul, has a graph within"):
        to_fp16(branch)
