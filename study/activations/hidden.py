"""What goes into the activations of a model: recorded from a checkpoint on English, or drawn where there is none.

Shapes: T tokens of a text, S tokens that a decoder writes, F feed-forward size.
"""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from tfm.bundle import TOKENIZER, scratch_folder
from tfm.errors import CheckpointError, InputError
from tfm.export import eager_greedy, generation_settings
from tfm.latency import LEAST_ROUNDS, english_sentences, english_words
from tfm.model import FeedForward, Transformer, load_checkpoint, load_tokenizer, locate_checkpoint, make_activation
from tfm.runtime import Tokenizer

from .sqnr import Array

TEXTS = 32
"""How many texts are run; of no model, how many tensors are drawn."""
TOKENS = 64
"""How many tokens of a text are run at most, and are written; of no model, how many a tensor has."""
_WIDTH = 384
_NEW_TOKENS = 32


@dataclasses.dataclass(frozen=True)
class Hidden:
    """What goes into one activation on one text: the gate (T, F), or x; and the value (T, F) a gated one multiplies."""

    gate_TF: Tensor
    value_TF: Tensor

    @property
    def is_finite(self) -> bool:
        """Whether neither holds NaN or infinity."""
        return bool(self.gate_TF.isfinite().all() and self.value_TF.isfinite().all())


@dataclasses.dataclass(frozen=True, kw_only=True)
class HiddenStates:
    """What goes into every activation of a model.

    Attributes:
        about: What they are, in words.
        source: "checkpoint" or "normal".
        texts: Per text, a `Hidden` for each layer.
    """

    about: str
    source: str
    texts: tuple[tuple[Hidden, ...], ...]

    def outputs(self, name: str, gated: bool) -> Iterator[list[Array]]:
        """Run an activation in float32: for each text, its output (T, F) in each layer."""
        activation = make_activation(name)
        with torch.no_grad():
            for layers in self.texts:
                y = [activation(one.gate_TF) * one.value_TF if gated else activation(one.gate_TF) for one in layers]
                yield [y_TF.numpy() for y_TF in y]


def normal_states() -> HiddenStates:
    """Draw standard normal inputs, and values as independent of them."""
    generator = torch.Generator().manual_seed(0)
    # Gates and values: (2, texts, T, F).
    drawn = torch.randn(2, TEXTS, TOKENS, _WIDTH, generator=generator)
    about = f"normal inputs, not a model's: {TEXTS} tensors of {TOKENS}×{_WIDTH}, standard normal"
    texts = tuple((Hidden(gate_TF, value_TF),) for gate_TF, value_TF in zip(*drawn, strict=True))
    return HiddenStates(about=about, source="normal", texts=texts)


def record_states(checkpoint: str | os.PathLike[str]) -> HiddenStates:
    """Run a checkpoint eagerly, in float32, on built-in English, and record what enters its feed-forward activations.

    Each text is run by itself, as `tfm.runtime` runs the rows of int8 encoders. An encoder-decoder writes greedily what
    its decoder then reads. A model whose activations are not gated has no values: they are then what enters the same
    unit on other tokens, drawn anew for each layer.

    Args:
        checkpoint: What `tfm.model.load_checkpoint` reads without being told more, of a model that reads text, with its
            tokenizer.json beside it or in it.

    Raises:
        CheckpointError: It cannot be read, reads no text, has no tokenizer or no English, or gives NaN or infinity.
    """
    path = locate_checkpoint(checkpoint)
    model = load_checkpoint(path).float()
    if model.config.reads_vectors or model.config.image_size is not None:
        raise CheckpointError(f"{path} reads no text; give a checkpoint that does, or none for normal inputs")
    rows, what = _rows(path, model)
    targets: list[list[int]] = [[]] * len(rows)
    if model.config.kind == "encoder-decoder":
        # Less one, as the token that starts takes a place too.
        new_tokens = min(_NEW_TOKENS, model.config.max_positions - 1)
        targets = eager_greedy(model, rows, new_tokens, batch_size=TEXTS)
    recorder = _Recorder(model)
    texts = [recorder.run(row, target) for row, target in zip(rows, targets, strict=True)]
    # Figures of NaN would be left out later, and the rest would look sound.
    if not all(one.is_finite for layers in texts for one in layers):
        raise CheckpointError(f"{path}: NaN or infinity enters an activation; its weights are not sound")
    gated = recorder.gated
    if not gated:
        texts = _with_values(texts)
    values = "gates and values are the model's" if gated else "values are the inputs of other tokens, shuffled"
    depth, width = len(texts[0]), texts[0][0].gate_TF.shape[1]
    about = (
        f"inputs of the {depth} activations of {path.name} ({model.config.activation}, {width} units) on {len(rows)} "
        f"{what} of built-in English; for gated activations, {values}"
    )
    return HiddenStates(about=about, source="checkpoint", texts=tuple(map(tuple, texts)))


class _Recorder:
    """Records what enters the activation of every feed-forward block of a model."""

    def __init__(self, model: Transformer) -> None:
        self._model = model
        self._seen: list[Tensor] = []
        blocks = [module for module in model.modules() if isinstance(module, FeedForward)]
        self.gated = blocks[0].gated
        for block in blocks:
            # Its result is what enters the activation, by the name that every block has for it.
            block.linear1.register_forward_hook(self._see)

    def _see(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self._seen.append(output.detach()[0])  # (T, F), gated (T, 2F)

    @torch.no_grad()
    def run(self, row: list[int], target: list[int]) -> list[Hidden]:
        """Run one text, and the target after what starts it where there is a decoder beside an encoder."""
        self._seen = []
        config = self._model.config
        if config.kind == "encoder-decoder":
            self._model(torch.tensor([row]), torch.tensor([[config.bos_token_id, *target]]))
        else:
            self._model(torch.tensor([row]))
        if not self.gated:
            return [Hidden(seen, seen) for seen in self._seen]
        # (T, 2F): the first projection gives values, then gates.
        return [Hidden(gate, value) for value, gate in (seen.chunk(2, dim=-1) for seen in self._seen)]


def _with_values(texts: list[list[Hidden]]) -> list[list[Hidden]]:
    """Give every layer values: its inputs, with the tokens of all texts shuffled."""
    generator = torch.Generator().manual_seed(0)
    found: list[list[Hidden]] = [[] for _ in texts]
    for layer in zip(*texts, strict=True):
        # Of all texts of one layer, so that values are distributed as this layer's inputs are.
        every = torch.cat([one.gate_TF for one in layer])
        shuffled = every[torch.randperm(len(every), generator=generator)]
        parts = torch.split(shuffled, [len(one.gate_TF) for one in layer])
        for text, one, value_TF in zip(found, layer, parts, strict=True):
            text.append(Hidden(one.gate_TF, value_TF))
    return found


def _rows(path: Path, model: Transformer) -> tuple[list[list[int]], str]:
    """Token ids of `TEXTS` texts that the model reads, cut to `TOKENS`, and what the texts are."""
    folder = path if path.is_dir() else path.parent
    generation = generation_settings(folder, model.config)
    by_word = generation is not None and generation.get("split_on_whitespace") is True
    tokenizer = _tokenizer(path, folder, by_word)
    limit = min(TOKENS, model.config.max_positions)
    texts = english_words(10_000) if by_word else english_sentences(10_000)
    read = _readable(tokenizer, texts)
    # A word that is cut is another word; a sentence that is cut is still English.
    whole = (row[:limit] for row in read if len(row) <= limit or not by_word)
    rows = list(itertools.islice(whole, TEXTS))
    if len(rows) < LEAST_ROUNDS:
        raise CheckpointError(
            f"{path}: its tokenizer reads {len(rows)} of the built-in English texts, fewer than {LEAST_ROUNDS}, which "
            "show nothing; leave the checkpoint out for normal inputs"
        )
    return rows, "words" if by_word else "sentences"


def _readable(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[list[int]]:
    """Token ids of each text, but of those that are not of the tokenizer's language."""
    for text in texts:
        with contextlib.suppress(InputError):
            yield from tokenizer.encode([text])


def _tokenizer(path: Path, folder: Path, by_word: bool) -> Tokenizer:
    inside = load_tokenizer(path)
    if inside is not None:
        with scratch_folder() as scratch:
            # By a file, as the runtime's tokenizer reads one.
            inside.save(str(file := Path(scratch) / TOKENIZER))
            return Tokenizer(file, refuse_unknown=by_word)
    if not (folder / TOKENIZER).is_file():
        raise CheckpointError(
            f"{path} has no tokenizer, and {folder} no {TOKENIZER}: put it there, or leave the checkpoint out for "
            "normal inputs"
        )
    return Tokenizer(folder / TOKENIZER, refuse_unknown=by_word)
