"""A bundle against the live eager model: the same verification as at export, on as many inputs as one likes."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from torch import Tensor

from tfm.bundle import Gate, Judged, Manifest, check_digests, folder_of, nothing_compared, read_manifest
from tfm.errors import BundleError, ProviderError, VerificationError
from tfm.model import Transformer
from tfm.ops import END_TO_END, Tolerance
from tfm.quantize import Stage, silent
from tfm.runtime import ErrorStats, check_graphs, check_onnxruntime

from ..fast_path import no_fast_path
from ..graphs import Graph
from ..merged_graph import MergedGraph
from ..source import open_source
from .bisect import Reproduction, bisect
from .compare import first_line, judge
from .optimized import options_for
from .reports import GraphReport, OutputReport
from .samples import all_padding, cases, every_id
from .verify import CPU, verify

CASES = 8
"""How many inputs, where nobody says."""

_PROVIDERS = {"auto": CPU, "cpu": CPU, "cuda": "CUDAExecutionProvider"}
_EVERY_ID = "all, every id of the vocabulary"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointReport(Judged):
    """What comparing a bundle with eager PyTorch found.

    Attributes:
        bundle: The bundle.
        cases: How many inputs each graph was compared on, beside those with every id.
        graphs: The verdicts.
        reproduction: The smallest part that differs, where one was asked for and something does.
    """

    bundle: Path
    cases: int
    graphs: tuple[GraphReport, ...]
    reproduction: Reproduction | None = None

    def gates(self) -> list[Gate]:
        """List the gates: one for each graph."""
        return [graph.gate for graph in self.graphs] or [nothing_compared("graph")]

    def to_dict(self) -> dict[str, Any]:
        """Give the report as JSON values; "graphs" are as in parity.json."""
        return {
            "bundle": str(self.bundle),
            "passed": self.passed,
            "cases": self.cases,
            "graphs": [graph.to_dict() for graph in self.graphs],
            "reproduction": None if self.reproduction is None else str(self.reproduction),
        }


def compare_with_checkpoint(
    bundle: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None,
    *,
    cases: int = CASES,
    seed: int = 0,
    model: str | None = None,
    config: str | os.PathLike[str] | None = None,
    nhead: int | None = None,
    provider: str = "auto",
    precisions: Sequence[str] | None = None,
    bisect_into: str | os.PathLike[str] | None = None,
    tolerance: Tolerance = END_TO_END,
    stage: Stage = silent,
) -> CheckpointReport:
    """Compare every op and output of a bundle with the checkpoint it came from.

    Args:
        bundle: The bundle.
        checkpoint: As in `export_checkpoint`; so are `model`, `config` and `nhead`.
        cases: How many inputs of random ids and sizes; the first five have ragged padding, one token, a past and the
            greatest length. A row of padding alone, and every id of the vocabulary, come on top.
        seed: Seed of the random ids.
        model: See `checkpoint`.
        config: See `checkpoint`.
        nhead: See `checkpoint`.
        provider: "cpu" or "cuda"; "auto" is the CPU, on which eager runs too.
        precisions: Those to compare; None: all that the bundle has.
        bisect_into: Folder for the smallest part that differs, made only if something does.
        tolerance: For the fp32 outputs.
        stage: Told of every stage.

    Raises:
        TfmError: The bundle or the checkpoint cannot be read, or they are not of the same model.
    """
    manifest = read_manifest(folder_of(bundle))
    # A file that was changed would be compared in good faith; digests are looked at before anything
    # is opened.
    check_digests(manifest, manifest.files)
    check_graphs(manifest)
    subject = open_source(checkpoint, model=model, config=config, nhead=nhead, stage=stage)
    return compare_graphs(
        manifest,
        subject.graphs,
        cases=cases,
        seed=seed,
        provider=provider,
        precisions=precisions,
        bisect_into=bisect_into,
        tolerance=tolerance,
        stage=stage,
    )


def compare_graphs(
    manifest: Manifest,
    graphs: Sequence[Graph],
    *,
    cases: int = CASES,
    seed: int = 0,
    provider: str = "auto",
    precisions: Sequence[str] | None = None,
    bisect_into: str | os.PathLike[str] | None = None,
    tolerance: Tolerance = END_TO_END,
    stage: Stage = silent,
) -> CheckpointReport:
    """Compare the bundle of a manifest with the eager graphs of every role; see `compare_with_checkpoint`."""
    graphs = _as_bundled(manifest, graphs)
    # What cannot be compared is refused before the first graph is run.
    _check_same_model(manifest, graphs)
    execution = _PROVIDERS[provider]
    _check_asked(manifest, execution, precisions or ())
    reports: list[GraphReport] = []
    reproduction: Reproduction | None = None
    for precision in precisions or manifest.graphs:
        check_onnxruntime(manifest, precision)
        for graph in graphs:
            path = manifest.folder / manifest.paths(precision)[graph.role]
            inputs = _inputs(graph, seed, cases)
            with stage(f"compare {precision} {graph.role} with eager on {len(inputs)} inputs"):
                report = verify(graph, path, inputs, precision=precision, tolerance=tolerance, provider=execution)
            with stage(f"compare {precision} {graph.role} on every id of the vocabulary"):
                # Random ids may never draw a row of the embedding that is wrong: every id is fed
                # once, and only the outputs are compared.
                sweep = _compare_stream(graph, path, every_id(graph, seed), execution, tolerance, precision == "fp32")
                report = dataclasses.replace(report, outputs=(*report.outputs, *sweep))
            reports.append(report)
            # Of the first graph that fails alone: one thing to look at is enough.
            if bisect_into is not None and not report.passed and reproduction is None:
                reproduction = bisect(
                    graph,
                    path,
                    inputs,
                    Path(bisect_into),
                    precision=precision,
                    tolerance=tolerance,
                    provider=execution,
                    stage=stage,
                )
    return CheckpointReport(bundle=manifest.folder, cases=len(inputs), graphs=tuple(reports), reproduction=reproduction)


def _check_asked(manifest: Manifest, execution: str, precisions: Sequence[str]) -> None:
    if execution not in ort.get_available_providers():
        raise ProviderError(f"this onnxruntime has no {execution}; it has {', '.join(ort.get_available_providers())}")
    unknown = [name for name in precisions if name not in manifest.graphs]
    if unknown:
        raise BundleError(f"the bundle has no {unknown[0]!r}; it has {', '.join(manifest.graphs)}")


def _as_bundled(manifest: Manifest, graphs: Sequence[Graph]) -> list[Graph]:
    """Give the graphs of a model in the forms that a bundle has: of its decoder that of other readers, or both."""
    model = graphs[0].model
    # One of another kind is refused with what comes next.
    if not isinstance(model, Transformer) or {"encoder-decoder"} != {manifest.kind, model.config.kind}:
        return list(graphs)
    if manifest.merged is not None:
        return [*graphs, MergedGraph(model)]
    packed = any(spec.name == "use_cache_branch" for spec in manifest.signature["decoder"].inputs)
    return [MergedGraph(model, graph.role) if packed and graph.role == "decoder" else graph for graph in graphs]


def _check_same_model(manifest: Manifest, graphs: Sequence[Graph]) -> None:
    """Refuse a checkpoint of another shape: it has not what the bundle takes and gives."""
    roles = sorted(graph.role for graph in graphs)
    if roles != sorted(manifest.compared):
        raise BundleError(
            f"{manifest.folder} has the graphs {', '.join(sorted(manifest.compared))}, but the checkpoint makes "
            f"{', '.join(roles)}: they are not of the same model"
        )
    for graph in graphs:
        signature = manifest.compared[graph.role]
        # Shapes with their names tell models apart cheaply; other weights of one shape show in the
        # comparison.
        for what, ours, theirs in (
            ("takes", signature.inputs, graph.inputs),
            ("gives", signature.outputs, graph.outputs),
        ):
            here = {spec.name: tuple(spec.shape) for spec in ours}
            there = {value.name: tuple(value.shape) for value in theirs}
            if here != there:
                name = next(n for n in [*here, *there] if here.get(n) != there.get(n))
                raise BundleError(
                    f"{manifest.folder}: its {graph.role} graph {what} {name!r} of shape {here.get(name, 'none')}, the "
                    f"checkpoint's model of shape {there.get(name, 'none')}: they are not of the same model"
                )


def _inputs(graph: Graph, seed: int, count: int) -> list[list[Tensor]]:
    """Random inputs, and a row of padding alone where eager gives numbers for one."""
    # A row of padding alone is fair only where eager has numbers for it: attention that is written
    # by hand gives NaN where all scores are -inf, and two NaN prove nothing.
    inputs, padding = cases(graph, seed, count), all_padding(graph, seed)
    if padding is not None:
        with torch.no_grad(), no_fast_path():
            if not any(output.isnan().any() for output in graph(*padding)):
                inputs.append(padding)
    return inputs


def _compare_stream(
    graph: Graph, path: Path, inputs: Iterator[list[Tensor]], provider: str, tolerance: Tolerance, judged: bool
) -> list[OutputReport]:
    """Compare the outputs on many inputs, keeping none of them."""
    figures = {value.name: ErrorStats() for value in graph.outputs}
    fault = ""
    try:
        _add_stream(figures, graph, path, inputs, provider)
    except VerificationError as error:
        # Of figures whose shapes differ.
        fault = str(error)
    except Exception as error:  # onnxruntime's errors share no narrower base
        fault = f"the graph cannot be run: {first_line(error)}"
    if not fault and not any(found.count for found in figures.values()):
        return []  # it reads no ids
    reports = []
    for name, found in figures.items():
        limit = tolerance.limit(found) if judged else None
        reports.append(
            OutputReport(
                name=name, level=_EVERY_ID, figures=found, limit=limit, fault=fault or judge(found, limit, "off")
            )
        )
    return reports


def _add_stream(
    figures: dict[str, ErrorStats], graph: Graph, path: Path, inputs: Iterator[list[Tensor]], provider: str
) -> None:
    # Behind a GPU the CPU takes nodes that have no kernel there, as in an app.
    providers = [provider] if provider == CPU else [provider, CPU]
    # At the level that apps run at; the other levels are `verify`'s.
    session = ort.InferenceSession(path, options_for("runtime", providers), providers=providers)
    for case in inputs:
        with torch.no_grad(), no_fast_path():
            expected = graph(*case)
        feeds = {value.name: tensor.numpy() for value, tensor in zip(graph.inputs, case, strict=True)}
        for name, actual, tensor in zip(figures, session.run(list(figures), feeds), expected, strict=True):
            figures[name].add(actual, tensor.numpy())
