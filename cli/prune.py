"""`tfm prune`: a smaller checkpoint, of the heads and feed-forward units that matter most."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import click

from tfm.errors import ExportError

from .outputs import name_after
from .signals import StoppedError
from .streams import say_json

if TYPE_CHECKING:  # importing it loads rich, which --help must not wait for
    from .screen import Screen

_INTERRUPTED = 130


@click.command()
@click.option("--ckpt", type=click.Path(path_type=Path), required=True, help="Checkpoint, as tfm-export reads it.")
@click.option("--config", type=click.Path(path_type=Path), help="Configuration of weights without one.")
@click.option("--keep", type=float, help="Share of all heads and of all units to keep, such as 0.7.")
@click.option(
    "--parameters", type=click.IntRange(min=1), help="Keep the share that fits into so many, such as 15_000_000."
)
@click.option("--heads", type=int, help="Heads to keep in every attention, instead of a share.")
@click.option("--units", type=int, help="Feed-forward units to keep in every layer, instead of a share.")
@click.option("--multiple", type=int, default=16, show_default=True, help="Units stay in groups of so many.")
@click.option("--text", type=click.Path(path_type=Path), help="Texts without labels, one a line [default: built in].")
@click.option(
    "--fine-tune",
    "script",
    metavar="SCRIPT.py",
    type=click.Path(path_type=Path),
    help="Defines fine_tune(model, original, say), which trains model in place and may call say(done, total, text); "
    "and losses(model), where importance is to be measured on data of its own.",
)
@click.option("--steps", type=click.IntRange(min=0), default=1000, show_default=True, help="Of distilling.")
@click.option(
    "--lr",
    "learning_rate",
    type=click.FloatRange(min=0, min_open=True),
    default=5e-4,
    show_default=True,
    help="Its peak rate.",
)
@click.option("--bf16", "autocast", is_flag=True, help="Distil in bfloat16, for CPUs that are faster at that.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads to compute on [default: all cores].")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to make [default: NAME-pruned here].")
@click.option("--overwrite", is_flag=True, help="Replace a pruned checkpoint that is there already.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON, for machines.")
@click.pass_context
def prune(
    context: click.Context,
    /,
    ckpt: Path,
    config: Path | None,
    threads: int | None,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Remove whole attention heads and feed-forward units from a checkpoint, the least important first.

    Encoders then learn to give the original's states and embeddings again; Ctrl-C, like SIGTERM, ends that early and
    keeps what was learned. Decoders are fine-tuned by --fine-tune, or not at all.
    """
    try:
        import torch

        from tfm.study.prune import PruneOptions, prune_checkpoint

        from .screen import Screen
    except ModuleNotFoundError as error:
        raise ExportError(f"pruning needs the package {error.name}: pip install 'tfm-export[export]'") from error
    if threads is not None:
        torch.set_num_threads(threads)
    console = Screen(err=True)
    pruned = prune_checkpoint(
        ckpt,
        output or Path(f"{name_after(ckpt)}-pruned"),
        PruneOptions(**options),
        config=config,
        overwrite=overwrite,
        stops=(KeyboardInterrupt, StoppedError),
        stage=lambda name: _timed_stage(console, name),
    )
    if as_json:
        say_json(pruned.report)
    else:
        _print(pruned.report, Screen())
    # The code of the signal, though all is there: who sent it knows that training was cut short.
    if pruned.stopped is not None:
        context.exit(int(str(pruned.stopped.code)) if isinstance(pruned.stopped, StoppedError) else _INTERRUPTED)


@contextlib.contextmanager
def _timed_stage(console: "Screen", name: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show a stage, and the time that is left of it after each step."""
    from .stage_progress import show_stage

    start = monotonic()
    with show_stage(console, name) as show_step:

        def step(index: int, total: int, text: str) -> None:
            minutes, seconds = divmod(round((monotonic() - start) / max(index + 1, 1) * (total - index - 1)), 60)
            show_step(index, total, f"{minutes}:{seconds:02} left  {text}")

        yield step


def _print(report: Mapping[str, Any], console: "Screen") -> None:
    """Print a line for every block, then the whole, then what it does to the embeddings."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

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
