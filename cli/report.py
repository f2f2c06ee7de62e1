"""An export's report as tables on a terminal."""

from rich.console import Console
from rich.table import Table

from tfm.export import ExportReport, GraphReport


def print_report(report: ExportReport, console: Console) -> None:
    """Print every op, then the outputs, then sizes, fidelity and latency, then the verdict."""
    for role in dict.fromkeys(graph.role for graph in report.graphs):
        graphs = [graph for graph in report.graphs if graph.role == role]
        console.print(_ops(role, graphs))
    console.print(_outputs(report))
    console.print(_fidelity(report))
    console.print(_latency(report))
    fp32 = report.sizes["fp32"]
    for name, size in report.sizes.items():
        console.print(
            f"{name:>5} {size / 1e6:7.2f} MB" + (f", {fp32 / size:.1f}× smaller than fp32" if name != "fp32" else "")
        )
    count = len({str(op.op) for graph in report.graphs for op in graph.ops})
    if report.passed:
        console.print(
            f"[bold green]✓ verified[/] {count} attention and activation ops in {' and '.join(report.sizes)}: {report.output}"
        )
    else:
        console.print("[bold red]✗ refused[/], no bundle was written:")
        for fault in report.faults():
            console.print(f"  {fault}", style="red")


def _ops(role: str, graphs: list[GraphReport]) -> Table:
    table = Table(
        title=f"{role}: each op against eager PyTorch, largest absolute error",
        title_justify="left",
        header_style="bold",
    )
    table.add_column("op", overflow="fold")
    table.add_column("became")
    for graph in graphs:
        table.add_column(f"{graph.precision} by itself", justify="right")
        table.add_column("limit", justify="right", style="dim")
        table.add_column(f"{graph.precision} in the graph", justify="right")
    table.add_column("")
    names = list(dict.fromkeys(str(op.op) for graph in graphs for op in graph.ops))
    for name in names:
        row, passed, form = [], True, ""
        for graph in graphs:
            op = next((op for op in graph.ops if str(op.op) == name), None)
            passed = passed and op is not None and op.passed
            form = form or (op.form if op else "")
            row += [f"{op.own.max_abs:.1e}", f"{op.own_limit:.1e}", f"{op.free.max_abs:.1e}"] if op else ["—"] * 3
        table.add_row(name, form or "—", *row, _mark(passed))
    return table


def _outputs(report: ExportReport) -> Table:
    table = Table(
        title="outputs end to end, worst of onnxruntime's optimisation levels",
        title_justify="left",
        header_style="bold",
    )
    for column in ("output", "precision", "max abs error", "limit", "SNR", ""):
        table.add_column(column, justify="right" if column in ("max abs error", "limit", "SNR") else "left")
    for graph in report.graphs:
        for name in dict.fromkeys(output.name for output in graph.outputs):
            levels = [output for output in graph.outputs if output.name == name]
            worst = max(levels, key=lambda output: output.figures.max_abs)
            limit = "—" if worst.limit is None else f"{worst.limit:.1e}"
            row = [name, graph.precision, f"{worst.figures.max_abs:.1e}", limit, f"{worst.figures.snr_db:.0f} dB"]
            table.add_row(*row, _mark(all(output.passed for output in levels)))
    return table


def _fidelity(report: ExportReport) -> Table:
    table = Table(title="the bundle, run as an app runs it, against eager", title_justify="left", header_style="bold")
    for column in ("measure", "precision", "value", "at least", "on", ""):
        table.add_column(column, justify="right" if column in ("value", "at least") else "left")
    for part in report.fidelity:
        row = [
            part.measure,
            part.precision,
            f"{part.value:.4f}",
            f"{part.floor:g}" if part.floor else "—",
            f"{part.count} {part.data}",
        ]
        table.add_row(*row, _mark(part.passed))
    return table


def _latency(report: ExportReport) -> Table:
    table = Table(title="latency, one thread, median of interleaved rounds", title_justify="left", header_style="bold")
    table.add_column("work")
    for engine in ("eager", *report.sizes):
        table.add_column(engine, justify="right")
    for line in report.latency:
        eager = line.milliseconds["eager"]
        cells = [
            f"{ms:.2f} ms" + (f" ({eager / ms:.1f}×)" if engine != "eager" else "")
            for engine, ms in line.milliseconds.items()
        ]
        table.add_row(line.work, *cells)
    return table


def _mark(passed: bool) -> str:
    return "[green]✓[/]" if passed else "[red]✗[/]"
