"""`tfm-export`: from a checkpoint to a verified bundle."""

import contextlib
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfm.errors import ExportError

from . import options
from .conclude import conclude
from .outputs import name_after, name_after_factory

if TYPE_CHECKING:  # importing it loads torch, which --help must not wait for
    from tfm.export import Tolerance


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tfm-export")
@click.option(
    "--ckpt",
    type=click.Path(path_type=Path),
    help="Checkpoint: a file, a folder, or a model's id on the Hugging Face hub.",
)
@click.option(
    "--model",
    metavar="MODULE:FUNCTION",
    help="Any nn.Module: a function that returns (module, example inputs, dynamic axes); --ckpt is its state_dict.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Configuration of weights without one: ours or Hugging Face's JSON.",
)
@click.option(
    "--nhead", type=click.IntRange(min=1), help="Number of heads, for a state_dict of torch.nn.Transformer's modules."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Bundle to make [default: NAME.tfm here].")
@click.option(
    "--precision",
    default="fp32,int8",
    show_default=True,
    help="fp32, int8, int4, fp16 (for CUDA), by commas; fp32 is always made.",
)
@click.option("--calib", type=click.Path(path_type=Path), help="Texts or arrays to quantize by [default: built in].")
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0, min_open=True),
    help="How far quantized graphs may be from fp32: 1 - mean cosine of embeddings [default: 0.003], or KL divergence "
    "of predictions in nats [default: 0.01; int4: 0.02 and 0.05].",
)
@options.objective
@options.search
@click.option(
    "--recipe", type=click.Path(path_type=Path), help="Quantize as a recipe says (recipe_int8.json of a bundle)."
)
@options.runtime
@options.portable
@click.option("--opset", type=int, help="ONNX opset, from 18 [default: 23, the newest that --runtime opens].")
@click.option("--atol", type=click.FloatRange(min=0), help="Absolute tolerance of fp32 outputs [default: 1e-5].")
@click.option(
    "--rtol", type=click.FloatRange(min=0), help="Tolerance relative to an output's largest value [default: 1e-5]."
)
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is there already.")
@click.option("--force", is_flag=True, help="Ship int8 although it is too far off, or slower than fp32; marked so.")
@click.option("--list", "listing", is_flag=True, help="List families, formats and tasks, and which way each goes.")
@click.option("--dry-run", is_flag=True, help="Say what would be made of this checkpoint, and make nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON, for machines.")
@click.pass_context
def export(
    context: click.Context,
    ckpt: Path | None,
    model: str | None,
    config: Path | None,
    nhead: int | None,
    output: Path | None,
    precision: str,
    calib: Path | None,
    max_drop: float | None,
    objective: str,
    search: str,
    recipe: Path | None,
    runtime: str | None,
    portable: bool,
    opset: int | None,
    atol: float | None,
    rtol: float | None,
    overwrite: bool,
    force: bool,
    listing: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Export a PyTorch Transformer to a verified ONNX bundle: fp32 and int8, every attention and activation proved."""
    with _installed():  # here, as --help must not wait for torch
        from tfm.export import export_checkpoint
        from tfm.quantize import read_recipe

        from .report import print_report
        from .screen import Screen
        from .stage_progress import show_stage
    if listing:
        _list(as_json)
        return
    output, precisions = _bundle(output, ckpt, model), [name.strip() for name in precision.split(",") if name.strip()]
    if dry_run:
        _tell(output, as_json, checkpoint=ckpt, model=model, config=config, nhead=nhead, precisions=precisions)
        return
    report = export_checkpoint(
        ckpt,
        output,
        model=model,
        config=config,
        nhead=nhead,
        precisions=precisions,
        opset=opset,
        tolerance=_tolerance(atol, rtol),
        overwrite=overwrite,
        force=force,
        calib=calib,
        max_drop=max_drop,
        objective=objective,
        search=search,
        recipe=None if recipe is None else read_recipe(recipe),
        runtime=runtime,
        portable=portable,
        stage=functools.partial(show_stage, Screen(err=True)),
    )
    content = {"output": str(output)} | report.certificate
    conclude(context, report, content if as_json else None, lambda: print_report(report, Screen()))


@contextlib.contextmanager
def _installed() -> Iterator[None]:
    """Say what to install where a package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ExportError(f"exporting needs the package {error.name}: pip install 'tfm-export[export]'") from error


def _list(as_json: bool) -> None:
    from tfm.export import catalog

    from .export_tables import show_catalog

    show_catalog(catalog(), as_json=as_json)


def _tell(output: Path, as_json: bool, **asked: Any) -> None:
    """Say what would be made of `asked`, the arguments of `plan_export`."""
    from tfm.export import plan_export

    from .export_tables import show_plan

    show_plan(plan_export(**asked), str(output), as_json=as_json)


def _bundle(output: Path | None, ckpt: Path | None, model: str | None) -> Path:
    """Give the bundle to make, named after what it is made of where no name is asked for."""
    if ckpt is None and model is None:
        raise click.UsageError("there is nothing to export: give --ckpt, or --model for a module of your own")
    return output or Path(f"{name_after(ckpt) if ckpt is not None else name_after_factory(model or '')}.tfm")


def _tolerance(atol: float | None, rtol: float | None) -> "Tolerance":
    from tfm.export import END_TO_END, Tolerance

    # click takes "nan" and "inf" for floats, and with either no gate would mean anything.
    if not all(value is None or math.isfinite(value) for value in (atol, rtol)):
        raise click.UsageError("--atol and --rtol must be finite numbers")
    return Tolerance(
        END_TO_END.atol if atol is None else atol, END_TO_END.rtol if rtol is None else rtol, END_TO_END.reason
    )
