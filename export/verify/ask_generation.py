"""What transformers' own `generate` gives of a checkpoint, by its own settings, and whether a bundle gives the same.

Tokens are compared, not texts: a text may hide a token, as those that stand for nothing. Transformers takes prompts one
by one, so that it pads nothing; the bundle takes them all at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tfm.bundle import TEMPLATE, TOKENIZER
from tfm.runtime import Decoder, EncoderDecoder

from .transformers_model import open_model, transformers

Generates = Decoder | EncoderDecoder

_CLASSES = {"decoder": "AutoModelForCausalLM", "encoder-decoder": "AutoModelForSeq2SeqLM"}
_CHAT = [{"role": "user", "content": "What is the capital of France?"}]
"""What a chat's template is tried by, where the checkpoint has one."""

_NEW = 20
"""Tokens of a prompt, and new tokens, at most."""

_WORDS = (12, 1, 7, 3, 16)
"""Words of the prompts, of kinds that differ: rows of a batch of other lengths, in no order."""

_TIE = 1e-3
"""Tokens whose scores differ by less are one to float32, and so are hypotheses: which of them comes first says nothing.
Two orders of addition differ by about 1e-5 in logits of real models."""


@dataclass(frozen=True)
class Continued:
    """What transformers made of one prompt.

    Attributes:
        prompt: Its token ids, as transformers' own tokenizer has them.
        tokens: The new tokens, without the one that ended them.
        ties: For each step of a greedy search the tokens that are as good as the one that was taken.
        others: Of a search by beams, what else is as good.
    """

    prompt: list[int]
    tokens: list[int]
    ties: Sequence[frozenset[int]] = ()
    others: Sequence[list[int]] = ()

    def agrees(self, ours: list[int], ends: Sequence[int]) -> bool:
        """Whether a bundle's tokens are these, or part from them where two tokens are equally good."""
        if ours in (self.tokens, *self.others):
            return True
        same = next((k for k, pair in enumerate(zip(ours, self.tokens, strict=False)) if pair[0] != pair[1]), None)
        place = min(len(ours), len(self.tokens)) if same is None else same
        # What follows a tie is another text.
        chosen = set(ours[place : place + 1]) or set(ends)
        return place < len(self.ties) and not chosen.isdisjoint(self.ties[place])


@dataclass(frozen=True)
class Way:
    """One way to generate, and what transformers gives so.

    Attributes:
        settings: What both are asked for; all else is as the checkpoint says.
        expected: Per prompt.
    """

    settings: Mapping[str, Any]
    expected: Sequence[Continued]


def ask_generate(folder: Path, bundle: Generates, texts: Sequence[str]) -> tuple[Sequence[Any], Sequence[Way]]:
    """Let transformers generate by a checkpoint's settings: greedily, and by beams where the checkpoint asks for them.

    Args:
        folder: The checkpoint's.
        bundle: What was made of it.
        texts: Of several kinds, to begin with.

    Returns:
        The prompts, texts or token ids as the bundle takes them, and what became of them in each way.
    """
    generation, most = bundle.manifest.generation, _room(bundle)
    if generation is None:
        raise ValueError("the checkpoint does not say how a text begins and ends")
    model = open_model(folder, _CLASSES[bundle.manifest.kind])
    prompts: Sequence[Any]
    rows: list[list[int]]
    if TOKENIZER in bundle.manifest.files:
        prompts, rows = _read(folder, texts, most)
        if (row := _read_chat(folder, bundle)) is not None:
            prompts, rows = [*prompts, bundle.apply_chat_template(_CHAT)], [*rows, row]
    else:
        prompts = rows = _rows(bundle, most)
    plain = {"do_sample": False, "num_beams": 1, "max_new_tokens": min(most, generation.max_new_tokens)}
    ways = [plain]
    # A draw cannot be repeated; of the settings it is the likeliest token that is compared.
    if (beams := generation.defaults.get("num_beams", 1)) > 1:
        ways.append({**plain, "num_beams": beams})
    ends = generation.eos_token_ids
    return prompts, [Way(way, [_continue(model, row, ends, way) for row in rows]) for way in ways]


def share_that_agrees(bundle: Generates, prompts: Sequence[Any], ways: Sequence[Way]) -> tuple[float, int]:
    """Tell which share of the prompts a bundle continues as transformers does, and of how many; all in one batch."""
    ends = bundle.manifest.generation.eos_token_ids if bundle.manifest.generation else ()
    are_texts = all(isinstance(prompt, str) for prompt in prompts)
    rows = bundle.tokenize(list(prompts)) if are_texts else [list(row) for row in prompts]
    same = []
    for way in ways:
        # Strings that end a text are of texts, which are not compared here.
        found = bundle.generate(rows, stop=(), **way.settings)
        for row, ours, theirs in zip(rows, found, way.expected, strict=True):
            same.append(row == theirs.prompt and theirs.agrees(ours, ends))
    return float(np.mean(same)) if same else 0.0, len(same)


def share_of_steps(bundle: Generates, rows: Sequence[Any], greedy: Way) -> tuple[float, int]:
    """Tell at which share of the steps of a greedy search a bundle chooses what transformers does, and of how many.

    Each step goes on from transformers' own tokens, not from the bundle's: a token that differs counts once, and does
    not make all that follow it others. The logits are what the checkpoint's settings leave of them.
    """
    ends = bundle.manifest.generation.eos_token_ids if bundle.manifest.generation else ()
    same: list[bool] = []
    for row, theirs in zip(rows, greedy.expected, strict=True):
        walk = _Walk(theirs, ends)
        # One by one, as a processor is not told which rows of a batch are left.
        bundle.generate([row], stop=(), logits_processors=[walk], **greedy.settings)
        same += walk.same
    return float(np.mean(same)) if same else 0.0, len(same)


class _Walk:
    """A logits processor that notes what would be chosen of one row, and then has transformers' token chosen."""

    def __init__(self, theirs: Continued, ends: Sequence[int]) -> None:
        self.same: list[bool] = []
        self._good = theirs.ties
        self._next = [*theirs.tokens, *ends[:1]]

    def __call__(self, _tokens: object, logits_1V: npt.NDArray[Any]) -> npt.NDArray[Any]:
        step = len(self.same)
        # Where transformers' text was cut by its length nothing follows; the bundle stops there too.
        self.same.append(step < len(self._good) and int(logits_1V[0].argmax()) in self._good[step])
        forced_1V = np.full_like(logits_1V, -np.inf)
        forced_1V[0, self._next[min(step, len(self._next) - 1)]] = 0
        return forced_1V


def _rows(bundle: Generates, most: int) -> list[list[int]]:
    """Token ids, for a bundle that reads no texts."""
    rng = np.random.default_rng(0)
    graph = bundle.manifest.signature["encoder" if bundle.manifest.kind == "encoder-decoder" else "model"]
    below = next(spec.below for spec in graph.inputs if spec.name == "input_ids")
    return [rng.integers(below or 1, size=min(count, most)).tolist() for count in _WORDS]


def _read(folder: Path, texts: Sequence[str], most: int) -> tuple[list[str], list[list[int]]]:
    """Tokenize beginnings of texts by the checkpoint's own tokenizer, cut until they are short enough."""
    words = transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)
    read: dict[str, list[int]] = {}
    for count, text in zip(_WORDS, texts, strict=False):
        begun = " ".join(text.split()[:count])
        while len(row := words(begun)["input_ids"]) > most and len(begun) > 1:
            begun = begun[: len(begun) * 2 // 3]
        if 0 < len(row) <= most:
            read[begun] = row
    return list(read), list(read.values())


def _read_chat(folder: Path, bundle: Generates) -> list[int] | None:
    """Let transformers write a chat by the checkpoint's template; None: there is none, or no room for it."""
    words = transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if TEMPLATE not in bundle.manifest.files or not words.chat_template:
        return None
    try:
        row: list[int] = words.apply_chat_template(_CHAT, add_generation_prompt=True, return_dict=False)
    except Exception:  # a template may refuse what is asked in whatever way; ours is not tried by it then
        return None
    limits = [most for graph in bundle.manifest.signature.values() for most in graph.max_length.values()]
    return row if len(row) + _NEW <= min(limits, default=len(row) + _NEW) else None


def _room(bundle: Generates) -> int:
    """How many tokens a prompt may have, so that as many again have places."""
    limits = [most for graph in bundle.manifest.signature.values() for most in graph.max_length.values()]
    return max(min([2 * _NEW, *limits]) // 2, 1)


@torch.no_grad()
def _continue(model: Any, row: list[int], ends: Sequence[int], settings: Mapping[str, Any]) -> Continued:
    ids_1S = torch.tensor([row])
    asked = dict(settings, stop_strings=None, return_dict_in_generate=True, output_scores=True)
    if settings["num_beams"] > 1:
        asked["num_return_sequences"] = settings["num_beams"]
    made = model.generate(ids_1S, attention_mask=torch.ones_like(ids_1S), **asked)
    start = 1 if model.config.is_encoder_decoder else len(row)
    found = [until(sequence[start:].tolist(), ends) for sequence in made.sequences]
    if settings["num_beams"] == 1:
        return Continued(row, found[0], ties=[near(scores_1V[0]) for scores_1V in made.scores])
    scores = made.sequences_scores.tolist()
    return Continued(row, found[0], others=[found[k] for k, score in enumerate(scores) if scores[0] - score < _TIE])


def near(scores_V: torch.Tensor) -> frozenset[int]:
    """The tokens that are as good as the likeliest."""
    return frozenset(torch.nonzero(scores_V > scores_V.max() - _TIE)[:, 0].tolist())


def until(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """Cut tokens off where they end."""
    return tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))]
