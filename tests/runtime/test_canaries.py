"""The canaries' graphs are what onnx makes of them, what they expect is right, and faults are seen."""

import math
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tfm.runtime.doctor import doctor, onnx_bytes
from tfm.runtime.doctor.canaries import Canary, canaries

CANARIES = {canary.family: canary for canary in canaries()}
FAMILIES = [
    "MatMul, Gemm",
    "DynamicQuantizeLinear, MatMulInteger",
    "MatMulNBits, 4 bits",
    "MatMulNBits, 8 bits",
    "GatherBlockQuantized",
    "Attention",
    "LayerNormalization",
    "RMSNormalization",
    "Gelu",
    "QuickGelu",
    "GroupQueryAttention",
]


def test_families() -> None:
    assert list(CANARIES) == FAMILIES
    ops = {node.op_type for canary in CANARIES.values() for node in onnx.load_from_string(canary.model).graph.node}
    assert ops == {name.strip() for family in FAMILIES for name in family.split(",") if "bits" not in name}


def test_bytes_are_what_onnx_writes() -> None:
    """Every kind of field at once: negative, large and float attributes, domains, dtypes, ranks, a scalar."""
    dtypes = ("float32", "uint8", "int8", "int32", "int64", "bool", "float16")
    arrays = {name: np.arange(6).reshape(2, 3).astype(name) for name in dtypes}
    arrays["scalar"] = np.array(-1)
    attributes: dict[str, int | float] = {"axis": -2, "K": 1 << 40, "epsilon": 1e-5, "zero": 0}
    x, y = np.zeros((200, 1), np.float32), np.zeros((1,), np.int64)
    made = onnx_bytes.model(
        [
            onnx_bytes.node("Op", ["x", "w"], ["h", "i"], "com.microsoft", attributes),
            onnx_bytes.node("Id", ["h"], ["y"]),
        ],
        {"x": x},
        {"y": y},
        arrays,
        24,
    )
    nodes = [
        helper.make_node("Op", ["x", "w"], ["h", "i"], domain="com.microsoft"), helper.make_node("Id", ["h"], ["y"])
    ]  # fmt: skip
    nodes[0].attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    graph = helper.make_graph(
        nodes,
        "canary",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT64, y.shape)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    assert made == helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_takes_them(family: str) -> None:
    onnx.checker.check_model(onnx.load_from_string(CANARIES[family].model), full_check=True)
    assert len(CANARIES[family].model) < 32_000


@pytest.mark.parametrize("family", [name for name in FAMILIES if "Nor" in name or name in ("Gelu", "Attention")])
def test_expected_values_are_those_of_onnx_own_reference(family: str) -> None:
    """onnx's interpreter of the specification, in numpy, is a third opinion; it has no com.microsoft ops."""
    canary = CANARIES[family]
    (result,) = onnx.reference.ReferenceEvaluator(onnx.load_from_string(canary.model)).run(None, dict(canary.feeds))
    assert doctor._judge(canary, result)[0] == "right"


@pytest.mark.parametrize("family", FAMILIES)
def test_right_here(family: str) -> None:
    state = doctor._try_canary(CANARIES[family], "cpu")
    assert (state.verdict, state.why, state.on) == ("right", None, ("cpu",))


# ------------------------------------------------ faults


def tf32(array: np.ndarray) -> np.ndarray:
    """Round to TF32's 10 bits of mantissa."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x1000) & 0xFFFFE000).astype(np.uint32).view(np.float32)


def weights(canary: Canary) -> dict[str, np.ndarray]:
    graph = onnx.load_from_string(canary.model).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def products_by_tf32(canary: Canary) -> np.ndarray:
    held = weights(canary)
    return tf32(tf32(canary.feeds["x"]) @ tf32(held["w"])) @ tf32(held["v"]) + held["b"]


def attention_by_tf32(canary: Canary) -> np.ndarray:
    q, k, v, mask = (canary.feeds[name] for name in ("q", "k", "v", "mask"))
    scores = np.where(mask, tf32(q) @ tf32(k).swapaxes(-1, -2) / math.sqrt(8), -np.inf)
    scores = np.exp(scores)
    return tf32(scores / scores.sum(-1, keepdims=True)) @ tf32(v)


def attention_without_mask(canary: Canary) -> np.ndarray:
    q, k, v = (canary.feeds[name] for name in ("q", "k", "v"))
    scores = np.exp(q @ k.swapaxes(-1, -2) / math.sqrt(8))
    return scores / scores.sum(-1, keepdims=True) @ v


def saturated(canary: Canary) -> np.ndarray:
    """As vpmaddubsw adds: pairs of products, in 16 bits."""
    x, w = canary.feeds["x"].astype(np.int64), weights(canary)["w"].astype(np.int64)
    pairs = x[:, 0::2, None] * w[0::2] + x[:, 1::2, None] * w[1::2]
    return pairs.clip(-32768, 32767).sum(1)


def swapped_halves(canary: Canary) -> np.ndarray:
    """The two 4-bit numbers of each byte in the wrong order."""
    held = weights(canary)
    integers = np.stack([held["w"] >> 4, held["w"] & 15], -1).reshape(16, 2, 32)
    weight = (integers.astype(np.float64) - 8) * held["s"].reshape(16, 2, 1)
    return canary.feeds["x"] @ weight.reshape(16, 64).T


def one_weight_off_by_one(canary: Canary) -> np.ndarray:
    held = weights(canary)
    result = canary.expected.copy()
    result[:, 0] += canary.feeds["x"][:, 5] * held["s"][0]
    return result


def without_epsilon(canary: Canary) -> np.ndarray:
    x = canary.feeds["x"].astype(np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True)) * weights(canary)["w"]


def norm_of_a_sample(canary: Canary) -> np.ndarray:
    x, held = canary.feeds["x"].astype(np.float64), weights(canary)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, ddof=1, keepdims=True) + 0.01) * held["w"] + held["b"]


def gelu_by_tanh(canary: Canary) -> np.ndarray:
    x = canary.feeds["x"].astype(np.float64)
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def quick_gelu_of_another_alpha(canary: Canary) -> np.ndarray:
    x = canary.feeds["x"].astype(np.float64)
    return x / (1 + np.exp(-1.7 * x))


def seen(canary: Canary, bias: np.ndarray, keys: int) -> np.ndarray:
    """What it gives where `keys` places of the cache are seen, the new token behind the past, under another bias."""
    q, k, v, past_key, past_value = (canary.feeds[name] for name in ("q", "k", "v", "past_key", "past_value"))
    kept = []
    for past, new in ((past_key, k), (past_value, v)):
        kept.append(past.copy())
        kept[-1][:, :, 4] = new
    scores = q.reshape(2, 2, 1, 8) @ kept[0][:, :, :keys].swapaxes(-1, -2) / math.sqrt(8)
    weights = np.exp(scores + np.pad(bias, ((0, 0), (0, 0), (0, 0), (0, keys - bias.shape[-1]))))
    return (weights / weights.sum(-1, keepdims=True) @ kept[1][:, :, :keys]).reshape(2, 1, 16)


def room_is_seen(canary: Canary) -> np.ndarray:
    return seen(canary, canary.feeds["bias"], 7)


def bias_is_not_read(canary: Canary) -> np.ndarray:
    return seen(canary, np.zeros_like(canary.feeds["bias"]), 5)


def rows_swapped(canary: Canary) -> np.ndarray:
    return canary.expected[::-1]


def neighbor(canary: Canary) -> np.ndarray:
    return canary.expected[:, ::-1]


@pytest.mark.parametrize(
    ("family", "fault"),
    [
        ("MatMul, Gemm", products_by_tf32),
        ("DynamicQuantizeLinear, MatMulInteger", saturated),
        ("MatMulNBits, 4 bits", swapped_halves),
        ("MatMulNBits, 4 bits", one_weight_off_by_one),
        ("MatMulNBits, 8 bits", one_weight_off_by_one),
        ("GatherBlockQuantized", neighbor),
        ("Attention", attention_by_tf32),
        ("Attention", attention_without_mask),
        ("LayerNormalization", norm_of_a_sample),
        ("RMSNormalization", without_epsilon),
        ("Gelu", gelu_by_tanh),
        ("QuickGelu", quick_gelu_of_another_alpha),
        ("GroupQueryAttention", room_is_seen),
        ("GroupQueryAttention", bias_is_not_read),
        ("GroupQueryAttention", rows_swapped),
    ],
)
def test_faults_are_seen(family: str, fault: Callable[[Canary], np.ndarray]) -> None:
    canary = CANARIES[family]
    verdict, max_abs, why = doctor._judge(canary, fault(canary))
    print(family, fault.__name__, max_abs, canary.limit)
    assert verdict == "wrong"
    assert why is not None
    assert why.startswith("off by ")
