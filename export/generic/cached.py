"""A decoder that is not native, as the graph that continues from a cache of its own keys and values.

The module is transformers' own and keeps its own cache: it is given one that is filled with the graph's inputs, and
what it holds afterwards are the graph's outputs. Names and shapes are those of a native decoder (`tfm.export.graphs`),
so that `tfm.runtime` and other readers take one like the other.
Shapes: B batch, S new tokens, T all tokens, K key/value heads, H head size, V vocabulary.
"""

import dataclasses
import inspect
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tfm.errors import ExportError
from tfm.model import last_tokens

from ..graphs import Value, gaps
from .graph import GenericConfig, GenericGraph, SortedTopK

_VERIFIED = 256
"""Most tokens of a sample. Later positions are reached by rows that begin late."""

_EXACT = 1e-4
"""How far logits over a cache may be from those of one run, of the largest: float32 sums in another order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CachedConfig(GenericConfig):
    """What a bundle says of a decoder that is not native, and what generating needs to know of it.

    Attributes:
        vocab_size: V.
        max_positions: Most tokens, past and new together.
        pad_token_id: What rows are padded with, or None.
        bos_token_id: What a sequence starts with, or None.
        eos_token_id: What ends it: one id, several, or None.
    """

    vocab_size: int
    max_positions: int
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    kind: str = "decoder"
    has_decoder: bool = True
    has_encoder: bool = False

    @property
    def target_vocab_size(self) -> int:
        """V, by the name that an encoder-decoder has for it."""
        return self.vocab_size


class CachedGraph(GenericGraph):
    """A causal language model of transformers, over a cache.

    Attributes:
        config: What the bundle says of it.
        positions: Whether positions are an input.
    """

    config: CachedConfig

    def __init__(self, module: Any, cache: type, config: CachedConfig) -> None:
        """Ask the module for the shape of its cache.

        Args:
            module: A causal language model of transformers, which is put in eval mode.
            cache: transformers' DynamicCache.
            config: What is known of it.

        Raises:
            ExportError: Its cache is more than keys and values.
        """
        # Not GenericGraph's own, which reads the inputs off examples.
        nn.Module.__init__(self)
        self.model: Any = module.float().eval()
        self.config = config
        self._empty_cache: Any = cache
        parameters = inspect.signature(module.forward).parameters
        self.positions = "position_ids" in parameters
        # transformers 5.20 gave it another name.
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        self._layers = self._ask()
        self.inputs, self.outputs = self._describe()
        self.max_length = {"sequence": config.max_positions}
        self.longest_case = min(_VERIFIED, config.max_positions)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """(input_ids, attention_mask[, position_ids], past…, keep) → (logits, present…)."""
        ids_BS, mask_BT, *rest, keep = tensors
        place_BS = rest.pop(0) if self.positions else None
        # As if the module itself had read what is cached.
        filled = self._filled(rest)
        logits_BSV = self._run(ids_BS, mask_BT, place_BS, filled, keep)
        return (logits_BSV, *(x for layer in filled.layers for x in (layer.keys, layer.values)))

    @torch.no_grad()
    def logits(self, ids_BS: Tensor) -> Tensor:
        """Compute the logits (B, S, V) of whole rows without padding in one run, which begins with nothing."""
        return self._run(ids_BS, torch.ones_like(ids_BS), None, None, torch.tensor(0))

    @torch.no_grad()
    def generate(self, rows: Sequence[Sequence[int]], count: int, ends: Sequence[int]) -> list[list[int]]:
        """Continue each row by its likeliest tokens, by transformers' own `generate`.

        Args:
            rows: Ids, at least one in each.
            count: Most tokens to generate.
            ends: Ids that end a row, which are not part of what is given.
        """
        longest = max(map(len, rows))
        ids_BS = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
        mask_BS = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return self.continued(ids_BS, mask_BS, longest, count, ends)

    def continued(
        self, ids_BS: Tensor, mask_BS: Tensor, first: int, count: int, ends: Sequence[int]
    ) -> list[list[int]]:
        """Give what transformers' `generate` gives from place `first` on, up to an end."""
        # Its own defaults alone: what the checkpoint's settings do is compared elsewhere.
        plain = type(self.model.generation_config)(
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=list(ends) or None,
            pad_token_id=0,
            decoder_start_token_id=self.config.bos_token_id,
        )
        kept, self.model.generation_config = self.model.generation_config, plain
        try:
            found_BS = self.model.generate(input_ids=ids_BS, attention_mask=mask_BS, generation_config=plain)
        finally:
            self.model.generation_config = kept
        given = []
        for row in found_BS[:, first:].tolist():
            end = next((place for place, token in enumerate(row) if token in ends), len(row))
            given.append(row[:end])
        return given

    @torch.no_grad()
    def sample(self, generator: torch.Generator, batch: int, length: int, past: int = 0) -> list[Tensor]:
        """Make new ids, and the caches that eager itself computes for a random past.

        The first row is full; the others are padded on the left, and some of their tokens are not real. The last of
        several rows begins late, so that it ends at the last position that there is. Of three rows or more logits are
        wanted after half of the tokens, else after all.
        """
        total = past + length
        ids_BT = torch.randint(self.config.vocab_size, (batch, total), generator=generator)
        mask_BT = gaps(generator, batch, total, False)
        place_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        # A table of positions, or angles far from 0, is so seen to its end by a short row.
        if batch > 1:
            place_BT[-1] += self.config.max_positions - 1 - place_BT[-1].max()
        place_BS = place_BT[:, past:].contiguous() if self.positions else None
        caches: Sequence[Tensor] = self.empty(batch)
        if past:
            places = [place_BT[:, :past]] if self.positions else []
            caches = self(ids_BT[:, :past], mask_BT[:, :past], *places, *caches, torch.tensor(0))[1:]
        keep = torch.tensor(length // 2 if batch > 2 else 0)
        places = [] if place_BS is None else [place_BS]
        return [ids_BT[:, past:].contiguous(), mask_BT, *places, *caches, keep]

    def _filled(self, tensors: Sequence[Tensor]) -> Any:
        """Transformers' cache that holds keys and values, layer by layer."""
        filled = self._empty_cache()
        for layer, (key, value) in enumerate(zip(tensors[::2], tensors[1::2], strict=True)):
            filled.update(key, value, layer)
        return filled

    def _run(self, ids_BS: Tensor, mask_BT: Tensor, place_BS: Tensor | None, filled: Any, keep: Tensor) -> Tensor:
        options: dict[str, Any] = {} if place_BS is None else {"position_ids": place_BS}
        options |= {"use_cache": False} if filled is None else {self._cache_name: filled, "use_cache": True}
        return self._call_kept(keep, input_ids=ids_BS, attention_mask=mask_BT, **options)

    def _call_kept(self, keep: Tensor, **inputs: Any) -> Tensor:
        """Call the module; give the logits of the last tokens, so many of them."""
        shortened = False

        def shorten(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            """Have the head see the wanted tokens alone: it may be a fifth of a model."""
            nonlocal shortened
            hidden_BSD, *others = arguments
            shortened = True
            return (last_tokens(hidden_BSD, keep), *others)

        head = self.model.get_output_embeddings()
        handle = None if head is None else head.register_forward_pre_hook(shorten)
        try:
            with SortedTopK():
                logits: Tensor = self.model(**inputs).logits
        finally:
            if handle is not None:
                handle.remove()
        # A head that no hook sees, as it is called in another way, gives all of them.
        return logits if shortened else last_tokens(logits, keep)

    @torch.no_grad()
    def _ask(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """Heads and head size of the keys, and of the values, of every layer."""
        # Neither 1, which a size of 1 could be taken for, nor a number of heads.
        filled, length = self._empty_cache(), 3
        ids = torch.arange(length)[None] % self.config.vocab_size
        self._run(ids, torch.ones_like(ids), None, filled, torch.tensor(0))
        return self._layers_of(filled, length)

    def _layers_of(self, filled: Any, length: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """Heads and head size of the keys, and of the values, of every layer of a cache with so many tokens."""
        found = []
        for index, layer in enumerate(filled.layers):
            sizes = heads_of(getattr(layer, "keys", None), length), heads_of(getattr(layer, "values", None), length)
            if sizes[0] is None or sizes[1] is None:
                raise ExportError(
                    f"the cache of {type(self.model).__name__} is no keys and values (B, K, T, H) in layer {index}, "
                    f"but a {type(layer).__name__}"
                )
            found.append((sizes[0], sizes[1]))
        if not found:
            raise ExportError(f"{type(self.model).__name__} keeps no keys and values")
        return found

    def _describe(self) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
        total = "past_sequence + sequence"
        ids = Value(name="input_ids", dtype="int64", shape=("batch", "sequence"), below=self.config.vocab_size)
        mask = Value(name="attention_mask", dtype="int64", shape=("batch", total), below=2)
        most = self.config.max_positions
        places = Value(name="position_ids", dtype="int64", shape=("batch", "sequence"), below=most)
        keep = Value(name="num_logits_to_keep", dtype="int64", shape=(), default=0)
        logits = Value(name="logits", dtype="float32", shape=("batch", "logits_length", self.config.vocab_size))
        inputs = (ids, mask, *([places] if self.positions else []))
        return (*inputs, *self._caches("past_key_values", "past_sequence"), keep), (
            logits,
            *self._caches("present", total),
        )

    def _caches(self, prefix: str, length: str, own: str = "") -> list[Value]:
        return [
            Value(name=f"{prefix}.{layer}{own}.{what}", dtype="float32", shape=("batch", heads, length, size))
            for layer, pair in enumerate(self._layers)
            for what, (heads, size) in zip(("key", "value"), pair, strict=True)
        ]

    def empty(self, batch: int) -> list[Tensor]:
        """Make caches that hold nothing: keys and values (B, K, 0, H) of every layer."""
        return [torch.zeros(batch, heads, 0, size) for pair in self._layers for heads, size in pair]

    @torch.no_grad()
    def check(self, ids_BS: Tensor, expected_BSV: Tensor) -> None:
        """Hold what is given in three parts against one run over all: some families' states are more than their cache.

        Args:
            ids_BS: At least one token.
            expected_BSV: The logits of the module as it was loaded, without a cache.

        Raises:
            ExportError: They differ.
        """
        length = ids_BS.size(1)
        # A prompt, a part that goes on, and a step: each finds another past.
        caches: Sequence[Tensor] = self.empty(len(ids_BS))
        parts = []
        for start, end in self.parts(length):
            places = [torch.arange(start, end).expand(len(ids_BS), -1)] if self.positions else []
            new_BS, mask_BT = ids_BS[:, start:end], torch.ones(len(ids_BS), end, dtype=torch.int64)
            part, *caches = self(new_BS, mask_BT, *places, *caches, torch.tensor(0))
            parts.append(part)
        self.compare(torch.cat(parts, 1), expected_BSV)

    def parts(self, length: int) -> list[tuple[int, int]]:
        """Cut so many tokens into a prompt, a part that goes on, and a step."""
        cuts = (0, length // 2, length - 1, length)
        return [(start, end) for start, end in itertools.pairwise(cuts) if start < end]

    def compare(self, found_BSV: Tensor, expected_BSV: Tensor) -> None:
        """Refuse logits that are not those expected."""
        if not are_same(found_BSV, expected_BSV):
            error = (found_BSV - expected_BSV).abs().max().item()
            raise ExportError(
                f"{type(self.model).__name__} gives other logits over its cache than in one run, by {error:.2g}"
            )


def are_same(found_BSV: Tensor, expected_BSV: Tensor) -> bool:
    """Whether logits are equal but for the order of float32's sums; what is not a number equals nothing."""
    error = (found_BSV - expected_BSV).abs().max().item()
    return bool(error <= _EXACT * max(1.0, expected_BSV.abs().max().item()))


def heads_of(cached: Any, length: int) -> tuple[int, int] | None:
    """Heads and head size of what one row of so many tokens left in a cache; None: it is no (1, K, T, H)."""
    if not isinstance(cached, Tensor) or cached.dim() != 4 or (cached.size(0), cached.size(2)) != (1, length):
        return None
    return cached.size(1), cached.size(3)
