"""What an x86 processor without VNNI makes of u8·s8 products: emulated exactly, so that any machine can prove it.

onnxruntime's AVX2 and AVX-512BW kernels (`QgemmU8X8KernelAvx2.S`, `QgemmU8X8KernelAvx512Core.S`; `QgemvU8S8Kernel….S`
for one row) multiply by `vpmaddubsw`, which adds the products of two neighbors along K, 2k and 2k + 1, and *saturates*
the sum to int16; `vpmaddwd` by ones and `vpaddd` then add those sums up in int32, exactly. Activations go in as they
are, 0 … 255: their zero point is taken off afterwards, by the sums of the weights' columns, exactly too. With VNNI
`vpdpbusd` adds four products up in int32 at once, and nothing saturates.

A pair of weights can saturate only where both have one sign and together exceed 128: 255 · 129 > 32767. Where none
exceeds `SAFE_LIMIT`, none can.

ARM does not saturate: `udot` and, with i8mm, `ummla` add four and eight products up in int32, and older cores do so one
by one, `umlal` (`QgemmU8X8KernelUdot.S`, `…Ummla.S`, `…Neon.S`; the sign bit of the weights is flipped, and corrected
for afterwards). With SME2 `DynamicQuantizeMatMul` runs in KleidiAI instead (`qgemm_kleidiai.cpp`), with one scale per
row of activations: no saturation there either, but other, finer roundings. All names are of onnxruntime/core/mlas/lib.

Shapes: R rows, K inputs, N outputs, J pairs that may saturate.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfm.bundle import scratch_folder, weights_file
from tfm.errors import QuantizeError
from tfm.runtime import count_threads, open_session

Array = npt.NDArray[Any]

SAFE_LIMIT = 64
"""Weights in [-64, 64] cannot saturate: 2 · 255 · 64 = 32640 ≤ 32767."""

_DYNAMIC, _STATIC, _STANDARD = "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger"
SATURATING = (_DYNAMIC, _STATIC, _STANDARD)
"""Ops whose products saturate where there is no VNNI."""

_LOW, _HIGH = -(1 << 15), (1 << 15) - 1
_CHUNK = 1 << 22
"""Numbers in memory at a time, in each of a handful of arrays."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaturationReport:
    """What saturation does to one op.

    Attributes:
        weight: Name of its weights.
        columns: Number of its outputs, N.
        columns_at_risk: Those with a pair of weights that some activations would saturate; with none it is safe, on
            any data.
        pairs: Sums of two products that were computed; 0 where nothing had to be.
        saturated: Those of them that saturated.
        nmse: What that adds to the op's output, Σ(change)² / Σ(output without bias)².
    """

    weight: str
    columns: int
    columns_at_risk: int
    pairs: int
    saturated: int
    nmse: float


def saturating_matmul(a_u8: npt.NDArray[np.uint8], b_s8: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
    """Multiply as x86 without VNNI does.

    Args:
        a_u8: Activations, uint8 (R, K).
        b_s8: Weights, int8 (K, N).

    Returns:
        The product, int32 (R, N), where every sum of the products 2k and 2k + 1 is cut to [-32768, 32767].
    """
    # Few pairs of weights can saturate: the exact product is fast, and only what they change is
    # computed pair by pair.
    product_RN = _exact(a_u8, b_s8)
    for rows, change, _ in _changes(a_u8, b_s8, _pairs_at_risk(b_s8)):
        product_RN[rows] += change
    return product_RN.astype(np.int32)


def saturation(model: ir.Model, batches: Iterable[Mapping[str, Array]]) -> dict[str, SaturationReport]:
    """Find out what saturation would do to each product in int8, given the activations that it really gets.

    Those are `DynamicQuantizeMatMul` and, of static int8, `MatMulIntegerToFloat`; in ONNX's own operators
    `MatMulInteger`, as `LowerIntegerProducts` writes it.

    Each op is looked at by itself: its input is as this machine computes it, not what saturation earlier in the graph
    would leave of it.

    Args:
        model: A quantized graph; it is not changed.
        batches: Inputs by name.

    Returns:
        By the node's name, in the order of the graph (its output's name, where it has none).

    Raises:
        QuantizeError: An op's weights, or the zero point of its static activations, are no constant of the type they
            should be; or it lies within a branch or a loop; or some op may saturate and there are no inputs to tell.
        BundleError: onnxruntime cannot load the graph.
    """
    ops = [_Op(node) for node in _products(model)]
    # Where no pair of weights can saturate the op is safe on any data, and nothing has to run.
    watched = {op.inputs: op for op in ops if op.at_risk.size}
    if watched:
        with scratch_folder() as folder:
            path = Path(folder) / "model.onnx"
            _save_quantized_inputs(model, list(watched), path)
            session = open_session(path, "cpu", count_threads(None))
            ran = False
            for feeds in batches:
                ran = True
                # Values, scale and zero point of one input after the other, in the order of
                # `watched`.
                results = iter(session.run(None, dict(feeds)))
                quantized = dict(zip(watched, zip(results, results, results, strict=True), strict=True))
                for op in ops:
                    if op.at_risk.size:
                        op.add(*quantized[op.inputs])
            if not ran:
                raise QuantizeError(f"{watched.popitem()[1].name!r} may saturate, and there are no inputs to tell by")
    return {op.name: op.report() for op in ops}


class _Op:
    """One product, and what was found of it."""

    def __init__(self, node: ir.Node) -> None:
        # x, weight, their scale; or quantized x, weight, both scales, zero point of x
        x, weight, *others = _arguments(node)
        static = len(others) > 1
        # A bool as an index: a static op has the scale of x before that of the weights.
        output, scale = node.outputs[0].name, others[static]
        self.name, self.weight = node.name or str(output), str(weight.name if weight else None)
        values, scales = _constant(weight), _constant(scale)
        if values is None or scales is None:
            raise QuantizeError(f"the weights of {self.name!r} are no constant; what they do cannot be foretold")
        watched = [x]
        if static:
            zero = others[2]
            if zero is None or zero.const_value is None or zero.const_value.dtype != ir.DataType.UINT8:
                raise QuantizeError(f"the activations of {self.name!r} have no constant zero point of uint8")
            watched += [others[0], zero]
        self.inputs = tuple(str(value.name) for value in watched if value is not None)
        self._columns = values.shape[1]
        # u8 by u8 is computed in another way, which does not saturate
        signed = values.dtype == np.int8
        self._values_KN, self._scale_N = values, np.broadcast_to(scales.astype(np.float64), values.shape[1])
        self.at_risk = _pairs_at_risk(values) if signed else np.empty((2, 0), np.intp)
        self._pairs = self._saturated = 0
        self._noise = self._signal = 0.0

    def add(self, quantized: npt.NDArray[np.uint8], scale: Array, zero_point: Array) -> None:
        """Count on one batch of activations, uint8 (…, K)."""
        values_KN = self._values_KN
        a_RK = quantized.reshape(-1, len(values_KN))
        self._pairs += len(a_RK) * ((len(values_KN) + 1) // 2) * self._columns
        step_N = float(scale) * self._scale_N
        # (N,): what the zero point adds to each row; it is taken off exactly.
        correction_N = int(zero_point) * values_KN.sum(0, dtype=np.int64)
        for rows in _slices(len(a_RK), self._columns):
            output = (_exact(a_RK[rows], values_KN) - correction_N) * step_N
            self._signal += float(np.square(output).sum())
        for _, change, saturated in _changes(a_RK, values_KN, self.at_risk):
            self._noise += float(np.square(change * step_N).sum())
            self._saturated += saturated

    def report(self) -> SaturationReport:
        nmse = self._noise / self._signal if self._signal else float("inf") if self._noise else 0.0
        return SaturationReport(
            weight=self.weight,
            columns=self._columns,
            columns_at_risk=len(np.unique(self.at_risk[0])),
            pairs=self._pairs,
            saturated=self._saturated,
            nmse=nmse,
        )


def _arguments(node: ir.Node) -> list[ir.Value | None]:
    """Those of `DynamicQuantizeMatMul`, of which three count, or the first five of `MatMulIntegerToFloat`."""
    if node.op_type == _DYNAMIC:
        return list(node.inputs[:3])
    if node.op_type == _STATIC:
        return [*node.inputs, None, None][:5]
    x, weight, *zero = node.inputs
    rounding, exact = _producer(x), _reader(node)
    product = None if exact is None else _reader(exact)
    scaling = None if product is None else _producer(product.inputs[1])
    if rounding is None or scaling is None or scaling.op_type != "Mul":
        raise QuantizeError(f"{node.name!r} is no product of integers as it is written here")
    if rounding.op_type == "DynamicQuantizeLinear":
        return [rounding.inputs[0], weight, scaling.inputs[1]]
    return [x, weight, *scaling.inputs, *zero]


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _reader(node: ir.Node) -> ir.Node | None:
    return next(iter(node.outputs[0].consumers()), None)


def _constant(value: ir.Value | None) -> Array | None:
    """A constant's content; that of a tied table is transposed, and its scales are flattened, by a node."""
    if value is None or value.const_value is not None:
        return None if value is None or value.const_value is None else value.const_value.numpy()
    node = value.producer()
    if node is None or node.op_type not in ("Transpose", "Reshape"):
        return None
    held = _constant(node.inputs[0])
    return held if held is None else held.T if node.op_type == "Transpose" else held.ravel()


def _products(model: ir.Model) -> Iterator[ir.Node]:
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type in SATURATING:
            if node.graph is not model.graph:
                raise QuantizeError(f"{node.name!r} lies within a branch or a loop, where its input cannot be seen")
            yield node


def _save_quantized_inputs(model: ir.Model, inputs: list[tuple[str, ...]], path: Path) -> None:
    """Write a copy of a model whose outputs are, per op: its quantized activations, their scale and zero point."""
    copy = model.clone()
    graph = copy.graph
    produced = [value for node in graph for value in node.outputs]
    values = {value.name: value for value in (*graph.inputs, *graph.initializers.values(), *produced)}
    # `saturation` asks for all outputs and takes them by threes, so there may be no others.
    graph.outputs.clear()
    for index, names in enumerate(inputs):
        outputs = [ir.Value(name=f"watched_{index}_{part}") for part in ("values", "scale", "zero_point")]
        dtypes = (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8)
        for value, dtype in zip(outputs, dtypes, strict=True):
            value.type = ir.TensorType(dtype)
        if len(names) == 1:
            graph.append(ir.Node("", "DynamicQuantizeLinear", [values[names[0]]], outputs=outputs))
        else:
            # Several ops may share a scale: behind an Identity each has an output of its own.
            graph.extend(ir.Node("", "Identity", [values[n]], outputs=[o]) for n, o in zip(names, outputs, strict=True))
        graph.outputs.extend(outputs)
    ir.save(copy, path, external_data=weights_file(path.name))


def _exact(a_RK: Array, b_KN: Array) -> npt.NDArray[np.int64]:
    # float64 is exact here, up to 2⁵³ / (255 · 128) inputs, and has a fast product
    return (a_RK.astype(np.float64) @ b_KN.astype(np.float64)).astype(np.int64)


def _pairs_at_risk(b_KN: Array) -> npt.NDArray[np.intp]:
    """Column and number k of each pair of weights that activations of 255 saturate, (2, J), column by column."""
    # A last one by itself cannot: 255 · 128 = 32640.
    pairs = len(b_KN) // 2
    # Transposed below, so that `nonzero` lists the pairs column by column: `_changes` adds up what
    # lies side by side.
    columns: list[Array] = []
    for part in _slices(b_KN.shape[1], len(b_KN)):
        even_NJ, odd_NJ = (b_KN[first : 2 * pairs : 2, part].T.astype(np.int32) for first in (0, 1))
        # At worst an activation is 255 where its weight has the sum's sign, and 0 where it has not.
        high = np.maximum(even_NJ, 0) + np.maximum(odd_NJ, 0)
        low = np.minimum(even_NJ, 0) + np.minimum(odd_NJ, 0)
        found = np.stack(np.nonzero((255 * high > _HIGH) | (255 * low < _LOW)))
        found[0] += part.start
        columns.append(found)
    return np.concatenate(columns, axis=1) if columns else np.empty((2, 0), np.intp)


def _changes(
    a_RK: Array, b_KN: Array, at_risk_2J: npt.NDArray[np.intp]
) -> Iterator[tuple[slice, npt.NDArray[np.int64], int]]:
    """By how much saturation changes the product.

    Yields:
        Some rows; what is to be added to their product, (rows, N); how many sums saturated.
    """
    if not len(a_RK) or not at_risk_2J.size:
        return
    columns, pairs = at_risk_2J
    even_J, odd_J = (b_KN[2 * pairs + odd, columns].astype(np.int32) for odd in (0, 1))
    # most pairs would need activations that this data does not have
    most_K = a_RK.max(0).astype(np.int32)
    # One sign: no cancelling.
    extreme_J = most_K[2 * pairs] * np.abs(even_J) + most_K[2 * pairs + 1] * np.abs(odd_J)
    reached = extreme_J > _HIGH
    columns, pairs, even_J, odd_J = columns[reached], pairs[reached], even_J[reached], odd_J[reached]
    if not columns.size:
        return
    size = b_KN.shape[1]
    for rows in _slices(len(a_RK), size):
        a = a_RK[rows].astype(np.int32)
        change, saturated = np.zeros((len(a), size), np.int64), 0
        for some in _slices(len(columns), len(a)):
            k = 2 * pairs[some]
            # Of each pair what the kernel would hold without saturation, and what is cut off.
            # (rows, J).
            sums = a[:, k] * even_J[some] + a[:, k + 1] * odd_J[some]
            cut = sums.clip(_LOW, _HIGH) - sums
            saturated += int(np.count_nonzero(cut))
            # `reduceat` adds the cuts of each column up, (rows, J) → (rows, len(where)). `+=`,
            # since a column's pairs may lie in two slices.
            where, first = np.unique(columns[some], return_index=True)
            change[:, where] += np.add.reduceat(cut, first, axis=1)
        yield rows, change, saturated


def _slices(count: int, width: int) -> Iterator[slice]:
    """Cut `count` things of `width` numbers each into parts of about `_CHUNK` numbers."""
    step = max(1, _CHUNK // max(width, 1))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
