"""Quantizing a bundle that is there already: new graphs beside its float32 ones, judged by them, all or nothing."""

import dataclasses
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from tfm.bundle import (
    MANIFEST,
    MERGED_ROLE,
    Gate,
    Judged,
    Manifest,
    check_digests,
    describe_file,
    finish,
    precision_of,
    read_certificate,
    read_json,
    read_manifest,
    renew_certificate,
    renew_genai_config,
    renew_manifest,
    staged,
    weights_file,
    write_certificate,
)
from tfm.errors import QuantizeError
from tfm.latency import Latency, all_speeds, compare_speed, onnx_job, time_engines, try_engines
from tfm.report import kept_pictures, write_report
from tfm.runtime import check_onnxruntime

from .bundle import Quantized, budget_gate, quantize
from .golden import renew_golden
from .lowest_onnxruntime import lowest_of_graphs
from .merged import write_merged
from .progress import Stage, silent
from .quantize_options import QuantizeKeywords, QuantizeOptions
from .search.journal import drop_journal, journal_of
from .storage import size_of
from .workloads import bundle_workloads


@dataclasses.dataclass(frozen=True, kw_only=True)
class BundleReport(Judged):
    """What `quantize_bundle` found.

    Attributes:
        output: The bundle's folder.
        precision: What it was quantized to.
        quantized: The graphs and what they cost.
        latency: fp32 and the precision, side by side.
        sizes: Bytes of the ONNX files of both.
        forced: Whether to ship it although it is too far off or too slow.
    """

    output: Path
    precision: str
    quantized: Quantized
    latency: Sequence[Latency]
    sizes: Mapping[str, int]
    forced: bool

    @property
    def shipped(self) -> bool:
        """Whether it was written."""
        return self.passed or self.forced

    def gates(self) -> list[Gate]:
        """List the gates: that it keeps its budget, and is not shown to be slower than fp32 here."""
        budget = budget_gate(self.precision, self.quantized.report)
        return [budget, *(one.gate for one in compare_speed(self.latency))]

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON values."""
        return {
            "output": str(self.output),
            "precision": self.precision,
            "passed": self.passed,
            "faults": self.faults(),
            "quantization": {self.precision: {**self.quantized.report, "forced": self.forced and not self.passed}},
            "latency": [line.to_dict() for line in self.latency],
            "speed": [speed.to_dict() for speed in all_speeds(self.latency)],
            "sizes": dict(self.sizes),
        }


def quantize_bundle(
    bundle: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    precision: str = "int8",
    overwrite: bool = False,
    force: bool = False,
    stage: Stage = silent,
    **options: Unpack[QuantizeKeywords],
) -> BundleReport:
    """Quantize a bundle's float32 graphs anew. Needs neither torch nor the checkpoint.

    They are what the new graphs are measured by: that they are eager's was proved when they were exported.

    Args:
        bundle: The bundle.
        output: Folder to make; None: the bundle itself is replaced, whole.
        precision: "int8" or "int4"; graphs of it that are there already are replaced.
        overwrite: Replace a bundle that is at `output` already.
        force: Ship it although it breaks the budget or is slower than fp32; marked as such.
        stage: Told of every stage.
        **options: The fields of `QuantizeOptions`: `calib`, `max_drop`, `objective`, `recipe`, `search`.

    Returns:
        The report. Where a gate failed, and was not overruled, nothing was changed.

    Raises:
        TfmError: The bundle or the data is bad, or the bundle cannot be written; nothing is changed.
    """
    asked = QuantizeOptions(**options)  # before the bundle is read, which may be large
    place = Path(os.path.realpath(bundle if output is None else output))
    # The bundle itself may be what a killed run left between two renames.
    if output is None:
        finish(place)
    manifest = read_manifest(bundle)
    if "fp32" not in manifest.graphs:
        raise QuantizeError(f"{bundle} has no fp32 graphs to quantize; export it again with fp32 in --precision")
    _refuse_merged(manifest)
    check_digests(manifest, manifest.files)
    check_onnxruntime(manifest, "fp32")
    # Beside the output, and not in the folder that is staged, which goes with a run that fails.
    journal = journal_of(place, precision)
    with staged(place, overwrite=overwrite or output is None) as (folder, put_in_place):
        # From here on `staged` sees to it that none is taken away; one that came before is seen
        # here.
        if read_manifest(bundle) != manifest:
            raise QuantizeError(f"{bundle} was replaced just now by another; quantize that one")
        _copy(manifest, folder, precision)
        fp32 = {role: folder / path for role, path in manifest.graphs["fp32"].items()}
        workloads = bundle_workloads(manifest)
        with stage("try what is timed at the end"):  # what cannot be started here fails now, not after the search
            try_engines({"fp32": onnx_job(fp32)}, workloads)
        with stage(f"quantize to {precision}") as progress:
            # By the copies: files that are linked elsewhere too are not read by onnx-ir, and nobody writes to these.
            made = quantize(
                dataclasses.replace(manifest, folder=folder),
                folder,
                precision=precision,
                options=asked,
                journal=journal,
                progress=progress,
            )
        files = {"fp32": fp32, precision: dict(made.files)}
        with stage(f"time fp32, {precision}"):
            jobs = {name: onnx_job(roles) for name, roles in files.items()}
            latency = time_engines(jobs, workloads)
        report = BundleReport(
            output=Path(bundle if output is None else output),
            precision=precision,
            quantized=made,
            latency=latency,
            sizes={name: sum(map(size_of, roles.values())) for name, roles in files.items()},
            forced=force,
        )
        if report.shipped:
            # Of other readers' form: made of the two, and compared where golden outputs are.
            # Its signature is the other precisions'.
            merged = {}
            if manifest.merged is not None:
                merged[MERGED_ROLE] = write_merged(made.files["encoder"], made.files["decoder"])
            # The manifest last: it has the digests of all other files.
            renew_golden(manifest, folder, precision, {**made.files, **merged})
            _renew_certificate(manifest, folder, report)
            _renew_manifest(manifest, folder, report, merged)
            put_in_place()
            # Not before the bundle is in place: until then the next run needs the figures.
            drop_journal(journal)
    return report


def _refuse_merged(manifest: Manifest) -> None:
    """Refuse a pack whose decoder has branches, in which nothing is found that could be quantized."""
    decoder = manifest.signature.get("decoder")
    if decoder is not None and any(spec.name == "use_cache_branch" for spec in decoder.inputs):
        raise QuantizeError(
            f"{manifest.folder} is a pack whose decoder is in the form of other readers; quantize the bundle that it "
            "was packed from, and pack that again"
        )


def _copy(manifest: Manifest, folder: Path, precision: str) -> None:
    """Copy all of a bundle but what is quantized anew."""
    graphs = manifest.paths(precision).values() if precision in manifest.graphs else ()
    # The second is what weights were called before.
    old = {name for path in graphs for name in (path, f"{path}.data", weights_file(path))}
    for name in manifest.files:
        if name not in old:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(manifest.folder / name, folder / name)


def _renew_certificate(manifest: Manifest, folder: Path, report: BundleReport) -> None:
    """Replace what parity.json and report.html say of the precision; its ops were not compared with eager's anew."""
    certificate, page = read_certificate(folder), folder / "report.html"
    if certificate is None:
        return
    now = report.to_json()
    files = report.quantized.files.values()
    # Bundles of earlier versions name no gates; what their certificate says as a whole stands.
    others = [gate["passed"] for gate in _other_gates(manifest.gates, report.precision)]
    certificate = renew_certificate(
        certificate,
        report.precision,
        passed=report.passed and (all(others) if others else bool(certificate["passed"])),
        quantization=now["quantization"],
        latency=now["latency"],
        speed=now["speed"],
        size=report.sizes[report.precision],
        files={file.relative_to(folder).as_posix(): describe_file(file) for file in files},
    )
    pictures = kept_pictures(page.read_text(encoding="utf-8")) if page.is_file() else ""
    write_certificate(folder, certificate)
    write_report(page, certificate, pictures=pictures)


def _other_gates(gates: Iterable[Mapping[str, Any]], precision: str) -> list[Mapping[str, Any]]:
    """Those that are not about a precision."""
    return [gate for gate in gates if precision_of(gate) != precision]


def _renew_manifest(manifest: Manifest, folder: Path, report: BundleReport, merged: Mapping[str, Path]) -> None:
    made = {role: path.relative_to(folder).as_posix() for role, path in report.quantized.files.items()}
    graphs = {**manifest.graphs, report.precision: made}
    gates = _other_gates(manifest.gates, report.precision) + [gate.to_json() for gate in report.gates()]
    renew_genai_config(folder, graphs)
    changes: dict[str, Any] = {"graphs": graphs, "requires": lowest_of_graphs(folder, graphs), "gates": gates}
    if manifest.merged is not None:  # its signature stays as it is
        changes["merged"] = read_json(manifest.folder / MANIFEST)["merged"]
        changes["merged"]["graphs"][report.precision] = merged[MERGED_ROLE].relative_to(folder).as_posix()
    renew_manifest(manifest, folder, changes)
