"""The proof that an ONNX graph is the same function as its eager module, op by op and end to end.

Every attention, activation and layer is compared three times: *teacher-forced*, alone, fed exactly what eager fed to
it, which shows its own error; *free-running*, inside the whole graph, which shows the error as it accumulates; and
inside the graph that onnxruntime makes of ours when it optimizes. Then the outputs are compared at each of
onnxruntime's optimization levels; and, where eager PyTorch has a fused path of its own for the module, with what that
path gives.

Eager and the graph run side by side, op after op, and nothing is kept of what was compared: a model needs the memory
of its weights twice, and of one op.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import Tensor

from tfm.bundle import scratch_folder
from tfm.errors import VerificationError
from tfm.ops import END_TO_END, FREE, OpId, Tolerance
from tfm.quantize import emulate_fp16, save_onnx
from tfm.quantize.storage import mapped
from tfm.runtime import ErrorStats

from ..fast_path import has_fast_path
from ..graphs import Graph
from .compare import Comparison, first_line, judge
from .hooks import RecordedCall, watch
from .optimized import LEVELS, Place, describe_kernel, locate, optimize, options_for
from .regions import Array, cuts_of, find_regions, rounded_values
from .reports import BROKEN, Cause, Fault, GraphReport, Kernel, OpReport, Optimized, OutputReport
from .subgraphs import Run, Subgraphs, load_graph

CPU = "CPUExecutionProvider"
_FIRST_LEVEL, *_, _LAST_LEVEL = LEVELS


def verify(
    graph: Graph,
    path: Path,
    cases: Sequence[list[Tensor]],
    *,
    precision: str = "fp32",
    tolerance: Tolerance = END_TO_END,
    provider: str = CPU,
    levels: Sequence[str] = tuple(LEVELS),
) -> GraphReport:
    """Compare an ONNX file with its eager module.

    Args:
        graph: The eager module, in eval mode, float32.
        path: The ONNX file that `to_onnx`, and perhaps `quantize`, made of it.
        cases: Inputs to compare on, each in the order of `graph.inputs`.
        precision: "fp32" judges everything. In any other, an op must be as exact as in float32 by itself unless its
            weights are quantized, and in place unless quantized weights lead to it; what such weights cost is measured,
            and whether that is acceptable is the task's question (`fidelity`). "fp16" is judged likewise, by `HALF`, in
            a form that rounds every result as float16 stores it: the CPU would not.
        tolerance: For the outputs of an fp32 graph.
        provider: onnxruntime's execution provider to verify on.
        levels: The optimization levels to run the whole graph at.

    Returns:
        The report. A comparison that could not be made is a fault in it, never a pass.
    """
    with comparable(path, precision) as file:
        work = _Verification(graph, file, cases, precision=precision, tolerance=tolerance, provider=provider)
        work.compare_ops()
        for level in levels:
            ran = work.compare_outputs(level)
            faulty = any(not output.passed for output in work.outputs if output.level == level)
            # At the first level the graph is our own, which has been compared op by op. Of the
            # others the last is always looked into; one between only if its outputs are wrong, to
            # name the op.
            if ran and level != _FIRST_LEVEL and (faulty or level == _LAST_LEVEL):
                work.compare_optimized(level)
        if has_fast_path(graph):
            work.compare_fast_path()
    return GraphReport(
        role=graph.role,
        precision=precision,
        provider=provider,
        ops=tuple(work.op_reports()),
        outputs=tuple(work.outputs),
    )


class _Verification:
    """The stages in order, and what each leaves for the next."""

    def __init__(
        self,
        graph: Graph,
        path: Path,
        cases: Sequence[list[Tensor]],
        *,
        precision: str,
        tolerance: Tolerance,
        provider: str,
    ) -> None:
        self.graph, self.path, self.cases = graph, path, cases
        # Of other precisions outputs are measured, and `fidelity` judges.
        self.judged, self.half = precision == "fp32", precision == "fp16"
        self.tolerance, self.provider = tolerance, provider
        # Behind a GPU the CPU takes nodes that have no kernel there.
        self.providers = [provider] if provider == CPU else [provider, CPU]
        self.names = [value.name for value in graph.outputs]
        self.feeds = [
            {value.name: tensor.numpy() for value, tensor in zip(graph.inputs, case, strict=True)} for case in cases
        ]
        self.model = load_graph(path)
        self.regions = find_regions(self.model)
        self.rounded = rounded_values(self.model, half=self.half)
        self.comparisons: dict[str, Comparison] = {}
        self.expected: list[list[Tensor]] = []

        self.outputs: list[OutputReport] = []
        self.optimized: dict[str, Optimized] = {}
        self.kernels: dict[str, Kernel | None] = {}

    def compare_ops(self) -> None:
        """Compare every op alone and in the graph as it was exported; keep eager's outputs."""
        subgraphs = Subgraphs(self.model, cuts_of(self.regions), self.path.parent, self.providers)
        for case, feeds in zip(self.cases, self.feeds, strict=True):
            # Eager and graph side by side: each op is compared as soon as eager has run it.
            run = subgraphs.start(feeds)

            # The default binds this case's run.
            def compare(call: RecordedCall, run: Run = run) -> None:
                op = str(call.op)
                if op not in self.comparisons:
                    self.comparisons[op] = Comparison(call.op, self.regions.get(op), call.source, self.half)
                self.comparisons[op].add(call, self.model, subgraphs, run)

            # Only outputs are kept: the stages that follow compare with them.
            self.expected.append(watch(self.graph, case, compare))

    def compare_outputs(self, level: str) -> bool:
        """Compare the outputs of the graph, run whole at one of `LEVELS`; tell whether it could be run."""
        figures = {name: ErrorStats() for name in self.names}
        # Without a case nothing is proved, and nothing ran.
        faults, ran = dict.fromkeys(self.names, Fault()), bool(self.feeds)
        try:
            session = ort.InferenceSession(self.path, options_for(level, self.providers), providers=self.providers)
            if session.get_providers()[0] != self.provider:  # onnxruntime only warns
                raise VerificationError(f"{self.provider} cannot be loaded; {session.get_providers()[0]} would run it")
            for expected, feeds in zip(self.expected, self.feeds, strict=True):
                for name, actual, tensor in zip(self.names, session.run(self.names, feeds), expected, strict=True):
                    # NaN in both would count as equal.
                    unsound = Fault("eager PyTorch itself gives NaN: nothing is proved" if tensor.isnan().any() else "")
                    faults[name] = faults[name] or unsound or _add(figures[name], actual, tensor.numpy())
        except Exception as error:  # onnxruntime's errors share no narrower base
            broken = Fault(f"{BROKEN}: {self._message(error)}", Cause.BREAKAGE)
            faults, ran = dict.fromkeys(self.names, broken), False
        self.outputs += self._judge_outputs(level, figures, faults)
        return ran

    def compare_optimized(self, level: str) -> None:
        """Compare every op that is still to be seen in the graph that onnxruntime makes at one of `LEVELS`."""
        with scratch_folder() as folder:
            # The run is for the profile alone, and any input shows the same kernels.
            smallest = min(self.feeds, key=lambda feeds: sum(array.size for array in feeds.values()))
            file, ran = optimize(self.path, level, smallest, Path(folder), self.providers)
            self._compare_optimized(level, load_graph(file), ran, Path(folder))

    def _compare_optimized(
        self, level: str, optimized: ir.Model, ran: Mapping[str, tuple[str, str]], folder: Path
    ) -> None:
        places = locate(self.model, optimized, self.regions)
        figures = self._compare_places(optimized, places, folder)
        at_outputs = {f"output {out.name}": out.figures for out in self.outputs if out.level == level}
        for op, place in places.items():
            # What was swallowed shows where the fusion ends: at another op's result, or at an
            # output.
            found = figures[place.at] if place.at in figures else at_outputs[place.at]
            swallowed, known = place.at != op, self.optimized.get(op)
            # a layer's fault shows where it was swallowed, an output's among the outputs
            judged = place.at in figures and not (swallowed and OpId.parse(op).is_layer)
            # Behind quantized weights figures are measured, not judged.
            judged = judged and self.regions[op].output not in self.rounded
            if known is None or known.limit is None or known.figures.max_abs <= known.limit:  # keep the first fault
                self.optimized[op] = Optimized(
                    level=level,
                    node=place.node.op_type,
                    at=place.at,
                    swallowed=swallowed,
                    figures=found,
                    limit=FREE.limit(found) if judged else None,
                )
            self.kernels[op] = describe_kernel(OpId.parse(op), self.regions[op], place, ran)

    def _compare_places(self, optimized: ir.Model, places: dict[str, Place], folder: Path) -> dict[str, ErrorStats]:
        """Run the optimized graph beside eager once more; gives op → its figures there."""
        # One cut per op that is still there; those that were swallowed share another's figures.
        cuts = {op: [place.value] for op, place in places.items() if place.at == op}
        figures = {op: ErrorStats() for op in cuts}
        subgraphs = Subgraphs(optimized, cuts, folder, self.providers)
        for case, feeds in zip(self.cases, self.feeds, strict=True):
            run = subgraphs.start(feeds)

            def compare(call: RecordedCall, run: Run = run) -> None:
                op = str(call.op)
                if op in figures:
                    try:
                        figures[op].add(run.take(op)[0], self.regions[op].expected(call))
                    except Exception:  # onnxruntime's errors share no narrower base
                        del figures[op]  # nothing was compared

            watch(self.graph, case, compare)
        return {op: figures.get(op, ErrorStats()) for op in cuts}

    def compare_fast_path(self) -> None:
        """Compare with the fused path of nn.TransformerEncoder and nn.MultiheadAttention, as eager runs it by itself.

        That path may drop padding and give zeros in its place, where the plain path and the graph compute something
        that nobody reads: rows that it fills with zeros are left out.
        """
        figures = {name: ErrorStats() for name in self.names}
        faults = dict.fromkeys(self.names, Fault())
        try:
            session = ort.InferenceSession(
                self.path, options_for(_LAST_LEVEL, self.providers), providers=self.providers
            )
            for case, feeds in zip(self.cases, self.feeds, strict=True):
                with torch.no_grad(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that torch's nested tensors are a prototype
                    expected = self.graph(*case)
                for name, actual, tensor in zip(self.names, session.run(self.names, feeds), expected, strict=True):
                    fast = tensor.numpy()
                    if actual.shape == fast.shape and fast.ndim > 1:
                        # By rows of the last axis: a row of real results is hardly ever all zeros.
                        real = (fast != 0).any(axis=-1)
                        actual, fast = actual[real], fast[real]
                    faults[name] = faults[name] or _add(figures[name], actual, fast)
        except Exception as error:  # onnxruntime's errors share no narrower base, nor do a module's
            fault = Fault(f"the graph or eager's fast path cannot be run: {self._message(error)}")
            faults = dict.fromkeys(self.names, fault)
        self.outputs += self._judge_outputs(f"{_LAST_LEVEL}, eager's fast path", figures, faults)

    def op_reports(self) -> list[OpReport]:
        """Give the verdict on every op: in the order of eager's calls, and then what only the graph has."""
        reports = [
            comparison.report(rounded=self.rounded, optimized=self.optimized.get(op), kernel=self.kernels.get(op))
            for op, comparison in self.comparisons.items()
            if comparison.region is not None
            or not (comparison.op.is_layer or self._is_unread(op) or self._is_repeated(comparison.op))
        ]
        # As when the exporter doubles an op.
        for op, region in self.regions.items():
            if op not in self.comparisons and not OpId.parse(op).is_layer:
                fault = "the graph computes it, eager does not"
                reports.append(OpReport(op=OpId.parse(op), form=region.form, fault=fault))
        return reports

    def _is_unread(self, op: str) -> bool:
        """Whether eager's outputs stay as they are whatever an op gives: a part that nobody reads is in no graph."""

        def disturb(call: RecordedCall) -> None:
            # Eager's own tensor: what follows works on other numbers.
            if str(call.op) == op:
                call.output.copy_(torch.rand_like(call.output) + 1)

        # To the last bit: what is read has some effect on random numbers.
        for case, expected in zip(self.cases, self.expected, strict=True):
            found = watch(self.graph, case, disturb)
            if not all(torch.equal(one, other) for one, other in zip(found, expected, strict=True)):
                return False
        return bool(self.cases)

    def _is_repeated(self, op: OpId) -> bool:
        """Whether eager does again what another op of the kind has done of the same: the exporter computes it once."""
        for case in self.cases:
            calls: list[RecordedCall] = []

            def keep(call: RecordedCall, calls: list[RecordedCall] = calls) -> None:
                if call.op.kind == op.kind and (call.op == op or str(call.op) in self.regions):
                    given = tuple(None if x is None else x.clone() for x in call.inputs)
                    calls.append(dataclasses.replace(call, inputs=given, output=call.output.clone()))

            watch(self.graph, case, keep)
            (own,) = (call for call in calls if call.op == op)
            if not any(call.op != op and _are_alike(call, own) for call in calls):
                return False
        return bool(self.cases)

    def _message(self, error: Exception) -> str:
        """What an error says, without the folders of this machine."""
        return first_line(error).replace(str(self.path), self.path.name)

    def _judge_outputs(
        self, level: str, figures: dict[str, ErrorStats], faults: dict[str, Fault]
    ) -> list[OutputReport]:
        reports = []
        for name, found in figures.items():
            limit = self.tolerance.limit(found) if self.judged else None
            fault = faults[name] or Fault(judge(found, limit, "off"))
            reports.append(
                OutputReport(name=name, level=level, figures=found, limit=limit, fault=fault.text, cause=fault.cause)
            )
        return reports


@contextlib.contextmanager
def comparable(path: Path, precision: str) -> Iterator[Path]:
    """A file of the same graph that needs little memory, and whose values are float32, rounded where they were float16.

    Args:
        path: The ONNX file.
        precision: Of its weights.

    Yields:
        The file to compare, there for the time being.
    """
    if precision != "fp16":
        with mapped(path) as file:
            yield file
        return
    with scratch_folder() as folder:
        # The CPU would compute float16 nodes in float32 and drop the rounding between them.
        model, emulated = ir.load(path), Path(folder) / path.name
        emulate_fp16(model)
        save_onnx(model, emulated)
        # The file is opened anew, mapped: the model in memory would be a second copy.
        del model
        with mapped(emulated) as file:
            yield file


def _are_alike(one: RecordedCall, other: RecordedCall) -> bool:
    """Whether two calls of a kind are of the same values, to the bit."""
    pairs = [*zip((*one.inputs, one.output), (*other.inputs, other.output), strict=True)]
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


def _add(figures: ErrorStats, actual: Array, expected: Array) -> Fault:
    try:
        figures.add(actual, expected)
    except VerificationError as error:
        return Fault(str(error))
    return Fault()
