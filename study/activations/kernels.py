"""What an activation becomes: the ops of its exported graph, and the kernels that onnxruntime runs of them."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import torch
from torch import Tensor, nn

from tfm.bundle import scratch_folder
from tfm.errors import VerificationError
from tfm.export import OpGraph, Value, optimize, to_onnx
from tfm.export.verify.verify import CPU
from tfm.model import FeedForward, TransformerConfig
from tfm.ops import is_gated


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernels:
    """The way of an activation from the exporter to the processor.

    Attributes:
        exported: Ops of the exported graph, in its order; one of another domain than ONNX's own as "domain.Op".
        optimized: Ops of the graph that onnxruntime makes of it, as `tfm.runtime` opens it.
        ran: Operator and execution provider of each kernel that then ran, in turn, as onnxruntime's profile tells.
    """

    exported: tuple[str, ...]
    optimized: tuple[str, ...]
    ran: tuple[tuple[str, str], ...]


def width_of_input(name: str, width: int) -> int:
    """How wide the input is where the output is so wide: of a gated activation twice, [V; G]."""
    return 2 * width if is_gated(name) else width


def export_activation(name: str, width: int) -> ir.Model:
    """Export an activation as it stands between the projections of a feed-forward block, and nothing else.

    Args:
        name: Of `tfm.ops.ACTIVATIONS` or `GATED`.
        width: Size F of the hidden layer.

    Returns:
        A graph of x (rows, F), or gated (rows, 2F), to its result (rows, F).
    """
    entering = width_of_input(name, width)
    # The least model whose feed-forward block has this activation and width.
    config = TransformerConfig(
        vocab_size=1, d_model=1, nhead=1, dim_feedforward=width, positions="none", activation=name
    )
    block = FeedForward(config)
    # What is timed is the activation alone: its projections are taken out.
    block.linear1 = nn.Identity()  # type: ignore[assignment]
    block.linear2 = nn.Flatten(0)  # type: ignore[assignment]

    def draw(generator: torch.Generator, batch: int, length: int, past: int) -> list[Tensor]:
        return [torch.randn(batch + length + past, entering, generator=generator)]

    x = Value(name="x", dtype="float32", shape=("rows", entering))
    y = Value(name="y", dtype="float32", shape=("count",))
    model = to_onnx(OpGraph(block, (x,), (y,), draw))
    # passes fuse only what something stands behind; it is no part of the activation
    last = model.graph.outputs[0].producer()
    # Else what is taken off here would be part of the activation.
    if last is None or last.op_type != "Reshape" or last.inputs[0] is None:
        raise VerificationError(f"{name} was exported without the Reshape that was put behind it")
    # … → activation → Reshape becomes … → activation; the Reshape's shape goes with it.
    model.graph.outputs[0] = last.inputs[0]
    common.RemoveUnusedNodesPass()(model)
    return model


def find_kernels(model: ir.Model) -> Kernels:
    """Have onnxruntime optimize and run an activation's graph as `tfm.runtime` would, and see what it ran."""
    (x,) = model.graph.inputs
    assert x.shape is not None
    feeds = {str(x.name): np.zeros((2, int(x.shape[1])), np.float32)}  # type: ignore[arg-type]
    with scratch_folder() as name:
        folder = Path(name)
        ir.save(model, folder / "exported.onnx")
        (folder / "made").mkdir()
        file, ran = optimize(folder / "exported.onnx", "runtime", feeds, folder / "made", [CPU])
        optimized = _ops(ir.load(file))
    # by what ran, not by the nodes' names: those that onnxruntime expands a function into have none in its file
    return Kernels(exported=_ops(model), optimized=optimized, ran=tuple(ran.values()))


def _ops(model: ir.Model) -> tuple[str, ...]:
    return tuple(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in model.graph)
