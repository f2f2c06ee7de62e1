"""What `tfm-export --list` and `--dry-run` print."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from .screen import Screen
from .streams import say, say_json

if TYPE_CHECKING:  # importing it loads torch, which --help must not wait for
    from tfm.export import Plan


def show_catalog(content: Mapping[str, Any], *, as_json: bool) -> None:
    """Print all that can be exported, and which way each goes."""
    if as_json:
        say_json(content)
        return
    screen = Screen()
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
    for title in ("Family", "Way", "Read as"):
        table.add_column(title)
    for name, entry in content["families"].items():
        table.add_row(name, entry["way"], entry["reads"])
    other = content["other families"]
    table.add_row("any other", other["way"], other["reads"])
    screen.print(table)
    for title, key in (("Checkpoint", "formats"), ("Task", "tasks")):
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
        table.add_column(title)
        table.add_column("Way" if key == "formats" else "Of")
        for name, what in content[key].items():
            table.add_row(name, what)
        screen.print()
        screen.print(table)


def show_plan(plan: "Plan", output: str, *, as_json: bool) -> None:
    """Print what an export would make."""
    if as_json:
        say_json({"output": output} | plan.to_dict())
        return
    for line in _lines(plan, output):
        say(line)


def _lines(plan: "Plan", output: str) -> list[str]:
    named = f" ({plan.architecture})" if plan.architecture else ""
    lines = [f"{plan.family}{named}, read {_WAYS[plan.way]}" + (f": {plan.because}" if plan.because else "")]
    if plan.parameters is not None:
        lines.append(f"{plan.kind} of {plan.parameters:,} parameters")
    for file, names in plan.graphs.items():
        inputs, outputs = (", ".join(names[side]) for side in ("inputs", "outputs"))
        lines.append(f"onnx/{file}" + (f": {inputs} → {outputs}" if inputs else ""))
    for name in plan.precisions:
        about = f", about {plan.sizes[name] / 1e6:.0f} MB" if name in plan.sizes else ""
        lines.append(f"{name}{about}")
    lines.append(f"tasks: {', '.join(plan.tasks)}")
    lines += [f"note: {note}" for note in plan.notes]
    return [*lines, f"nothing was exported; it would go to {output}"]


_WAYS = {
    "native": "natively",
    "transformers": "by transformers",
    "program": "as an exported program",
    "factory": "from a factory",
}
