"""Find the smallest part of a graph, and the smallest input, that still differ from eager PyTorch."""

import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from torch import Tensor

from tfm.errors import VerificationError
from tfm.ops import END_TO_END, FREE, HALF, KINDS, Tolerance
from tfm.quantize import Stage, silent
from tfm.runtime import ErrorStats

from ..graphs import Graph
from .hooks import RecordedCall, watch
from .regions import Array, Region, cuts_of, find_regions
from .reports import Cause, GraphReport
from .subgraphs import Subgraphs, behind, cut_out, load_graph
from .verify import CPU, comparable, verify

_TRIED: tuple[tuple[str, ...], ...] = (("disabled",), ("disabled", "all", "runtime"))
"""Levels to look for a failing input at: our own graph, then what onnxruntime makes of it."""

_TOTAL, _PAST, _KEEP = "total_sequence", "past_sequence", "num_logits_to_keep"
_MASKS = ("attention_mask", "decoder_attention_mask")
"""Of a decoder, what tells of all tokens."""

MODEL, ARRAYS, SCRIPT = "differs.onnx", "differs.npz", "reproduce.py"

_SCRIPT = '''"""Runs {model} with onnxruntime alone, and compares it with what eager PyTorch gave: {what}."""

import pathlib

import numpy as np
import onnxruntime as ort

here = pathlib.Path(__file__).parent
arrays = np.load(here / "{arrays}")
options = ort.SessionOptions()
options.graph_optimization_level = ort.GraphOptimizationLevel.{level}
session = ort.InferenceSession(here / "{model}", options, providers=["CPUExecutionProvider"])
(found,) = session.run(["{output}"], {{name: arrays[name] for name in arrays.files if name != "expected"}})
print("largest difference", np.abs(found.astype(np.float64) - arrays["expected"].astype(np.float64)).max())
'''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reproduction:
    """The smallest part that still differs, saved in a folder as a model, its arrays and a script.

    Attributes:
        what: What it is a part of, in words.
        nodes: Types of its nodes.
        shapes: Input name → shape.
        max_abs: How far it is from eager.
        folder: Where it lies.
    """

    what: str
    nodes: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    max_abs: float
    folder: Path

    def __str__(self) -> str:
        nodes = "·".join(self.nodes) if len(self.nodes) <= 6 else f"{len(self.nodes)} nodes"
        return f"{self.what}: {nodes}, off by {self.max_abs:.1e} → {self.folder / SCRIPT}"


def bisect(
    graph: Graph,
    path: Path,
    cases: Sequence[list[Tensor]],
    folder: Path,
    *,
    precision: str = "fp32",
    tolerance: Tolerance = END_TO_END,
    provider: str = CPU,
    stage: Stage = silent,
) -> Reproduction:
    """Shrink a failure of `verify` to something that one can look at, and save it.

    Args:
        graph: The eager module.
        path: The ONNX file.
        cases: Inputs, one of which at least fails.
        folder: Where to put the smallest model, its inputs and what eager gives; made if it is not there.
        precision: As in `verify`.
        tolerance: For the outputs, as in `verify`.
        provider: As in `verify`.
        stage: Told what is being done.

    Raises:
        VerificationError: No case fails.
    """

    def check(case: list[Tensor], levels: tuple[str, ...]) -> GraphReport:
        return verify(graph, path, [case], precision=precision, tolerance=tolerance, provider=provider, levels=levels)

    # Without optimization first: a fault that shows there is ours, and needs no other levels. Else
    # only what onnxruntime makes of the graph fails.
    failing: list[list[Tensor]] = []
    with stage("look for an input that fails"):
        for levels in _TRIED:
            failing = [case for case in cases if not check(case, levels).passed]
            if failing:
                break
    if not failing:
        raise VerificationError(f"no input of {len(cases)} fails by itself: there is nothing to bisect")
    # The smallest that fails is the best start; then sizes are lowered one by one for as long as it
    # still fails. Each step keeps what failed, so the search ends, if not at the least of all.
    case = min(failing, key=lambda case: sum(tensor.numel() for tensor in case))
    with stage("make the input smaller"):
        while (smaller := next((c for c in _smaller(graph, case) if not check(c, levels).passed), None)) is not None:
            case = smaller
    # The file that was compared: of fp16 the float32 form that rounds, in which eager's numbers
    # fit.
    with stage("cut the graph"), comparable(path, precision) as file:
        part = _cut(graph, file, case, check(case, levels), provider)
        folder.mkdir(parents=True, exist_ok=True)
        return part.save(folder)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
    what: str
    model: ir.Model
    output: str
    feeds: dict[str, Array]
    expected: Array
    level: str = "ORT_DISABLE_ALL"

    def save(self, folder: Path) -> Reproduction:
        names = {"model": MODEL, "arrays": ARRAYS, "what": self.what, "output": self.output, "level": self.level}
        # Beside its place, so that renaming is on one file system and cannot stop half way.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as name:  # so that no file is there by half
            part = Path(name)
            ir.save(self.model, part / MODEL)
            np.savez(part / ARRAYS, expected=self.expected, **self.feeds)  # type: ignore[arg-type]
            (part / SCRIPT).write_text(_SCRIPT.format(**names), encoding="utf-8")
            for file in (MODEL, ARRAYS, SCRIPT):
                os.replace(part / file, folder / file)
        return Reproduction(
            what=self.what,
            nodes=tuple(node.op_type for node in self.model.graph),
            shapes={name: array.shape for name, array in self.feeds.items()},
            max_abs=self.distance().max_abs,
            folder=folder,
        )

    def distance(self) -> ErrorStats:
        """How far it is from eager when it runs by itself; nothing compared where it cannot be run."""
        figures, options = ErrorStats(), ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, self.level)
        try:
            content = ir.to_proto(self.model).SerializeToString()
            session = ort.InferenceSession(content, options, providers=[CPU])
            figures.add(session.run([self.output], self.feeds)[0], self.expected)
        except Exception:  # onnxruntime's errors share no narrower base
            # A part that cannot be run differs as much as can be.
            figures.max_abs = float("inf")
        return figures


def _cut(graph: Graph, path: Path, case: list[Tensor], report: GraphReport, provider: str) -> _Part:
    """Take the first op at fault out of the graph: the op itself, or what leads to a wrong argument of it."""
    model = load_graph(path)
    regions = find_regions(model)
    feeds = {value.name: tensor.numpy() for value, tensor in zip(graph.inputs, case, strict=True)}
    found: list[_Part] = []
    # Eager and graph go side by side once more, up to the first op at fault.
    run = Subgraphs(model, cuts_of(regions), path.parent, [provider]).start(feeds)
    half = report.precision == "fp16"
    faulty = next((op for op in report.ops if op.fault and str(op.op) in regions), None)

    def look(call: RecordedCall) -> None:
        if faulty is None or call.op != faulty.op or found:
            return
        # First the op alone, on eager's own arguments. If it is right there, one of its arguments
        # is wrong in the graph.
        region = regions[str(call.op)]
        alone = region.feeds(call)
        part = _region_part(model, region, alone, region.expected(call))
        other_weights = faulty.cause is Cause.WEIGHTS  # by too little, perhaps, for its result to show it
        own = HALF if half else KINDS[call.op.kind].tolerance
        # Not ">": NaN must count as different.
        if other_weights or not part.distance().max_abs <= own.limit(_figures(part.expected)):
            found.append(part)
            return
        # Then what makes each argument: the nodes since the cut before it, fed what the graph has
        # there, which is right as far as the ops before were.
        for argument, value in region.arguments:
            nodes, inputs = run.before(str(value.name)) if value.producer() is not None else ((), {})
            if nodes:
                part = _argument_part(model, call, argument, value, nodes, inputs, alone[str(value.name)])
                # FREE, as in place: the inputs of this part carry the rounding of all that came
                # before.
                if not part.distance().max_abs <= (HALF if half else FREE).limit(_figures(part.expected)):
                    found.append(part)
                    return

    expected = watch(graph, case, look)
    if found:
        return found[0]
    return _whole(graph, model, feeds, [tensor.numpy() for tensor in expected], report)


def _region_part(model: ir.Model, region: Region, feeds: dict[str, Array], expected: Array) -> _Part:
    output = str(region.output.name)
    small = cut_out(model, region.nodes, feeds, [output])
    return _Part(what=f"{region.op} by itself", model=small, output=output, feeds=feeds, expected=expected)


def _argument_part(
    model: ir.Model,
    call: RecordedCall,
    argument: str,
    value: ir.Value,
    nodes: Sequence[ir.Node],
    feeds: dict[str, Array],
    expected: Array,
) -> _Part:
    """The nodes that make one argument from what came before, and is right."""
    # The subgraph may compute other things as well: only what leads to this value is kept, in the
    # graph's order, which an ONNX file wants.
    needed = behind([value])
    kept = [node for node in nodes if node in needed]
    read = {str(source.name) for node in kept for source in node.inputs if source is not None}
    used = {name: array for name, array in feeds.items() if name in read}
    small = cut_out(model, kept, used, [str(value.name)])
    # A copy, since eager's array may be a view of what is overwritten next.
    shape = np.broadcast_shapes(expected.shape)
    return _Part(
        what=f"what makes the {argument} of {call.op}",
        model=small,
        output=str(value.name),
        feeds=used,
        expected=np.broadcast_to(expected, shape).copy(),
    )


def _whole(graph: Graph, model: ir.Model, feeds: dict[str, Array], expected: list[Array], report: GraphReport) -> _Part:
    """The whole graph on the smallest input: where nothing smaller differs by itself."""
    # An op may be at fault in place only, and no output; the first is shown then.
    wrong = next((o for o in report.outputs if o.fault), report.outputs[0])
    index = [value.name for value in graph.outputs].index(wrong.name)
    # "all" and "runtime", the other two that bisect runs at, are one level to a script that knows
    # onnxruntime alone.
    level = "ORT_DISABLE_ALL" if wrong.level == "disabled" else "ORT_ENABLE_ALL"
    what = f"output {wrong.name} of the whole {graph.role} graph"
    return _Part(what=what, model=model, output=wrong.name, feeds=feeds, expected=expected[index], level=level)


def _figures(expected: Array) -> ErrorStats:
    figures = ErrorStats()
    # Of itself: only `scale` is wanted, which the limits are made of.
    figures.add(expected, expected)
    return figures


def _smaller(graph: Graph, case: list[Tensor]) -> Iterator[list[Tensor]]:
    """Cases with fewer rows, then with shorter lengths."""
    names, sizes = [value.name for value in graph.inputs], _sizes(graph, case)
    for dim, size in sizes.items():
        # The past may be empty; how many tokens there are in all follows from it.
        if dim == _TOTAL:
            continue
        least = 0 if dim == _PAST else 1
        for smaller in _sizes_below(size, least):
            # Any single row may be the one that fails; of lengths only the beginning is kept.
            single = dim == "batch" and smaller == 1
            for first in range(size if single else 1):
                narrowed = [
                    _narrow(tensor, value.shape, sizes, dim, first, smaller)
                    for value, tensor in zip(graph.inputs, case, strict=True)
                ]
                _stay_within(narrowed, names, sizes | {dim: smaller}, sizes)
                yield narrowed


def _sizes_below(size: int, least: int) -> list[int]:
    # Smallest first: the first that still fails is taken, and then all is tried again from there.
    return sorted(n for n in {least, 1, 2, size // 4, size // 2, size - 1} if least <= n < size)


def _sizes(graph: Graph, case: list[Tensor]) -> dict[str, int]:
    pairs = [pair for v, x in zip(graph.inputs, case, strict=True) for pair in zip(v.shape, x.shape, strict=True)]
    return {dim: size for dim, size in pairs if isinstance(dim, str) and dim.isidentifier()}


def _stay_within(case: list[Tensor], names: list[str], left: Mapping[str, int], sizes: Mapping[str, int]) -> None:
    """Keep what tells of all tokens, and of how many logits there are, within what is left of past and new ones."""
    if _TOTAL in sizes:
        # The cache may have been longer than what was read.
        read = min(sizes[_TOTAL] - sizes["sequence"], left[_PAST])
        mask = next(index for index, name in enumerate(names) if name in _MASKS)
        case[mask] = case[mask][:, : read + left["sequence"]].contiguous()
    if _KEEP in names:
        keep = names.index(_KEEP)
        case[keep] = case[keep].clamp(max=left["sequence"])


def _narrow(
    tensor: Tensor, shape: Sequence[str | int], sizes: dict[str, int], dim: str, first: int, size: int
) -> Tensor:
    """Cut one dimension of an input, and every sum of lengths that it is part of."""
    for axis, name in enumerate(shape):
        # "past + sequence" gets shorter by as much as its term does.
        if isinstance(name, str) and dim in name.split(" + "):
            tensor = tensor.narrow(axis, first, tensor.size(axis) - sizes[dim] + size)
    return tensor.contiguous()
