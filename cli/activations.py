"""`tfm activations`: what an activation function costs."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tfm.errors import ExportError

from .outputs import check_file, written
from .streams import say_json

if TYPE_CHECKING:  # importing it loads torch, which --help must not wait for
    from tfm.study.activations import ActivationRow, ActivationTable

    from .screen import Screen

_COLORS = {"faster": "green", "above": "green", "slower": "red", "below": "red", "too noisy": "yellow"}


@click.command()
@click.option("--ckpt", type=click.Path(path_type=Path), help="Round what its activations get on English, to 8 bits.")
@click.option("--activation", "names", metavar="NAME", multiple=True, help="Only this one; as often as wanted.")
@click.option(
    "--rounds", type=int, default=15, show_default=True, help="Turns of each when they are timed, at least 6."
)
@click.option("--no-timing", is_flag=True, help="Leave the times out.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Draw curves and figures into this HTML file.")
@click.option("--json", "as_json", is_flag=True, help="Print every figure as JSON, for machines.")
@click.option("--study", "task", type=click.Path(path_type=Path), help="Train this folder's task with each instead.")
@click.option("--runs", type=click.Path(path_type=Path), help="Folder that a study is kept in [default: study-TASK].")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Trainings of each.")
@click.option("--steps", type=click.IntRange(min=1), default=1200, show_default=True, help="Steps of a training.")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Trainings at once.")
@click.option("--quick", is_flag=True, help="A study of one seed, 60 steps and three activations: to see it work.")
@click.pass_context
def activations(
    context: click.Context,
    /,
    ckpt: Path | None,
    names: tuple[str, ...],
    rounds: int,
    no_timing: bool,
    output: Path | None,
    as_json: bool,
    task: Path | None,
    **study_options: Any,
) -> None:
    """Tell what each activation becomes in ONNX, and its error, its time beside relu's and what 8 bits leave of it.

    That is in dB, of standard normal inputs, or with --ckpt of a model's. What everything means:
    docs/activations-table.md.

    With --study, one model is trained with each, then exported, verified, quantized and timed; an interrupted study
    goes on where it was: docs/activations.md.
    """
    _check_usage(context, task, ckpt, no_timing)
    try:
        from tfm.report import write_activations
        from tfm.study.activations import tabulate

        from .screen import Screen
    except ModuleNotFoundError as error:
        raise ExportError(f"activations need the package {error.name}: pip install 'tfm-export[export]'") from error
    from .stages import show_stage
    from .study import study

    # Before hours of training.
    check_file("--output", output)
    if task is not None:
        study(task, names=names, rounds=rounds, output=output, as_json=as_json, **study_options)
        return
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


def _check_usage(context: click.Context, task: Path | None, ckpt: Path | None, no_timing: bool) -> None:
    """Refuse options of the other job."""
    if task is not None and (ckpt is not None or no_timing):
        raise click.UsageError("--study trains models of its own and times them: leave --ckpt and --no-timing out")
    for name in ("runs", "seeds", "steps", "jobs", "quick"):
        # By where the value came from: these options have defaults, so that their values tell
        # nothing.
        given = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if task is None and given:
            raise click.UsageError(f"--{name} is for a study: give --study too")


def _print(table: "ActivationTable", console: "Screen") -> None:
    from rich.text import Text

    say = functools.partial(console.print, soft_wrap=True)

    def say_title(title: str, more: str) -> None:
        say(Text.assemble((f"\n{title}", "bold"), f", {more}"))

    say_title("what they become in ONNX", "and the kernels that run")
    heads = [("", "left"), ("formula", "left"), ("exported as", "left"), ("runs as", "left")]
    _print_table(console, heads, [_forms(row) for row in table.rows])
    say_title("own error", "against float64, largest for |x| ≤ 20")
    heads = [("", "left"), ("fp32", "right"), ("at", "left"), ("fp16", "right"), ("at", "left")]
    _print_table(console, heads, [_errors(row) for row in table.rows])
    timed = [row for row in table.rows if row.speed]
    # An engine's call takes a part of every time, and is the same for all of them.
    if timed and table.call is not None:
        of = f"float32, one thread, {table.rounds} rounds; {table.call * 1e6:.1f} µs of each is the call"
        say_title("time of the whole graph", f"µs, {of}")
        heads = [("", "left")]
        for speed in timed[0].speed:
            heads += [(f"{speed.rows}×{speed.width}", "right"), ("beside relu", "left")]
        _print_table(console, heads, [_times(row) for row in timed])
    say_title("what 8 bits leave of the output", "SQNR in dB: median over texts, 95 % interval")
    heads = [("", "left")]
    for scale in ("a scale per tensor", "per token"):
        heads += [(scale, "left"), ("beside relu", "left")]
    _print_table(console, heads, [_rounded(row) for row in table.rows])
    say(f"  on {table.about}")
    say("  no two others than relu and one other were compared with each other", style="dim")
    for warning in table.warnings:
        say(f"  {warning}", style="yellow")
    for row in table.rows:
        if row.fault:
            say(f"✗ {row.fault}", style="red")


def _print_table(console: "Screen", heads: list[tuple[str, Any]], rows: list[list[str]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
    for head, justify in heads:
        grid.add_column(head, justify=justify)
    for cells in rows:
        grid.add_row(*(Text(cell, style=_COLORS.get(_verdict(cell), "")) for cell in cells))
    console.print(grid)


def _verdict(cell: str) -> str:
    # A cell begins with its verdict in words, so that nothing depends on colors alone.
    return next((verdict for verdict in _COLORS if cell.startswith(verdict)), "")


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


def _times(row: "ActivationRow") -> list[str]:
    cells = [row.name]
    for speed in row.speed:
        time = speed.seconds * 1e6
        cells += [f"{time:,.0f}" if time >= 99.95 else f"{time:#.3g}", "" if speed.ratio is None else str(speed.ratio)]
    return cells


def _rounded(row: "ActivationRow") -> list[str]:
    cells = [row.name]
    for sqnr in row.sqnr.values():
        cells += ["—" if sqnr.own is None else str(sqnr.own), sqnr.said]
    return cells
