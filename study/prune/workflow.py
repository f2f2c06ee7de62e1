"""From a checkpoint to a smaller one: what is kept, the cut, learning again, and a report beside the weights."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from tfm.bundle import staged, write_whole
from tfm.errors import InputError
from tfm.export import COMPANIONS, import_file
from tfm.model import Transformer, load_checkpoint, load_tokenizer, locate_checkpoint, save_checkpoint
from tfm.quantize import Stage, silent

from .distil import distil, mean_cosine
from .importance import Importance, Loss, measure_importance, next_token_loss, output_loss
from .remove import MULTIPLE, Kept, choose_by_count, choose_by_share, remove, share_within
from .texts import BATCH, MEASURED, Texts, read_text

_REPORT = "pruning.json"
"""What overwriting knows a pruned checkpoint by."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """How much is to be left, and how it learns again.

    Attributes:
        keep: Share of all heads and of all units to keep.
        parameters: Keep the share that fits into so many.
        heads: How many to keep in every attention, instead of a share.
        units: How many to keep in every feed-forward block, instead of a share.
        multiple: Units stay in groups of so many.
        text: Texts without labels, one a line; None: built-in sentences.
        script: A Python file with `fine_tune(model, original, say)`, `losses(model)`, or both.
        steps: Of distilling, which encoders without a script do; 0: none.
        learning_rate: Its peak.
        autocast: Distil in bfloat16.
        seed: Of all that is drawn.

    Raises:
        InputError: How much is to be left is said in no way, or in several.
    """

    keep: float | None = None
    parameters: int | None = None
    heads: int | None = None
    units: int | None = None
    multiple: int = MULTIPLE
    text: Path | None = None
    script: Path | None = None
    steps: int = 1000
    learning_rate: float = 5e-4
    autocast: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        counted = self.heads is not None or self.units is not None
        if sum((self.keep is not None, self.parameters is not None, counted)) != 1:
            raise InputError("say how much is to be left, in one way: --keep, --parameters, or --heads and --units")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pruned:
    """What pruning came to.

    Attributes:
        report: The content of pruning.json.
        stopped: What ended the fine-tuning early; None: nothing.
    """

    report: dict[str, Any]
    stopped: BaseException | None


def prune_checkpoint(
    checkpoint: Path,
    output: Path,
    options: PruneOptions,
    *,
    config: Path | None = None,
    overwrite: bool = False,
    stops: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
    stage: Stage = silent,
) -> Pruned:
    """Remove whole attention heads and feed-forward units from a checkpoint, the least important first.

    Encoders then learn to give the original's states and embeddings again, on text without labels; whatever has a
    script with `fine_tune` is fine-tuned by it.

    Args:
        checkpoint: As `export_checkpoint` reads it.
        output: Folder to make: the smaller checkpoint, what belongs to it, and pruning.json.
        options: How much is left, and how it learns.
        config: Configuration of weights without one.
        overwrite: Replace a pruned checkpoint that is there already.
        stops: What ends the fine-tuning early when it is raised in it; what was learned by then is kept.
        stage: Told of every stage.

    Raises:
        TfmError: The checkpoint, a text or the script cannot be read, so much cannot be left, or `output` exists.
    """
    output = Path(os.path.realpath(output))
    script = None if options.script is None else _load_script(options.script)
    # For a script of the user's; what is ours draws from generators of its own.
    torch.manual_seed(options.seed)
    with staged(output, overwrite=overwrite, what="pruned checkpoint", mark=_REPORT) as (folder, put_in_place):
        with stage("read checkpoint"):
            original = load_checkpoint(checkpoint, config).float()
            # A script with losses of its own needs no text.
            texts = read_text(checkpoint, options.text, original, needed=not hasattr(script, "losses"))
        with stage("measure importance") as step:
            losses = list(_losses(original, script, texts, options.seed))
            importance = measure_importance(original, _counted(losses, step))
        kept = _choose(original, importance, options)
        model = remove(original, kept)
        compared = original.config.kind == "encoder" and bool(texts.held_out)
        # Taken before training too, so that the report tells what training was for.
        cosines = {"pruned": mean_cosine(model, original, texts.held_out)} if compared else {}
        tuning = _tuning(model, original, texts, script, options)
        stopped = None if tuning is None else _tune(tuning, stops, stage)
        # Whatever the script left it in.
        model.eval()
        if compared:
            cosines["fine-tuned"] = mean_cosine(model, original, texts.held_out)
        report = _describe(original, model, importance, kept) | {
            "output": str(output),
            "cosine": cosines,
            "held_out": sum(len(ids) for ids, _ in texts.held_out),
            "fine_tuned": "not at all" if tuning is None else tuning.how,
            "interrupted": stopped is not None,
        }
        save_checkpoint(model, folder / "model.safetensors")
        _copy_companions(checkpoint, folder)
        write_whole(folder / _REPORT, json.dumps(report, indent=1) + "\n")
        # Report and companions are in the folder by now: it appears whole.
        put_in_place()
    return Pruned(report=report, stopped=stopped)


def _load_script(file: Path) -> ModuleType:
    module = import_file(file)
    if not hasattr(module, "fine_tune") and not hasattr(module, "losses"):
        raise InputError(f"{file} defines neither fine_tune(model, original, say) nor losses(model)")
    return module


def _losses(model: Transformer, script: ModuleType | None, texts: Texts, seed: int) -> Iterable[Loss]:
    if script is not None and hasattr(script, "losses"):
        # The user's own take the place of ours, which are for text alone.
        yield from script.losses(model)
        return
    generator = torch.Generator().manual_seed(seed)
    for ids_BT, mask_BT in texts.train[: MEASURED // BATCH]:
        if model.config.kind == "encoder":
            yield output_loss(ids_BT, mask_BT, generator)
        else:
            yield next_token_loss(ids_BT, mask_BT)


def _counted(losses: list[Loss], step: Callable[[int, int, str], None]) -> Iterator[Loss]:
    for index, loss in enumerate(losses):
        yield loss
        step(index, len(losses), "")


def _choose(original: Transformer, importance: Importance, options: PruneOptions) -> Kept:
    multiple = options.multiple
    if options.heads is not None or options.units is not None:
        return choose_by_count(original, importance, heads=options.heads, units=options.units, multiple=multiple)
    # A number of parameters becomes a share first.
    share = options.keep
    if options.parameters is not None:
        share = share_within(original, importance, options.parameters, multiple=multiple)
    assert share is not None
    return choose_by_share(original, importance, heads=share, units=share, multiple=multiple)


Say = Callable[..., None]
"""Told by a training how many of how many steps are done, and optionally a text."""


@dataclasses.dataclass(frozen=True)
class _Tuning:
    """How a model is fine-tuned: in the report's words, as a stage is called, and what does it."""

    how: str
    name: str
    run: Callable[[Say], object]


def _tuning(
    model: Transformer, original: Transformer, texts: Texts, script: ModuleType | None, options: PruneOptions
) -> _Tuning | None:
    """Give what trains the smaller model; None: nothing does."""
    if script is not None and hasattr(script, "fine_tune"):
        name = str(options.script)
        return _Tuning(name, f"fine-tune by {name}", lambda say: script.fine_tune(model, original, say))
    if original.config.kind != "encoder" or not texts.held_out or not options.steps:
        return None

    def learn(say: Say) -> None:
        distil(
            model,
            original,
            texts.train,
            steps=options.steps,
            learning_rate=options.learning_rate,
            seed=options.seed,
            autocast=options.autocast,
            progress=lambda done, total, loss: say(done, total, f"loss {loss:.4f}"),
        )

    return _Tuning(f"distilled on {texts.about}", "distil", learn)


def _tune(tuning: _Tuning, stops: tuple[type[BaseException], ...], stage: Stage) -> BaseException | None:
    """Train; what was learned until a stop is kept, as the model is trained in place."""
    try:
        with stage(tuning.name) as step:
            # A script counts steps that are done, and may leave the text out.
            tuning.run(lambda done, total, text="": step(done - 1, total, text))
    except stops as stopped:
        return stopped
    return None


def _describe(original: Transformer, model: Transformer, importance: Importance, kept: Kept) -> dict[str, Any]:
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


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _copy_companions(checkpoint: Path, folder: Path) -> None:
    """Put what belongs to the checkpoint beside the new one, for `tfm-export --ckpt`."""
    path = locate_checkpoint(checkpoint)
    source = path if path.is_dir() else path.parent
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    # A checkpoint such as GGUF has its tokenizer inside.
    if not (folder / "tokenizer.json").is_file() and (tokenizer := load_tokenizer(path)) is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
