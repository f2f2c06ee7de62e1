"""The graph that onnxruntime makes of ours: where each op is in it, and which kernel ran it."""

import dataclasses
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from tfm.bundle import external_locations, weights_file
from tfm.ops import ACTIVATION, ATTENTION, SOFTMAX, OpId
from tfm.runtime import PROVIDERS, session_options

from ..passes import NOTE_KEY
from .regions import Array, Region
from .reports import Kernel

LEVELS: dict[str, ort.GraphOptimizationLevel] = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    # Apps run at this one, so it is the last, whose graph is compared op by op.
    "runtime": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
"""onnxruntime's levels of graph optimization, and "runtime": the highest without what `tfm.runtime` leaves out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where an op is in the optimized graph.

    Attributes:
        at: The op or the graph's output whose result shows it.
        value: That result.
        node: The node that gives it, and thus the op or what swallowed it.
    """

    at: str
    value: ir.Value
    node: ir.Node


def options_for(level: str, providers: Sequence[str]) -> ort.SessionOptions:
    """Options of a session at one of `LEVELS` on onnxruntime's execution providers, quiet."""
    first = next((name for name, provider in PROVIDERS.items() if provider == providers[0]), "")
    # What the runtime leaves out depends on the provider, so its own options are taken, and only
    # level and messages are set.
    options = session_options(first, threads=0) if level == "runtime" else ort.SessionOptions()
    if level != "runtime":
        # Threads that spin between runs take two thirds of the CPU time that a small graph is verified in.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = LEVELS[level]
    options.log_severity_level = 3
    return options


def optimize(
    path: Path, level: str, feeds: Mapping[str, Array], folder: Path, providers: Sequence[str]
) -> tuple[Path, dict[str, tuple[str, str]]]:
    """Have onnxruntime write the graph that it makes of a model, and tell what ran it.

    Args:
        path: The model.
        level: One of `LEVELS`.
        feeds: Inputs to run it on once.
        folder: An empty folder for what onnxruntime writes.
        providers: onnxruntime's execution providers.

    Returns:
        The optimized model's file; and for each of its nodes, by name, the operator and execution provider that ran.
    """
    options = options_for(level, providers)
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    if external_locations(path.read_bytes()):  # then the optimized graph has its weights beside it too
        name = "session.optimized_model_external_initializers_file_name"
        options.add_session_config_entry(name, weights_file("optimized.onnx"))
    options.add_session_config_entry("session.disable_prepacking", "1")  # it saves memory, and changes no graph
    # The profile alone tells which kernel of which provider ran a node. It is complete once
    # profiling has ended.
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = ort.InferenceSession(path, options, providers=list(providers))
    session.run(None, dict(feeds))
    return folder / "optimized.onnx", kernels_that_ran(Path(session.end_profiling()))


def locate(model: ir.Model, optimized: ir.Model, regions: Mapping[str, Region]) -> dict[str, Place]:
    """Find each op in the optimized graph: onnxruntime keeps the names of results that it does not fuse away.

    An op whose result is gone was swallowed by a fusion; it shows at the next result behind it that is left, of another
    op or of the graph.
    """
    # By name: onnxruntime's file is read anew, so that no object of our graph is in it.
    left = {value.name: value for node in optimized.graph for value in node.outputs}
    # An op's result that is an output as well counts as the op's.
    named = {value: f"output {value.name}" for value in model.graph.outputs}
    named |= {region.output: op for op, region in regions.items()}
    # The nearest result that is left is the one that the least else has been added to.
    nearest = {op: next(_survivors(region.output, named, left), None) for op, region in regions.items()}
    return {op: place for op, place in nearest.items() if place is not None}


def _survivors(start: ir.Value, named: Mapping[ir.Value, str], left: Mapping[str | None, ir.Value]) -> Iterator[Place]:
    """The named values from one on that the optimized graph still computes."""
    for value in _behind(start):
        survivor = left.get(value.name) if value in named else None
        producer = None if survivor is None else survivor.producer()
        if survivor is not None and producer is not None:
            yield Place(at=named[value], value=survivor, node=producer)


def _behind(start: ir.Value) -> Iterator[ir.Value]:
    """A value and all that are made of it, breadth first."""
    seen, pending = {start}, deque([start])
    while pending:
        value = pending.popleft()
        yield value
        following = [result for node in value.consumers() for result in node.outputs if result not in seen]
        seen.update(following)
        pending.extend(following)


def kernels_that_ran(profile: Path) -> dict[str, tuple[str, str]]:
    """Read a profile of onnxruntime: node name → operator and execution provider."""
    ran = {}
    for event in json.loads(profile.read_text(encoding="utf-8")):
        # A node has several events; the one of its kernel ends in "_kernel_time" and nothing else.
        name, _, what = event["name"].rpartition("_kernel_time")
        if event.get("cat") == "Node" and name and not what:
            ran[name] = (event["args"]["op_name"], event["args"]["provider"])
    return ran


def describe_kernel(op: OpId, region: Region, place: Place | None, ran: Mapping[str, tuple[str, str]]) -> Kernel | None:
    """Say what ran an op, and what would be better."""
    # onnxruntime makes nodes without names, such as those that it inlines a function into: nothing
    # is known of these.
    if place is None or str(place.node.name) not in ran:
        return None
    op_type, provider = ran[str(place.node.name)]
    return Kernel(op_type=op_type, domain=place.node.domain, provider=provider, advice=_advice(op, region, place))


def _advice(op: OpId, region: Region, place: Place) -> str:
    parts = region.form.split("·")
    if op.kind == SOFTMAX:
        return (
            "this attention is written by hand, and runs as separate products and a Softmax; "
            "call torch.nn.functional.scaled_dot_product_attention, and it becomes one Attention"
        )
    if op.kind == ATTENTION:
        # FoldHeads left its reason here.
        note = next((n.metadata_props[NOTE_KEY] for n in region.nodes if NOTE_KEY in n.metadata_props), "")
        return f"heads are split and merged by Transposes, which copy: {note}" if note else ""
    # Only where onnxruntime left it in parts as well; what it fused needs no advice.
    if op.kind == ACTIVATION and len(parts) > 1 and place.at == str(op) and place.node.op_type in parts:
        return (
            f"{len(parts)} nodes ({region.form}), each a pass over memory: onnxruntime has no kernel for this "
            "activation as one; gelu, gelu_tanh, silu, quick_gelu, relu, tanh, sigmoid and others have"
        )
    return ""
