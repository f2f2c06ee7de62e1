"""What a trained run is worth once deployed: exported, verified, quantized in one way, and tested in its bundle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tfm.bundle import read_manifest
from tfm.errors import InputError
from tfm.export import export_checkpoint
from tfm.quantize import Dynamic, Recipe, find_ops, quantize_bundle
from tfm.runtime import EncoderDecoder, load

from .run import Run
from .task import Task

_STEPS = 4


def plainly_dynamic(bundle: Path) -> Recipe:
    """Give the one recipe that all runs are quantized by: every weight int8, every product's input scaled as it comes.

    A search would spend more bits where an activation needs them, until all are equally good: it is what to ship, and
    what hides the difference.
    """
    manifest = read_manifest(bundle)
    graphs = {role: ir.load(manifest.folder / path).graph for role, path in manifest.graphs["fp32"].items()}
    methods = {role: {op.name: Dynamic() for op in find_ops(graph)} for role, graph in graphs.items()}
    return Recipe(precision="int8", methods=methods)


def deploy(task: Task, run: Run, tell: Callable[[int], None]) -> dict[str, Any]:
    """Export a trained run's checkpoint to a bundle in fp32 and int8, and measure both on the task's questions.

    Returns:
        A record: "passed" and "faults" of the fp32 export; "activation", the ONNX form, number and largest own error
        of its activations; "int8", the divergence from fp32 on held-out samples and the sizes in bytes; and "errors",
        precision → the task's error rates, through the runtime.
    """
    # Forced: a fault is a finding of the study, and is in its record.
    report = export_checkpoint(run.checkpoint, run.bundle, precisions=["fp32"], overwrite=True, force=True)
    record: dict[str, Any] = {"passed": report.passed, "faults": report.faults(), "activation": _activation(report)}
    tell(1)
    if not report.shipped:
        return record
    # All by one recipe, and shipped however far off: the loss is what is to be compared.
    quantized = quantize_bundle(run.bundle, recipe=plainly_dynamic(run.bundle), force=True)
    tell(2)
    held_out = quantized.quantized.report["held_out"]
    record["int8"] = {"drop": held_out["drop"], "top_1": held_out["top_1"], "sizes": dict(quantized.sizes)}
    record["errors"] = {}
    for number, precision in enumerate(("fp32", "int8"), start=3):
        # One thread, as several runs are deployed at once.
        with load(run.bundle, provider="cpu", precision=precision, threads=1) as model:
            if not isinstance(model, EncoderDecoder):
                raise InputError("a study is of an encoder-decoder, which answers texts by texts")
            record["errors"][precision] = task.evaluate(model.generate, run.limit)
        tell(number)
    return record


def deploy_run(task: Task, run: Run, tell: Callable[[int], None]) -> None:
    """Deploy, and keep the bundle and deploy.json."""
    run.write("deploy", deploy(task, run, tell))


def _activation(report: Any) -> dict[str, Any]:
    ops = [op for graph in report.certificate["graphs"] for op in graph["ops"] if op["kind"] == "activation"]
    return {
        # A decoder has two forms, with the same ops: one that grows its cache in place, and one for other readers.
        "count": len({op["op"] for op in ops}),
        "passed": all(op["passed"] for op in ops),
        "form": sorted({op["form"] for op in ops}),
        "max_abs": max(op["own"]["max_abs"] for op in ops),
        "scale": max(op["own"]["scale"] for op in ops),
    }
