"""An encoder-decoder that is not native, as an encoder and a decoder over caches.

The encoder gives, beside its last state, the keys and values that the decoder's cross-attention makes of it, so that a
source is projected once. Which of the module's projections make them is found by a run: they read the encoder's state,
and what they give is in the cache afterwards.
Shapes: B batch, S new target tokens, T source tokens, D the encoder's size, K key/value heads, H head size.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tfm.errors import ExportError

from ..graphs import Value, gaps
from .cached import CachedConfig, CachedGraph, heads_of
from .graph import GenericGraph, SortedTopK

_LENGTH = 7
"""Source tokens of the run that looks for projections: no size of a model is likely to be the same."""

_SAME = 1e-6
"""How far what a projection gives may be from what is cached, of the largest: the same product, laid out anew."""

Projection = tuple[nn.Module, tuple[int, int], int | None]
"""What makes keys or values of the encoder's state, their heads and head size, and which half of it they are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairConfig(CachedConfig):
    """What a bundle says of an encoder-decoder that is not native; see `CachedConfig`.

    Attributes:
        source_positions: Most tokens of a source.
    """

    source_positions: int
    kind: str = "encoder-decoder"
    has_encoder: bool = True


class CachedSource(GenericGraph):
    """The encoder, with the cross-attention's keys and values of every decoder layer."""

    role = "encoder"
    file = "encoder_model"

    def __init__(self, module: Any, config: PairConfig, projections: Sequence[tuple[Projection, Projection]]) -> None:
        # Not GenericGraph's own, which reads the inputs off examples.
        nn.Module.__init__(self)
        self.model: Any = module
        self.config: PairConfig = config
        # In a list: it is a part of the model already.
        self._encoder = [module.get_encoder()]
        self._projections = [each for pair in projections for each in pair]
        shape = ("batch", "sequence")
        self.inputs = (
            Value(name="input_ids", dtype="int64", shape=shape, below=config.vocab_size),
            Value(name="attention_mask", dtype="int64", shape=shape, below=2),
        )
        size = module.get_encoder()(torch.zeros(1, 2, dtype=torch.int64)).last_hidden_state.size(-1)
        hidden = Value(name="last_hidden_state", dtype="float32", shape=("batch", "sequence", size))
        caches = [
            Value(name=f"present.{layer}.encoder.{what}", dtype="float32", shape=("batch", heads, "sequence", width))
            for layer, pair in enumerate(projections)
            for what, (_, (heads, width), _) in zip(("key", "value"), pair, strict=True)
        ]
        self.outputs = (hidden, *caches)
        self.max_length = {"sequence": config.source_positions}
        self.longest_case = min(256, config.source_positions)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """(input_ids, attention_mask) → (last_hidden_state, key and value per decoder layer)."""
        ids_BT, mask_BT = tensors
        with SortedTopK():
            hidden_BTD = self._encoder[0](input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        return (hidden_BTD, *self.project(hidden_BTD))

    def project(self, hidden_BTD: Tensor) -> list[Tensor]:
        """Make keys and values of what the decoder sees, in the order of the outputs: of each layer keys come first."""
        return [_split(part(hidden_BTD), heads, half) for part, (heads, _), half in self._projections]

    def sample(self, generator: torch.Generator, batch: int, length: int, past: int = 0) -> list[Tensor]:
        """Make ids and mask: the first row is full, the others end where their padding begins."""
        del past
        ids_BT = torch.randint(self.config.vocab_size, (batch, length), generator=generator)
        lengths_B1 = torch.randint(1, length + 1, (batch, 1), generator=generator)
        lengths_B1[0] = length
        return [ids_BT, (torch.arange(length) < lengths_B1).to(torch.int64)]


class CachedTarget(CachedGraph):
    """The decoder over its own cache, and over the source's keys and values."""

    role = "decoder"
    file = "decoder"
    config: PairConfig
    sees_padding = True
    """Whether sources are padded, and a mask says where."""

    def __init__(self, module: Any, caches: tuple[type, type], config: PairConfig) -> None:
        """Ask the module for the shapes of its caches, and which of its parts fill the source's.

        Args:
            module: An encoder-decoder of transformers for texts, which is put in eval mode.
            caches: transformers' DynamicCache and EncoderDecoderCache.
            config: What is known of it.

        Raises:
            ExportError: Its caches are more than keys and values, or those of the source are no projections.
        """
        # Before all else, as what follows asks for the layers already.
        self._pair_type = caches[1]
        super().__init__(module, caches[0], config)

    @property
    def source(self) -> CachedSource:
        """The encoder."""
        return self._source[0]

    @property
    def graphs(self) -> list[GenericGraph]:
        """The encoder, and the decoder."""
        return [self.source, self]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """(input_ids, mask, encoder_attention_mask, past…, source…, keep) → (logits, present…)."""
        ids_BS, mask_BS, source_mask_BT, *rest, keep = tensors
        # First the pairs of the decoder's own layers, then those of the source.
        count = 2 * len(self._layers)
        own, source = self._filled(rest[:count]), self._filled(rest[count:])
        # Whatever the encoder gave is in the cache; only its length is still asked for.
        hidden_BTD = rest[count].new_zeros(ids_BS.size(0), source_mask_BT.size(1), self._size)
        options = {"decoder_attention_mask": mask_BS, "attention_mask": source_mask_BT}
        logits_BSV = self._decode(ids_BS, hidden_BTD, self._pair_type(own, source), keep, options)
        return (logits_BSV, *(x for layer in own.layers for x in (layer.keys, layer.values)))

    @torch.no_grad()
    def logits(self, ids_BS: Tensor, source_BT: Tensor | None = None, mask_BT: Tensor | None = None) -> Tensor:
        """Compute the logits (B, S, V) of whole targets after sources, in one run, which begins with nothing."""
        source_BT = ids_BS if source_BT is None else source_BT
        mask_BT = torch.ones_like(source_BT) if mask_BT is None else mask_BT
        with SortedTopK():
            found: Tensor = self.model(
                input_ids=source_BT, attention_mask=mask_BT, decoder_input_ids=ids_BS, use_cache=False
            ).logits
        return found

    @torch.no_grad()
    def generate(self, rows: Sequence[Sequence[int]], count: int, ends: Sequence[int]) -> list[list[int]]:
        """Write the likeliest target of each source; see `CachedGraph.generate`."""
        longest = max(map(len, rows))
        ids_BT = torch.tensor([list(row) + [0] * (longest - len(row)) for row in rows])
        mask_BT = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        # The first is the token that starts a target.
        return self.continued(ids_BT, mask_BT, 1, count, ends)

    @torch.no_grad()
    def sample(self, generator: torch.Generator, batch: int, length: int, past: int = 0) -> list[Tensor]:
        """Make new target ids, and the caches that eager itself computes for a random past and source."""
        # Targets have no gaps and no padding before them: their places are their positions.
        ids_BT = torch.randint(self.config.vocab_size, (batch, past + length), generator=generator)
        mask_BT = gaps(generator, batch, past + length, True)
        source_BT, source_mask_BT = self.source.sample(generator, batch, max(min(length, 48), 2))
        source = self.source(source_BT, source_mask_BT)[1:]
        caches: Sequence[Tensor] = self.empty(batch)
        if past:
            none = torch.tensor(0)
            caches = self(ids_BT[:, :past], mask_BT[:, :past], source_mask_BT, *caches, *source, none)[1:]
        keep = torch.tensor(length // 2 if batch > 2 else 0)
        return [ids_BT[:, past:].contiguous(), mask_BT, source_mask_BT, *caches, *source, keep]

    @torch.no_grad()
    def check(self, ids_BS: Tensor, expected_BSV: Tensor) -> None:
        """Hold what is given in parts, with the ids as source too, against one run over all."""
        # Any source would do; the ids at hand are one.
        mask = torch.ones_like(ids_BS)
        source = self.source(ids_BS, mask)[1:]
        parts, caches = [], list(self.empty(len(ids_BS)))
        for start, end in self.parts(ids_BS.size(1)):
            inputs = ids_BS[:, start:end], mask[:, :end], mask, *caches, *source, torch.tensor(0)
            part, *caches = self(*inputs)
            parts.append(part)
        self.compare(torch.cat(parts, 1), expected_BSV)

    def _decode(self, ids_BS: Tensor, hidden_BTD: Tensor, cache: Any, keep: Tensor, masks: dict[str, Tensor]) -> Tensor:
        options = {self._cache_name: cache, "use_cache": True, "encoder_outputs": (hidden_BTD,), **masks}
        return self._call_kept(keep, decoder_input_ids=ids_BS, **options)

    @torch.no_grad()
    def _ask(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """Find the shapes of the decoder's own cache, and what makes the source's."""
        own, source = self._empty_cache(), self._empty_cache()
        self._size = self._state_size()
        hidden_BTD = torch.randn(1, _LENGTH, self._size, generator=torch.Generator().manual_seed(0))
        readers: list[tuple[nn.Module, Tensor]] = []

        def note(part: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
            if arguments and arguments[0] is hidden_BTD and isinstance(result, Tensor):
                readers.append((part, result))

        # Known by identity: a part that reads a copy of the state, or a sum with it, is none of these.
        handles = [part.register_forward_hook(note) for part in self.model.modules()]
        try:
            ids = torch.zeros(1, 3, dtype=torch.int64)
            self._decode(ids, hidden_BTD, self._pair_type(own, source), torch.tensor(0), {})
        finally:
            for handle in handles:
                handle.remove()
        layers = self._layers_of(own, 3)
        # Keys and values of one layer may have one shape; what they hold tells them apart.
        pairs = [(_maker(readers, layer.keys), _maker(readers, layer.values)) for layer in source.layers]
        if len(pairs) != len(layers):
            raise ExportError(f"{type(self.model).__name__} keeps {len(pairs)} sources for {len(layers)} layers")
        # In a list: all of it is in the model already.
        self._source = [self._source_of(pairs)]
        self._sources = [(key[1], value[1]) for key, value in pairs]
        return layers

    def _state_size(self) -> int:
        """How many numbers the decoder sees of each place of a source."""
        encoder = self.model.get_encoder()
        return int(encoder(torch.zeros(1, 2, dtype=torch.int64)).last_hidden_state.size(-1))

    def _source_of(self, pairs: Sequence[tuple[Projection, Projection]]) -> CachedSource:
        """Make the encoder's graph."""
        return CachedSource(self.model, self.config, pairs)

    def _describe(self) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
        total, config = "past_sequence + sequence", self.config
        own = self._caches("past_key_values", "past_sequence", ".decoder")
        source = [
            Value(name=f"past_key_values.{layer}.encoder.{what}", dtype="float32", shape=shape)
            for layer, pair in enumerate(self._sources)
            for what, (heads, size) in zip(("key", "value"), pair, strict=True)
            for shape in [("batch", heads, "encoder_sequence", size)]
        ]
        source_mask = Value(name="encoder_attention_mask", dtype="int64", shape=("batch", "encoder_sequence"), below=2)
        inputs = (
            Value(name="input_ids", dtype="int64", shape=("batch", "sequence"), below=config.vocab_size),
            Value(name="decoder_attention_mask", dtype="int64", shape=("batch", total), below=2),
            *((source_mask,) if self.sees_padding else ()),
            *own,
            *source,
            Value(name="num_logits_to_keep", dtype="int64", shape=(), default=0),
        )
        logits = Value(name="logits", dtype="float32", shape=("batch", "logits_length", config.vocab_size))
        return inputs, (logits, *self._caches("present", total, ".decoder"))


def _split(projected_BTE: Tensor, heads: int, half: int | None = None) -> Tensor:
    """(B, T, K·H) → (B, K, T, H), as caches are laid out; of keys and values made at once one half."""
    batch, length, _ = projected_BTE.shape
    if half is not None:
        projected_BTE = projected_BTE.chunk(2, -1)[half]
    return projected_BTE.reshape(batch, length, heads, -1).transpose(1, 2)


def _maker(readers: Sequence[tuple[nn.Module, Tensor]], cached: Any) -> Projection:
    """Find the part whose result is in the cache."""
    sizes = heads_of(cached, _LENGTH)
    if sizes is not None:
        width = sizes[0] * sizes[1]
        for part, result in readers:
            whole: dict[tuple[int, ...], tuple[int | None, ...]] = {(1, _LENGTH, width): (None,)}
            halves = (whole | {(1, _LENGTH, 2 * width): (0, 1)}).get(tuple(result.shape), ())
            for half in halves:
                if (_split(result, sizes[0], half) - cached).abs().max() <= _SAME * cached.abs().max():
                    return part, sizes, half
    raise ExportError("what its decoder keeps of a source is no projection of the encoder's state")
