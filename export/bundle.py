"""From a checkpoint to a bundle: every stage in order, and the folder put in place only when all of it holds."""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tfm.errors import ExportError
from tfm.model import load_checkpoint
from tfm.quantize import quantize_int8
from tfm.runtime import load

from .fidelity import Fidelity, measure_fidelity
from .graphs import Graph, graphs_of
from .latency import Latency, measure_latency
from .manifest import COMPANIONS, SCHEMA, generation_settings, read_json, write_json, write_manifest
from .samples import cases
from .staging import staged
from .to_onnx import OPSETS, to_onnx
from .tolerances import END_TO_END, Tolerance
from .verify import GraphReport, verify

PRECISIONS = ("fp32", "int8")
"""What a bundle can hold; fp32 is always in it, as what the others are measured by."""

Stage = Callable[[str], AbstractContextManager[None]]
"""Called with the name of each stage; entered while it runs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What `export_checkpoint` found.

    Attributes:
        output: The bundle's folder; it exists only if `passed`.
        parameters: Number of the model's parameters.
        graphs: Op by op and end to end, for every graph and precision.
        fidelity: The bundle through the runtime against eager, per precision.
        latency: Eager and every precision.
        sizes: Size in bytes of the ONNX files of each precision.
    """

    output: Path
    parameters: int
    graphs: tuple[GraphReport, ...]
    fidelity: tuple[Fidelity, ...]
    latency: tuple[Latency, ...]
    sizes: dict[str, int]

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        graphs, fidelity = [part.passed for part in self.graphs], [part.passed for part in self.fidelity]
        return bool(graphs) and bool(fidelity) and all(graphs) and all(fidelity)

    def faults(self) -> list[str]:
        """Name what failed, first op first."""
        found = [f"{graph.precision} {graph.role}: {graph.first_fault}" for graph in self.graphs if not graph.passed]
        return found + [
            f"{part.precision} {part.measure}: {part.value:.4f} over {part.count} {part.data}, less than {part.floor}"
            for part in self.fidelity
            if not part.passed
        ]

    def to_dict(self) -> dict[str, Any]:
        """Give the report as JSON values: the content of parity.json."""
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "parameters": self.parameters,
            "graphs": [graph.to_dict() for graph in self.graphs],
            "fidelity": [dataclasses.asdict(part) | {"passed": part.passed} for part in self.fidelity],
            "latency": [dataclasses.asdict(part) for part in self.latency],
            "sizes": self.sizes,
        }


def export_checkpoint(
    checkpoint: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    precisions: Sequence[str] = PRECISIONS,
    opset: int = OPSETS.start,
    tolerance: Tolerance = END_TO_END,
    overwrite: bool = False,
    stage: Stage = lambda _: contextlib.nullcontext(),
) -> ExportReport:
    """Export a checkpoint, verify it, quantise it, verify that, and put the bundle in place if all of it holds.

    Args:
        checkpoint: What `tfm.model.load_checkpoint` reads.
        output: Folder to make.
        precisions: Of `PRECISIONS`; fp32 is always made.
        opset: ONNX opset.
        tolerance: For the fp32 outputs, end to end.
        overwrite: Replace a bundle that is there already; it stays whole until the new one is complete.
        stage: Told of every stage.

    Returns:
        The report. Where a gate failed, nothing was left at `output`.

    Raises:
        TfmError: The input is bad, or the bundle cannot be written; nothing is left behind.
    """
    unknown = [name for name in precisions if name not in PRECISIONS]
    if unknown:
        raise ExportError(f"unknown precision {unknown[0]!r}; known: {', '.join(PRECISIONS)}")
    checkpoint = Path(checkpoint)
    with staged(Path(os.path.abspath(output)), overwrite=overwrite) as (folder, put_in_place):
        with stage("read checkpoint"):
            model = load_checkpoint(checkpoint)
            family = _copy_companions(checkpoint if checkpoint.is_dir() else checkpoint.parent, folder)
            write_json(folder / "config.json", model.config.to_dict())
            generation_settings(folder, model.config)  # raises before the long work, not after it
        graphs = graphs_of(model)
        files: dict[str, dict[str, Path]] = {name: {} for name in dict.fromkeys(["fp32", *precisions])}
        reports: list[GraphReport] = []
        for graph in graphs:
            reports += _make_graph(graph, folder, files, opset, tolerance, stage)
        fidelity: list[Fidelity] = []
        latency: list[Latency] = []
        if all(part.passed for part in reports):  # else what is wrong is known, and may not even run
            write_manifest(folder, model.config, family, graphs, files, opset, gates=[])
            for name in files:
                with stage(f"compare {name} bundle with eager"):
                    fidelity += measure_fidelity(model, load(folder, provider="cpu", precision=name))
            with stage("time eager, " + ", ".join(files)):
                latency = measure_latency(graphs, files, checkpoint)
        report = ExportReport(
            output=Path(output),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            graphs=tuple(reports),
            fidelity=tuple(fidelity),
            latency=tuple(latency),
            sizes={name: sum(file.stat().st_size for file in roles.values()) for name, roles in files.items()},
        )
        if report.passed:
            write_json(folder / "parity.json", report.to_dict())
            gates = [{"name": f"{part.precision} {part.role}", "passed": part.passed} for part in reports]
            gates += [{"name": f"{part.precision} {part.measure}", "passed": part.passed} for part in fidelity]
            write_manifest(folder, model.config, family, graphs, files, opset, gates)
            put_in_place()
    return report


def _copy_companions(source: Path, folder: Path) -> str:
    """Copy what stands beside the weights; tell the family."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    config = source / "config.json"
    return str(read_json(config).get("model_type", "transformer")) if config.is_file() else "transformer"


def _make_graph(
    graph: Graph, folder: Path, files: dict[str, dict[str, Path]], opset: int, tolerance: Tolerance, stage: Stage
) -> list[GraphReport]:
    """Export, verify, quantise and verify one graph; note its files in `files`."""
    name = graph.role if graph.role != "model" else graph.model.config.kind
    reports, inputs = [], cases(graph)
    for precision, roles in files.items():
        suffix = "" if precision == "fp32" else f"_{precision}"
        path = folder / "onnx" / f"{graph.file}{suffix}.onnx"
        path.parent.mkdir(exist_ok=True)
        if precision == "fp32":
            with stage(f"export {name}"):
                ir.save(to_onnx(graph, opset=opset), path)
        else:
            with stage(f"quantise {name} to {precision}"):
                quantised = ir.load(files["fp32"][graph.role])
                quantize_int8(quantised)
                ir.save(quantised, path)
        roles[graph.role] = path
        with stage(f"verify {precision} {name}"):
            reports.append(verify(graph, path, inputs, precision=precision, tolerance=tolerance))
    return reports
