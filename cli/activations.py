"""`tfm activations`: what an activation function costs."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tfm.errors import ExportError

from .outputs import check_file, written
from .streams import say_json

if TYPE_CHECKING:  # importing it loads torch, which --help must not wait for
    from rich.table import Table
    from rich.text import Text

    from tfm.study.activations import ActivationRow, ActivationTable

    from .screen import Screen

F = TypeVar("F", bound=Callable[..., Any])

_COLORS = {"faster": "green", "above": "green", "slower": "red", "below": "red", "too noisy": "yellow"}
"""By verdict of `Ratio` or `Sqnr`."""

_BESIDE = ("beside relu", "left")
_FORM_HEADS = [("", "left"), ("formula", "left"), ("exported as", "left"), ("runs as", "left")]
_ERROR_HEADS = [("", "left"), ("fp32", "right"), ("at", "left"), ("fp16", "right"), ("at", "left")]
_ROUNDED_HEADS = [("", "left"), ("a scale per tensor", "left"), _BESIDE, ("per token", "left"), _BESIDE]


def _study_elsewhere(command: F) -> F:
    """Keep the options of the study that was a part of this command, hidden: who gives one reads where it is now."""

    def refuse(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value:
            raise click.UsageError(
                f"{parameter.opts[0]} is of the study that trains with each activation, which is no part of the package"
                " now: in a checkout of the source, python -m benchmarks.activation_study --help"
            )

    for name in ("--study", "--runs", "--seeds", "--steps", "--jobs"):
        command = click.option(name, hidden=True, expose_value=False, callback=refuse)(command)
    return click.option("--quick", is_flag=True, hidden=True, expose_value=False, callback=refuse)(command)


@click.command()
@click.option("--ckpt", type=click.Path(path_type=Path), help="Round what its activations get on English, to 8 bits.")
@click.option("--activation", "names", metavar="NAME", multiple=True, help="Only this one; as often as wanted.")
@click.option(
    "--rounds", type=int, default=15, show_default=True, help="Turns of each when they are timed, at least 6."
)
@click.option("--no-timing", is_flag=True, help="Leave the times out.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Draw curves and figures into this HTML file.")
@click.option("--json", "as_json", is_flag=True, help="Print every figure as JSON, for machines.")
@_study_elsewhere
@click.pass_context
def activations(
    context: click.Context,
    ckpt: Path | None,
    names: tuple[str, ...],
    rounds: int,
    no_timing: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Tell what each activation becomes in ONNX, and its error, its time beside relu's and what 8 bits leave of it.

    That is in dB, of standard normal inputs, or with --ckpt of a model's. What everything means:
    docs/activations-table.md.
    """
    try:
        from tfm.study.activations import tabulate, write_activations

        from .screen import Screen
    except ModuleNotFoundError as error:
        raise ExportError(f"activations need the package {error.name}: pip install 'tfm-export[export]'") from error
    from .stage_progress import show_stage

    # Before minutes of timing.
    check_file("--output", output)
    stage = functools.partial(show_stage, Screen(err=True))
    table = tabulate(names or None, checkpoint=ckpt, rounds=rounds, timing=not no_timing, stage=stage)
    if output is not None:
        with written(output):
            write_activations(output, table.to_dict(), [row.curve for row in table.rows])
    if as_json:
        say_json(table.to_dict())
    else:
        _print(table, Screen())
    context.exit(0 if table.passed else 1)


def _print(table: "ActivationTable", console: "Screen") -> None:
    from rich.text import Text

    say = functools.partial(console.print, soft_wrap=True)

    def say_title(title: str, more: str) -> None:
        say(Text.assemble((f"\n{title}", "bold"), f", {more}"))

    say_title("what they become in ONNX", "and the kernels that run")
    console.print(_grid(_FORM_HEADS, [_forms(row) for row in table.rows]))
    say_title("own error", "against float64, largest for |x| ≤ 20")
    console.print(_grid(_ERROR_HEADS, [_errors(row) for row in table.rows]))
    timed = [row for row in table.rows if row.speed]
    # An engine's call takes a part of every time, and is the same for all of them.
    if timed and table.call is not None:
        of = f"float32, one thread, {table.rounds} rounds; {table.call * 1e6:.1f} µs of each is the call"
        say_title("time of the whole graph", f"µs, {of}")
        heads = [("", "left")]
        for speed in timed[0].speed:
            heads += [(f"{speed.rows}×{speed.width}", "right"), _BESIDE]
        console.print(_grid(heads, [_times(row) for row in timed]))
    say_title("what 8 bits leave of the output", "SQNR in dB: median over texts, 95 % interval")
    console.print(_grid(_ROUNDED_HEADS, [_rounded(row) for row in table.rows]))
    say(f"  on {table.about}")
    say("  no two others than relu and one other were compared with each other", style="dim")
    for warning in table.warnings:
        say(f"  {warning}", style="yellow")
    for row in table.rows:
        if row.fault:
            say(f"✗ {row.fault}", style="red")


def _grid(heads: Sequence[tuple[str, Any]], rows: "Sequence[Sequence[str | Text]]") -> "Table":
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
    for head, justify in heads:
        grid.add_column(head, justify=justify)
    for cells in rows:
        grid.add_row(*(_plain(cell) if isinstance(cell, str) else cell for cell in cells))
    return grid


def _plain(cell: str) -> "Text":
    from rich.text import Text

    return Text(cell)  # not markup: a formula may hold brackets


def _judged(verdict: str | None, said: str) -> "Text":
    """What a comparison shows, in the color of its verdict, which the words say too."""
    from rich.text import Text

    return Text(said, style=_COLORS.get(verdict or "", ""))


def _forms(row: "ActivationRow") -> list[str]:
    kernels = row.kernels
    ran = " · ".join(op for op, _ in kernels.ran)
    providers = ", ".join(dict.fromkeys(provider.removesuffix("ExecutionProvider") for _, provider in kernels.ran))
    exported = " · ".join(op.rpartition(".")[2] for op in kernels.exported)
    return [row.name, row.definition.formula, exported, f"{ran} ({providers})"]


def _errors(row: "ActivationRow") -> list[str]:
    cells = [row.name]
    for sweep in row.errors.values():
        cells += [f"{sweep.max_abs:.1e}", sweep.where if sweep.max_abs else "—"]
    return cells


def _times(row: "ActivationRow") -> "list[str | Text]":
    cells: list[str | Text] = [row.name]
    for speed in row.speed:
        time, ratio = speed.seconds * 1e6, speed.ratio
        cells.append(f"{time:,.0f}" if time >= 99.95 else f"{time:#.3g}")
        cells.append("" if ratio is None else _judged(ratio.verdict, str(ratio)))
    return cells


def _rounded(row: "ActivationRow") -> "list[str | Text]":
    cells: list[str | Text] = [row.name]
    for sqnr in row.sqnr.values():
        cells += ["—" if sqnr.own is None else str(sqnr.own), _judged(sqnr.verdict, sqnr.said)]
    return cells
