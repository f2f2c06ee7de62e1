"""`tfm inspect`: what a model does inside while it reads one text."""

from pathlib import Path

import click

from tfm.errors import BundleError

from .outputs import check_file, written
from .stdin_lines import as_utf8
from .streams import say, say_json


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("text")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Draw what is seen into this HTML file.")
@click.option("--precision", default="fp32", show_default=True, help="fp32, int8, …: one that the bundle has.")
@click.option("--json", "as_json", is_flag=True, help="Print what is seen as JSON, for machines.")
@click.option("--weights", is_flag=True, help="With --json: the attention weights themselves too.")
def inspect(bundle: Path, text: str, output: Path | None, precision: str, as_json: bool, weights: bool) -> None:
    """Look inside BUNDLE while it reads TEXT: what each head attends to, which units work, how the stream grows.

    That needs neither torch nor the checkpoint. An encoder-decoder generates from TEXT, and its decoder is shown
    reading what it generated; a decoder reads TEXT, and generates nothing.
    """
    if weights and not as_json:
        raise click.UsageError("--weights is for --json")
    # Before anything is opened or run.
    check_file("--output", output)
    try:
        from tfm.study.inspect import inspect as look_inside
        from tfm.study.inspect import write_inspect

        from .inspect_tables import print_insight
        from .screen import Screen
    except ModuleNotFoundError as error:
        raise BundleError(
            f"a look inside needs the package {error.name}: pip install 'tfm-export[quantize]'"
        ) from error
    insight = look_inside(bundle, as_utf8(text), precision=precision)
    if output is not None:
        with written(output):
            write_inspect(output, insight.to_json(), insight.maps)
    if as_json:
        say_json(insight.to_json(weights=weights))
        return
    print_insight(insight, Screen())
    if output is not None:
        say(f"\n→ {output}")
