"""An encoder-decoder that reads sound or images, as an encoder over what they are prepared to, and a decoder.

Sources of one shape go together, and none is padded, so that no mask is needed: Whisper hears half a minute, an image
has one size, and features of other lengths are read one by one.
Shapes: B batch, S new target tokens, T places of a source, D what the decoder sees of each.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from tfm.errors import ExportError

from ..graphs import Value, gaps
from .cached_pair import CachedSource, CachedTarget, PairConfig, Projection
from .graph import SortedTopK

_VERIFIED = 256
"""Most frames of a sample whose length may vary."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Perceived:
    """What an encoder reads.

    Attributes:
        name: Of the input.
        shape: Without the batch; a name where the size may vary.
        least: Of what may vary.
        longest: Of what may vary.
    """

    name: str
    shape: tuple[int | str, ...]
    least: int = 1
    longest: int = 1

    @property
    def varies(self) -> str | None:
        """The name of the dimension that may vary."""
        return next((dim for dim in self.shape if isinstance(dim, str)), None)

    def sample(self, generator: torch.Generator, batch: int, length: int) -> Tensor:
        """Make noise, where its size may vary of such a length."""
        size = min(max(length, self.least), self.longest)
        shape = [dim if isinstance(dim, int) else size for dim in self.shape]
        return torch.randn(batch, *shape, generator=generator)


class Bridge(nn.Module):
    """What makes an encoder's states as wide as the decoder's; those that are so already it gives as they are."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """(B, T, any size) → (B, T, D)."""
        return hidden_BTD if hidden_BTD.size(-1) == self.linear.out_features else self.linear(hidden_BTD)


class PerceivedSource(CachedSource):
    """The encoder, with the cross-attention's keys and values of every decoder layer."""

    def __init__(
        self,
        module: Any,
        config: PairConfig,
        projections: Sequence[tuple[Projection, Projection]],
        perceived: Perceived,
    ) -> None:
        # Not CachedSource's own, whose input is ids.
        nn.Module.__init__(self)
        self.model: Any = module
        self.config: PairConfig = config
        self.perceived = perceived
        # In a list: it is a part of the model already.
        self._encoder = [module.get_encoder()]
        self._projections = [each for pair in projections for each in pair]
        self.inputs = (Value(name=perceived.name, dtype="float32", shape=("batch", *perceived.shape)),)
        varies = perceived.varies
        self.max_length = {} if varies is None else {varies: perceived.longest}
        self.min_length = {} if varies is None else {varies: perceived.least}
        self.longest_case = None if varies is None else min(_VERIFIED, perceived.longest)
        with torch.no_grad():
            hidden_BTD = self(perceived.sample(torch.Generator().manual_seed(0), 1, perceived.least))[0]
        places: int | str = hidden_BTD.size(1) if varies is None else "encoder_sequence"
        hidden = Value(name="last_hidden_state", dtype="float32", shape=("batch", places, hidden_BTD.size(-1)))
        caches = [
            Value(name=f"present.{layer}.encoder.{what}", dtype="float32", shape=("batch", heads, places, width))
            for layer, pair in enumerate(projections)
            for what, (_, (heads, width), _) in zip(("key", "value"), pair, strict=True)
        ]
        self.outputs = (hidden, *caches)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """(pixel_values or input_features) → (last_hidden_state, key and value per decoder layer)."""
        with SortedTopK():
            hidden_BTD = self._encoder[0](tensors[0]).last_hidden_state
        bridge = getattr(self.model, "enc_to_dec_proj", None)
        return (hidden_BTD, *self.project(hidden_BTD if bridge is None else bridge(hidden_BTD)))

    def sample(self, generator: torch.Generator, batch: int, length: int, past: int = 0) -> list[Tensor]:
        """Make noise, which is no sound and no image."""
        del past
        return [self.perceived.sample(generator, batch, length)]


class PerceivedTarget(CachedTarget):
    """The decoder over its own cache, and over the keys and values of what was perceived."""

    sees_padding = False

    def __init__(self, module: Any, caches: tuple[type, type], config: PairConfig, perceived: Perceived) -> None:
        """Ask the module as `CachedTarget` does.

        Args:
            module: An encoder-decoder of transformers, which is put in eval mode.
            caches: transformers' DynamicCache and EncoderDecoderCache.
            config: What is known of it.
            perceived: What its encoder reads.
        """
        # Before all else, as what follows asks for the layers already.
        self._perceived = perceived
        super().__init__(module, caches, config)

    @property
    def source(self) -> PerceivedSource:
        """The encoder."""
        return cast(PerceivedSource, self._source[0])

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """(input_ids, mask, past…, source…, keep) → (logits, present…)."""
        ids_BS, mask_BS, *rest, keep = tensors
        # First the pairs of the decoder's own layers, then those of the source.
        count = 2 * len(self._layers)
        own, source = self._filled(rest[:count]), self._filled(rest[count:])
        # Whatever the encoder gave is in the cache; only its length is still asked for.
        hidden_BTD = rest[count].new_zeros(ids_BS.size(0), rest[count].size(2), self._size)
        options = {"decoder_attention_mask": mask_BS}
        logits_BSV = self._decode(ids_BS, hidden_BTD, self._pair_type(own, source), keep, options)
        return (logits_BSV, *(x for layer in own.layers for x in (layer.keys, layer.values)))

    @torch.no_grad()
    def logits(self, ids_BS: Tensor, source_BT: Tensor | None = None, mask_BT: Tensor | None = None) -> Tensor:
        """Compute the logits (B, S, V) of whole targets after sources, in one run, which begins with nothing."""
        del mask_BT
        source = self.perceive(0, len(ids_BS)) if source_BT is None else source_BT
        with SortedTopK():
            given = {self._perceived.name: source, "decoder_input_ids": ids_BS, "use_cache": False}
            found: Tensor = self.model(**given).logits
        return found

    def perceive(self, seed: int, count: int, length: int = 24) -> Tensor:
        """Make so many sources, always the same."""
        return self._perceived.sample(torch.Generator().manual_seed(seed), count, length)

    @torch.no_grad()
    def written(self, source: Tensor, count: int, ends: Sequence[int]) -> list[list[int]]:
        """Write the likeliest target of each source, by transformers' own `generate`, whatever a class adds to it."""
        from transformers import GenerationMixin

        plain = type(self.model.generation_config)(
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=list(ends) or None,
            pad_token_id=0,
            decoder_start_token_id=self.config.bos_token_id,
        )
        kept, self.model.generation_config = self.model.generation_config, plain
        try:
            # Whisper's own would look for languages and times.
            found_BS = GenerationMixin.generate(self.model, **{self._perceived.name: source}, generation_config=plain)
        finally:
            self.model.generation_config = kept
        given = []
        for row in found_BS[:, 1:].tolist():
            given.append(row[: next((place for place, token in enumerate(row) if token in ends), len(row))])
        return given

    @torch.no_grad()
    def sample(self, generator: torch.Generator, batch: int, length: int, past: int = 0) -> list[Tensor]:
        """Make new target ids, and the caches that eager itself computes for a random past and source."""
        ids_BT = torch.randint(self.config.vocab_size, (batch, past + length), generator=generator)
        mask_BT = gaps(generator, batch, past + length, True)
        source = self.source(*self.source.sample(generator, batch, min(length, 48)))[1:]
        caches: Sequence[Tensor] = self.empty(batch)
        if past:
            caches = self(ids_BT[:, :past], mask_BT[:, :past], *caches, *source, torch.tensor(0))[1:]
        keep = torch.tensor(length // 2 if batch > 2 else 0)
        return [ids_BT[:, past:].contiguous(), mask_BT, *caches, *source, keep]

    @torch.no_grad()
    def check(self, ids_BS: Tensor, expected_BSV: Tensor) -> None:
        """Hold what is given in parts, of the source that `logits` has, against one run over all."""
        mask = torch.ones_like(ids_BS)
        source = self.source(self.perceive(0, len(ids_BS)))[1:]
        parts, caches = [], list(self.empty(len(ids_BS)))
        for start, end in self.parts(ids_BS.size(1)):
            part, *caches = self(ids_BS[:, start:end], mask[:, :end], *caches, *source, torch.tensor(0))
            parts.append(part)
        self.compare(torch.cat(parts, 1), expected_BSV)

    def _state_size(self) -> int:
        bridge = getattr(self.model, "enc_to_dec_proj", None)
        if isinstance(bridge, nn.Linear):
            # In the decoder's graph states come as wide as they are needed.
            bridge = self.model.enc_to_dec_proj = Bridge(bridge)
        if isinstance(bridge, Bridge):
            return bridge.linear.out_features
        encoded = self.model.get_encoder()(self.perceive(0, 1)).last_hidden_state
        if encoded.dim() != 3:
            raise ExportError(f"the encoder of {type(self.model).__name__} gives no states (B, T, D)")
        return int(encoded.size(-1))

    def _source_of(self, pairs: Sequence[tuple[Projection, Projection]]) -> PerceivedSource:
        return PerceivedSource(self.model, self.config, pairs, self._perceived)
