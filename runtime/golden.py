"""The golden check: whether a bundle still computes, on this machine, what eager PyTorch computed at export."""

import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tfm.bundle import (
    Gate,
    GoldenCase,
    GoldenLimits,
    Judged,
    Manifest,
    brief,
    check_digests,
    folder_of,
    nothing_compared,
    read_golden,
    read_manifest,
)
from tfm.errors import BundleError, ProviderError, VerificationError
from tfm.ops import ErrorStats

from .sessions.graph_files import GraphFiles
from .sessions.providers import candidates, count_threads
from .sessions.requires import too_old
from .sessions.session import Session, reason_of


@dataclass(frozen=True, kw_only=True)
class GoldenOutput:
    """The verdict on one output, over all golden cases.

    Attributes:
        name: Its name.
        figures: How far it is from eager PyTorch's.
        measure: Which of the figures is judged: "max_abs" in fp32, "nmse" in any other precision.
        limit: The most that may be; None where NMSE tells nothing, of integers and of what is zero throughout.
        fault: Why it failed, "" where it passed.
    """

    name: str
    figures: ErrorStats
    measure: Literal["max_abs", "nmse"]
    limit: float | None
    fault: str

    @property
    def passed(self) -> bool:
        """Whether the output is what it was."""
        return not self.fault

    @property
    def figure(self) -> float:
        """The one of the figures that is judged."""
        return self.figures.max_abs if self.measure == "max_abs" else self.figures.nmse

    @property
    def nearness(self) -> tuple[bool, float]:
        """By this the worst output is found: what failed, then what is nearest to its limit."""
        return not self.passed, self.figure / self.limit if self.limit else 0.0


@dataclass(frozen=True, kw_only=True)
class GoldenGraph:
    """The verdict on one graph in one precision.

    Attributes:
        role: "model", "encoder" or "decoder"; "merged" is the decoder once more, for other readers.
        precision: E.g. "int8".
        provider: Where it ran: "cpu" or "cuda"; "" where it could not be opened.
        outputs: Each output; none where the graph could not be run.
        fault: Why the graph could not be run, "" where it could.
    """

    role: str
    precision: str
    provider: str
    outputs: tuple[GoldenOutput, ...]
    fault: str

    @property
    def passed(self) -> bool:
        """Whether the graph ran, and all its outputs are what they were."""
        return not self.fault and bool(self.outputs) and all(output.passed for output in self.outputs)

    @property
    def gate(self) -> Gate:
        """Whether it gives what it gave, by the output that is off, or else is nearest to its limit."""
        name = f"{self.precision} {self.role}"
        shown = max(self.outputs, key=lambda output: output.nearness, default=None)
        return Gate(
            name=name,
            stage="golden",
            precision=self.precision,
            op="" if shown is None else shown.name,
            passed=self.passed,
            figure=None if shown is None else shown.figure,
            limit=None if shown is None else shown.limit,
            reason="" if self.passed else f"{name}: {self.first_fault}",
        )

    @property
    def first_fault(self) -> str:
        """What is wrong, "" where nothing is."""
        wrong = [f"{output.name} {output.fault}" for output in self.outputs if output.fault]
        more = f" (and {len(wrong) - 1} more of its {len(self.outputs)} outputs)" if len(wrong) > 1 else ""
        return self.fault or (wrong[0] + more if wrong else "" if self.passed else "nothing was compared")


@dataclass(frozen=True, kw_only=True)
class GoldenReport(Judged):
    """What `check_golden` found."""

    bundle: Path
    cases: int
    graphs: tuple[GoldenGraph, ...]

    def gates(self) -> list[Gate]:
        """List the gates: one for each graph."""
        return [graph.gate for graph in self.graphs] or [nothing_compared("golden")]

    def to_dict(self) -> dict[str, Any]:
        """Give the report as JSON values."""
        graphs = [
            {
                "role": graph.role,
                "precision": graph.precision,
                "provider": graph.provider,
                "passed": graph.passed,
                "fault": graph.fault,
                "outputs": [
                    {"name": output.name, "passed": output.passed, "fault": output.fault}
                    | output.figures.to_dict()
                    | {"measure": output.measure, "limit": output.limit}
                    for output in graph.outputs
                ],
            }
            for graph in self.graphs
        ]
        return {"bundle": str(self.bundle), "passed": self.passed, "cases": self.cases, "graphs": graphs}


def check_golden(
    bundle: str | os.PathLike[str],
    *,
    provider: str = "auto",
    precision: str | Sequence[str] | None = None,
    threads: int | None = None,
) -> GoldenReport:
    """Compare what a bundle computes here with what eager PyTorch computed when it was exported.

    Every file is compared with its digest first; then every graph runs on the golden inputs.

    Args:
        bundle: Its folder, or a .zip of that.
        provider: "cpu", "cuda", or "auto": CUDA where it runs, else the CPU.
        precision: One or more that the bundle has; None: all.
        threads: Threads within an operator; None: as many as this process may use cores.

    Returns:
        The report. A graph that cannot be run is a fault in it, never a pass.

    Raises:
        BundleError: It is no bundle, is altered or incomplete, holds no golden outputs, or lacks the precision.
        ProviderError: The provider is unknown or does not run here.
        InputError: threads is no integer of at least 1.
    """
    providers = candidates(provider)
    threads = count_threads(threads)
    manifest = read_manifest(folder_of(bundle))
    wanted = list(manifest.graphs) if precision is None else _precisions(manifest, precision)
    # Of all files, those too that nothing below opens: an altered bundle does not pass.
    check_digests(manifest, manifest.files)
    golden = read_golden(manifest, wanted)
    graphs = []
    for name in wanted:
        for role, path in manifest.paths(name).items():
            # It fails by name, before onnxruntime says so in words of its own; the others still run.
            if fault := too_old(manifest, name, role):
                graphs.append(GoldenGraph(role=role, precision=name, provider="", outputs=(), fault=fault))
                continue
            graph = _Graph(manifest, role, path, providers, threads)
            graphs.append(_check_graph(name, graph, golden.cases[role], golden.limits[name]))
    cases = sum(map(len, golden.cases.values()))
    return GoldenReport(bundle=manifest.folder, cases=cases, graphs=tuple(graphs))


def _precisions(manifest: Manifest, asked: Any) -> list[str]:
    """Read which precisions are asked for, each once."""
    # What is no list of names is looked at as one name, so that the error shows it whole.
    names = list(asked) if isinstance(asked, Collection) and not isinstance(asked, str) else [asked]
    for name in names:
        if not isinstance(name, str) or name not in manifest.graphs:
            raise BundleError(f"{manifest.folder} has no {brief(name)} graph; it has: {', '.join(manifest.graphs)}")
    return list(dict.fromkeys(names))


def _judge(role: str, name: str, figures: ErrorStats, limits: GoldenLimits) -> GoldenOutput:
    """Judge the figures of one output."""
    limit, measure = limits.limit(role, name, figures.scale), limits.measure
    fault = ""
    if figures.count == 0:
        fault = "was compared with nothing"
    elif math.isinf(figures.max_abs):  # in every precision, whatever the limit
        fault = "is NaN or infinity where eager PyTorch gave another value, or the other way round"
    # Not `>`: a figure that is NaN must fail.
    elif limit is not None and not getattr(figures, measure) <= limit:
        fault = f"is off by {figures.max_abs:.1e}, more than {limit:.1e}"
        if measure == "nmse":
            there = limits.nmse[role][name] or 0
            fault = f"has NMSE {figures.nmse:.1e}, more than {limit:.1e}; where it was exported, {there:.1e}"
    return GoldenOutput(name=name, figures=figures, measure=measure, limit=limit, fault=fault)


@dataclass(frozen=True)
class _Graph:
    """One graph, and where it is to run."""

    manifest: Manifest
    role: str
    name: str
    providers: Sequence[str]
    threads: int

    def open(self) -> Session:
        """Open it on the first provider that runs here."""
        files, signature = GraphFiles(self.manifest, self.name), self.manifest.compared[self.role]
        for provider in self.providers:
            try:
                graph = files.open(provider, self.threads)
                return Session(files.path, signature, provider, self.threads, graph)
            except ProviderError:
                if provider == self.providers[-1]:
                    raise
        raise ProviderError("no provider was named")


def _check_graph(precision: str, graph: _Graph, cases: Sequence[GoldenCase], limits: GoldenLimits) -> GoldenGraph:
    figures = {spec.name: ErrorStats() for spec in graph.manifest.compared[graph.role].outputs}
    provider, fault = "", ""
    outputs: tuple[GoldenOutput, ...] = ()
    try:
        session = graph.open()
        provider = session.provider
        for number, (inputs, expected) in enumerate(cases):
            actual = session.run(inputs)
            for name, found in figures.items():
                try:
                    found.add(actual[name], expected[name])
                except VerificationError as error:
                    raise VerificationError(f"{name} of golden case {number}: {error}") from error
        outputs = tuple(_judge(graph.role, name, found, limits) for name, found in figures.items())
    # A machine without the provider says nothing about the bundle, so this is no fault in it.
    except ProviderError:
        raise
    except Exception as error:  # onnxruntime's errors share no narrower base
        reason = reason_of(error)
        fault = (str(reason) or type(reason).__name__).splitlines()[0]
    return GoldenGraph(role=graph.role, precision=precision, provider=provider, outputs=outputs, fault=fault)
