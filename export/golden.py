"""Golden inputs and outputs of a bundle: what `tfm.runtime.check_golden` compares with, where there is no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tfm.bundle import Golden, GoldenLimits, write_golden_files
from tfm.ops import END_TO_END, GOLDEN_NMSE_HALF, Tolerance
from tfm.quantize import GOLDEN_NMSE, measure_nmse

from .fast_path import no_fast_path
from .graphs import Graph
from .verify.regions import Array

_MOST_BYTES = 1 << 20
"""A case is made shorter until it takes no more: one token's logits over 49152 words take 0.2 MB."""

_TRIES = 16
"""How often rows are drawn anew: random lengths may turn out to be equal."""


def golden_cases(graph: Graph, seed: int = 20) -> list[list[Tensor]]:
    """Make a few small inputs: ragged padding, one token, and a past where there is a cache.

    Args:
        graph: The graph to make inputs for.
        seed: Seed of the random ids.

    Returns:
        Inputs of different shapes, each in the order of `graph.inputs`.
    """
    generator = torch.Generator().manual_seed(seed)
    cached = any(value.name.startswith("past_key_values.") for value in graph.inputs)
    longest = min(graph.max_length.values(), default=8)
    made: dict[Any, list[Tensor]] = {}
    for batch, length, past in [(2, 8, 0), (1, 1, 0), (2, 1, 3) if cached else (3, 5, 0)]:
        length = min(length, longest)
        case = _ragged(graph, generator, batch, length, min(past, longest - length))
        while (batch, length) != (1, 1) and _size(graph, case) > _MOST_BYTES:
            batch, length = (batch, length // 2) if length > 1 else (1, 1)
            case = _ragged(graph, generator, batch, length, min(past, longest - length))
        # An image has one size only.
        made.setdefault(tuple(tensor.shape for tensor in case), case)
    return list(made.values())


def write_golden(
    folder: Path, graphs: Sequence[Graph], files: dict[str, dict[str, Path]], tolerance: Tolerance = END_TO_END
) -> None:
    """Write golden.npz and golden.json into a bundle's folder.

    Args:
        folder: The bundle.
        graphs: Its graphs, in eval mode, float32.
        files: Precision → role → ONNX file.
        tolerance: For the fp32 outputs.
    """
    # Outputs are eager's, for every precision alike: what is measured is the distance from the model.
    cases = {graph.role: [_record(graph, case) for case in golden_cases(graph)] for graph in graphs}
    limits = {}
    for name, paths in files.items():
        nmse = {role: measure_nmse(paths[role], found) for role, found in cases.items()}
        # fp32 is judged by what eager gave; any other by the noise it has here already, as the
        # machine that checks it may round other ties.
        if name == "fp32":
            limits[name] = GoldenLimits(measure="max_abs", factor=tolerance.rtol, floor=tolerance.atol, nmse=nmse)
        else:
            factor, floor = GOLDEN_NMSE_HALF if name == "fp16" else GOLDEN_NMSE
            limits[name] = GoldenLimits(measure="nmse", factor=factor, floor=floor, nmse=nmse)
    write_golden_files(folder, Golden(cases=cases, limits=limits))


def _record(graph: Graph, case: list[Tensor]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Run eager PyTorch; gives copies of inputs and outputs by name, since a module may write into either."""
    inputs = {value.name: tensor.numpy().copy() for value, tensor in zip(graph.inputs, case, strict=True)}
    with torch.no_grad(), no_fast_path():
        results = graph(*case)
    return inputs, {value.name: tensor.numpy().copy() for value, tensor in zip(graph.outputs, results, strict=True)}


def _ragged(graph: Graph, generator: torch.Generator, batch: int, length: int, past: int) -> list[Tensor]:
    """Make inputs of which, where there are several rows, some are padded, or have a shorter past."""
    for _ in range(_TRIES):
        case = graph.sample(generator, batch, length, past)
        named = {value.name: x for value, x in zip(graph.inputs, case, strict=True)}
        # A batch without padding would not show a mask that is ignored; rows of one token have
        # nothing to pad, nor have targets.
        masks = [mask for name, mask in named.items() if name.endswith("attention_mask")]
        may_be_full = "decoder_attention_mask" in named
        full = any(mask.all() for mask in masks[may_be_full:]) and length + past > 1
        if batch == 1 or not full:
            break
    return case


def _size(graph: Graph, case: list[Tensor]) -> int:
    return sum(array.nbytes for side in _record(graph, case) for array in side.values())
