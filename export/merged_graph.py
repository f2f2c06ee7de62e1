"""The decoder of an encoder-decoder in the form of other readers: eager's side of `tfm.quantize.write_merged`.

Shapes: B batch, S new tokens, T source tokens, P past tokens, K key/value heads, H head size, D model size.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tfm.bundle import MERGED, MERGED_ROLE
from tfm.model import Transformer
from tfm.quantize import sorted_caches

from .graphs import DecoderGraph, Graph, Shape, Value, flatten, pair

_PAST = "past_encoder_sequence"
"""How many tokens of the source there are keys and values of: none where they are to be made, else all."""


class MergedGraph(Graph):
    """A decoder that makes keys and values of its source where it is given none, and has no padding of its own.

    Attributes:
        role: "merged", or "decoder" in a bundle that has no other.
    """

    file = MERGED

    def __init__(self, model: Transformer, role: str = MERGED_ROLE) -> None:
        super().__init__(model)
        config, self.role = model.config, role
        self._of = DecoderGraph(model)
        known = {value.name: value for value in self._of.inputs}
        caches = [known[name] for name in sorted_caches(list(known))]
        hidden: Shape = ("batch", "encoder_sequence", config.d_model)
        self.inputs = (
            known["input_ids"],
            known["encoder_attention_mask"],
            Value(name="encoder_hidden_states", dtype="float32", shape=hidden),
            *(_renamed(value, value.name, {"encoder_sequence": _PAST}) for value in caches),
            Value(name="use_cache_branch", dtype="bool", shape=(1,)),
            known["num_logits_to_keep"],
        )
        longer = {"past_sequence": "past_sequence + sequence"}
        self.outputs = (self._of.outputs[0], *(_renamed(value, _present(value.name), longer) for value in caches))
        self.max_length = self._of.max_length

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """(input_ids, encoder_attention_mask, encoder_hidden_states, past…, use_cache_branch, keep) → (logits, …)."""
        named = dict(zip((value.name for value in self.inputs), tensors, strict=True))
        # By layer, keys before values, as the names of both are in the decoder's own graph.
        own = [value.name for value in self._of.inputs if ".decoder." in value.name]
        cross = [value.name for value in self._of.inputs if ".encoder." in value.name]
        # Whatever is given of the source while it is new is not looked at, nor is its state later.
        source = [named[name] for name in cross]
        if not named["use_cache_branch"].item():
            source = flatten(self.model.decoder.project(named["encoder_hidden_states"]))
        batch, new = named["input_ids"].shape
        logits_BSV, presents = self.model.decoder(
            named["input_ids"],
            torch.ones(batch, named[own[0]].size(2) + new, dtype=torch.int64),
            past=pair([named[name] for name in own]),
            cross=pair(source),
            cross_mask_BT=named["encoder_attention_mask"],
            wanted=named["num_logits_to_keep"],
        )
        found = dict(zip(map(_present, [*own, *cross]), [*flatten(presents), *source], strict=True))
        return (logits_BSV, *(found[value.name] for value in self.outputs[1:]))

    @torch.no_grad()
    def sample(self, generator: torch.Generator, batch: int, length: int, past: int = 0) -> list[Tensor]:
        """Make new ids, the encoder's last state of a random source, and what belongs to a random past.

        Without a past keys and values of the source are to be made: none is given, as by who begins. With one they are
        given, and the state is of numbers that must not be looked at.
        """
        # Two sources: were the state looked at where keys and values are given, they would be another's.
        drawn = self._of.sample(generator, batch, length, past)
        named = dict(zip((value.name for value in self._of.inputs), drawn, strict=True))
        mask_BT = named["encoder_attention_mask"]
        source_BT = torch.randint(self.model.config.vocab_size, mask_BT.shape, generator=generator)
        named["encoder_hidden_states"] = self.model.encoder(source_BT, mask_BT)
        for name, cache_BKPH in named.items():
            # Without room: the past is as long as what is given of it.
            if ".decoder." in name:
                named[name] = cache_BKPH[:, :, :past].contiguous()
            elif ".encoder." in name and not past:
                named[name] = cache_BKPH[:, :, :0].contiguous()
        named["use_cache_branch"] = torch.tensor([past > 0])
        return [named[value.name] for value in self.inputs]


def _renamed(value: Value, name: str, dimensions: Mapping[str, str]) -> Value:
    shape = tuple(dimensions.get(dim, dim) if isinstance(dim, str) else dim for dim in value.shape)
    return Value(name=name, dtype=value.dtype, shape=shape)


def _present(name: str) -> str:
    return name.replace("past_key_values.", "present.")


def merged_graph(model: nn.Module) -> MergedGraph | None:
    """Give the graph of a native model with an encoder and a decoder; None of any other."""
    return MergedGraph(model) if isinstance(model, Transformer) and model.config.kind == "encoder-decoder" else None
