"""An export's report as tables on a terminal."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from tfm.bundle import MERGED_ROLE, all_passed

from .screen import Screen

if TYPE_CHECKING:  # importing them loads torch, which quantizing a bundle does not need
    from tfm.bundle import Judged
    from tfm.export import CheckpointReport, ExportReport, GraphReport, OpReport, OutputReport
    from tfm.latency import Latency
    from tfm.quantize import BundleReport

_COSTLIEST = 8
_MEASURES = {"cosine": "1 - mean cosine", "kl": "KL divergence, nats"}


def print_report(report: "ExportReport", console: Screen) -> None:
    """Print every op, then the outputs, then the quantization, fidelity, latency and sizes, then the verdict."""
    _show_graphs(console, report.graphs)
    print_quantization(report.certificate.get("quantization", {}), console)
    if report.fidelity:
        _show(console, *_fidelity(report))
    print_latency(report.latency, console)
    # What no gate looked at is named, so that nobody takes the verdict for one on that too.
    for text in report.certificate["not_judged"]:
        console.print(f"  {text}", soft_wrap=True)
    console.print()
    _show_sizes(console, report.sizes)
    # Of the model, whose decoder may be in two graphs.
    count = len({str(op.op) for graph in report.graphs for op in graph.promised})
    found = f" all {count} attention and activation ops, {' and '.join(report.sizes)} → {report.output}"
    _conclude(console, report, ("✓ verified", found), "no bundle was written")
    exact = [gate for gate in report.gates() if gate.precision == "fp32"]
    if not report.shipped and report.fidelity and all_passed(exact):
        console.print("  --precision fp32 exports it without what failed; --force ships it all the same")


def print_quantized(report: "BundleReport", console: Screen) -> None:
    """Print what quantizing a bundle that was there found: the mix, its costs, latency and sizes, then the verdict."""
    print_quantization(report.to_json()["quantization"], console)
    print_latency(report.latency, console)
    console.print()
    _show_sizes(console, report.sizes)
    _conclude(console, report, ("✓ quantized", f" to {report.precision} → {report.output}"), "nothing was changed")
    if not report.shipped:
        console.print("  --force ships it all the same")


def print_quantization(quantization: Mapping[str, Any], console: Screen) -> None:
    """Print what quantization costs in each precision: the mix that was chosen, and the ops that cost most.

    Args:
        quantization: Of the certificate: precision → what was found (docs/parity.md).
        console: Where to.
    """
    for precision, entry in quantization.items():
        ops = entry["ops"]
        # Both graphs of an encoder-decoder may have a weight of one name.
        many = len({op["role"] for op in ops}) > 1
        names = [f"{op['role']} {op['weight']}" if many else str(op["weight"]) for op in ops]
        # By what each op costs alone, where that was measured.
        ranked = sorted((i for i, op in enumerate(ops) if op["alone"] is not None), key=lambda i: -ops[i]["alone"])
        console.print(Text("\n") + _mix(precision, entry), soft_wrap=True)
        if ranked:
            console.print(_costs([(names[index], ops[index]) for index in ranked[:_COSTLIEST]], console.width))
        kept = [name for name, op in zip(names, ops, strict=True) if op["method"] == "float32"]
        left = ", ".join(kept[:3]) + (f" and {len(kept) - 3} more" if len(kept) > 3 else "")
        stay = f"{len(kept)} of {len(ops)} ops stay in float32: {left}" if kept else f"all {len(ops)} ops are quantized"
        console.print(f"  {stay}", soft_wrap=True)
        judged = entry["held_out"]
        if judged.get("worst"):  # else there was one kind of data, or a bundle older than the others
            count = len({one["domain"] for one in judged["domains"]})
            worst = f"at worst {_drop(judged['drop'])} ({judged['worst']})"
            console.print(f"  on {count} kinds of text that it was not chosen by: {worst}", soft_wrap=True)
        if of_others := [one for one in judged.get("elsewhere", ()) if one["high"] is not None]:
            farthest = max(of_others, key=lambda one: float(one["high"]))
            span = f"{_drop(farthest['low'])} to {_drop(farthest['high'])} ({farthest['way']})"
            console.print(f"  on another kind, 19 times in 20: {span}", soft_wrap=True)
        if entry["portability"]["vnni_only"]:
            more = "x86 without VNNI needs session.x64quantprecision=1, which tfm.runtime sets"
            console.print(f"  {more}", style="yellow", soft_wrap=True)


def _conclude(console: Screen, report: "ExportReport | BundleReport", right: tuple[str, str], left: str) -> None:
    """Print the verdict on what was to be written: it is there, by force if need be, or that is how all was left."""
    forced, refused = ("✗ forced", f", and marked so → {report.output}"), ("✗ refused", f", {left}:")
    _show_verdict(console, report, right, forced if report.shipped else refused)


def _show_verdict(console: Screen, report: "Judged", right: tuple[str, str], wrong: tuple[str, str]) -> None:
    """Print the verdict, each way in a mark and words, and what is wrong."""
    mark, found = right if report.passed else wrong
    color = "bold green" if report.passed else "bold red"
    console.print(Text.assemble((f"\n{mark}", color), found), soft_wrap=True)
    for fault in report.faults():
        console.print(f"  {fault}", style="red", soft_wrap=True)


def _mix(precision: str, entry: Mapping[str, Any]) -> Text:
    """The time and the drop of what was chosen, beside what is allowed."""
    drop, limit = entry["drop"], entry["max_drop"]
    within = drop is not None and drop <= limit
    time = "" if entry["relative_time"] is None else f"{entry['relative_time']:.2f}× the time of fp32, "
    allowed = ("of", "bold") if within else ("more than", "bold red")
    return Text.assemble(
        _mark(within),
        (f" {precision}: {time}drop {_drop(drop)} ", "bold"),
        allowed,
        (f" the {_drop(limit)} allowed", "bold"),
        f" ({_MEASURES.get(entry['measure'], entry['measure'])})",
    )


def _show_sizes(console: Screen, sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        smaller = f", {sizes['fp32'] / size:.1f}× smaller" if name != "fp32" else ""
        console.print(f" {name}  {size / 1e6:.2f} MB{smaller}")


def _costs(ops: Sequence[tuple[str, Mapping[str, Any]]], width: int) -> Table:
    """Table the ops that cost most, in a line each, however long their names are."""
    table = _table(["costs most", "method"], ["own SNR", "alone", "all but it"])
    room = max(width - 30, 40)  # what the figures leave; of it a method has at least 16
    # What all names end in tells nothing, and leaves less room for what does.
    suffix = ".weight" if all(name.endswith(".weight") for name, _ in ops) else ""
    shown = [_shorten(name.removesuffix(suffix), room - 16) for name, _ in ops]
    # Names have their full width first; a method, of which the beginning says most, gets the rest.
    room -= max(map(len, shown))
    for name, (_, op) in zip(shown, ops, strict=True):
        method = str(op["method"])
        method = method if len(method) <= room else f"{method[: room - 1]}…"
        snr = "—" if op["own_snr_db"] is None else f"{op['own_snr_db']:.0f} dB"
        table.add_row("", name, method, snr, _drop(op["alone"]), _drop(op["all_but"], 2))
    return table


def _drop(value: float | None, digits: int = 1) -> str:
    return "—" if value is None else f"{value:.{digits}e}"


def _shorten(name: str, width: int) -> str:
    """A name in at most so many letters, its middle left out."""
    head = width // 2
    return name if len(name) <= width else f"{name[:head]}…{name[len(name) - (width - head - 1) :]}"


def print_live(report: "CheckpointReport", console: Screen) -> None:
    """Print every op and output of a bundle that was compared with eager PyTorch, then the verdict."""
    _show_graphs(console, report.graphs)
    found = f" as eager PyTorch on {report.cases} inputs and every id of the vocabulary"
    _show_verdict(console, report, ("✓ the same", found), ("✗ not the same", " as eager PyTorch:"))
    if report.passed:
        return
    if report.reproduction is not None:
        console.print(f"  the smallest part that differs: {report.reproduction}", soft_wrap=True)
    else:
        console.print("  --bisect FOLDER cuts out the smallest part that differs")


def _show_graphs(console: Screen, graphs: "Sequence[GraphReport]") -> None:
    """Print a table of ops per role, why any of them is not in its best known form, and the outputs."""
    for role in dict.fromkeys(graph.role for graph in graphs):
        same_role = [graph for graph in graphs if graph.role == role]
        _show(console, *_ops(role, same_role))
        advice: dict[str, list[str]] = {}
        for op in same_role[0].promised:
            # The same advice for all layers is said once, with the first of them.
            if op.kernel is not None and op.kernel.advice:
                advice.setdefault(op.kernel.advice, []).append(op.op.path)
        for text, paths in advice.items():
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            console.print(f"  {paths[0]}{more}: {text}", soft_wrap=True)
    _show(console, *_outputs(graphs))


def _show(console: Screen, title: str, table: Table) -> None:
    console.print(Text(f"\n{title}", style="bold"), soft_wrap=True)
    console.print(table)


def _table(left: Iterable[str], right: Iterable[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("", no_wrap=True)
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _ops(role: str, graphs: "list[GraphReport]") -> tuple[str, Table]:
    """Title and table every op: its largest error by itself, and what it inherits in the graph of each precision.

    The layers around them show only where one is at fault.
    """
    shown = [op for graph in graphs for op in graph.ops if not op.is_layer or op.fault]
    halves = {op.op.path.split(".")[0] for op in shown}
    # Paths that all begin alike are shown without that, and the title has it.
    stem = halves.pop() if halves in ({"encoder"}, {"decoder"}) else role
    title = f"{stem}: each op against eager PyTorch, alone and in place"
    columns = ["alone", "limit", *(f"in {graph.precision}" for graph in graphs)]
    table = _table(["op", "became"], columns)
    for name in dict.fromkeys(op.op for op in shown):
        # An op may be missing in one of the precisions.
        ops = [{op.op: op for op in graph.ops}.get(name) for graph in graphs]
        known = [(graph, op) for graph, op in zip(graphs, ops, strict=True) if op is not None]
        # float16's limits are wide: shown where it is at fault, or nothing else is there
        _, worst = max(known, key=lambda one: (bool(one[1].fault), one[0].precision != "fp16", one[1].own.max_abs))
        limit = "—" if worst.own_limit is None else f"{worst.own_limit:.1e}"
        ran = next((op.kernel.op_type for op in ops if op is not None and op.kernel is not None), worst.form)
        # What the graph has, and what onnxruntime made of it, where that is another op.
        became = worst.form if ran == worst.form or "·" in worst.form else f"{worst.form}→{ran}"
        cells = [name.path.removeprefix(f"{stem}."), became or "—", f"{worst.own.max_abs:.1e}", limit]
        passed = all(op is not None and op.passed for op in ops)
        table.add_row(_mark(passed), *cells, *(_in_place(op) for op in ops))
    return title, table


def _in_place(op: "OpReport | None") -> str:
    if op is None:
        return "—"
    return f"{op.free.max_abs:.1e}" if op.free_limit is not None else f"{op.free.snr_db:.0f} dB"


def _outputs(graphs: "Sequence[GraphReport]") -> tuple[str, Table]:
    """Title and table the outputs, those that differ in a layer's number only in one row."""
    title = "end to end, at the worst of onnxruntime's optimization levels"
    table = _table(["output", "precision"], ["max abs", "limit", "SNR"])
    for graph in graphs:
        groups: dict[str, list[OutputReport]] = {}
        # Of a decoder in two forms, both have outputs of these names.
        form = ", for other readers" if graph.role == MERGED_ROLE else ""
        for output in graph.outputs:
            # Caches of all layers share a row: dozens of rows would hide the others.
            groups.setdefault(re.sub(r"\.\d+\.", ".*.", output.name), []).append(output)
        for name, outputs in groups.items():
            # One stands for its group, and it is the worst.
            worst = max(outputs, key=lambda output: output.figures.max_abs)
            limit = "—" if worst.limit is None else f"{worst.limit:.1e}"
            cells = [f"{worst.figures.max_abs:.1e}", limit, f"{worst.figures.snr_db:.0f} dB"]
            table.add_row(_mark(all(output.passed for output in outputs)), name + form, graph.precision, *cells)
    return title, table


def _fidelity(report: "ExportReport") -> tuple[str, Table]:
    title = "the bundle, run as an app runs it, against eager, and against the library that its checkpoint comes with"
    table = _table(["measure", "precision", "on"], ["value", "floor"])
    for part in report.fidelity:
        floor = f"{part.floor:g}" if part.floor else "—"
        cells = [f"{part.count} {part.data}", f"{part.value:.4f}", floor]
        table.add_row(_mark(part.passed), part.measure, part.precision, *cells)
    return title, table


def print_latency(latency: "Sequence[Latency]", console: Screen) -> None:
    """Print the times, every engine beside the first, eager or fp32; then what they show of each precision.

    Args:
        latency: Of the report; where nothing was timed, nothing is printed.
        console: Where to.
    """
    if not latency:
        return
    from tfm.latency import FASTER, compare_speed

    _show(console, *_latency(latency))
    for speed in compare_speed(latency):
        # A mark is a claim. What is neither shown to be faster nor slower has none.
        shown = not speed.passed or speed.ratio.verdict == FASTER
        mark = _mark(speed.passed) if shown else Text("–", "yellow")
        console.print(Text.assemble("  ", mark, f" {speed.precision} is {speed}"), soft_wrap=True)


def _latency(latency: "Sequence[Latency]") -> tuple[str, Table]:
    title = "latency, one thread, median of interleaved rounds"
    table = _table(["work", "engine"], ["time"])
    table.add_column(f"beside {latency[0].baseline}", no_wrap=True)
    for line in latency:
        ratios = line.ratios
        for place, (engine, ms) in enumerate(line.milliseconds.items()):
            beside = str(ratios[engine]) if engine in ratios else ""
            table.add_row("", "" if place else line.work, engine, f"{ms:.2f} ms", beside)
    return title, table


def _mark(passed: bool) -> Text:
    return Text("✓", style="green") if passed else Text("✗", style="red")
