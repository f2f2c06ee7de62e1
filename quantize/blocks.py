"""Weight-only quantisation in blocks: products by `MatMulNBits`, rows of tables by `GatherBlockQuantized`.

A decoder that makes one token at a time reads every weight once per token, so its speed is that of reading them: in
blocks of 8 or 4 bits they are a quarter or a sixth of float32. A table that is both embedding and output head is stored
once, for both kernels read the same layout.

Weights are stored as a matrix, reshaped for `MatMulNBits`, and scales in float16 where that represents them, cast to
float32. onnxruntime folds both when it optimises. Where it does not, the Reshape is what keeps the product right:
given a constant weight beside scales that are no constants, onnxruntime 1.32's kernel for `accuracy_level` 4 packs the
weight without its scales, and returns zeros.
"""

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common

from tfm.errors import QuantizeError

from .block_rounding import Bits, round_to_blocks
from .edit import (
    QuantizedWeight,
    bias_of,
    constant_of,
    initializer,
    is_lookup,
    refuse_quantised,
    replace,
    weight_of,
)
from .moments import Moments

_SNR = "tfm.snr_db"
"""Key of a packed weight's signal-to-noise ratio, for the next node that reads it."""


def quantize_blocks(
    model: ir.Model,
    *,
    bits: Bits = 8,
    block: int | None = None,
    table_bits: Bits | None = None,
    symmetric: bool | None = None,
    search: bool | None = None,
    accuracy_level: int = 4,
    moments: Moments | None = None,
    smoothing: float = 0.5,
) -> list[QuantizedWeight]:
    """Quantise the weights of a float32 ONNX model in place.

    Args:
        model: MatMuls by a constant (itself or transposed by a node), with or without a constant bias added, and
            Gathers from a constant are quantised. Weights in a file beside the model are read one at a time.
        bits: 4 or 8.
        block: Inputs that share a scale: 16, 32, 64, …; None for 64 at 8 bits, 32 at 4.
        table_bits: Bits of tables that rows are looked up in, tied output heads included; None for `bits`.
        symmetric: See `quantize_to_blocks`.
        search: See `quantize_to_blocks`.
        accuracy_level: See `quantize_to_blocks`.
        moments: See `quantize_to_blocks`.
        smoothing: See `quantize_to_blocks`.

    Returns:
        What was quantised, in the order of the graph.

    Raises:
        QuantizeError: The graph is quantised already, there is nothing to quantise, or a weight is not finite.
    """
    refuse_quantised(model.graph)
    tables = {node.inputs[0] for node in model.graph if is_lookup(node)}
    done = []
    for node in list(model.graph):
        size = table_bits if table_bits is not None and weight_of(node) in tables else bits
        done.append(
            quantize_to_blocks(
                model.graph,
                node,
                bits=size,
                block=block,
                symmetric=symmetric,
                search=search,
                accuracy_level=accuracy_level,
                moments=moments,
                smoothing=smoothing,
            )
        )
    found = [weight for weight in done if weight is not None]
    if not found:
        raise QuantizeError(f"the graph {model.graph.name!r} has no MatMul or Gather by a constant to quantise")
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    return found


def quantize_to_blocks(
    graph: ir.Graph,
    node: ir.Node,
    *,
    bits: Bits = 8,
    block: int | None = None,
    symmetric: bool | None = None,
    search: bool | None = None,
    accuracy_level: int = 4,
    moments: Moments | None = None,
    smoothing: float = 0.5,
) -> QuantizedWeight | None:
    """Quantise the weight of one node in place; what nothing reads any more stays for `RemoveUnusedNodesPass`.

    Args:
        graph: The graph of the node.
        node: A MatMul by a constant, itself or transposed by a node, or a Gather from one.
        bits: 4 or 8.
        block: Inputs (of a table: entries of a row) that share a scale, a power of two from 16 on; None for the default
            of `quantize_blocks`.
        symmetric: Whether blocks have no zero point of their own; None to have one at 4 bits alone.
        search: Whether ranges are clipped where that makes the squared error less; None to do so at 4 bits alone.
        accuracy_level: Of `MatMulNBits`: 4 lets it round activations to int8, 0 and 1 compute in float32.
        moments: Of the values that are multiplied (`second_moments`): weights of MatMuls whose input is among them are
            rounded so that the products change least on such data; tables that rows are looked up in are smoothed only.
        smoothing: With moments: each input is divided, and its weights are multiplied, by its root mean square to this
            power, so that inputs weigh alike in a block (AWQ, Lin et al. 2024, arXiv:2306.00978, section 3.2); 0 for
            not at all.

    Returns:
        What was quantised, or None where the node has no weight worth it.

    Raises:
        QuantizeError: The weight is not finite, or the block size is not one that onnxruntime has.
    """
    block = block or {8: 64, 4: 32}[bits]
    if block < 16 or block & (block - 1):
        raise QuantizeError(f"blocks of {block} are not possible; choose a power of two from 16 on, such as 32 or 64")
    weight = weight_of(node)
    values = constant_of(weight)
    if weight is None or values is None:
        return None
    by_rows = is_lookup(node) or node.inputs[1] is not weight  # each row of the stored matrix is one output
    rows, columns = values.shape if by_rows else values.shape[::-1]
    name = f"{weight.name}_{'rows_' if by_rows else ''}int{bits}_{block}"
    if name not in graph.initializers:
        moments_KK = _moments_of(weight, by_rows, moments or {})
        factors_K = None if moments_KK is None or not smoothing else _factors(moments_KK, smoothing)
        if moments_KK is not None and factors_K is not None:
            moments_KK = moments_KK / np.outer(factors_K, factors_K)
            initializer(graph, f"{name}_inverse_factors", 1 / factors_K)
        rounded = round_to_blocks(
            values if by_rows else values.T,
            bits=bits,
            block=block,
            symmetric=bits == 8 if symmetric is None else symmetric,
            search=bits == 4 if search is None else search,
            moments_KK=None if any(is_lookup(user) for user in weight.consumers()) else moments_KK,
            factors_K=factors_K,
        )
        initializer(graph, name, rounded.packed).meta[_SNR] = rounded.snr_db
        initializer(graph, f"{name}_scale", rounded.scale)
        if rounded.zero is not None:
            initializer(graph, f"{name}_zero", rounded.zero)
    size = tuple(values.shape)
    if isinstance(weight.const_value, ir.ExternalTensor):
        del values
        weight.const_value.release()  # what is mapped of a file beside the model
    if is_lookup(node):
        _look_up(graph, node, name, columns, bits, block)
    else:
        _multiply(graph, node, name, (rows, columns), bits, block, accuracy_level)
    graph.opset_imports.setdefault("com.microsoft", 1)
    return QuantizedWeight(
        name=str(weight.name),
        op="embedding" if is_lookup(node) else "matmul",
        shape=size,
        method=f"{bits} bits in blocks of {block}",
        snr_db=graph.initializers[name].meta[_SNR],
    )


def _moments_of(weight: ir.Value, by_rows: bool, moments: Moments) -> npt.NDArray[np.float64] | None:
    """Moments of all that a weight is multiplied by, transposed by a node or not; None where any are unknown."""
    held = [node.outputs[0] for node in weight.consumers() if node.op_type == "Transpose"] if by_rows else [weight]
    products = [node for value in held for node in value.consumers() if node.op_type == "MatMul"]
    found = [moments.get(str(node.inputs[0].name)) for node in products if node.inputs[0] is not None]
    known = [array for array in found if array is not None]
    return sum(known[1:], known[0]) if known and len(known) == len(found) else None


def _factors(moments_KK: npt.NDArray[np.float64], smoothing: float) -> npt.NDArray[np.float32]:
    """Root mean squares to a power, about 1; inputs that are all but always zero are taken for small ones."""
    power_K = np.maximum(moments_KK.diagonal(), 1e-8 * moments_KK.diagonal().max())
    logarithm_K = smoothing / 2 * np.log(np.where(power_K > 0, power_K, 1))
    return np.exp(logarithm_K - logarithm_K.mean()).astype(np.float32)


def _multiply(
    graph: ir.Graph, node: ir.Node, name: str, shape: tuple[int, int], bits: Bits, block: int, accuracy_level: int
) -> None:
    (rows, columns), packed = shape, graph.initializers[name]
    blocks = -(-columns // block)
    stored = initializer(
        graph, f"{name}_shape", ir.tensor([rows, blocks, block * bits // 8], ir.DataType.INT64).numpy()
    )
    reshape = ir.node("Reshape", [packed, stored])
    cast, scale = _scale(graph, name)
    last, bias = node, bias_of(node, rows)
    zero = graph.initializers.get(f"{name}_zero")
    inverse = graph.initializers.get(f"{name}_inverse_factors")
    smooth = [] if inverse is None else [ir.node("Mul", [node.inputs[0], inverse])]
    x = smooth[0].outputs[0] if smooth else node.inputs[0]
    inputs = [x, reshape.outputs[0], scale, zero, None, None]
    if bias is not None:
        last, inputs[5] = bias
    while inputs[-1] is None:
        inputs.pop()
    sizes = {"K": columns, "N": rows, "bits": bits, "block_size": block, "accuracy_level": accuracy_level}
    product = ir.node("MatMulNBits", inputs, sizes, domain="com.microsoft", name=last.name)
    replace(graph, last, [*smooth, reshape, *cast, product])


def _look_up(graph: ir.Graph, node: ir.Node, name: str, columns: int, bits: Bits, block: int) -> None:
    cast, scale = _scale(graph, name)
    zero = graph.initializers.get(f"{name}_zero")
    inputs = [graph.initializers[name], node.inputs[1], scale, *([zero] if zero is not None else [])]
    sizes = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    rows = ir.node("GatherBlockQuantized", inputs, sizes, domain="com.microsoft", name=node.name)
    nodes = [*cast, rows]
    if columns % block:  # the last block of a row is filled up
        limits = [
            initializer(graph, f"{name}_{key}", ir.tensor([value], ir.DataType.INT64).numpy())
            for key, value in (("start", 0), ("end", columns), ("axis", -1))
        ]
        nodes.append(ir.node("Slice", [rows.outputs[0], *limits]))
    inverse = graph.initializers.get(f"{name}_inverse_factors")
    if inverse is not None:
        nodes.append(ir.node("Mul", [nodes[-1].outputs[0], inverse]))
    replace(graph, node, nodes)


def _scale(graph: ir.Graph, name: str) -> tuple[list[ir.Node], ir.Value]:
    """The scales in float32, and the node that makes them so, one per use: each op's nodes are its own."""
    scale = graph.initializers[f"{name}_scale"]
    if scale.dtype == ir.DataType.FLOAT:
        return [], scale
    cast = ir.node("Cast", [scale], {"to": ir.DataType.FLOAT})
    return [cast], cast.outputs[0]
