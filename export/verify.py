"""The proof that an ONNX graph is the same function as its eager module, op by op and end to end.

Every attention and activation is compared twice: *teacher-forced*, alone, fed exactly what eager fed to it, which
shows its own error; and *free-running*, inside the whole graph, which shows the error as it accumulates. Then the
outputs are compared at each of onnxruntime's optimisation levels; and, where eager PyTorch has a fused path of its own
for the module, with what that path gives.
"""

import dataclasses
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor

from tfm.errors import VerificationError
from tfm.runtime import Figures

from .fast_path import has_fast_path
from .graphs import Graph
from .ops import OpId
from .regions import Array, Region, find_regions
from .taps import Tap, record
from .tolerances import END_TO_END, FREE, OWN, Tolerance

LEVELS: dict[str, ort.GraphOptimizationLevel] = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
"""onnxruntime's levels of graph optimisation."""

_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""Where onnxruntime looks for weights outside a model that it gets as bytes."""

_BROKEN = "the whole graph cannot be run"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpReport:
    """The verdict on one attention or activation.

    Attributes:
        op: Which.
        form: The ONNX nodes it became; "" where there are none.
        own: Its own error, fed what eager fed to it.
        own_limit: The largest `own.max_abs` allowed.
        free: Its error inside the whole graph.
        free_limit: The largest `free.max_abs` allowed; None where it is not judged (a quantised graph).
        fault: Why it failed, "" where it passed.
    """

    op: OpId
    form: str
    own: Figures
    own_limit: float
    free: Figures
    free_limit: float | None
    fault: str

    @property
    def passed(self) -> bool:
        """Whether the op is verified."""
        return not self.fault


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputReport:
    """The verdict on one output of the whole graph at one optimisation level."""

    name: str
    level: str
    figures: Figures
    limit: float | None
    fault: str

    @property
    def passed(self) -> bool:
        """Whether the output is verified."""
        return not self.fault


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphReport:
    """The verdict on one graph in one precision."""

    role: str
    precision: str
    ops: tuple[OpReport, ...]
    outputs: tuple[OutputReport, ...]

    @property
    def passed(self) -> bool:
        """Whether ops were found, and all of them and all outputs are verified."""
        compared = bool(self.ops) and bool(self.outputs)
        return compared and all(op.passed for op in self.ops) and all(output.passed for output in self.outputs)

    @property
    def first_fault(self) -> str:
        """The first op or output past tolerance, with the reason; "" where all passed."""
        faults = [f"{op.op}: {op.fault}" for op in self.ops if op.fault]
        faults += [f"output {out.name} ({out.level}): {out.fault}" for out in self.outputs if out.fault]
        faults.sort(key=lambda fault: _BROKEN in fault)  # what cannot run by itself, before all that it takes down
        return faults[0] if faults else "" if self.passed else f"nothing was compared in the {self.role} graph"

    def to_dict(self) -> dict[str, Any]:
        """Give the report as JSON values."""
        ops = [
            {
                "op": str(op.op),
                "form": op.form,
                "own": op.own.to_dict() | {"limit": op.own_limit},
                "free": op.free.to_dict() | {"limit": op.free_limit},
                "passed": op.passed,
                "fault": op.fault,
            }
            for op in self.ops
        ]
        outputs = [
            {"name": o.name, "level": o.level, "passed": o.passed, "fault": o.fault}
            | o.figures.to_dict()
            | {"limit": o.limit}
            for o in self.outputs
        ]
        return {"role": self.role, "precision": self.precision, "passed": self.passed, "ops": ops, "outputs": outputs}


def verify(
    graph: Graph,
    path: Path,
    cases: Sequence[list[Tensor]],
    *,
    precision: str = "fp32",
    tolerance: Tolerance = END_TO_END,
) -> GraphReport:
    """Compare an ONNX file with its eager module.

    Args:
        graph: The eager module, in eval mode, float32.
        path: The ONNX file that `to_onnx`, and perhaps `quantize`, made of it.
        cases: Inputs to compare on, each in the order of `graph.inputs`.
        precision: "fp32" judges everything. Any other judges each op by itself, which must be as exact as in float32,
            and only measures what it inherits: whether that is acceptable is the task's question (`fidelity`).
        tolerance: For the outputs of an fp32 graph.

    Returns:
        The report. A comparison that could not be made is a fault in it, never a pass.
    """
    judged = precision == "fp32"
    model = ir.load(path)
    regions = find_regions(model)
    records = [record(graph, case) for case in cases]
    feeds = [{value.name: tensor.numpy() for value, tensor in zip(graph.inputs, case, strict=True)} for case in cases]
    free_runs = _run_with_taps(model, path.parent, regions, feeds)
    calls = (
        {str(tap.op): [taps[index] for _, taps in records] for index, tap in enumerate(records[0][1])}
        if records
        else {}
    )
    ops = [_verify_op(model, regions.get(op), taps, free_runs, judged) for op, taps in calls.items()]
    ops += [_unmatched(region) for op, region in regions.items() if op not in calls]
    outputs = []
    for level in LEVELS:
        figures = {value.name: Figures() for value in graph.outputs}
        faults = dict.fromkeys(figures, "")
        try:
            session = ort.InferenceSession(path, _options(level), providers=["CPUExecutionProvider"])
            for (expected, _), feed in zip(records, feeds, strict=True):
                for name, actual, tensor in zip(figures, session.run(list(figures), feed), expected, strict=True):
                    unsound = "eager PyTorch itself gives NaN: nothing is proved" if tensor.isnan().any() else ""
                    faults[name] = faults[name] or unsound or _add(figures[name], actual, tensor.numpy())
        except Exception as error:  # onnxruntime's errors share no narrower base
            faults = dict.fromkeys(figures, f"{_BROKEN}: {_first_line(error)}")
        for name, found in figures.items():
            limit = tolerance.limit(found) if judged else None
            fault = faults[name] or _judge(found, limit, "off")
            outputs.append(OutputReport(name=name, level=level, figures=found, limit=limit, fault=fault))
    if has_fast_path(graph):
        outputs += _compare_fast_path(graph, path, cases, feeds, tolerance if judged else None)
    return GraphReport(role=graph.role, precision=precision, ops=tuple(ops), outputs=tuple(outputs))


def _compare_fast_path(
    graph: Graph, path: Path, cases: Sequence[list[Tensor]], feeds: list[dict[str, Array]], tolerance: Tolerance | None
) -> list[OutputReport]:
    """Compare with the fused path of nn.TransformerEncoder and nn.MultiheadAttention, as it runs without a recorder.

    That path may drop padding and give zeros in its place, where the plain path and the graph compute something that
    nobody reads: rows that it fills with zeros are left out.
    """
    figures = {value.name: Figures() for value in graph.outputs}
    faults = dict.fromkeys(figures, "")
    try:
        session = ort.InferenceSession(path, _options("all"), providers=["CPUExecutionProvider"])
        for case, feed in zip(cases, feeds, strict=True):
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that torch's nested tensors are a prototype
                expected = graph(*case)
            for name, actual, tensor in zip(figures, session.run(list(figures), feed), expected, strict=True):
                fast = tensor.numpy()
                if actual.shape == fast.shape and fast.ndim > 1:
                    real = (fast != 0).any(axis=-1)
                    actual, fast = actual[real], fast[real]
                faults[name] = faults[name] or _add(figures[name], actual, fast)
    except Exception as error:  # onnxruntime's errors share no narrower base, nor do a module's
        faults = dict.fromkeys(figures, f"the graph or eager's fast path cannot be run: {str(error).splitlines()[0]}")
    reports = []
    for name, found in figures.items():
        limit = None if tolerance is None else tolerance.limit(found)
        fault = faults[name] or _judge(found, limit, "off")
        reports.append(OutputReport(name=name, level="all, eager's fast path", figures=found, limit=limit, fault=fault))
    return reports


def _verify_op(
    model: ir.Model, region: Region | None, taps: list[Tap], free_runs: list[dict[str, Array]] | str, judged: bool
) -> OpReport:
    op, own, free = taps[0].op, Figures(), Figures()
    if region is None:
        return OpReport(
            op=op, form="", own=own, own_limit=0.0, free=free, free_limit=None, fault="no node of the graph computes it"
        )
    fault = ""
    try:
        session = region.session(model, _options("disabled"))
        for tap in taps:
            own.add(session.run(None, region.feeds(tap))[0], region.expected(tap))
        for tap, outputs in zip(taps, free_runs if isinstance(free_runs, list) else [], strict=False):
            free.add(outputs[region.op], region.expected(tap))
    except VerificationError as error:
        fault = str(error)
    except Exception as error:  # onnxruntime's errors share no narrower base
        fault = f"it cannot be run by itself: {_first_line(error)}"
    own_limit, free_limit = OWN[op.kind].limit(own), FREE.limit(free) if judged else None
    fault = fault or _judge(own, own_limit, "off by itself") or (free_runs if isinstance(free_runs, str) else "")
    fault = fault or _judge(free, free_limit, "off in the whole graph")
    return OpReport(
        op=op, form=region.form, own=own, own_limit=own_limit, free=free, free_limit=free_limit, fault=fault
    )


def _unmatched(region: Region) -> OpReport:
    kind, path = region.op.split(" ")[:2]
    op = OpId(kind=kind, path=path)  # type: ignore[arg-type]
    fault = "the graph computes it, eager does not"
    return OpReport(op=op, form=region.form, own=Figures(), own_limit=0.0, free=Figures(), free_limit=None, fault=fault)


def _add(figures: Figures, actual: Array, expected: Array) -> str:
    try:
        figures.add(actual, expected)
    except VerificationError as error:
        return str(error)
    return ""


def _judge(figures: Figures, limit: float | None, what: str) -> str:
    if figures.count == 0:
        return "nothing was compared"
    if math.isinf(figures.max_abs):  # in every precision, whatever the tolerance
        return f"{what}: NaN or infinity where eager has another value, or the other way round"
    if limit is not None and not figures.max_abs <= limit:
        return f"{what} by {figures.max_abs:.1e}, more than {limit:.1e}"
    return ""


def _run_with_taps(
    model: ir.Model, folder: Path, regions: dict[str, Region], feeds: list[dict[str, Array]]
) -> list[dict[str, Array]] | str:
    """Run the whole graph unoptimised, with every op's result as an output; per case, op → result, or why it cannot."""
    known = {value.name for value in model.graph.outputs}
    extra = [region.output for region in regions.values() if region.output.name not in known]
    model.graph.outputs.extend(extra)
    try:
        content = ir.to_proto(model).SerializeToString()
    finally:
        del model.graph.outputs[len(model.graph.outputs) - len(extra) :]
    names = [region.output.name for region in regions.values()]
    try:
        options = _options("disabled")
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(folder))
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return [dict(zip(regions, session.run(names, feed), strict=True)) if names else {} for feed in feeds]
    except Exception as error:  # onnxruntime's errors share no narrower base
        return f"{_BROKEN}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _options(level: str) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.log_severity_level = 3
    return options
