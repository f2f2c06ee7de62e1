"""Texts without labels, which importance is measured on and which encoders learn from."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from tfm.errors import CheckpointError, InputError
from tfm.latency import english_sentences
from tfm.model import Transformer, locate_checkpoint
from tfm.runtime import Tokenizer

from .distil import Batch

BATCH = 32
_MOST_TOKENS = 128
"""Longer texts are cut: attention to more of them would take most of the time."""
MEASURED = 1024
"""Texts that importance is measured on, at most."""
_HELD_OUT = 10
"""Every so manieth line is held out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
    """Batches to learn from and batches held out, and what they are in words; empty where a model reads no text."""

    train: Sequence[Batch] = ()
    held_out: Sequence[Batch] = ()
    about: str = ""


def read_text(ckpt: Path, text: Path | None, model: Transformer, *, needed: bool) -> Texts:
    """Read texts for a checkpoint.

    Args:
        ckpt: The checkpoint, whose tokenizer splits them.
        text: A file of UTF-8, a text a line; None: sentences that are built in.
        model: The checkpoint's.
        needed: Whether there is nothing else to measure importance on.

    Returns:
        The texts; none where the model reads no text, or lacks a tokenizer that is not needed.

    Raises:
        InputError: The file cannot be read, has too few lines, or is for another kind of model.
    """
    config = model.config
    # What needs a second text, vectors or images says nothing on a line of text alone.
    if config.kind == "encoder-decoder" or config.reads_vectors or config.image_size is not None:
        if text is not None:
            raise InputError(f"--text is for an encoder or a decoder of text; {ckpt} needs --fine-tune SCRIPT.py")
        if needed:
            raise InputError(
                f"{ckpt} cannot be measured on text alone: give --fine-tune SCRIPT.py, whose losses(model) gives "
                "functions of the model, each a batch's losses (B,)"
            )
        return Texts()
    path = locate_checkpoint(ckpt)
    tokenizer = (path if path.is_dir() else path.parent) / "tokenizer.json"
    if not tokenizer.is_file():
        if not needed and text is None:
            return Texts()
        raise InputError(f"texts need the checkpoint's tokenizer, but there is no {tokenizer}")
    lines = _read_lines(text)
    # From all over the file, whose end may be of another kind than its beginning.
    held_out = lines[_HELD_OUT - 1 :: _HELD_OUT][:MEASURED]
    train = [line for index, line in enumerate(lines) if index % _HELD_OUT != _HELD_OUT - 1]
    about = f"{len(train)} {'built-in sentences' if text is None else f'lines of {text}'}"
    return Texts(train=_batches(tokenizer, train, model), held_out=_batches(tokenizer, held_out, model), about=about)


def _read_lines(text: Path | None) -> list[str]:
    try:
        lines = english_sentences(10**6) if text is None else text.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{text} is not a text file of UTF-8: {error}") from error
    lines = [line for line in lines if line.strip()]
    if len(lines) < 2 * _HELD_OUT:
        raise InputError(
            f"{text} has {len(lines)} lines of text; at least {2 * _HELD_OUT} are needed, thousands better"
        )
    return lines


def _batches(file: Path, lines: list[str], model: Transformer) -> list[Batch]:
    """Tokenize, and pad lines of like lengths together, in an order that does not go by length."""
    config = model.config
    tokenizer = Tokenizer(file, max_tokens=min(config.max_positions, _MOST_TOKENS))
    # (T,) each, of like lengths side by side, so that little is padded to (B, T).
    rows = sorted((torch.tensor(tokenizer.encode([line])[0]) for line in lines), key=len)
    if max(int(row.max()) for row in rows) >= config.vocab_size:
        raise CheckpointError(f"{file} gives ids beyond the checkpoint's vocabulary of {config.vocab_size}")
    pad = torch.nn.utils.rnn.pad_sequence
    found = []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        ids_BT = pad(part, batch_first=True, padding_value=config.pad_token_id or 0)
        found.append((ids_BT, pad([torch.ones_like(row) for row in part], batch_first=True)))
    # Of a fixed seed: without it, training would go from short to long texts.
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
    return [found[index] for index in order]
