"""From a graph's eager module to ONNX, by torch.export and the dynamo exporter."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import torch
from torch import nn

from tfm.errors import ExportError, TfmError
from tfm.model import TransformerConfig
from tfm.quantize import OPSET, OPSETS, Target

from .attention import TRANSLATIONS
from .fast_path import no_fast_path
from .graphs import Graph
from .passes import (
    ExpandMish,
    ExpandRotaryCaches,
    FoldHeads,
    FuseQuickGelu,
    LowerAttention,
    LowerGelu,
    LowerRMSNormalization,
    LowerRotaryEmbedding,
    NameOps,
    SetOpset,
    UseGroupQueryAttention,
)
from .reasons import reason_of

_IN_FILES: dict[str | int, str] = {"batch": "batch_size"}
"""What a decoder's file calls a dimension: transformers.js makes the first cache by these names."""

_LENGTH, _PAST = 5, 3
"""Tokens of the example that torch traces with. They differ, and neither is 1: equal lengths would be taken
for one, and 1 for a constant."""


def to_onnx(graph: Graph, *, opset: int = OPSET, target: Target | None = None) -> ir.Model:
    """Export one graph, with dynamic batch and lengths.

    Args:
        graph: One of `graphs_of(model)`.
        opset: ONNX opset, in `OPSETS`.
        target: What it is written for, its opset included; None: what is newest in everything else.

    Returns:
        The ONNX model, in memory; every attention's and activation's nodes carry `OP_KEY`.

    Raises:
        ExportError: The opset is not supported, by this graph at least, or torch cannot export the module.
    """
    target = Target(opset=opset) if target is None else target
    _check_can_export(graph, target.opset)
    example = graph.sample(torch.Generator().manual_seed(0), batch=2, length=_LENGTH, past=_PAST)
    # The fast path is one native call, which has no ONNX operator and hides its ops.
    with torch.no_grad(), no_fast_path(), _quiet():
        try:
            # forward takes *tensors, so that the argument that has shapes is the one tuple
            # "tensors".
            # Where torch guards against a length, the module takes another way at it. torch can be
            # told to go on and check when the program runs; but ONNX keeps no such check, and the
            # graph would have one of the two ways at every length. So this ends the export.
            program = torch.export.export(graph, tuple(example), dynamic_shapes={"tensors": _dynamic_shapes(graph)})
            # Between the two: the exporter writes what it finds here into the nodes' metadata.
            _number_calls(program)
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=max(target.opset, OPSET),  # lowered below, as it has more ops than torch writes for less
                custom_translation_table=TRANSLATIONS,
                input_names=[value.name for value in graph.inputs],
                output_names=[value.name for value in graph.outputs],
                verbose=False,
            )
        except TfmError:
            raise
        except Exception as error:  # tracing runs the module's own code, which may raise anything
            raise ExportError(f"the {graph.role} graph cannot be exported: {reason_of(error)}") from error
    if exported is None:
        raise ExportError(f"the {graph.role} graph cannot be exported: the exporter gave nothing")
    model = exported.model
    ir.passes.Sequential(*_passes(graph, target))(model)
    _describe(model, graph)
    _give_defaults(model, graph)
    return model


def _passes(graph: Graph, target: Target) -> list[ir.passes.PassBase]:
    # NameOps comes first, since it reads and clears torch's metadata. The rewrites leave nodes
    # without readers and equal chains behind; the two in the end clear those up.
    return [
        NameOps(_names(graph.model)),
        *(() if target.portable else (FuseQuickGelu(),)),
        ExpandMish(),
        *((ExpandRotaryCaches(),) if target.has("RotaryEmbedding", 3) else (LowerRotaryEmbedding(),)),
        *((UseGroupQueryAttention(),) if target.has_room else ()),
        FoldHeads(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        *_lowered(target),
    ]


def _lowered(target: Target) -> list[ir.passes.InPlacePass]:
    """The passes that write what a target has not in ops that it has."""
    # After equal chains were joined, as the nodes that one op becomes are its own.
    passes: list[ir.passes.InPlacePass] = []
    if not target.has("Attention", 4):
        passes.append(LowerAttention())
    if not target.has("RMSNormalization", 2):
        passes.append(LowerRMSNormalization())
    if not target.has("Gelu"):
        passes.append(LowerGelu(portable=target.portable))
    if passes or target.opset < OPSET:
        passes += [SetOpset(target.opset, target.ir_version), common.RemoveUnusedNodesPass()]
    return passes


def _check_can_export(graph: Graph, opset: int) -> None:
    if opset not in OPSETS:
        raise ExportError(f"opset {opset} is not supported; choose one of {OPSETS.start} to {OPSETS[-1]}")
    # Dim(max=…) below the example's own length would be refused by torch in words of its own.
    shortest = min(graph.max_length.values(), default=_LENGTH + _PAST)
    if isinstance(getattr(graph.model, "config", None), TransformerConfig) and shortest < _LENGTH + _PAST:
        raise ExportError(f"a model of {shortest} positions is too short to export: it needs {_LENGTH + _PAST} or more")


def _dynamic_shapes(graph: Graph) -> tuple[dict[int, Any], ...]:
    """What torch.export is told of each input: axis → the dimension that may vary there."""
    # One Dim object per name: inputs that share it are told to be equally long.
    names = dict.fromkeys(dim for value in graph.inputs for dim in value.shape if isinstance(dim, str))
    # torch finds out by itself how a sum of lengths depends on the others
    dims = {
        name: torch.export.Dim(name, min=graph.min_length.get(name), max=graph.max_length.get(name))
        if name.isidentifier()
        else torch.export.Dim.AUTO
        for name in names
    }
    return tuple(
        {axis: dims[dim] for axis, dim in enumerate(value.shape) if isinstance(dim, str)} for value in graph.inputs
    )


def _number_calls(program: torch.export.ExportedProgram) -> None:
    """Give each scope of a module's later calls the number that torch keeps in its key alone."""
    # The second call of a module has the key "…@1" and the path of the first: without the number
    # both calls would be one op.
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            node.meta["nn_module_stack"] = {
                key: (path + (f"@{key.rpartition('@')[2]}" if "@" in key else ""), cls)
                for key, (path, cls) in stack.items()
            }


def _names(model: nn.Module) -> dict[str, str]:
    """For each name of each module, the one that `named_modules` gives it: a shared module has several."""
    # named_modules() gives each module once, under its first name, which is what hooks see in
    # eager.
    first = {id(module): name for name, module in model.named_modules()}
    return {name: first[id(module)] for name, module in model.named_modules(remove_duplicate=False)}


def _describe(model: ir.Model, graph: Graph) -> None:
    """Give inputs and outputs the dimensions of the signature; leave no trace of the exporting machine."""
    # The exporter's own names of sizes, such as s77, become those of the manifest.
    cached = any(value.name.startswith("past_key_values.") for value in graph.inputs)
    for values, described in ((model.graph.inputs, graph.inputs), (model.graph.outputs, graph.outputs)):
        for value, description in zip(values, described, strict=True):
            value.shape = ir.Shape(
                [_IN_FILES.get(dim, dim) for dim in description.shape] if cached else description.shape
            )
    # What torch noted of values are traces of its own graph, with paths of this machine.
    results = [value for node in model.graph for value in node.outputs]
    for value in (*model.graph.inputs, *model.graph.initializers.values(), *results):
        value.metadata_props.clear()
    model.graph.name = graph.file
    model.producer_name = "tfm-export"
    model.metadata_props.clear()
    model.graph.metadata_props.clear()


def _give_defaults(model: ir.Model, graph: Graph) -> None:
    """Give inputs that may be left out their initializers, by which other programs never see them."""
    for value, description in zip(model.graph.inputs, graph.inputs, strict=True):
        if description.default is not None:
            value.const_value = ir.tensor(np.array(description.default, description.dtype), name=description.name)
            model.graph.initializers[description.name] = value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter about packages that are not needed off the terminal."""
    # The exporter prints progress, warns, and logs: three ways, and each is closed.
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
