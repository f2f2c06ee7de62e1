"""Weight-only quantization in blocks: products by `MatMulNBits`, rows of tables by `GatherBlockQuantized`.

A decoder that makes one token at a time reads every weight once per token, so its speed is that of reading them: in
blocks of 8 or 4 bits they are a quarter or a sixth of float32. A table that is both embedding and output head is stored
once, for both kernels read the same layout.

A weight that lies on a grid already, as those of a GGUF file do, is kept exactly.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common

from tfm.errors import QuantizeError

from ..calibration.observe import Observed, joined
from .block_fit import FITTED_BLOCK, fit_blocks
from .block_nodes import StoredBlocks, look_up, multiply, store, stored
from .block_rounding import Bits, Float, round_to_blocks
from .edit import QuantizedWeight, constant_of, is_lookup, refuse_quantized, weight_of
from .grid import GRID_BLOCK, find_grid
from .hessian import Hessian
from .method import Method, Situation, is_share
from .ops import Op
from .outliers import Outliers, outliers_of

Power = npt.NDArray[np.floating]

_LARGEST_BLOCK = 1 << 16
"""Inputs that share a scale: a row is filled up to a whole number of blocks, so that a larger one is all filling."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks(Method):
    """Weights alone, in blocks of their inputs that share a scale (`quantize_to_blocks`).

    Attributes:
        bits: 8 or 4.
        block: Inputs that share a scale.
        calibrated: Whether weights are rounded so that products change least on calibration data (GPTQ, AWQ).
        smoothing: Then each input is divided by its root mean square to this power; 0: not at all.
        outliers: Whether inputs that would spoil their block are multiplied apart, where rounding them is all that is
            lost: the weights lie on a grid that is kept exactly.
        apart: Share of the inputs that is multiplied apart where they lie on none.
        fitted: Whether each block's scale and offset are fitted, errors counting by the power of what they are
            multiplied by (`fit_blocks`): of 4 bits in blocks of 32.
    """

    form: ClassVar = "blocks"
    bits: Bits = 8
    block: int = 64
    calibrated: bool = True
    smoothing: float = 0.5
    outliers: bool = True
    apart: float = 0.0
    fitted: bool = False

    def __str__(self) -> str:
        return ", ".join(
            [f"{self.bits} bits in blocks of {self.block}"]
            + ["calibrated"] * self.calibrated
            + ["fitted"] * self.fitted
            + [f"smooth {self.smoothing:g}"] * (self.calibrated and self.smoothing > 0)
            + [f"{self.apart:.2g} of the inputs apart"] * (self.apart > 0)
        )

    @property
    def needs_moments(self) -> bool:
        """Whether weights are rounded by what is multiplied."""
        return self.calibrated

    def write(self, graph: ir.Graph, op: Op, observed: Mapping[str, Observed], hessian: Hessian | None) -> str:
        """Quantize an op in place; in words it is as asked for, unless the checkpoint's own grid was kept."""
        words, seen = str(self), joined(op, observed)
        for use in op.uses:
            done = quantize_to_blocks(
                graph,
                use.node,
                bits=self.bits,
                block=self.block,
                hessian=hessian if self.calibrated else None,
                smoothing=self.smoothing,
                outliers=(self.apart or None) if self.outliers else 0,
                power=None if seen is None else seen.power_K,
                fitted=self.fitted,
            )
            if done is not None and done.op == "matmul" and "own" in done.method:
                words = done.method
        return words

    @classmethod
    def proposals(cls, op: Op, situation: Situation) -> Sequence[Method]:
        """What decoders read fastest, one row at a time; elsewhere the most exact form, dearer than all others."""
        if situation.precision == "int4":
            return [cls._small(op), cls._exact()]
        if situation.kind == "decoder":
            # Taking inputs apart is four nodes a product and a narrow float32 matrix: of SmolLM2 a quarter of a
            # step's time, for a fifth of the divergence. Where bytes count most it is worth that throughout.
            plain = cls(bits=8, block=32, calibrated=False, outliers=False)
            return [plain, cls._exact()] if situation.objective == "speed" else [cls._exact()]
        return [cls(bits=8, block=32, calibrated=False)] if "matmul" in op.kinds and not situation.quick else ()

    @classmethod
    def fixed(cls, op: Op, situation: Situation) -> Method | None:
        """For decoders, and where 4 bits are asked for; as rounded by itself, which takes neither data nor time."""
        if situation.precision != "int4" and situation.kind != "decoder":
            return None
        return cls._small(op) if situation.precision == "int4" else cls._exact()

    @classmethod
    def _small(cls, op: Op) -> "Blocks":
        """Four bits; eight where rows are looked up, which would lose most, and so would a head tied to them.

        Of SmolLM2, products so fitted have 10 to 13 dB less noise than those of blocks with an integer zero point where
        its weights were moved off their grid a little, and 1 to 6 where nothing is left of it. GPTQ has less on the
        text that it sees, and more on any other.
        """
        if "embedding" in op.kinds:
            return cls(bits=8, block=32, calibrated=False, outliers=False)
        return cls(bits=4, block=32, calibrated=False, outliers=False, fitted=True)

    @classmethod
    def _exact(cls) -> "Blocks":
        """Eight bits, with nothing to calibrate but which inputs are outliers.

        Of SmolLM2 with weights on no grid, products are 42 to 57 dB from float32 by it, rounded to nearest, and 41 to
        54 by blocks of 64 calibrated by GPTQ, which takes minutes: most of the loss is in rounding the inputs.
        """
        return cls(bits=8, block=32, calibrated=False, apart=1 / 16)

    @classmethod
    def fits(cls, name: str, value: Any) -> bool:
        """Whether a field may have a value."""
        if name in ("calibrated", "outliers", "fitted"):
            return isinstance(value, bool)
        if name in ("smoothing", "apart"):
            return is_share(value)
        if name == "bits":
            return type(value) is int and value in (4, 8)
        return type(value) is int and 16 <= value <= _LARGEST_BLOCK and value & (value - 1) == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """How weights are quantized in blocks.

    Attributes:
        bits: 4 or 8.
        block: Inputs (of a table: entries of a row) that share a scale, a power of two from 16 on; None for 64 at
            8 bits, 32 at 4.
        symmetric: Whether blocks have no zero point of their own; None to have one at 4 bits alone.
        search: Whether ranges are clipped where that makes the squared error less; None to do so at 4 bits alone.
        accuracy_level: Of `MatMulNBits`: 4 lets it round activations to int8, 0 and 1 compute in float32.
        hessian: Of the values that are multiplied (`second_moments`): weights of MatMuls whose input is among them are
            rounded so that the products change least on such data; tables that rows are looked up in are smoothed only.
        smoothing: With moments: each input is divided, and its weights are multiplied, by its root mean square to this
            power, so that inputs weigh alike in a block (AWQ, Lin et al. 2024, arXiv:2306.00978, section 3.2); 0 for
            not at all.
        keep_grid: Whether a weight that lies on a grid of blocks of 32 already is kept exactly, in 4 bits if these are
            enough, whatever the other options say of its rounding (`find_grid`).
        outliers: With moments or `power`: share of the inputs that is multiplied apart in float32 (`outliers_of`); None
            for a sixteenth where a grid is kept and `accuracy_level` is 4, so that nothing but rounded inputs is lost,
            else for none.
        power: Mean square of each input (K,), by which outliers are chosen; None: by the moments.
        fitted: Whether scale and offset of each block are fitted, errors counting by `power` (`fit_blocks`), whatever
            is said of zero points, ranges and moments; of 4 bits in blocks of 32 alone.

    Raises:
        QuantizeError: The block size is not one that onnxruntime has, or not one that can be fitted.
    """

    bits: Bits = 8
    block: int | None = None
    symmetric: bool | None = None
    search: bool | None = None
    accuracy_level: int = 4
    hessian: Hessian | None = None
    smoothing: float = 0.5
    keep_grid: bool = True
    outliers: float | None = None
    power: Power | None = None
    fitted: bool = False

    def __post_init__(self) -> None:
        if self.size < 16 or self.size & (self.size - 1):
            raise QuantizeError(
                f"blocks of {self.size} are not possible; choose a power of two from 16 on, such as 32 or 64"
            )
        if self.fitted and (self.bits, self.size) != (4, FITTED_BLOCK):
            raise QuantizeError(
                f"blocks of {self.size} of {self.bits} bits cannot be fitted; choose 4 bits in blocks of {FITTED_BLOCK}"
            )

    @property
    def size(self) -> int:
        """Inputs that share a scale."""
        return self.block or {8: 64, 4: 32}[self.bits]

    @property
    def is_symmetric(self) -> bool:
        """Whether blocks have no zero point."""
        return self.bits == 8 if self.symmetric is None else self.symmetric

    @property
    def searches(self) -> bool:
        """Whether ranges are clipped."""
        return self.bits == 4 if self.search is None else self.search

    def share_apart(self, blocks: StoredBlocks) -> float:
        """Which share of the inputs of stored blocks is multiplied apart."""
        if self.outliers is not None:
            return self.outliers
        return 1 / 16 if blocks.on_grid and self.accuracy_level == 4 else 0


class BlockKeywords(TypedDict, total=False):
    """The fields of `BlockOptions`, as keywords."""

    bits: Bits
    block: int | None
    symmetric: bool | None
    search: bool | None
    accuracy_level: int
    hessian: Hessian | None
    smoothing: float
    keep_grid: bool
    outliers: float | None
    power: Power | None
    fitted: bool


def quantize_blocks(
    model: ir.Model, *, table_bits: Bits | None = None, **options: Unpack[BlockKeywords]
) -> list[QuantizedWeight]:
    """Quantize the weights of a float32 ONNX model in place.

    Args:
        model: MatMuls by a constant (itself or transposed by a node), with or without a constant bias added, and
            Gathers from a constant are quantized. Weights in a file beside the model are read one at a time.
        table_bits: Bits of tables that rows are looked up in, tied output heads included; None for `bits`.
        **options: The fields of `BlockOptions`.

    Returns:
        What was quantized, in the order of the graph.

    Raises:
        QuantizeError: The graph is quantized already, there is nothing to quantize, or a weight is not finite; or the
            block size is not one that onnxruntime has.
    """
    asked = BlockOptions(**options)
    of_tables = asked if table_bits is None else dataclasses.replace(asked, bits=table_bits)
    refuse_quantized(model.graph)
    # Found first: the product by a tied table may come before or after the lookup, and both read
    # the same bits.
    tables = {node.inputs[0] for node in model.graph if is_lookup(node)}
    done = [
        _quantize_node(model.graph, node, of_tables if weight_of(node) in tables else asked)
        for node in list(model.graph)
    ]
    found = [weight for weight in done if weight is not None]
    if not found:
        raise QuantizeError(f"the graph {model.graph.name!r} has no MatMul or Gather by a constant to quantize")
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    return found


def quantize_to_blocks(graph: ir.Graph, node: ir.Node, **options: Unpack[BlockKeywords]) -> QuantizedWeight | None:
    """Quantize the weight of one node in place; what nothing reads any more stays for `RemoveUnusedNodesPass`.

    Args:
        graph: The graph of the node.
        node: A MatMul by a constant, itself or transposed by a node, or a Gather from one.
        **options: The fields of `BlockOptions`.

    Returns:
        What was quantized, or None where the node has no weight worth it.

    Raises:
        QuantizeError: The weight is not finite, or the block size is not one that onnxruntime has.
    """
    return _quantize_node(graph, node, BlockOptions(**options))


def _quantize_node(graph: ir.Graph, node: ir.Node, options: BlockOptions) -> QuantizedWeight | None:
    weight = weight_of(node)
    values = constant_of(weight)
    if weight is None or values is None:
        return None
    shape = tuple(values.shape)
    # Each row of the stored matrix is one output.
    by_rows = is_lookup(node) or node.inputs[1] is not weight
    weight_NK = values if by_rows else values.T
    moments_KK = _moments_of(weight, by_rows, options.hessian or {})
    prefix = f"{weight.name}_rows" if by_rows else str(weight.name)
    name = f"{prefix}_int{options.bits}_{options.size}"
    # First of all the checkpoint's own grid, which loses nothing; then what another node with the
    # same weight has stored already.
    blocks = _on_grid(graph, f"{prefix}_grid", weight_NK, options.bits) if options.keep_grid else None
    blocks = blocks or stored(graph, name)
    if blocks is None:
        # GPTQ moves errors between columns, which rows that are looked up would show as they are.
        is_table = any(is_lookup(user) for user in weight.consumers())
        blocks = _store_rounded(graph, name, weight_NK, moments_KK, is_table, options)
    # Only a product has inputs to take apart.
    apart, share = None, options.share_apart(blocks)
    power_K = moments_KK.diagonal() if options.power is None and moments_KK is not None else options.power
    if share and power_K is not None and not is_lookup(node):
        apart = outliers_of(weight_NK, blocks.factors_K, power_K, blocks.block, round(share * blocks.columns))
    if isinstance(weight.const_value, ir.ExternalTensor):
        # Both are views of the mapped file, which cannot be closed while there are any.
        del values, weight_NK
        # What is mapped of a file beside the model.
        weight.const_value.release()
    if is_lookup(node):
        look_up(graph, node, blocks)
    else:
        multiply(graph, node, blocks, options.accuracy_level, apart)
    graph.opset_imports.setdefault("com.microsoft", 1)
    return QuantizedWeight(
        name=str(weight.name),
        op="embedding" if is_lookup(node) else "matmul",
        shape=shape,
        method=_described(blocks, apart),
        snr_db=blocks.snr_db,
    )


def _store_rounded(
    graph: ir.Graph,
    name: str,
    weight_NK: Float,
    moments_KK: npt.NDArray[np.float64] | None,
    is_table: bool,
    options: BlockOptions,
) -> StoredBlocks:
    """Round a matrix, by the moments of what it is multiplied by where they are known, and store it."""
    if options.fitted:
        return store(graph, name, fit_blocks(weight_NK, options.power), weight_NK.shape[1], 4, FITTED_BLOCK)
    factors_K = None
    if moments_KK is not None and options.smoothing:
        factors_K = _factors(moments_KK, options.smoothing)
        # Inputs come divided by the factors and weights multiplied, so their moments are divided twice.
        moments_KK = moments_KK / np.outer(factors_K, factors_K)
    rounded = round_to_blocks(
        weight_NK,
        bits=options.bits,
        block=options.size,
        symmetric=options.is_symmetric,
        search=options.searches,
        moments_KK=None if is_table else moments_KK,
        factors_K=factors_K,
    )
    return store(graph, name, rounded, weight_NK.shape[1], options.bits, options.size, factors_K)


def _described(blocks: StoredBlocks, apart: Outliers | None) -> str:
    """The method in words."""
    words = f"{blocks.bits} bits in blocks of {blocks.block}"
    if blocks.on_grid:
        words = f"the checkpoint's own {words}"
    return words if apart is None else f"{words}, {len(apart.inputs)} outliers apart"


def _on_grid(graph: ir.Graph, name: str, weight_NK: Float, bits: Bits) -> StoredBlocks | None:
    """Store a matrix that lies on a grid of at most so many bits, if it is not stored yet."""
    known = stored(graph, name)
    if known is not None:
        return known if known.bits <= bits else None
    size, grid = find_grid(weight_NK, bits)
    return None if grid is None else store(graph, name, grid, weight_NK.shape[1], size, GRID_BLOCK, on_grid=True)


def _moments_of(weight: ir.Value, by_rows: bool, hessian: Hessian) -> npt.NDArray[np.float64] | None:
    """Moments of all that a weight is multiplied by, transposed by a node or not; None where any are unknown."""
    held = [node.outputs[0] for node in weight.consumers() if node.op_type == "Transpose"] if by_rows else [weight]
    products = [node for value in held for node in value.consumers() if node.op_type == "MatMul"]
    names = [str(node.inputs[0].name) for node in products if node.inputs[0] is not None]
    if not names or any(name not in hessian for name in names):
        return None
    return sum((hessian[name] for name in names[1:]), hessian[names[0]])


def _factors(moments_KK: npt.NDArray[np.float64], smoothing: float) -> npt.NDArray[np.float32]:
    """Root mean squares to a power, about 1; inputs that are all but always zero are taken for small ones."""
    power_K = np.maximum(moments_KK.diagonal(), 1e-8 * moments_KK.diagonal().max())
    logarithm_K = smoothing / 2 * np.log(np.where(power_K > 0, power_K, 1))
    return np.exp(logarithm_K - logarithm_K.mean()).astype(np.float32)
