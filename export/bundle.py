"""From a checkpoint to a bundle: every stage in order, and the folder put in place only when all of it holds."""

import contextlib
import dataclasses
import math
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import tokenizers

from tfm.errors import CheckpointError, ExportError
from tfm.model import Transformer, TransformerConfig, load_checkpoint, load_tokenizer, locate_checkpoint
from tfm.quantize import quantize_int8
from tfm.runtime import load

from .fidelity import Fidelity, measure_fidelity
from .generic import GenericConfig, GenericGraph
from .generic_open import describe_generic, is_generic, open_generic
from .generic_vectors import from_vectors
from .golden import golden_cases, write_golden
from .graphs import Graph, graphs_of
from .latency import Latency, measure_latency
from .manifest import COMPANIONS, SCHEMA, generation_settings, read_json, write_json, write_manifest
from .samples import cases
from .staging import staged
from .storage import save_onnx, size_of
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
            "fidelity": [
                dataclasses.asdict(part)
                | {"passed": part.passed}
                | ({} if math.isfinite(part.value) else {"value": None})
                for part in self.fidelity
            ],
            "latency": [dataclasses.asdict(part) for part in self.latency],
            "sizes": self.sizes,
        }


def export_checkpoint(
    checkpoint: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    *,
    model: str | None = None,
    config: str | os.PathLike[str] | None = None,
    nhead: int | None = None,
    precisions: Sequence[str] = PRECISIONS,
    opset: int = OPSETS.start,
    tolerance: Tolerance = END_TO_END,
    overwrite: bool = False,
    stage: Stage = lambda _: contextlib.nullcontext(),
) -> ExportReport:
    """Export a checkpoint, verify it, quantise it, verify that, and put the bundle in place if all of it holds.

    Args:
        checkpoint: What `tfm.model.load_checkpoint` reads; a `.pt2` file of torch.export.save; a Hugging Face folder of
            a family that is not native; with `model`, a state_dict for it, or None.
        output: Folder to make.
        model: "package.module:factory" of any nn.Module.
        config: Configuration of weights that come without one, as `tfm.model.load_checkpoint` takes it.
        nhead: Number of heads, where only the user knows it.
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
    if checkpoint is not None:
        checkpoint = locate_checkpoint(checkpoint)
    with staged(Path(os.path.realpath(output)), overwrite=overwrite) as (folder, put_in_place):
        subject = _read(checkpoint, model, config, nhead, folder, stage)
        graphs, made = subject.graphs, subject.config
        files: dict[str, dict[str, Path]] = {name: {} for name in dict.fromkeys(["fp32", *precisions])}
        reports: list[GraphReport] = []
        for graph in graphs:
            reports += _make_graph(graph, made.kind, folder, files, opset, tolerance, stage)
        fidelity: list[Fidelity] = []
        latency: list[Latency] = []
        if all(part.passed for part in reports):  # else what is wrong is known, and may not even run
            write_manifest(folder, made, subject.family, graphs, files, opset, gates=[])
            for name in files:
                with stage(f"compare {name} bundle with eager"):
                    fidelity += measure_fidelity(subject.eager, load(folder, provider="cpu", precision=name))
            with stage("time eager, " + ", ".join(files)):
                latency = measure_latency(graphs, files, checkpoint, model, config, nhead)
        report = ExportReport(
            output=Path(output),
            parameters=sum(parameter.numel() for parameter in subject.eager.parameters()),
            graphs=tuple(reports),
            fidelity=tuple(fidelity),
            latency=tuple(latency),
            sizes={name: sum(size_of(file) for file in roles.values()) for name, roles in files.items()},
        )
        if report.passed:
            write_json(folder / "parity.json", report.to_dict())
            with stage("store golden outputs"):
                write_golden(folder, graphs, files, tolerance)
            gates = [{"name": f"{part.precision} {part.role}", "passed": part.passed} for part in reports]
            gates += [{"name": f"{part.precision} {part.measure}", "passed": part.passed} for part in fidelity]
            write_manifest(folder, made, subject.family, graphs, files, opset, gates)
            put_in_place()
    return report


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is exported: a native Transformer and its graphs, or any module as the one graph that it is."""

    eager: Transformer | GenericGraph
    graphs: Sequence[Graph]
    config: TransformerConfig | GenericConfig
    family: str


def _read(
    checkpoint: str | os.PathLike[str] | None,
    model: str | None,
    config: str | os.PathLike[str] | None,
    nhead: int | None,
    folder: Path,
    stage: Stage,
) -> _Subject:
    """Read what is to be exported, and put what belongs to it into the bundle."""
    path = None if checkpoint is None else Path(checkpoint)
    if path is None or is_generic(path, model):
        with stage(describe_generic(path, model)):
            generic = open_generic(path, model)
            if path is not None:
                _copy_companions(path if path.is_dir() else path.parent, folder)
            _write_config(path, folder, generic.config)
        return _Subject(eager=generic, graphs=[generic], config=generic.config, family=generic.config.family)
    with stage("read checkpoint"):
        native = load_checkpoint(path, config, nhead).float()
        _check_finite(path, native)
        family = _copy_companions(path if path.is_dir() else path.parent, folder)
        family = family if config is None else _family(Path(config))
        if not (folder / "tokenizer.json").is_file() and (tokenizer := load_tokenizer(path)) is not None:
            tokenizer.save(str(folder / "tokenizer.json"))
        _write_config(path, folder, native.config)
        generation_settings(path if path.is_dir() else path.parent, native.config)  # now, not after the long work
    if native.config.reads_vectors:
        whole = from_vectors(native)
        return _Subject(eager=whole, graphs=[whole], config=whole.config, family=family)
    return _Subject(eager=native, graphs=graphs_of(native), config=native.config, family=family)


def _check_finite(path: Path, model: Transformer) -> None:
    """Refuse weights that are NaN or infinite: they spread to every output, where nothing can be compared."""
    bad = [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise CheckpointError(f"{path}: NaN or infinity in the weights {', '.join(bad[:3])}{more}")


def _copy_companions(source: Path, folder: Path) -> str:
    """Copy what stands beside the weights; tell the family."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if (folder / "tokenizer.json").is_file():
        try:
            tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises no narrower class
            raise CheckpointError(f"{source / 'tokenizer.json'} cannot be read by tokenizers: {error}") from error
    return _family(source / "config.json")


def _write_config(source: Path | None, folder: Path, config: TransformerConfig | GenericConfig) -> None:
    """Put the source folder's own config.json into the bundle, or ours where there is none."""
    if source is not None and (source / "config.json").is_file():
        shutil.copyfile(source / "config.json", folder / "config.json")
    else:
        write_json(folder / "config.json", config.to_dict())


def _family(config: Path) -> str:
    """Tell the model_type of a Hugging Face configuration; "transformer" of any other, and of none."""
    if not config.is_file() or config.suffix != ".json":
        return "transformer"
    return str(read_json(config).get("model_type", "transformer"))


def _make_graph(
    graph: Graph,
    kind: str,
    folder: Path,
    files: dict[str, dict[str, Path]],
    opset: int,
    tolerance: Tolerance,
    stage: Stage,
) -> list[GraphReport]:
    """Export, verify, quantise and verify one graph; note its files in `files`."""
    name = graph.role if graph.role != "model" else kind
    reports, inputs = [], [*cases(graph), *golden_cases(graph)]
    for precision, roles in files.items():
        suffix = "" if precision == "fp32" else f"_{precision}"
        path = folder / "onnx" / f"{graph.file}{suffix}.onnx"
        path.parent.mkdir(exist_ok=True)
        if precision == "fp32":
            with stage(f"export {name}"):
                save_onnx(to_onnx(graph, opset=opset), path)
        else:
            with stage(f"quantise {name} to {precision}"):
                quantised = ir.load(files["fp32"][graph.role])
                quantize_int8(quantised)
                save_onnx(quantised, path)
        roles[graph.role] = path
        with stage(f"verify {precision} {name}"):
            reports.append(verify(graph, path, inputs, precision=precision, tolerance=tolerance))
    return reports
