"""`tfm parity`: whether a bundle still computes, on this machine, what eager PyTorch computes."""

import functools
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfm.errors import ExportError

from .conclude import conclude
from .streams import say, styled

# Importing it loads onnxruntime, which --help must not wait for.
if TYPE_CHECKING:
    from tfm.runtime import GoldenOutput, GoldenReport, Matrix

_SYMBOLS = {True: "✓", False: "✗"}


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--provider", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--precision", help="What to compare, by commas [default: all that the bundle has].")
@click.option("--on", "places", help="Compare on several runtimes, by commas: cpu, cuda, node.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads within an operator [default: all usable cores].")
@click.option("--ckpt", type=click.Path(path_type=Path), help="Compare live with eager PyTorch, of this checkpoint.")
@click.option("--cases", type=click.IntRange(min=1), help="With --ckpt: number of random inputs.")
@click.option("--seed", type=click.IntRange(min=0), help="With --ckpt: seed of the random inputs.")
@click.option("--bisect", type=click.Path(path_type=Path), help="With --ckpt: folder for the smallest failing part.")
@click.option("--model", metavar="MODULE:FUNCTION", help="With --ckpt: as in tfm-export.")
@click.option("--config", type=click.Path(path_type=Path), help="With --ckpt: as in tfm-export.")
@click.option("--nhead", type=click.IntRange(min=1), help="With --ckpt: as in tfm-export.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON, for machines.")
@click.pass_context
def parity(
    context: click.Context,
    /,
    bundle: Path,
    provider: str,
    precision: str | None,
    threads: int | None,
    ckpt: Path | None,
    as_json: bool,
    **live: Any,
) -> None:
    """Compare BUNDLE, as it runs here, with what eager PyTorch gave when it was exported.

    That needs neither torch nor the checkpoint. With --ckpt it is compared with eager PyTorch itself.
    """
    precisions = None if precision is None else _names("--precision", precision)
    if (places := live.pop("places")) is not None:
        if (ckpt, threads, provider) != (None, None, "auto"):
            raise click.UsageError("--on says by itself where it runs: leave --ckpt, --threads and --provider out")
        _elsewhere(context, bundle, _names("--on", places), precisions, as_json=as_json)
    if ckpt is not None:
        if threads is not None:
            raise click.UsageError("--threads is for comparing without a checkpoint")
        _live(context, bundle, ckpt, as_json=as_json, provider=provider, precisions=precisions, **live)
    given = [name for name, value in live.items() if value is not None]
    if given:
        raise click.UsageError(f"--{given[0]} is for comparing with a checkpoint: give --ckpt too")

    from tfm.runtime import check_golden

    report = check_golden(bundle, provider=provider, precision=precisions, threads=threads)
    conclude(context, report, report.to_dict() if as_json else None, lambda: _print(report))


def _names(option: str, text: str) -> list[str]:
    """Read names with commas between them."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    # Else it would compare nothing, which must never pass.
    if not names:
        raise click.UsageError(f"{option} names nothing to compare")
    return names


def _elsewhere(
    context: click.Context, bundle: Path, places: list[str], precisions: list[str] | None, *, as_json: bool
) -> None:
    """Compare on several runtimes, and end the command with what was found."""
    from tfm.runtime import PLACES, check_golden_on

    for name in places:
        if name not in PLACES:
            raise click.UsageError(f"there is no place {name!r}; known are {', '.join(PLACES)}")
    matrix = check_golden_on(bundle, places, precision=precisions)
    conclude(context, matrix, matrix.to_dict() if as_json else None, lambda: _print_matrix(matrix))


def _print_matrix(matrix: "Matrix") -> None:
    """Print a row per graph and place, then what is wrong."""
    rows = [
        (_SYMBOLS[gate.passed], gate.name, place.name, place.engine or "—", _number(gate.figure), _number(gate.limit))
        for place in matrix.places
        for gate in place.gates
    ]
    rows.insert(0, ("", "graph", "on", "engine", "off by", "limit"))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    for row in rows:
        say(" ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    say()
    if matrix.passed:
        say(styled("✓ same everywhere as when it was exported", fg="green", bold=True))
    for fault in matrix.faults():
        say(styled(f"✗ {fault}", fg="red"))


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.1e}"


def _live(
    context: click.Context, bundle: Path, checkpoint: Path, *, bisect: Path | None, as_json: bool, **options: Any
) -> None:
    """Compare with eager PyTorch, and end the command with what was found."""
    try:
        from tfm.export import compare_with_checkpoint

        from .screen import Screen
    except ModuleNotFoundError as error:
        raise ExportError(f"--ckpt needs the package {error.name}: pip install 'tfm-export[export]'") from error
    from .report import print_live
    from .stage_progress import show_stage

    given = {name: value for name, value in options.items() if value is not None}
    messages = Screen(err=True)
    stage = functools.partial(show_stage, messages)
    report = compare_with_checkpoint(bundle, checkpoint, bisect_into=bisect, stage=stage, **given)
    conclude(context, report, report.to_dict() if as_json else None, lambda: print_live(report, Screen()))


def _print(report: "GoldenReport") -> None:
    """Print a row per output, those that differ in a layer's number only in one row, then the verdict."""
    rows = [("", "output", "precision", "on", "off by", "limit")]
    for graph in report.graphs:
        groups: dict[str, list[GoldenOutput]] = {}
        for output in graph.outputs:
            # Caches of all layers share a row: dozens of rows would hide the others.
            groups.setdefault(re.sub(r"\.\d+\.", ".*.", output.name), []).append(output)
        for name, outputs in groups.items():
            worst = max(outputs, key=lambda output: output.nearness)
            off, limit = _figures(worst)
            rows.append((_SYMBOLS[worst.passed], name, graph.precision, graph.provider, off, limit))
        if not graph.outputs:
            rows.append((_SYMBOLS[False], f"({graph.role})", graph.precision, graph.provider or "—", "—", "—"))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    for mark, *left, off, limit in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip((mark, *left), widths, strict=False)]
        say(" ".join([*cells, f"{off:>{widths[4]}}", f"{limit:>{widths[5]}}"]))
    say()
    if report.passed:
        count = len({(graph.role, output.name) for graph in report.graphs for output in graph.outputs})
        precisions = " and ".join(dict.fromkeys(graph.precision for graph in report.graphs))
        verdict = styled("✓ same as when it was exported", fg="green", bold=True)
        say(verdict, f": {precisions}, {count} outputs on {report.cases} golden inputs")
        return
    say(styled("✗ not the same as when it was exported:", fg="red", bold=True))
    for fault in report.faults():
        say(styled(f"  {fault}", fg="red"))
    say(f"  {_advice(report)}")


def _figures(output: "GoldenOutput") -> tuple[str, str]:
    """What an output is off by, and may be: in fp32 the largest difference, else the signal-to-noise ratio."""
    if output.measure == "nmse":
        limit = f"≥ {-10 * math.log10(output.limit):.0f} dB" if output.limit else "—"
        return f"{output.figures.snr_db:.0f} dB", limit
    return f"{output.figures.max_abs:.1e}", f"{output.limit:.1e}"


def _advice(report: "GoldenReport") -> str:
    """Say what to do about a failure."""
    fp32 = [graph for graph in report.graphs if graph.precision == "fp32"]
    # A processor may compute int8 otherwise, as without VNNI, and fp32 as ever.
    if fp32 and all(graph.passed for graph in fp32):
        return 'fp32 is right here: load(…, precision="fp32") is safe on this machine.'
    return (
        "do not use it here. If tfm parity passes where it was exported, this machine's processor or onnxruntime "
        "computes something else: try --provider cpu or another onnxruntime; if it fails there too, export it again"
    )
