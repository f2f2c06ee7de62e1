"""From a graph's eager module to ONNX, by torch.export and the dynamo exporter."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx_ir as ir
import onnx_ir.passes.common as common
import torch

from tfm.errors import ExportError

from .attention import TRANSLATIONS
from .graphs import Graph
from .passes import FoldHeads, FuseQuickGelu, NameOps

OPSETS = range(23, 26)
"""Opsets that can be asked for: Attention appears in 23; onnxruntime 1.32 runs up to the last."""


def to_onnx(graph: Graph, *, opset: int = OPSETS.start) -> ir.Model:
    """Export one graph, with dynamic batch and lengths.

    Args:
        graph: One of `graphs_of(model)`.
        opset: ONNX opset, in `OPSETS`.

    Returns:
        The ONNX model, in memory; every attention's and activation's nodes carry `OP_KEY`.

    Raises:
        ExportError: The opset is not supported, or torch cannot export the module.
    """
    if opset not in OPSETS:
        raise ExportError(f"opset {opset} is not supported; choose one of {OPSETS.start} to {OPSETS[-1]}")
    example = graph.sample(torch.Generator().manual_seed(0), batch=2, length=5, past=3)
    names = dict.fromkeys(dim for value in graph.inputs for dim in value.shape if isinstance(dim, str))
    dims = {name: torch.export.Dim(name) for name in names}
    dynamic = tuple(
        {axis: dims[dim] for axis, dim in enumerate(value.shape) if isinstance(dim, str)} for value in graph.inputs
    )
    with torch.no_grad(), _quiet():
        try:
            program = torch.export.export(graph, tuple(example), dynamic_shapes={"tensors": dynamic})
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                custom_translation_table=TRANSLATIONS,
                input_names=[value.name for value in graph.inputs],
                output_names=[value.name for value in graph.outputs],
                verbose=False,
            )
        except (torch.onnx.OnnxExporterError, RuntimeError, ValueError) as error:
            raise ExportError(f"the {graph.role} graph cannot be exported: {str(error).splitlines()[0]}") from error
    if exported is None:
        raise ExportError(f"the {graph.role} graph cannot be exported: the exporter gave nothing")
    model = exported.model
    passes = [
        NameOps(),
        FuseQuickGelu(),
        FoldHeads(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    ]
    ir.passes.Sequential(*passes)(model)
    _describe(model, graph)
    return model


def _describe(model: ir.Model, graph: Graph) -> None:
    """Give inputs and outputs the dimensions of the signature; leave no trace of the exporting machine."""
    for values, described in ((model.graph.inputs, graph.inputs), (model.graph.outputs, graph.outputs)):
        for value, description in zip(values, described, strict=True):
            value.shape = ir.Shape(description.shape)
    results = [value for node in model.graph for value in node.outputs]
    for value in (*model.graph.inputs, *model.graph.initializers.values(), *results):
        value.metadata_props.clear()
    model.graph.name = graph.file
    model.producer_name = "tfm-export"
    model.metadata_props.clear()
    model.graph.metadata_props.clear()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter about packages that are not needed off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
