"""For other people's test suites: that a bundle is still the model it came from, in one line."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tfm.bundle import Manifest, TensorSpec, check_digests, golden_inputs, read_manifest
from tfm.errors import ExportError
from tfm.model import Transformer
from tfm.ops import END_TO_END, Tolerance
from tfm.runtime import check_graphs

from .generic.graph import GenericGraph
from .graphs import Graph, graphs_of
from .verify.against_checkpoint import CASES, CheckpointReport, compare_graphs, compare_with_checkpoint
from .verify.regions import Array

__all__ = ["assert_parity"]


def assert_parity(
    model: str | os.PathLike[str] | nn.Module,
    bundle: str | os.PathLike[str],
    *,
    cases: int = CASES,
    seed: int = 0,
    atol: float = END_TO_END.atol,
    rtol: float = END_TO_END.rtol,
    precisions: Sequence[str] | None = None,
    provider: str = "auto",
) -> CheckpointReport:
    """Fail unless every op and output of a bundle is what eager PyTorch computes.

    Example::

        from tfm.export.testing import assert_parity

        def test_the_shipped_model():
            assert_parity("model.pt", "model.tfm")

    Args:
        model: A checkpoint, as `tfm-export --ckpt` takes it; a `tfm.model.Transformer`; or, for a bundle made by
            `tfm-export --model`, the nn.Module itself.
        bundle: The bundle.
        cases: How many random inputs.
        seed: Their seed.
        atol: Absolute tolerance of fp32 outputs.
        rtol: Tolerance relative to an output's largest value.
        precisions: Those to compare; None: all that the bundle has.
        provider: "cpu" or "cuda".

    Returns:
        What was found, where nothing failed.

    Raises:
        AssertionError: Something differs; the message names the first op that does, and the line that calls it.
        TfmError: The bundle or the checkpoint cannot be read, or they are not of the same model.
    """
    options: dict[str, Any] = {
        "cases": cases,
        "seed": seed,
        "precisions": precisions,
        "provider": provider,
        "tolerance": Tolerance(atol, rtol),
    }
    # A path goes the way of `tfm parity --ckpt`; a module in memory needs its graphs made here.
    if isinstance(model, str | os.PathLike):
        report = compare_with_checkpoint(bundle, model, **options)
    else:
        manifest = read_manifest(Path(bundle))
        check_digests(manifest, manifest.files)
        check_graphs(manifest)
        report = compare_graphs(manifest, _graphs(model, manifest), **options)
    if not report.passed:
        raise AssertionError(f"{bundle} is not what eager PyTorch computes: " + "; ".join(report.faults()))
    return report


def _graphs(model: nn.Module, manifest: Manifest) -> list[Graph]:
    if isinstance(model, GenericGraph):
        return list(model.graphs)
    if isinstance(model, Graph):
        return [model]
    if isinstance(model, Transformer):
        return graphs_of(model.eval())
    # A plain module of a native bundle would have every op under another path, and all would be
    # missing.
    if manifest.kind != "module":
        raise ExportError(
            f"{manifest.folder} holds a native {manifest.kind}, whose ops have other names in a "
            f"{type(model).__name__}; give assert_parity the checkpoint's path, or tfm.model.load_checkpoint(path)"
        )
    # A module's graph is made from example inputs. The factory is not known here, but the bundle
    # has its golden inputs.
    signature = manifest.signature["model"]
    axes = {
        spec.name: {axis: dim for axis, dim in enumerate(spec.shape) if isinstance(dim, str)}
        for spec in signature.inputs
    }
    first = golden_inputs(manifest)[0]
    examples = {spec.name: _extend(first[spec.name], spec, signature.max_length) for spec in signature.inputs}
    return [GenericGraph(model, examples, axes)]


def _extend(array: Array, spec: TensorSpec, longest: Mapping[str, int]) -> torch.Tensor:
    """Repeat a golden input until it is as long as the bundle allows: an example's length is the graph's limit."""
    example = torch.from_numpy(array)
    for axis, dim in enumerate(spec.shape):
        if isinstance(dim, str) and dim in longest:
            # Modulo: the input is repeated, so that ids and masks stay valid ones.
            example = example.index_select(axis, torch.arange(longest[dim]) % example.size(axis))
    return example
