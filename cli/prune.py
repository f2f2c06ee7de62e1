"""`tfm prune`: a smaller checkpoint, of the heads and feed-forward units that matter most."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from tfm.errors import ExportError, InputError

from .outputs import name_after
from .signals import StoppedError
from .streams import say_json

if TYPE_CHECKING:  # importing them loads torch, which --help must not wait for
    from tfm.model import Transformer
    from tfm.study.prune import Batch

_INTERRUPTED = 130
_REPORT = "pruning.json"
"""What `--overwrite` knows a pruned checkpoint by."""


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
    "--lr", type=click.FloatRange(min=0, min_open=True), default=5e-4, show_default=True, help="Its peak rate."
)
@click.option("--bf16", is_flag=True, help="Distil in bfloat16, for CPUs that are faster at that.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads to compute on [default: all cores].")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to make [default: NAME-pruned here].")
@click.option("--overwrite", is_flag=True, help="Replace a pruned checkpoint that is there already.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON, for machines.")
@click.pass_context
def prune(
    context: click.Context,
    ckpt: Path,
    config: Path | None,
    keep: float | None,
    parameters: int | None,
    heads: int | None,
    units: int | None,
    multiple: int,
    text: Path | None,
    script: Path | None,
    steps: int,
    lr: float,
    bf16: bool,
    threads: int | None,
    seed: int,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Remove whole attention heads and feed-forward units from a checkpoint, the least important first.

    Encoders then learn to give the original's states and embeddings again; Ctrl-C, like SIGTERM, ends that early and
    keeps what was learned. Decoders are fine-tuned by --fine-tune, or not at all.
    """
    if sum((keep is not None, parameters is not None, heads is not None or units is not None)) != 1:
        raise click.UsageError("say how much is to be left, in one way: --keep, --parameters, or --heads and --units")
    try:
        import torch

        from tfm.bundle import staged, write_whole
        from tfm.model import load_checkpoint, save_checkpoint
        from tfm.study.prune import (
            choose_by_count,
            choose_by_share,
            distil,
            mean_cosine,
            measure_importance,
            remove,
            share_within,
        )

        from .screen import Screen
    except ModuleNotFoundError as error:
        raise ExportError(f"pruning needs the package {error.name}: pip install 'tfm-export[export]'") from error
    from .prune_report import describe, print_pruned
    from .prune_text import BATCH, MEASURED, read_text
    from .stages import show_stage

    console = Screen(err=True)
    place = Path(os.path.realpath(output or f"{name_after(ckpt)}-pruned"))
    tuning = None if script is None else _load_script(script)
    if threads is not None:
        torch.set_num_threads(threads)
    # For a script of the user's; what is ours draws from generators of its own.
    torch.manual_seed(seed)
    with staged(place, overwrite=overwrite, what="pruned checkpoint", mark=_REPORT) as (folder, put_in_place):
        with show_stage(console, "read checkpoint"):
            original = load_checkpoint(ckpt, config).float()
            # A script with losses of its own needs no text.
            train, held_out, about = read_text(ckpt, text, original, needed=not hasattr(tuning, "losses"))
        with show_stage(console, "measure importance") as step:
            losses = list(_losses(original, tuning, train[: MEASURED // BATCH], seed))
            importance = measure_importance(original, _told(losses, step))
        # A number of parameters becomes a share first, and both are then chosen by share.
        if parameters is not None:
            keep = share_within(original, importance, parameters, multiple=multiple)
        if keep is not None:
            kept = choose_by_share(original, importance, heads=keep, units=keep, multiple=multiple)
        else:
            kept = choose_by_count(original, importance, heads=heads, units=units, multiple=multiple)
        model = remove(original, kept)
        encoder = original.config.kind == "encoder" and bool(held_out)
        # Taken before training too, so that the report tells what training was for.
        cosines: dict[str, float] = {"pruned": mean_cosine(model, original, held_out)} if encoder else {}
        stopped, tuned = 0, "not at all"
        try:
            if tuning is not None and hasattr(tuning, "fine_tune"):
                tuned = str(script)
                with show_stage(console, f"fine-tune by {script}") as step:
                    tuning.fine_tune(model, original, _clock(step))
            elif encoder and steps:
                tuned = f"distilled on {about}"
                options: dict[str, Any] = {"steps": steps, "learning_rate": lr, "seed": seed, "autocast": bf16}
                with show_stage(console, "distil") as step:
                    say = _clock(step)
                    distil(model, original, train, **options, progress=lambda i, n, loss: say(i, n, f"loss {loss:.4f}"))
        # What was learned until then is kept: the model is trained in place, and saved below.
        except KeyboardInterrupt:
            stopped = _INTERRUPTED
        except StoppedError as signal:
            stopped = int(str(signal.code))
        # Whatever the script left it in.
        model.eval()
        if encoder:
            cosines["fine-tuned"] = mean_cosine(model, original, held_out)
        report = describe(original, model, importance, kept) | {
            "output": str(place),
            "cosine": cosines,
            "held_out": sum(len(ids) for ids, _ in held_out),
            "fine_tuned": tuned,
            "interrupted": bool(stopped),
        }
        save_checkpoint(model, folder / "model.safetensors")
        _copy_companions(ckpt, folder)
        write_whole(folder / _REPORT, json.dumps(report, indent=1) + "\n")
        # Report and companions are in the folder by now: it appears whole.
        put_in_place()
    if as_json:
        say_json(report)
    else:
        print_pruned(report, Screen())
    # The code of the signal, though all is there: who sent it knows that training was cut short.
    context.exit(stopped)


def _load_script(script: Path) -> ModuleType:
    from tfm.export import import_file

    module = import_file(script)
    if not hasattr(module, "fine_tune") and not hasattr(module, "losses"):
        raise InputError(f"{script} defines neither fine_tune(model, original, say) nor losses(model)")
    return module


def _losses(model: "Transformer", tuning: ModuleType | None, train: "list[Batch]", seed: int) -> Iterator[Any]:
    import torch

    from tfm.study.prune import next_token_loss, output_loss

    if tuning is not None and hasattr(tuning, "losses"):
        # The user's own take the place of ours, which are for text alone.
        yield from tuning.losses(model)
        return
    generator = torch.Generator().manual_seed(seed)
    for ids_BT, mask_BT in train:
        if model.config.kind == "encoder":
            yield output_loss(ids_BT, mask_BT, generator)
        else:
            yield next_token_loss(ids_BT, mask_BT)


def _told(losses: list[Any], step: Callable[[int, int, str], None]) -> Iterator[Any]:
    say = _clock(step)
    for index, loss in enumerate(losses):
        yield loss
        say(index + 1, len(losses), "")


def _clock(step: Callable[[int, int, str], None]) -> Callable[[int, int, str], None]:
    """Add the time that is left to what is said of each step."""
    start = monotonic()

    def say(done: int, total: int, text: str = "") -> None:
        minutes, seconds = divmod(round((monotonic() - start) / max(done, 1) * (total - done)), 60)
        step(done - 1, total, f"{minutes}:{seconds:02} left  {text}")

    return say


def _copy_companions(ckpt: Path, folder: Path) -> None:
    """Put what belongs to the checkpoint beside the new one, for `tfm-export --ckpt`."""
    from tfm.export import COMPANIONS
    from tfm.model import load_tokenizer, locate_checkpoint

    path = locate_checkpoint(ckpt)
    source = path if path.is_dir() else path.parent
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    # A checkpoint such as GGUF has its tokenizer inside.
    if not (folder / "tokenizer.json").is_file() and (tokenizer := load_tokenizer(path)) is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
