"""What `tfm prune` cut, as JSON values and as a table on a terminal."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from .screen import Screen

if TYPE_CHECKING:
    from tfm.model import Transformer
    from tfm.study.prune import Importance, Kept


def describe(original: "Transformer", model: "Transformer", importance: "Importance", kept: "Kept") -> dict[str, Any]:
    """Describe every attention and feed-forward block before and after, and the whole."""
    blocks = []
    for name, values in {**importance.heads, **importance.units}.items():
        # Importance is a root mean square, so its squares are what adds up. Where all are 0,
        # nothing was lost.
        squares = values.square()
        left = squares[list(kept[name])].sum() / squares.sum() if squares.sum() else 1.0
        blocks.append(
            {
                "name": name,
                "what": "heads" if name in importance.heads else "units",
                "count": [len(values), len(kept[name])],
                "parameters": [_parameters(one.get_submodule(name)) for one in (original, model)],
                "importance": values.tolist(),
                "kept": list(kept[name]),
                "importance_kept": float(left),
            }
        )
    return {
        "parameters": [_parameters(original), _parameters(model)],
        "examples": importance.examples,
        "blocks": blocks,
    }


def print_pruned(report: Mapping[str, Any], console: Screen) -> None:
    """Print a line for every block, then the whole, then what it does to the embeddings."""
    lines = Table(box=box.SIMPLE_HEAD)
    for title in ("", "", "before", "after", "parameters", "", "importance kept"):
        lines.add_column(title, justify="right" if title else "left")
    for block in report["blocks"]:
        (count, left), (before, after) = block["count"], block["parameters"]
        share = f"{block['importance_kept']:.1%}"
        lines.add_row(block["name"], block["what"], f"{count}", f"{left}", f"{before:,}", f"{after:,}", share)
    console.print(lines)
    before, after = report["parameters"]
    console.print(f"  {before:,} parameters → {after:,} ({after / before:.1%}); fine-tuned: {report['fine_tuned']}")
    console.print(f"  importance: mean square of gates' slopes on {report['examples']} examples")
    if report["cosine"]:
        found = ", ".join(f"{name} {value:.4f}" for name, value in report["cosine"].items())
        console.print(f"  mean cosine to the original on {report['held_out']} held-out texts: {found}")
    if report["interrupted"]:
        console.print("  interrupted: fine-tuning ended early, and this is what it had learned", style="yellow")
    console.print(Text.assemble(("\n✓ pruned", "bold green"), f" → {report['output']}"), soft_wrap=True)


def _parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
