"""Nodes of weights in blocks: products by `MatMulNBits`, rows of tables by `GatherBlockQuantized`.

Weights are stored as a matrix, reshaped for `MatMulNBits`, and scales in float16 where that represents them, cast to
float32. onnxruntime folds both when it optimizes. Where it does not, the Reshape is what keeps the product right:
given a constant weight beside scales that are no constants, onnxruntime 1.32's kernel for `accuracy_level` 4 packs the
weight without its scales, and returns zeros.

What the kernel cannot multiply by, remainders and outliers, is multiplied in one narrow float32 product beside it.

Shapes: N outputs, K inputs, b blocks, o outliers.
"""

import dataclasses

import numpy as np
import onnx_ir as ir

from .block_rounding import Bits, Blocks, Float
from .edit import bias_of, initializer, replace
from .outliers import Outliers

_STORED = "tfm.blocks"
"""Key of what is known of a packed matrix, for the next node that reads it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredBlocks:
    """A packed matrix among a graph's initializers.

    Attributes:
        name: Of the packed values; what goes with them has this name and _scale, _zero, _remainder, _unit or
            _inverse_factors after it.
        rows: N.
        columns: K.
        bits: Of each value.
        block: Columns that share a scale.
        snr_db: Signal-to-noise ratio of what was rounded, in dB.
        factors_K: What the columns were multiplied by before they were rounded, if by anything.
        on_grid: Whether the matrix was so before.
    """

    name: str
    rows: int
    columns: int
    bits: Bits
    block: int
    snr_db: float
    factors_K: Float | None
    on_grid: bool


def store(
    graph: ir.Graph,
    name: str,
    blocks: Blocks,
    columns: int,
    bits: Bits,
    block: int,
    factors_K: Float | None = None,
    *,
    on_grid: bool = False,
) -> StoredBlocks:
    """Make a packed matrix of K columns initializers of the graph; see `StoredBlocks`."""
    known = StoredBlocks(
        name=name,
        rows=len(blocks.packed),
        columns=columns,
        bits=bits,
        block=block,
        snr_db=blocks.snr_db,
        factors_K=factors_K,
        on_grid=on_grid,
    )
    # `meta` is of the value in memory alone, and never written to the file.
    initializer(graph, name, blocks.packed).meta[_STORED] = known
    for key, array in (
        ("scale", blocks.scale),
        ("zero", blocks.zero),
        ("remainder", blocks.remainder),
        ("unit", blocks.unit),
        ("inverse_factors", None if factors_K is None else 1 / factors_K),
    ):
        if array is not None:
            initializer(graph, f"{name}_{key}", array)
    return known


def stored(graph: ir.Graph, name: str) -> StoredBlocks | None:
    """Give what `store` stored under a name, if it did."""
    value = graph.initializers.get(name)
    known = None if value is None else value.meta.get(_STORED)
    return known if isinstance(known, StoredBlocks) else None


def multiply(
    graph: ir.Graph, node: ir.Node, weight: StoredBlocks, accuracy_level: int, outliers: Outliers | None = None
) -> None:
    """Replace a MatMul, and the Add of a bias after it, by nodes that multiply by the blocks.

    Args:
        graph: The graph.
        node: The MatMul.
        weight: What it multiplies by.
        accuracy_level: Of `MatMulNBits`.
        outliers: Inputs that it multiplies in float32.
    """
    # Before: MatMul → Add(bias)
    # After:  Mul(1 / factors) → MatMulNBits(with bias) → Add(narrow MatMul of outliers, remainders)
    name, blocks = weight.name, -(-weight.columns // weight.block)
    nodes, x = _smooth(graph, name, node.inputs[0])
    # (N, b · block · bits / 8) → (N, b, block · bits / 8), as the kernel has it.
    shape = [weight.rows, blocks, weight.block * weight.bits // 8]
    reshape = ir.node("Reshape", [graph.initializers[name], _integers(graph, f"{name}_shape", shape)])
    scaled, scale = _scale(graph, name)
    nodes += [reshape, *scaled]
    # Values [..., o] that are multiplied in float32.
    beside: list[ir.Value] = []
    # And their weights [o, N].
    factors: list[ir.Value] = []
    if outliers is not None:
        key = f"{name}_{len(outliers.inputs)}_outliers"
        # The kernel gets 0 in place of the outliers: a block is rounded by the largest that is
        # left.
        kept_K = np.ones(weight.columns, np.float32)
        kept_K[outliers.inputs] = 0
        chosen = ir.node("Gather", [x, _integers(graph, f"{key}_inputs", outliers.inputs)], {"axis": -1})
        kept = ir.node("Mul", [x, initializer(graph, f"{key}_others", kept_K)])
        cast, weight_oN = _float32(initializer(graph, key, outliers.weight_oN))
        nodes, x = [*nodes, chosen, kept, *cast], kept.outputs[0]
        beside.append(chosen.outputs[0])
        factors.append(weight_oN)
    held, remainder_Nb = _remainder(graph, name, scale)
    if remainder_Nb is not None:
        # A remainder is the same for a whole block, so it is multiplied by the sum of the block's
        # inputs: (…, K) · (K, b) gives the sums, and the remainders turned to (b, N) come below.
        cast, ones_Kb = _block_ones(graph, weight)
        sums = ir.node("MatMul", [x, ones_Kb])
        turn = ir.node("Transpose", [remainder_Nb], {"perm": [1, 0]})
        nodes += [*held, *cast, sums, turn]
        beside.append(sums.outputs[0])
        factors.append(turn.outputs[0])
    last, bias = node, bias_of(node, weight.rows)
    # By place: A, B, scales, zero points, g_idx, bias. What is absent at the end is left out.
    inputs = [x, reshape.outputs[0], scale, graph.initializers.get(f"{name}_zero"), None, None]
    if bias is not None:
        last, inputs[5] = bias
    while inputs[-1] is None:
        inputs.pop()
    sizes = {"K": weight.columns, "N": weight.rows, "bits": weight.bits, "block_size": weight.block}
    product = ir.node(
        "MatMulNBits", inputs, {**sizes, "accuracy_level": accuracy_level}, domain="com.microsoft", name=last.name
    )
    nodes.append(product)
    # One product of (…, b + o) by (b + o, N) for both.
    if len(beside) > 1:
        joined = [ir.node("Concat", beside, {"axis": -1}), ir.node("Concat", factors, {"axis": 0})]
        nodes += joined
        beside, factors = ([node.outputs[0]] for node in joined)
    if beside:
        narrow = ir.node("MatMul", [*beside, *factors])
        nodes += [narrow, ir.node("Add", [product.outputs[0], narrow.outputs[0]])]
    replace(graph, last, nodes)


def look_up(graph: ir.Graph, node: ir.Node, table: StoredBlocks) -> None:
    """Replace a Gather by nodes that look rows up in the blocks."""
    # Before: Gather
    # After:  GatherBlockQuantized → Slice(filling off) → Add(remainders) → Mul(1 / factors)
    # What a table does not need of these is left out.
    name = table.name
    nodes, scale = _scale(graph, name)
    zero = graph.initializers.get(f"{name}_zero")
    inputs = [graph.initializers[name], node.inputs[1], scale, *([zero] if zero is not None else [])]
    sizes = {"bits": table.bits, "block_size": table.block, "gather_axis": 0, "quantize_axis": 1}
    nodes.append(ir.node("GatherBlockQuantized", inputs, sizes, domain="com.microsoft", name=node.name))
    # The last block of a row is filled up.
    if table.columns % table.block:
        limits = {"start": 0, "end": table.columns, "axis": -1}
        bounds = [_integers(graph, f"{name}_{key}", [number]) for key, number in limits.items()]
        nodes.append(ir.node("Slice", [nodes[-1].outputs[0], *bounds]))
    rows = nodes[-1].outputs[0]
    held, remainder_Nb = _remainder(graph, name, scale)
    if remainder_Nb is not None:
        cast, ones_Kb = _block_ones(graph, table)
        # (…, b) · (b, K): each block's remainder, spread over the columns of the block.
        of_rows = ir.node("Gather", [remainder_Nb, node.inputs[1]], {"axis": 0})
        turn = ir.node("Transpose", [ones_Kb], {"perm": [1, 0]})
        spread = ir.node("MatMul", [of_rows.outputs[0], turn.outputs[0]])
        nodes += [*held, *cast, of_rows, turn, spread, ir.node("Add", [rows, spread.outputs[0]])]
    # A table that is tied to a product was smoothed for its inputs; whole rows come out so too.
    undo, _ = _smooth(graph, name, nodes[-1].outputs[0])
    replace(graph, node, [*nodes, *undo])


def _smooth(graph: ir.Graph, name: str, x: ir.Value | None) -> tuple[list[ir.Node], ir.Value | None]:
    """What undoes the factors of a packed matrix's columns, if there are any: the node, and its result."""
    inverse = graph.initializers.get(f"{name}_inverse_factors")
    if inverse is None:
        return [], x
    node = ir.node("Mul", [x, inverse])
    return [node], node.outputs[0]


def _scale(graph: ir.Graph, name: str) -> tuple[list[ir.Node], ir.Value]:
    """The scales [N, b] of a packed matrix in float32, and the nodes that make them so."""
    nodes, scale = _float32(graph.initializers[f"{name}_scale"])
    if f"{name}_unit" not in graph.initializers:
        return nodes, scale
    cast, unit = _float32(graph.initializers[f"{name}_unit"])
    times = ir.node("Mul", [scale, unit])
    return [*nodes, *cast, times], times.outputs[0]


def _remainder(graph: ir.Graph, name: str, scale: ir.Value) -> tuple[list[ir.Node], ir.Value | None]:
    """The remainders [N, b] of a packed matrix in float32, if it has any, and the nodes that make them so."""
    if f"{name}_remainder" not in graph.initializers:
        return [], None
    nodes, remainder = _float32(graph.initializers[f"{name}_remainder"])
    if f"{name}_unit" not in graph.initializers:
        return nodes, remainder
    sixteenth = initializer(graph, "tfm.sixteenth", np.array(1 / 16, np.float32))
    steps = ir.node("Mul", [scale, sixteenth])
    times = ir.node("Mul", [remainder, steps.outputs[0]])
    return [*nodes, steps, times], times.outputs[0]


def _float32(value: ir.Value) -> tuple[list[ir.Node], ir.Value]:
    """An initializer in float32, and the node that makes it so, one per use: each op's nodes are its own."""
    if value.dtype == ir.DataType.FLOAT:
        return [], value
    cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
    return [cast], cast.outputs[0]


def _block_ones(graph: ir.Graph, weight: StoredBlocks) -> tuple[list[ir.Node], ir.Value]:
    """Zeros and ones [K, b]: what to multiply inputs by for the sum of each block. Products of one K share them."""
    # Stored as uint8 and cast where it is used: a quarter of the bytes.
    ones_bb = np.eye(-(-weight.columns // weight.block), dtype=np.uint8)
    ones_Kb = np.repeat(ones_bb, weight.block, axis=0)[: weight.columns]
    return _float32(initializer(graph, f"tfm.block_ones_{weight.columns}_{weight.block}", ones_Kb))


def _integers(graph: ir.Graph, name: str, values: list[int]) -> ir.Value:
    return initializer(graph, name, np.array(values, np.int64))
