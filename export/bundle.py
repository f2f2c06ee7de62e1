"""From a checkpoint to a bundle: every stage in order, and the folder put in place only when all of it holds."""

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import onnx_ir as ir
import torch

from tfm.bundle import (
    MERGED_ROLE,
    Gate,
    Judged,
    Manifest,
    all_passed,
    read_manifest,
    staged,
    write_certificate,
    write_json,
)
from tfm.errors import BundleError, CheckpointError, ExportError
from tfm.latency import Latency
from tfm.model import TransformerConfig, load_tokenizer
from tfm.ops import END_TO_END, Tolerance
from tfm.quantize import (
    Calibration,
    Quantized,
    QuantizeKeywords,
    QuantizeOptions,
    Stage,
    Target,
    drop_journal,
    journal_of,
    quantize,
    read_calibration,
    save_onnx,
    silent,
    target_of,
    to_fp16,
    write_merged,
)
from tfm.runtime import Encoder, Tokenizer, load

from .certificate import NOT_JUDGED, certify, gates_of
from .genai_config import write_genai_config
from .golden import golden_cases, write_golden
from .graphs import Graph
from .latency import measure_latency
from .made_tokenizer import make_tokenizer, tokenizer_files
from .manifest import COMPANIONS, Generates, generation_settings, write_manifest
from .merged_graph import merged_graph
from .pictures import draw_report
from .processors import put_letters, put_processor
from .source import Source, open_source
from .template_file import put_chat_template
from .text_settings import apply_tokenizer_config, copy_modules, write_limit
from .to_onnx import to_onnx
from .verify.ask_library import Asked, NotCompared, Reference, ask_library, library_of
from .verify.fidelity import Fidelity, measure_fidelity
from .verify.library import compare_with_library
from .verify.reports import GraphReport
from .verify.samples import cases
from .verify.vector_forms import measure_vector_forms
from .verify.verify import verify

_VERIFIED, _BATCH = 16, 8
"""How many held-out samples a quantized graph is verified on, and how many of them at a time."""

_MERGED = 4
"""On how many samples the decoder of other readers is verified beside the golden ones: its nodes have been before."""

_MOST_COMPANION = 1 << 28
"""Bytes of a file that goes along: the tokenizer.json of a vocabulary of 262,144 tokens has an eighth of that."""

PRECISIONS = ("fp32", "int8", "int4", "fp16")
"""What a bundle can hold; fp32 is always in it, as what the others are measured by, and fp16 is for CUDA."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportReport(Judged):
    """What `export_checkpoint` found.

    Attributes:
        output: The bundle's folder; it exists only if `shipped`.
        graphs: Op by op and end to end, for every graph and precision.
        fidelity: The bundle through the runtime against eager, per precision.
        latency: Eager and every precision that is for the CPU.
        certificate: All of it as JSON values: the content of parity.json.
        quantized: What was quantized, by precision.
        forced: Whether to ship it although a precision other than fp32 is too far off or too slow.
    """

    output: Path
    graphs: tuple[GraphReport, ...]
    fidelity: tuple[Fidelity, ...]
    latency: tuple[Latency, ...]
    certificate: dict[str, Any]
    quantized: Mapping[str, Quantized] = dataclasses.field(default_factory=dict)
    forced: bool = False

    @property
    def shipped(self) -> bool:
        """Whether there is a bundle: every gate passed, or those failed that may be overruled, and were."""
        return self.passed or (self.forced and all_passed(gate for gate in self.gates() if not gate.may_be_overruled))

    def gates(self) -> list[Gate]:
        """List every gate, with its verdict."""
        return gates_of(self.graphs, self.fidelity, self.latency, self.certificate["quantization"])

    @property
    def sizes(self) -> dict[str, int]:
        """Size in bytes of the ONNX files of each precision."""
        return dict(self.certificate["sizes"])


def export_checkpoint(
    checkpoint: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    *,
    model: str | None = None,
    config: str | os.PathLike[str] | None = None,
    nhead: int | None = None,
    precisions: Sequence[str] = ("fp32", "int8"),
    opset: int | None = None,
    tolerance: Tolerance = END_TO_END,
    overwrite: bool = False,
    force: bool = False,
    stage: Stage = silent,
    **options: Unpack[QuantizeKeywords],
) -> ExportReport:
    """Export a checkpoint, verify it, quantize it, verify that, and put the bundle in place if all of it holds.

    Args:
        checkpoint: What `tfm.model.load_checkpoint` reads; a `.pt2` file of torch.export.save; a Hugging Face folder of
            a family that is not native; with `model`, a state_dict for it, or None.
        output: Folder to make.
        model: "package.module:factory" of any nn.Module.
        config: Configuration of weights that come without one, as `tfm.model.load_checkpoint` takes it.
        nhead: Number of heads, where only the user knows it.
        precisions: Of `PRECISIONS`; fp32 is always made.
        opset: ONNX opset; None: `OPSET`, or the newest that `runtime` opens.
        tolerance: For the fp32 outputs, end to end.
        overwrite: Replace a bundle that is there already; it stays whole until the new one is complete.
        force: Ship a bundle whose quantized graphs are right, but too far off for the task or slower than fp32; its
            manifest and certificate say so.
        stage: Told of every stage.
        **options: How graphs are quantized: the fields of `tfm.quantize.QuantizeOptions`, which are `calib`,
            `max_drop`, `objective`, `recipe` and `search`; and what all graphs are written for, `runtime` and
            `portable`.

    Returns:
        The report. Where a gate failed, and was not overruled, nothing was left at `output`.

    Raises:
        TfmError: The input is bad, or the bundle cannot be written; nothing is left behind but the figures of a search.
    """
    # Before the checkpoint is read, which may take minutes.
    unknown = [name for name in precisions if name not in PRECISIONS]
    if unknown:
        raise ExportError(f"unknown precision {unknown[0]!r}; known: {', '.join(PRECISIONS)}")
    asked = QuantizeOptions(**options)
    target = target_of(asked.runtime, opset=opset, portable=asked.portable)
    # What is staged is a sibling of the folder itself, not of a link to it.
    place = Path(os.path.realpath(output))
    with staged(place, overwrite=overwrite) as (folder, put_in_place):
        subject = open_source(checkpoint, model=model, config=config, nhead=nhead, stage=stage)
        notes = _copy_what_belongs(subject, folder, stage)
        origin = (subject.path, model, config, nhead)
        # Written out, attention over a cache makes a longer one each time.
        if not target.has_room:
            subject = subject.without_room()
        work = _Export(subject, folder, precisions, target=target, tolerance=tolerance, stage=stage, origin=origin)
        work.export_fp32()
        # Of graphs that are right alone: HALF's limits would let a small mistake through, and a
        # wrong graph is not worth quantizing. What is wrong is known then, and may not even run.
        if work.passed:
            work.merge("fp32")
        if work.passed and "fp16" in work.files:
            work.round_to_fp16()
            work.merge("fp16")
        if work.passed and work.to_quantize:
            manifest, held_out = work.prepare_quantizing(asked.calib)
            for precision in work.to_quantize:
                with stage(f"quantize to {precision}") as progress:
                    made = quantize(
                        manifest,
                        folder,
                        precision=precision,
                        options=asked,
                        journal=journal_of(place, precision),
                        progress=progress,
                    )
                work.verify_quantized(precision, made, held_out)
                work.merge(precision)
        if work.passed:
            work.measure(asked.max_drop)
        report = work.report(Path(output), forced=force, notes=notes)
        # The manifest is last of what is written, as it has the digest of every other file; then
        # the folder takes its place. Only now the search's figures may go: a run that fails before
        # leaves them, and the next one need not measure again.
        if report.shipped:
            work.write(report)
            put_in_place()
            for precision in report.quantized:
                drop_journal(journal_of(place, precision))
    return report


class _Export:
    """The stages in order, and what each leaves for the next."""

    def __init__(
        self,
        subject: Source,
        folder: Path,
        precisions: Sequence[str],
        *,
        target: Target,
        tolerance: Tolerance,
        stage: Stage,
        origin: tuple[Path | None, str | None, str | os.PathLike[str] | None, int | None],
    ) -> None:
        self.subject, self.folder, self.target, self.tolerance = subject, folder, target, tolerance
        self.stage, self.origin = stage, origin
        # fp32 is first whatever was asked for: all others are made from its graphs and measured by
        # it.
        self.files: dict[str, dict[str, Path]] = {name: {} for name in dict.fromkeys(["fp32", *precisions])}
        self.to_quantize = [name for name in self.files if name not in ("fp32", "fp16")]
        self.graphs: list[GraphReport] = []
        self.quantized: dict[str, Quantized] = {}
        self.fidelity: list[Fidelity] = []
        self.reference: Reference | NotCompared | None = None
        self.latency: list[Latency] = []
        # The decoder once more, for other readers: written of graphs that are proved, and proved itself.
        self.merged, self.merged_files = merged_graph(subject.eager), dict[str, Path]()
        # The same inputs for every precision, so that their figures can be compared. The golden
        # ones are among them: what the bundle carries has been verified op by op.
        self.cases = {graph.role: [*cases(graph), *golden_cases(graph)] for graph in subject.graphs}

    @property
    def passed(self) -> bool:
        """Whether all graphs so far are right."""
        return all(part.passed for part in self.graphs)

    def export_fp32(self) -> None:
        """Export and prove. A graph that fails does not end the loop, since the report is to name all."""
        for graph in self.subject.graphs:
            path = self.files["fp32"][graph.role] = self.folder / "onnx" / f"{graph.file}.onnx"
            path.parent.mkdir(exist_ok=True)
            name = _name(graph, self.subject)
            with self.stage(f"export {name}"):
                made = to_onnx(graph, target=self.target)
                self._check_fits(made, name)
                save_onnx(made, path)
            with self.stage(f"verify fp32 {name}"):
                self.graphs.append(verify(graph, path, self.cases[graph.role], tolerance=self.tolerance))

    def _check_fits(self, model: ir.Model, name: str) -> None:
        """Refuse a graph that holds what it was not to need."""
        if (refusal := self.target.refusal(model)) is not None:
            asked = "--portable" if self.target.portable else f"--runtime {self.target.runtime}"
            raise ExportError(f"{name} cannot be written for {asked}: {refusal}")

    def round_to_fp16(self) -> None:
        for graph in self.subject.graphs:
            name = _name(graph, self.subject)
            with self.stage(f"round {name} to fp16"):
                path = self.files["fp16"][graph.role] = _write_half(self.files["fp32"][graph.role])
            with self.stage(f"verify fp16 {name}, rounded as CUDA rounds it"):
                self.graphs.append(verify(graph, path, self.cases[graph.role], precision="fp16"))

    def prepare_quantizing(self, calib: Path | None) -> tuple[Manifest, Calibration]:
        """Give a bundle of fp32 alone, and samples of the half that nothing is calibrated with."""
        exact = {"fp32": self.files["fp32"]}
        # What cannot be started here fails now, not after the search.
        with self.stage("try what is timed at the end"):
            measure_latency(self.subject.graphs, exact, *self.origin, 0)
        # quantize reads a bundle, as `tfm quantize` does without torch.
        self._write_manifest(exact, gates=[])
        manifest = read_manifest(self.folder)
        return manifest, read_calibration(calib, manifest, count=_VERIFIED, split="held-out")

    def verify_quantized(self, precision: str, made: Quantized, held_out: Calibration) -> None:
        """Prove what was found."""
        self.quantized[precision], self.files[precision] = made, dict(made.files)
        for graph in self.subject.graphs:
            with self.stage(f"verify {precision} {_name(graph, self.subject)}"):
                inputs = [
                    [torch.from_numpy(feeds[value.name]) for value in graph.inputs]
                    for feeds in held_out.batches(graph.role, _BATCH)
                ]
                inputs += golden_cases(graph)
                self.graphs.append(verify(graph, made.files[graph.role], inputs, precision=precision))

    def merge(self, precision: str) -> None:
        """Write and prove the decoder in the form of other readers, where there is an encoder and all is right so far.

        It is left out of what is timed and of what the task is judged by, as tfm.runtime runs the other two.
        """
        # Of graphs that are wrong it would be wrong too, and say so in other words.
        if self.merged is None or not self.passed:
            return
        files = self.files[precision]
        with self.stage(f"verify {precision} decoder for other readers"):
            path = self.merged_files[precision] = write_merged(files["encoder"], files["decoder"])
            inputs = [*cases(self.merged, count=_MERGED), *golden_cases(self.merged)]
            self.graphs.append(verify(self.merged, path, inputs, precision=precision, tolerance=self.tolerance))

    def measure(self, max_drop: float | None) -> None:
        """Measure the task's own figures, and the speed."""
        # `load` opens by the manifest, and takes no precision that is not in it.
        self._write_manifest(self.files, gates=[])
        for name in self.files:
            with self.stage(f"compare {name} bundle with eager"):
                bundle = load(self.folder, provider="cpu", precision=name)
                self.fidelity += measure_fidelity(self.subject.eager, bundle, max_drop)
            if isinstance(bundle, Asked):
                self._compare_with_library(bundle)
            # What a form costs is the model's own, and hardly another in other graphs.
            if name == "fp32" and isinstance(bundle, Encoder) and "embed" in bundle.tasks:
                self.fidelity += measure_vector_forms(bundle)
        # fp16 is for CUDA, and only the CPU runs here.
        timed = {name: roles for name, roles in self.files.items() if name not in NOT_JUDGED}
        with self.stage("time eager, " + ", ".join(timed)):
            self.latency = measure_latency(self.subject.graphs, timed, *self.origin)

    def _compare_with_library(self, bundle: Asked) -> None:
        """Compare with what the checkpoint's own library gives, which is asked once."""
        folder = self.subject.folder
        # The first of all.
        if bundle.precision == "fp32" and library_of(folder, bundle) is not None:
            with self.stage("run the checkpoint by its own library"):
                self.reference = ask_library(folder, bundle)
        if isinstance(self.reference, Reference):
            with self.stage(f"compare {bundle.precision} bundle with {self.reference.library}"):
                self.fidelity += compare_with_library(self.reference, bundle)

    def report(self, output: Path, *, forced: bool, notes: Sequence[str]) -> ExportReport:
        """Give the verdict, and what there is to say beside it."""
        report = ExportReport(
            output=output,
            graphs=tuple(self.graphs),
            fidelity=tuple(self.fidelity),
            latency=tuple(self.latency),
            certificate=certify(
                output.name,
                self.subject,
                self.files,
                opset=self.target.opset,
                graphs=self.graphs,
                fidelity=self.fidelity,
                latency=self.latency,
                tolerance=self.tolerance,
                quantization={name: {**made.report, "forced": False} for name, made in self.quantized.items()},
                reference=self.reference,
            ),
            quantized=self.quantized,
            forced=forced,
        )
        report.certificate["not_judged"] += notes
        # Known only once all gates are.
        for entry in report.certificate["quantization"].values():
            entry["forced"] = report.shipped and not report.passed
        return report

    def write(self, report: ExportReport) -> None:
        """Write what tells of the graphs."""
        write_certificate(self.folder, report.certificate)
        with self.stage("draw report.html"):
            draw_report(self.folder, self.subject, self.files, report.certificate)
        with self.stage("store golden outputs"):
            graphs, files = list(self.subject.graphs), self.files
            if self.merged is not None:
                graphs.append(self.merged)
                files = {name: {**paths, MERGED_ROLE: self.merged_files[name]} for name, paths in files.items()}
            write_golden(self.folder, graphs, files, self.tolerance)
        write_genai_config(self.folder, self.subject.config, self.subject.family, self.subject.graphs, self.files)
        self._write_manifest(self.files, [gate.to_json() for gate in report.gates()])

    def _write_manifest(self, files: dict[str, dict[str, Path]], gates: list[dict[str, Any]]) -> None:
        subject = self.subject
        merged = None if self.merged is None else (self.merged, self.merged_files)
        write_manifest(
            self.folder, subject.config, subject.family, subject.graphs, files, self.target.opset, gates, merged
        )


def _copy_what_belongs(subject: Source, folder: Path, stage: Stage = silent) -> list[str]:
    """Put what stands beside the weights into the bundle; refuse what cannot be used now, not after the long work.

    Returns:
        What of it the bundle will not do, in words.
    """
    for name in COMPANIONS:
        # What was trained with an adapter, such as a tokenizer with more tokens, goes before its base's.
        found = next((source / name for source in subject.folders if (source / name).is_file()), None)
        if found is not None:
            _copy_companion(found, folder / name)
    for source in subject.folders:
        copy_modules(source, folder)
    put_processor(subject.folders, folder)
    apply_tokenizer_config(folder)
    write_limit(folder)
    inside = subject.base or subject.path if isinstance(subject.config, TransformerConfig) else None
    notes = [] if put_letters(subject.folders, folder) else _put_tokenizer(subject, folder, inside, stage)
    put_chat_template(subject.folders, inside, folder)
    described = subject.base or subject.path
    if described is not None and (described / "config.json").is_file():
        shutil.copyfile(described / "config.json", folder / "config.json")
    else:  # ours where there is none
        write_json(folder / "config.json", subject.config.to_dict())
    return notes + _not_carried(subject, folder)


def _not_carried(subject: Source, folder: Path) -> list[str]:
    """What the checkpoint says of generating and the bundle does not do, in words; bad settings are refused now."""
    # Read where it was copied from, so that an error names the user's own file; without one, as write_manifest will.
    written = (source for source in subject.folders if (source / "generation_config.json").is_file())
    config = subject.config
    settings = generation_settings(next(written, folder), config) if isinstance(config, Generates) else None
    names = settings["not_carried"] if settings is not None else []
    said = [] if isinstance(config, TransformerConfig) else list(config.notes)
    if names:
        said.append(f"Not carried from the checkpoint's settings of generating: {', '.join(names)}.")
    return said


def _put_tokenizer(subject: Source, folder: Path, inside: Path | None, stage: Stage) -> list[str]:
    """Try the tokenizer that was copied, or make one of what the checkpoint has; tell why there is none.

    Args:
        subject: What is exported.
        folder: The bundle's.
        inside: The checkpoint, whose own file may have a tokenizer; None: it has none.
        stage: Told what is done.
    """
    # A tokenizer that the runtime cannot read would make a bundle that does not open: it is tried
    # here, by the runtime's own reader. One that is stored in another form is converted.
    if (folder / "tokenizer.json").is_file():
        try:
            Tokenizer(folder / "tokenizer.json")
        except BundleError as error:
            found = next(source for source in subject.folders if (source / "tokenizer.json").is_file())
            raise CheckpointError(f"{found}/tokenizer.json cannot be read by tokenizers: {error}") from error
    elif inside is not None and (tokenizer := load_tokenizer(inside)) is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    else:
        return _make_tokenizer(subject.folders, folder, stage)
    return []


def _make_tokenizer(sources: Sequence[Path], folder: Path, stage: Stage) -> list[str]:
    """Make a tokenizer.json of what a checkpoint has instead; tell why there is none."""
    for source in sources:
        if names := tokenizer_files(source):
            with stage(f"make a tokenizer.json of {', '.join(names)}"):
                refusal = make_tokenizer(source, names, folder / "tokenizer.json")
            return [] if refusal is None else [f"The bundle takes token ids only, no texts: {refusal}."]
    return []


def _copy_companion(source: Path, target: Path) -> None:
    """Copy a file of text that stands beside the weights."""
    try:
        # One byte more than is allowed tells a file that is too large without reading all of it.
        with open(source, "rb") as stream:
            content = stream.read(_MOST_COMPANION + 1)
    except OSError as error:
        raise CheckpointError(f"{source} cannot be read: {error.strerror or error}") from error
    if len(content) > _MOST_COMPANION:
        raise CheckpointError(f"{source} is larger than {_MOST_COMPANION >> 20} MiB, which no such file is")
    target.write_bytes(content)


def _write_half(exact: Path) -> Path:
    """Write the float16 form of a float32 graph beside it."""
    model = ir.load(exact)
    to_fp16(model)
    path = exact.with_name(f"{exact.stem}_fp16.onnx")
    save_onnx(model, path)
    return path


def _name(graph: Graph, subject: Source) -> str:
    return graph.role if graph.role != "model" else subject.config.kind
