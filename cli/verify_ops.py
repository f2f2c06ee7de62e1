"""`tfm verify-ops`: every op by itself, as it is exported, against float64."""

from typing import TYPE_CHECKING

import click

from tfm.errors import ExportError

from .streams import say_json

if TYPE_CHECKING:  # importing it loads torch, which --help must not wait for
    from rich.text import Text

    from tfm.export import OpSweep, SweepReport

    from .screen import Screen

_DTYPES = {"fp32": "float32", "fp16": "float16"}
_TITLES = {
    "activations": "activations, over the whole domain: largest error for |x| ≤ 20",
    "attention": "attention, float32, by form of mask: each over layouts, lengths, heads, head sizes, scales",
    "cached_attention": "over a cache, float32, by form of mask: each over lengths, room, heads, head sizes, scales",
    "positions": "positions, float32",
    "norms": "norms of rows of large mean, float32",
}


@click.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--dtype", default="fp32,fp16", show_default=True, help="By commas; fp16 is for activations.")
@click.option("--level", metavar="LEVELS", help="onnxruntime's optimization levels, by commas [default: each of them].")
@click.option("--full", is_flag=True, help="Attention's whole product of options, not every pair: takes minutes.")
@click.option("--json", "as_json", is_flag=True, help="Print every figure as JSON, for machines.")
@click.pass_context
def verify_ops(
    context: click.Context, names: tuple[str, ...], dtype: str, level: str | None, full: bool, as_json: bool
) -> None:
    """Verify ops by themselves, as they are exported, against float64 formulas that are not PyTorch's.

    NAME is an activation, attention, cached_attention, sinusoidal, rotary, relative, alibi, layer_norm, rms_norm, or a
    group of these: activations, positions, norms [default: all].
    """
    try:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        from tfm.export import sweep
        from tfm.export.verify.optimized import LEVELS

        from .screen import Screen
    except ModuleNotFoundError as error:
        raise ExportError(f"verifying ops needs the package {error.name}: pip install 'tfm-export[export]'") from error
    # On standard error, so that --json alone is on standard output.
    messages = Screen(err=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal) as bar:
        task = bar.add_task("")
        report = sweep(
            names or None,
            dtypes=[_DTYPES.get(name, name) for name in _split(dtype)],
            levels=list(LEVELS) if level is None else _split(level),
            full=full,
            progress=lambda done, total, what: bar.update(task, completed=done, total=total, description=what),
        )
    if as_json:
        say_json(report.to_dict())
    else:
        _print(report, Screen())
    context.exit(0 if report.passed else 1)


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _print(report: "SweepReport", console: "Screen") -> None:
    from rich.text import Text

    for group in dict.fromkeys(op.group for op in report.ops):
        _print_group(group, [op for op in report.ops if op.group == group], console)
    if notes := _ops_of_notes(report):
        console.print(Text("\nnotes", style="bold"))
        for note, ops in notes.items():
            console.print(f"  {', '.join(ops)}: {note}", soft_wrap=True)
    runs = f"{sum(op.cases for op in report.ops):,} comparisons at each of {', '.join(report.levels)}"
    if report.passed:
        found = f" {len(report.ops)} forms of ops, {runs}"
        console.print(Text.assemble(("\n✓ verified", "bold green"), found), soft_wrap=True)
    else:
        console.print(Text("\n✗ failed", style="bold red"))
        for fault in report.faults():
            console.print(f"  {fault}", style="red", soft_wrap=True)


def _ops_of_notes(report: "SweepReport") -> dict[str, dict[str, None]]:
    """Each note once, with the ops that it is about, in order."""
    notes: dict[str, dict[str, None]] = {}
    for op in report.ops:
        for note in op.notes:
            notes.setdefault(note, {})[op.op] = None
    return notes


def _print_group(group: str, ops: "list[OpSweep]", console: "Screen") -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    activations = group == "activations"
    by_form = group.endswith("attention")
    names = ["op", "dtype"] if activations else ["form" if by_form else "op"]
    for name in ("", *names):
        table.add_column(name, no_wrap=True)
    figures = ["compared", "max abs", "limit", *(["ULP"] if activations else []), "torch", "of limit"]
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("at" if activations else "where")  # the one to give way on a narrow terminal
    for op in ops:
        cells = _activation_cells(op) if activations else _cells(op, by_form=by_form)
        where = Text(op.where if op.max_abs else "—", no_wrap=True, overflow="ellipsis")
        table.add_row(_mark(op), *cells, f"{op.torch_max_abs:.1e}", f"{op.share:.0%}", where)
    console.print(Text(f"\n{_TITLES[group]}", style="bold"), soft_wrap=True)
    console.print(table)


def _mark(op: "OpSweep") -> "Text":
    from rich.text import Text

    return Text("✓", style="green") if op.passed else Text("✗", style="red")


def _activation_cells(op: "OpSweep") -> list[str]:
    name, *figures = _cells(op, by_form=False)
    return [name, op.dtype, *figures, f"{op.max_ulp:.1f}" if op.max_ulp is not None else "—"]


def _cells(op: "OpSweep", *, by_form: bool) -> list[str]:
    name = op.form if by_form else f"{op.op}, {op.form}" if op.form else op.op
    return [name, f"{op.count:,}", f"{op.max_abs:.1e}", f"{op.limit:.1e}"]
