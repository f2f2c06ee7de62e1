"""Which ONNX graphs a Transformer becomes, with their inputs, outputs, limits and sample inputs.

    encoder          model                  ids → last hidden state, sentence embedding or pooled output
    decoder          model                  ids and cache → logits and cache
    encoder-decoder  encoder                ids → last hidden state, and the cross-attention's keys and values
                     decoder                ids, cache and those keys and values → logits and cache
                     (merged)               written of the nodes of both, for other readers: see `tfm.quantize.merged`

Names and shapes are those that Hugging Face's exporters give. A decoder's mask tells of all tokens, past and new, which
are real; so rows may be padded on either side, or have gaps. Its past is as long as what is read, or longer: then the
new keys and values are written behind what is there, and whoever gives the same memory for past and present has the
cache grow in place. How many logits are wanted is an input that others do not see, since it has a default.
Shapes: B batch, S new tokens, T all tokens or source tokens, C length of a cache, K key/value heads, H head size.
"""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tfm.model import Transformer, TransformerConfig

from .passes.use_group_query_attention import has_groups

Shape = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Value:
    """An input or output of a graph.

    Attributes:
        name: Its name.
        dtype: "int64" or "float32".
        shape: Names of the dynamic dimensions and sizes of the fixed ones.
        below: Exclusive upper bound of the ids in it; None where it holds no ids.
        default: What an input is where it is not given; None where it must be.
    """

    name: str
    dtype: str
    shape: Shape
    below: int | None = None
    default: int | None = None


class Graph(nn.Module):
    """One graph: eager forward, signature, and random inputs to export and verify with.

    Attributes:
        role: "model", "encoder" or "decoder".
        file: Name of its ONNX file, without suffix.
        inputs: In the order of `forward`'s arguments.
        outputs: In the order of `forward`'s results.
        max_length: Limit of each named length, or sum of lengths, in tokens.
        min_length: Least size of each named length, where that is more than 1.
        longest_case: Most tokens of a sample to verify with; None: as many as the limit allows.
    """

    role: str
    file: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    max_length: dict[str, int]
    min_length: Mapping[str, int] = types.MappingProxyType({})
    longest_case: int | None = None

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs."""
        raise NotImplementedError

    def sample(self, generator: torch.Generator, batch: int, length: int, past: int = 0) -> list[Tensor]:
        """Make inputs: random ids in ragged, right-padded rows, and the caches that belong to them.

        Args:
            generator: Source of randomness.
            batch: Number of rows B; the first is full, the others are cut to random lengths.
            length: Number of (new) tokens.
            past: Number of cached tokens, where the graph has a cache.
        """
        raise NotImplementedError

    def signature(self) -> dict[str, Any]:
        """Describe inputs, outputs and limits as JSON values, for the manifest."""
        # `below` is left out where there is no bound.
        as_dict = [
            [{k: v for k, v in dataclasses.asdict(value).items() if v is not None} for value in side]
            for side in (self.inputs, self.outputs)
        ]
        least = {"min_length": dict(self.min_length)} if self.min_length else {}
        return {"inputs": as_dict[0], "outputs": as_dict[1], "max_length": self.max_length, **least}


class EncoderGraph(Graph):
    """An encoder by itself."""

    role = "model"
    file = "model"

    def __init__(self, model: Transformer) -> None:
        super().__init__(model)
        config = model.config
        self.inputs = _source_inputs(config)
        # In the order of forward's results.
        hidden = Value(name="last_hidden_state", dtype="float32", shape=("batch", _length(config), config.d_model))
        rows: dict[str, Shape] = {"sentence_embedding": ("batch", config.pooled_sizes[-1])} if config.pooling else {}
        rows |= {"pooler_output": ("batch", config.d_model)} if config.pooler else {}
        if config.head == "question-answering":
            rows |= {name: ("batch", _length(config)) for name in ("start_logits", "end_logits")}
        elif config.head is not None:
            size = config.vocab_size if config.head == "masked-lm" else config.num_labels
            rows["logits"] = ("batch", size) if config.head == "sequence" else ("batch", _length(config), size)
        self.outputs = (hidden, *(Value(name=name, dtype="float32", shape=shape) for name, shape in rows.items()))
        # An image has one size, and nothing to vary.
        self.max_length = {} if config.image_size else {"sequence": config.max_positions}

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """(input_ids, attention_mask[, token_type_ids]) or (pixel_values) → (last_hidden_state[, …])."""
        hidden_BTD = self.model.encoder(*tensors)
        config, outputs = self.model.config, [hidden_BTD]
        outputs += [self.model.pool(hidden_BTD, tensors[1])] if config.pooling else []
        outputs += [self.model.pooler_output(hidden_BTD)] if config.pooler else []
        # The mask is there where the mean of the tokens is what predicts.
        pooled = tensors[1:2] if config.head_pooling == "mean" else ()
        # Two outputs rather than one of two columns: so transformers names them.
        if config.head == "question-answering":
            outputs += self.model.predict(hidden_BTD).unbind(-1)
        elif config.head:
            outputs.append(self.model.predict(hidden_BTD, *pooled))
        return tuple(outputs)

    def sample(self, generator: torch.Generator, batch: int, length: int, past: int = 0) -> list[Tensor]:
        """Make ids, mask and, where there are segments, random segment ids; or an image."""
        del past
        return _source_sample(self.model.config, generator, batch, length)


class SourceGraph(Graph):
    """The encoder of an encoder-decoder, with the cross-attention's keys and values of every decoder layer."""

    role = "encoder"
    file = "encoder_model"

    def __init__(self, model: Transformer) -> None:
        super().__init__(model)
        config = model.config
        self.inputs = _source_inputs(config)
        hidden = Value(name="last_hidden_state", dtype="float32", shape=("batch", "sequence", config.d_model))
        self.outputs = (hidden, *_cache(config, "cross", "present.{}.encoder", "sequence"))
        self.max_length = {"sequence": config.max_positions}

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """(input_ids, attention_mask) → (last_hidden_state, key and value per decoder layer)."""
        memory_BTD = self.model.encoder(*tensors)
        return (memory_BTD, *flatten(self.model.decoder.project(memory_BTD)))

    def sample(self, generator: torch.Generator, batch: int, length: int, past: int = 0) -> list[Tensor]:
        """Make ids and mask."""
        del past
        return _source_sample(self.model.config, generator, batch, length)


class DecoderGraph(Graph):
    """A decoder that continues from a cache; with an encoder, over the source's keys and values too."""

    def __init__(self, model: Transformer, *, room: bool = True) -> None:
        super().__init__(model)
        config = model.config
        self.cross = config.has_encoder
        self.role, self.file = ("decoder", "decoder") if self.cross else ("model", "model")
        # Hugging Face tells a decoder's own cache from the encoder's by these names.
        own = ".decoder" if self.cross else ""
        ids = _tokens(config, config.target_vocab_size)
        # The other form of attention has no room in its cache: it makes a longer one each time.
        self.has_room = room and has_groups(config.head_size)
        total = "total_sequence" if self.has_room else "past_sequence + sequence"
        mask = Value(
            name="decoder_attention_mask" if self.cross else "attention_mask",
            dtype="int64",
            shape=("batch", total),
            below=2,
        )
        # Targets have no gaps, and are never padded on the left: their places are their positions.
        self.positions = not self.cross and config.positions in ("learned", "sinusoidal", "rotary")
        positions = Value(name="position_ids", dtype="int64", shape=("batch", "sequence"), below=config.max_positions)
        source_mask = Value(name="encoder_attention_mask", dtype="int64", shape=("batch", "encoder_sequence"), below=2)
        past = _cache(config, "decoder", "past_key_values.{}" + own, "past_sequence")
        source = _cache(config, "cross", "past_key_values.{}.encoder", "encoder_sequence")
        keep = Value(name="num_logits_to_keep", dtype="int64", shape=(), default=0)
        self.inputs = (
            ids,
            mask,
            *((positions,) if self.positions else ()),
            *((source_mask, *past, *source) if self.cross else past),
            keep,
        )
        # A model over vectors has no vocabulary to project to.
        logits = Value(name="logits", dtype="float32", shape=("batch", "logits_length", config.target_vocab_size))
        if config.reads_vectors:
            logits = Value(name="last_hidden_state", dtype="float32", shape=("batch", "logits_length", config.d_model))
        self.outputs = (
            logits,
            *_cache(config, "decoder", "present.{}" + own, "present_sequence" if self.has_room else total),
        )
        self.max_length = {"sequence": config.max_positions}

    def without_room(self) -> "DecoderGraph":
        """Give the form whose caches are as long as what is in them."""
        return DecoderGraph(self.model, room=False)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """(input_ids, mask[, position_ids][, encoder_attention_mask], past…[, source…], keep) → (logits, …)."""
        depth = self.model.config.num_decoder_layers
        ids_BS, mask_BT, *rest, keep = tensors
        position_ids_BS = rest.pop(0) if self.positions else None
        # What is left are pairs of key and value: the decoder's own layers first, then the
        # source's.
        cross_mask_BT = rest.pop(0) if self.cross else None
        caches = pair(rest)
        past, cross = caches[:depth], caches[depth:] or None
        logits_BSV, presents = self.model.decoder(
            ids_BS,
            mask_BT,
            past=past,
            cross=cross,
            cross_mask_BT=cross_mask_BT,
            position_ids_BS=position_ids_BS,
            wanted=keep,
        )
        return (logits_BSV, *flatten(presents))

    @torch.no_grad()
    def sample(self, generator: torch.Generator, batch: int, length: int, past: int = 0) -> list[Tensor]:
        """Make new ids, and the caches that eager itself computes for a random past and source.

        The first row is full; the others are padded on the left, and some of their tokens are not real. Caches of
        several rows have room for the new tokens and one more, with numbers in it that are not to be seen. Of three
        rows or more logits are wanted after half of the tokens, else after all.
        """
        config = self.model.config
        ids_BT = _random_tokens(config, config.target_vocab_size, generator, batch, past + length)
        mask_BT = gaps(generator, batch, past + length, config.has_encoder)
        # As many as there are real tokens before; what is not real may be anywhere.
        place_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        cross, source_mask = None, []
        if self.cross:
            source_BT, *source_mask = _source_sample(config, generator, batch, max(length, 2))
            cross = self.model.decoder.project(self.model.encoder(source_BT, *source_mask))
        past_mask_BT, past_place_BT = mask_BT[:, :past], place_BT[:, :past] if self.positions else None
        # Only the caches of this call are wanted, [1]; its logits belong to the past.
        cache = empty_cache(config, batch, 0)
        if past:
            masks = past_mask_BT, cache, cross, source_mask[0] if source_mask else None, past_place_BT
            cache = self.model.decoder(ids_BT[:, :past], *masks)[1]
        if batch > 1 and self.has_room:
            # With numbers in it that must not be seen.
            cache = _with_room(generator, cache, length + 1)
        keep = torch.tensor(length // 2 if batch > 2 else 0)
        places = [place_BT[:, past:].contiguous()] if self.positions else []
        new_BS = ids_BT[:, past:].contiguous()
        # In the order of `inputs`.
        return [new_BS, mask_BT, *places, *source_mask, *flatten(cache), *flatten(cross or []), keep]


def _with_room(
    generator: torch.Generator, caches: Sequence[tuple[Tensor, Tensor]], room: int
) -> list[tuple[Tensor, Tensor]]:
    def longer(cache_BKPH: Tensor) -> Tensor:
        batch, heads, _, size = cache_BKPH.shape
        return torch.cat([cache_BKPH, torch.randn(batch, heads, room, size, generator=generator)], 2)

    return [(longer(key), longer(value)) for key, value in caches]


def gaps(generator: torch.Generator, batch: int, length: int, none: bool) -> Tensor:
    """Draw which tokens are real, (B, T): all of the first row, of others from a place on most."""
    mask_BT = torch.ones(batch, length, dtype=torch.int64)
    if none or length == 1:
        return mask_BT
    start_B = torch.randint(length, (batch,), generator=generator)
    real_BT = torch.rand(batch, length, generator=generator) < 0.8
    real_BT &= torch.arange(length) >= start_B[:, None]
    # A row has one token at least, which may be any.
    real_BT[torch.arange(batch), start_B] = True
    real_BT[0] = True
    return real_BT.to(torch.int64)


def empty_cache(config: TransformerConfig, batch: int, room: int) -> list[tuple[Tensor, Tensor]]:
    """Make each decoder layer's cache of zeros: keys and values (B, K, C, H), with C = room."""
    # (B, K, C, H); layers may differ in their numbers of heads. Keys and values share one tensor of
    # zeros, which is safe as nothing writes into it.
    empty = [torch.zeros(batch, config.kv_heads_of(n), room, config.head_size) for n in config.layer_heads("decoder")]
    return list(zip(empty, empty, strict=True))


def graphs_of(model: Transformer) -> list[Graph]:
    """List the graphs that a model becomes."""
    if model.config.kind == "encoder":
        return [EncoderGraph(model)]
    decoder = DecoderGraph(model)
    return [decoder] if model.config.kind == "decoder" else [SourceGraph(model), decoder]


def _source_inputs(config: TransformerConfig) -> tuple[Value, ...]:
    if config.image_size is not None:
        image: Shape = ("batch", config.num_channels, config.image_size, config.image_size)
        return (Value(name="pixel_values", dtype="float32", shape=image),)
    shape = ("batch", "sequence")
    bounds = {"attention_mask": 2}
    bounds |= {"token_type_ids": config.type_vocab_size} if config.type_vocab_size else {}
    masks = (Value(name=name, dtype="int64", shape=shape, below=below) for name, below in bounds.items())
    return (_tokens(config, config.vocab_size), *masks)


def _tokens(config: TransformerConfig, vocab_size: int) -> Value:
    """What a model reads: ids, or vectors in their place."""
    if config.reads_vectors:
        return Value(name="inputs_embeds", dtype="float32", shape=("batch", "sequence", config.d_model))
    return Value(name="input_ids", dtype="int64", shape=("batch", "sequence"), below=vocab_size)


def _random_tokens(
    config: TransformerConfig, vocab_size: int, generator: torch.Generator, batch: int, length: int
) -> Tensor:
    if config.reads_vectors:
        return torch.randn(batch, length, config.d_model, generator=generator)
    return torch.randint(vocab_size, (batch, length), generator=generator)


def _length(config: TransformerConfig) -> str | int:
    """Length of an encoder's output: as its input's, or a class token and the patches."""
    return "sequence" if config.image_size is None else 1 + (config.image_size // config.patch_size) ** 2


def _source_sample(config: TransformerConfig, generator: torch.Generator, batch: int, length: int) -> list[Tensor]:
    if config.image_size is not None:
        return [torch.randn(batch, config.num_channels, config.image_size, config.image_size, generator=generator)]
    ids_BT = _random_tokens(config, config.vocab_size, generator, batch, length)
    lengths_B = torch.randint(1, length + 1, (batch,), generator=generator)
    lengths_B[0] = length
    # (B, 1) against (T,): ones up to each row's length, at least one, as an empty row is a case of
    # its own.
    mask_BT = (torch.arange(length) < lengths_B[:, None]).to(torch.int64)
    segments = (
        [torch.randint(config.type_vocab_size, mask_BT.shape, generator=generator)] if config.type_vocab_size else []
    )
    return [ids_BT, mask_BT, *segments]


def _cache(config: TransformerConfig, part: Literal["decoder", "cross"], prefix: str, length: str) -> tuple[Value, ...]:
    return tuple(
        Value(name=f"{prefix.format(layer)}.{what}", dtype="float32", shape=("batch", heads, length, config.head_size))
        for layer, heads in enumerate(map(config.kv_heads_of, config.layer_heads(part)))
        for what in ("key", "value")
    )


def flatten(caches: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """List keys and values of all layers, one after the other."""
    return [tensor for pair in caches for tensor in pair]


def pair(tensors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Undo `flatten`."""
    return list(zip(tensors[::2], tensors[1::2], strict=True))
