"""`tfm quantize`: new int8 or int4 graphs for a bundle that is there already."""

import functools
from pathlib import Path

import click

from tfm.errors import QuantizeError

from . import options
from .conclude import conclude


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Bundle to make [default: BUNDLE is replaced].")
@click.option("--precision", type=click.Choice(["int8", "int4"]), default="int8", show_default=True)
@click.option("--calib", type=click.Path(path_type=Path), help="Texts or arrays to quantize by [default: built in].")
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0, min_open=True),
    help="How far from fp32 it may be: 1 - mean cosine of embeddings [default: 0.003], or KL divergence of predictions "
    "in nats [default: 0.01; int4: 0.02 and 0.05].",
)
@options.objective
@options.search
@options.runtime
@options.portable
@click.option("--recipe", type=click.Path(path_type=Path), help="Quantize as a recipe says, without a search.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is at --output already.")
@click.option("--force", is_flag=True, help="Ship it although it is too far off, or slower than fp32; marked so.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON, for machines.")
@click.pass_context
def quantize(
    context: click.Context,
    bundle: Path,
    output: Path | None,
    precision: str,
    calib: Path | None,
    max_drop: float | None,
    objective: str,
    search: str,
    runtime: str | None,
    portable: bool,
    recipe: Path | None,
    overwrite: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Quantize BUNDLE's fp32 graphs: a search for the fastest mix of methods that keeps a budget of fidelity.

    That needs neither torch nor the checkpoint. An interrupted search goes on where it stopped when it is run again.
    """
    try:
        from tfm.quantize import quantize_bundle, read_recipe

        from .screen import Screen
    except ModuleNotFoundError as error:
        raise QuantizeError(f"quantizing needs the package {error.name}: pip install 'tfm-export[quantize]'") from error
    from .report import print_quantized
    from .stage_progress import show_stage

    report = quantize_bundle(
        bundle,
        output,
        precision=precision,
        calib=calib,
        max_drop=max_drop,
        objective=objective,
        search=search,
        runtime=runtime,
        portable=portable,
        recipe=None if recipe is None else read_recipe(recipe),
        overwrite=overwrite,
        force=force,
        stage=functools.partial(show_stage, Screen(err=True)),
    )
    content = report.to_json() if as_json else None
    conclude(context, report, content, lambda: print_quantized(report, Screen()))
