"""`tfm pack`: what an app ships of a bundle, and nothing else."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfm.errors import ExportError

from .streams import say, say_json, styled

# Importing it loads numpy, which --help must not wait for.
if TYPE_CHECKING:
    from tfm.bundle import Pack


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to make, or a .zip.")
@click.option("--precision", help="Which graphs, by commas [default: int8 where there is one].")
@click.option(
    "--for",
    "target",
    type=click.Choice(["python", "native", "web", "node"]),
    default="python",
    show_default=True,
    help="What reads it. For web and node: the names that transformers.js looks for, each graph in one file.",
)
@click.option("--golden/--no-golden", default=True, help="Whether tfm parity can be run where it arrives.")
@click.option("--sign", "key", type=click.Path(path_type=Path), help="Ed25519 private key (PEM) to sign it with.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is at --output already.")
@click.option("--json", "as_json", is_flag=True, help="Print what is in it as JSON, for machines.")
def pack(
    bundle: Path,
    output: Path,
    precision: str | None,
    target: str,
    golden: bool,
    key: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write what an app ships of BUNDLE: one precision, what runs it, and its proof. It is a bundle itself."""
    from tfm.bundle import pack_bundle

    options: dict[str, Any] = {}
    if target in ("web", "node"):
        try:
            from tfm.quantize import save_for_web
        except ModuleNotFoundError as error:
            raise ExportError(
                f"--for {target} needs the package {error.name}: pip install 'tfm-export[quantize]'"
            ) from error
        options["rewrite"] = save_for_web
    precisions = None if precision is None else [name.strip() for name in precision.split(",") if name.strip()]
    made = pack_bundle(
        bundle, output, precisions=precisions, target=target, golden=golden, key=key, overwrite=overwrite, **options
    )
    if as_json:
        say_json(_content(made))
    else:
        _print(made)


def _content(made: "Pack") -> dict[str, Any]:
    files = [{"path": file.path, "size": file.size, "reason": file.reason} for file in made.files]
    return {
        "output": str(made.output),
        "precisions": list(made.precisions),
        "size": made.size,
        "left": made.left,
        "files": files,
        "notes": list(made.notes),
    }


def _print(made: "Pack") -> None:
    """Print a line per file, the largest first, and what to do next."""
    width = max(len(file.path) for file in made.files)
    for file in made.files:
        say(f"{file.path:<{width}} {file.size:>13,}  {100 * file.size / made.size:5.1f} %  {file.reason}")
    say()
    left = f", {made.left / 1e6:.1f} MB left behind" if made.left else ""
    say(
        styled(f"✓ {made.output}", fg="green", bold=True),
        f": {made.size / 1e6:.2f} MB, {' and '.join(made.precisions)}{left}",
    )
    for note in made.notes:
        say(styled(f"  {note}", fg="yellow"))
    if made.output.suffix != ".zip" and made.can_be_compared:
        say(f"  where it arrives: tfm parity {made.output}")
