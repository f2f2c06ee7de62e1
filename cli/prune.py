"""`tfm prune`: a smaller checkpoint, of the heads and feed-forward units that matter most."""

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from tfm.errors import CheckpointError, ExportError, InputError

if TYPE_CHECKING:  # importing them loads torch, which --help must not wait for
    from tfm.model import Transformer
    from tfm.prune.distil import Batch

_BATCH = 32
_MOST_TOKENS = 128
"""Longer texts are cut: attention to more of them would take most of the time."""
_MEASURED = 1024
"""Texts that importance is measured on, at most."""
_HELD_OUT = 10
"""Every so manieth line is held out."""
_INTERRUPTED = 130


@click.command()
@click.option("--ckpt", type=click.Path(path_type=Path), required=True, help="Checkpoint, as tfm-export reads it.")
@click.option("--config", type=click.Path(path_type=Path), help="Configuration of weights without one.")
@click.option("--keep", type=float, help="Share of all heads and of all units to keep, such as 0.7.")
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
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON, for machines.")
@click.pass_context
def prune(
    context: click.Context,
    ckpt: Path,
    config: Path | None,
    keep: float | None,
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
    as_json: bool,
) -> None:
    """Remove whole attention heads and feed-forward units from a checkpoint, the least important first.

    Encoders then learn to give the original's states and embeddings again; Ctrl-C ends that early and keeps what was
    learned. Decoders are fine-tuned by --fine-tune, or not at all.
    """
    if (keep is None) == (heads is None and units is None):
        raise click.UsageError("say how much is to be left: --keep, or --heads and --units, but not both")
    try:
        import torch
        from rich.console import Console

        from tfm.model import load_checkpoint, save_checkpoint
        from tfm.prune import choose_by_count, choose_by_share, distil, mean_cosine, measure_importance, remove
        from tfm.quantize.staging import staged
    except ModuleNotFoundError as error:
        raise ExportError(f"pruning needs the package {error.name}: pip install 'tfm-export[export]'") from error
    from .prune_report import describe, print_pruned
    from .stages import show_stage

    console = Console(stderr=True, highlight=False)
    place = Path(os.path.realpath(output or f"{ckpt.resolve().stem}-pruned"))
    if place.exists():
        raise ExportError(f"{place} exists already; choose another folder with -o")
    tuning = None if script is None else _load_script(script)
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    with staged(place, overwrite=False) as (folder, put_in_place):
        with show_stage(console, "read checkpoint"):
            original = load_checkpoint(ckpt, config).float()
            train, held_out, about = _read_text(ckpt, text, original, needed=not hasattr(tuning, "losses"))
        with show_stage(console, "measure importance") as step:
            losses = list(_losses(original, tuning, train[: _MEASURED // _BATCH], seed))
            importance = measure_importance(original, _told(losses, step))
        if keep is not None:
            kept = choose_by_share(original, importance, heads=keep, units=keep, multiple=multiple)
        else:
            kept = choose_by_count(original, importance, heads=heads, units=units, multiple=multiple)
        model = remove(original, kept)
        encoder = original.config.kind == "encoder" and bool(held_out)
        cosines: dict[str, float] = {"pruned": mean_cosine(model, original, held_out)} if encoder else {}
        interrupted, tuned = False, "not at all"
        try:
            if tuning is not None and hasattr(tuning, "fine_tune"):
                with show_stage(console, f"fine-tune by {script}") as step:
                    tuned = str(script)
                    tuning.fine_tune(model, original, _clock(step))
            elif encoder and steps:
                with show_stage(console, "distil") as step:
                    say, tuned = _clock(step), f"distilled on {about}"
                    distil(
                        model,
                        original,
                        train,
                        steps=steps,
                        learning_rate=lr,
                        seed=seed,
                        autocast=bf16,
                        progress=lambda done, total, loss: say(done, total, f"loss {loss:.4f}"),
                    )
        except KeyboardInterrupt:
            interrupted = True
        model.eval()
        if encoder:
            cosines["fine-tuned"] = mean_cosine(model, original, held_out)
        report = describe(original, model, importance, kept) | {
            "output": str(place),
            "cosine": cosines,
            "held_out": sum(len(ids) for ids, _ in held_out),
            "fine_tuned": tuned,
            "interrupted": interrupted,
        }
        save_checkpoint(model, folder / "model.safetensors")
        _copy_companions(ckpt, folder)
        (folder / "pruning.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        put_in_place()
    if as_json:
        click.echo(json.dumps(report))
    else:
        print_pruned(report, Console(highlight=False))
    context.exit(_INTERRUPTED if interrupted else 0)


def _load_script(script: Path) -> ModuleType:
    """Import a user's file, with its folder on the path as when it is run."""
    spec = importlib.util.spec_from_file_location("fine_tune_script", script)
    if not script.is_file() or spec is None or spec.loader is None:
        raise InputError(f"{script} is no Python file that --fine-tune could import")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(script.resolve().parent))
    spec.loader.exec_module(module)
    if not hasattr(module, "fine_tune") and not hasattr(module, "losses"):
        raise InputError(f"{script} defines neither fine_tune(model, original, say) nor losses(model)")
    return module


def _read_text(
    ckpt: Path, text: Path | None, model: "Transformer", *, needed: bool
) -> "tuple[list[Batch], list[Batch], str]":
    """Batches to learn from and batches held out, and what they are; none where the model reads no text."""
    from tfm.latency.text import english_sentences
    from tfm.model import locate_checkpoint

    config = model.config
    if config.kind == "encoder-decoder" or config.reads_vectors or config.image_size is not None:
        if text is not None:
            raise InputError(f"--text is for an encoder or a decoder of text; {ckpt} needs --fine-tune SCRIPT.py")
        if needed:
            raise InputError(
                f"{ckpt} cannot be measured on text alone: give --fine-tune SCRIPT.py, whose losses(model) gives "
                "functions of the model, each a batch's losses (B,)"
            )
        return [], [], ""
    path = locate_checkpoint(ckpt)
    tokenizer = (path if path.is_dir() else path.parent) / "tokenizer.json"
    if not tokenizer.is_file():
        if not needed and text is None:
            return [], [], ""
        raise InputError(f"texts need the checkpoint's tokenizer, but there is no {tokenizer}")
    try:
        lines = english_sentences(10**6) if text is None else text.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{text} is not a text file of UTF-8: {error}") from error
    lines = [line for line in lines if line.strip()]
    if len(lines) < 2 * _HELD_OUT:
        raise InputError(
            f"{text} has {len(lines)} lines of text; at least {2 * _HELD_OUT} are needed, thousands better"
        )
    held_out = lines[_HELD_OUT - 1 :: _HELD_OUT][:_MEASURED]
    train = [line for index, line in enumerate(lines) if index % _HELD_OUT != _HELD_OUT - 1]
    about = f"{len(train)} {'built-in sentences' if text is None else f'lines of {text}'}"
    return _batches(tokenizer, train, model), _batches(tokenizer, held_out, model), about


def _batches(file: Path, lines: list[str], model: "Transformer") -> "list[Batch]":
    """Tokenize, and pad lines of like lengths together, in an order that does not go by length."""
    import torch

    from tfm.runtime.tokenizer import Tokenizer

    config = model.config
    tokenizer = Tokenizer(file, max_tokens=min(config.max_positions, _MOST_TOKENS))
    rows = sorted((torch.tensor(tokenizer.encode([line])[0]) for line in lines), key=len)
    if max(int(row.max()) for row in rows) >= config.vocab_size:
        raise CheckpointError(f"{file} gives ids beyond the checkpoint's vocabulary of {config.vocab_size}")
    pad = torch.nn.utils.rnn.pad_sequence
    found = []
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        ids_BT = pad(part, batch_first=True, padding_value=config.pad_token_id or 0)
        found.append((ids_BT, pad([torch.ones_like(row) for row in part], batch_first=True)))
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
    return [found[index] for index in order]


def _losses(model: "Transformer", tuning: ModuleType | None, train: "list[Batch]", seed: int) -> Iterator[Any]:
    import torch

    from tfm.prune import next_token_loss, output_loss

    if tuning is not None and hasattr(tuning, "losses"):
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
    from tfm.export.manifest import COMPANIONS
    from tfm.model import load_tokenizer, locate_checkpoint

    path = locate_checkpoint(ckpt)
    source = path if path.is_dir() else path.parent
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if not (folder / "tokenizer.json").is_file() and (tokenizer := load_tokenizer(path)) is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
