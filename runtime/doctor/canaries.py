"""One small graph per family of ops that bundles are made of, with what it must give by a formula in float64.

Shapes: B batch, S query length, T key length, N heads, H head size.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..inputs.checks import Array
from . import onnx_bytes
from .onnx_bytes import node

_MICROSOFT = "com.microsoft"
_BLOCK = 32
_OPSET, _NEWER = 20, 23
"""What the oldest onnxruntime opens, and what has ops that came later: an older one lacks these alone."""

_EPSILON = 1e-2  # so large that a kernel that forgets it is seen
_ALPHA = 1.702


@dataclass(frozen=True, kw_only=True)
class Canary:
    """A graph of one family of ops, what it is fed, and what it must give.

    Attributes:
        family: The ops.
        model: The graph, as the content of an ONNX file.
        feeds: Its inputs by name.
        expected: Its one output.
        limit: How far any element may be off.
    """

    family: str
    model: bytes
    feeds: Mapping[str, Array]
    expected: Array
    limit: float


def canaries() -> list[Canary]:
    """Make all of them: a few kilobytes each."""
    return [make(np.random.default_rng(0)) for make in _MAKERS]


# On an x86 processor with AVX-512 the largest errors were 6.3e-7 (MatMul and Gemm), 4.9e-7 (QuickGelu), 3.5e-7 (Gelu),
# 2.9e-7 (RMSNormalization), 1.8e-7 (LayerNormalization) and 1.7e-7 (Attention); other processors add up in other orders
# and approximate otherwise. The tests plant faults of each kind, products by TF32 among them: all are off by more.
_FLOAT_LIMIT = 2e-5

# Every product and sum is a whole number of sixteenths below 2^24 of them, and the result was exact; a kernel that adds
# what it has scaled may round sums of up to 4e4, each by 2e-3. One weight that is off by one changes the result by 0.06
# at least where it meets an input of 1, and by 7.9 where it meets 127.
_INTEGERS_LIMIT = 0.02


def _gemm(rng: np.random.Generator) -> Canary:
    x, w, v, b = (_normal(rng, *shape) for shape in ((3, 64), (64, 48), (48, 40), (40,)))
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Gemm", ["h", "v", "b"], ["y"])]
    # of 64 products, then of 48, each of variance 1 / their number, so that limits mean the same as elsewhere
    w, v = w / np.float32(8), v / np.float32(math.sqrt(48))
    expected = x.astype(np.float64) @ w.astype(np.float64) @ v.astype(np.float64) + b
    return _canary("MatMul, Gemm", nodes, {"x": x}, {"w": w, "v": v, "b": b}, expected, _FLOAT_LIMIT)


def _integers(rng: np.random.Generator) -> Canary:
    """Numbers that 8 bits hold exactly, and large enough that sums in 16 bits would saturate."""
    x = rng.integers(0, 256, (8, 64)).astype(np.float32)
    x[:, 0], x[:, 1], x[:, 2:] = 0, 255, np.maximum(x[:, 2:], 200)  # a range of 255: a scale of 1, a zero point of 0
    w = rng.integers(100, 128, (64, 32)).astype(np.int8)
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        node("MatMulInteger", ["q", "w", "zero"], ["y"]),
    ]
    expected = x.astype(np.int64) @ w.astype(np.int64)
    return _canary("DynamicQuantizeLinear, MatMulInteger", nodes, {"x": x}, {"w": w}, expected, 0.0, dtype="int32")


def _blocks(bits: int) -> Callable[[np.random.Generator], Canary]:
    def make(rng: np.random.Generator) -> Canary:
        """Inputs of which each block has 127 as its largest, so that rounding them to 8 bits loses nothing."""
        inputs, outputs = 2 * _BLOCK, 16
        stored, weight, scales = _quantized(rng, bits, outputs, inputs)
        x = rng.integers(-126, 127, (3, inputs)).astype(np.float32)
        x[:, ::_BLOCK] = 127
        sizes = {"K": inputs, "N": outputs, "bits": bits, "block_size": _BLOCK, "accuracy_level": 4}
        nodes = [node("MatMulNBits", ["x", "w", "s"], ["y"], _MICROSOFT, sizes)]
        constants = {"w": stored.reshape(outputs, inputs // _BLOCK, -1), "s": scales.reshape(-1)}
        return _canary(f"MatMulNBits, {bits} bits", nodes, {"x": x}, constants, x @ weight.T, _INTEGERS_LIMIT)

    return make


def _gather(rng: np.random.Generator) -> Canary:
    stored, weight, scales = _quantized(rng, 4, 16, _BLOCK)
    ids = np.array([[3, 0, 15]])
    sizes = {"bits": 4, "block_size": _BLOCK, "gather_axis": 0, "quantize_axis": 1}
    nodes = [node("GatherBlockQuantized", ["w", "ids", "s"], ["y"], _MICROSOFT, sizes)]
    return _canary("GatherBlockQuantized", nodes, {"ids": ids}, {"w": stored, "s": scales}, weight[ids], 0.0)


def _attention(rng: np.random.Generator) -> Canary:
    q_BNSH, k_BNTH, v_BNTH = _normal(rng, 2, 2, 3, 8), _normal(rng, 2, 2, 5, 8), _normal(rng, 2, 2, 5, 8)
    # The second row has three keys and two of padding, so that a kernel without masks is off.
    mask_B1ST = np.ones((2, 1, 3, 5), np.bool_)
    mask_B1ST[1, ..., 3:] = False
    scores_BNST = q_BNSH.astype(np.float64) @ k_BNTH.swapaxes(-1, -2) / math.sqrt(8)
    weights_BNST = np.exp(np.where(mask_B1ST, scores_BNST, -np.inf))
    weights_BNST /= weights_BNST.sum(-1, keepdims=True)
    feeds = {"q": q_BNSH, "k": k_BNTH, "v": v_BNTH, "mask": mask_B1ST}
    nodes = [node("Attention", list(feeds), ["y"])]
    return _canary("Attention", nodes, feeds, {}, weights_BNST @ v_BNTH, _FLOAT_LIMIT, opset=_NEWER)


def _layer_norm(rng: np.random.Generator) -> Canary:
    x, w, b = _normal(rng, 3, 48), _normal(rng, 48), _normal(rng, 48)
    exact = x.astype(np.float64)
    centered = exact - exact.mean(-1, keepdims=True)
    expected = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + _EPSILON) * w + b
    nodes = [node("LayerNormalization", ["x", "w", "b"], ["y"], attributes={"epsilon": _EPSILON})]
    return _canary("LayerNormalization", nodes, {"x": x}, {"w": w, "b": b}, expected, _FLOAT_LIMIT)


def _rms_norm(rng: np.random.Generator) -> Canary:
    x, w = _normal(rng, 3, 48), _normal(rng, 48)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + _EPSILON) * w
    nodes = [node("RMSNormalization", ["x", "w"], ["y"], attributes={"epsilon": _EPSILON})]
    return _canary("RMSNormalization", nodes, {"x": x}, {"w": w}, expected, _FLOAT_LIMIT, opset=_NEWER)


def _gelu(_: np.random.Generator) -> Canary:
    x = np.linspace(-6, 6, 97, dtype=np.float32)
    expected = np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()])
    return _canary("Gelu", [node("Gelu", ["x"], ["y"])], {"x": x}, {}, expected, _FLOAT_LIMIT)


def _quick_gelu(_: np.random.Generator) -> Canary:
    x = np.linspace(-6, 6, 97, dtype=np.float32)
    nodes = [node("QuickGelu", ["x"], ["y"], _MICROSOFT, {"alpha": _ALPHA})]
    # The graph holds alpha in 32 bits, so that is what the kernel computes with.
    expected = x / (1 + np.exp(-np.float64(np.float32(_ALPHA)) * x.astype(np.float64)))
    return _canary("QuickGelu", nodes, {"x": x}, {}, expected, _FLOAT_LIMIT)


def _cached_attention(rng: np.random.Generator) -> Canary:
    """One token a row behind four others; two heads share one of keys, and the cache has room for two tokens more."""
    heads, size, past, room = 2, 8, 4, 7
    q, k, v = _normal(rng, 2, 1, heads * size), _normal(rng, 2, 1, size), _normal(rng, 2, 1, size)
    # What is in the room must not be seen.
    keys_B1CH, values_B1CH = _normal(rng, 2, 1, room, size), _normal(rng, 2, 1, room, size)
    # The second row has two tokens of padding, before its own.
    bias_B11T = np.zeros((2, 1, 1, past + 1), np.float32)
    bias_B11T[1, ..., :2] = np.finfo(np.float32).min / 2
    k_B1TH, v_B1TH = (np.concatenate([x[:, :, :past], y[:, None]], 2) for x, y in ((keys_B1CH, k), (values_B1CH, v)))
    q_BN1H = q.reshape(2, heads, 1, size).astype(np.float64)
    weights_BN1T = np.exp(q_BN1H @ k_B1TH.swapaxes(-1, -2) / math.sqrt(size)) * (bias_B11T == 0)
    weights_BN1T /= weights_BN1T.sum(-1, keepdims=True)
    feeds = {"q": q, "k": k, "v": v, "past_key": keys_B1CH, "past_value": values_B1CH}
    feeds |= {"lengths": np.full(2, past, np.int32), "total": np.array(past + 1, np.int32), "bias": bias_B11T}
    arguments = [*list(feeds)[:-1], "", "", "", "bias"]
    sizes = {"num_heads": heads, "kv_num_heads": 1}
    nodes = [node("GroupQueryAttention", arguments, ["y", "keys", "values"], _MICROSOFT, sizes)]
    expected = (weights_BN1T @ v_B1TH).reshape(2, 1, heads * size)
    return _canary("GroupQueryAttention", nodes, feeds, {}, expected, _FLOAT_LIMIT)


_MAKERS = (
    _gemm, _integers, _blocks(4), _blocks(8), _gather, _attention, _layer_norm, _rms_norm, _gelu, _quick_gelu,
    _cached_attention,
)  # fmt: skip


def _normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def _quantized(rng: np.random.Generator, bits: int, rows: int, columns: int) -> tuple[Array, Array, Array]:
    """Make weights (rows, columns) in blocks: as they are stored, what they stand for, and their scales."""
    integers = rng.integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    # Two numbers of 4 bits in a byte, the first of them in its lower half.
    stored = integers if bits == 8 else integers[:, ::2] | integers[:, 1::2] << 4
    # Powers of two scale without rounding, so that what is expected is exact.
    scales = np.exp2(rng.integers(-4, 0, (rows, columns // _BLOCK))).astype(np.float32)
    # Without a zero point given, the kernels take the middle of the range.
    weight = (integers.astype(np.float64) - (1 << bits - 1)) * np.repeat(scales, _BLOCK, axis=1)
    return stored, weight, scales


def _canary(
    family: str,
    nodes: list[bytes],
    feeds: Mapping[str, Array],
    constants: Mapping[str, Array],
    expected: Array,
    limit: float,
    *,
    opset: int = _OPSET,
    dtype: str = "float32",
) -> Canary:
    model = onnx_bytes.model(nodes, feeds, {"y": np.empty(expected.shape, dtype)}, constants, opset)
    return Canary(family=family, model=model, feeds=feeds, expected=expected, limit=limit)
