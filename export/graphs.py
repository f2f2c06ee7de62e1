"""Which ONNX graphs a Transformer becomes, with their inputs, outputs, limits and sample inputs.

    encoder          model                  ids → last hidden state, sentence embedding or pooled output
    decoder          model                  ids and cache → logits and cache
    encoder-decoder  encoder                ids → last hidden state, and the cross-attention's keys and values
                     decoder                ids, cache and those keys and values → logits and cache

Names are Hugging Face's. A decoder's caches have a fixed length, as those of its `StaticCache`: where the new tokens go
in each row, `cache_position` says, and a query sees the keys at its own and earlier places. So rows of any lengths go
together, padded on the right, without a mask; and whoever gives the same memory for past and present has the cache
grow in place. Logits are computed where `logits_position` wants them, of a prompt after its last token alone.
Shapes: B batch, S new tokens, P positions with logits, T source tokens, C length of a cache, K key/value heads, H head
size.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tfm.model import Transformer, TransformerConfig

Shape = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Value:
    """An input or output of a graph.

    Attributes:
        name: Its name.
        dtype: "int64" or "float32".
        shape: Names of the dynamic dimensions and sizes of the fixed ones.
        below: Exclusive upper bound of the ids in it; None where it holds no ids.
    """

    name: str
    dtype: str
    shape: Shape
    below: int | None = None


class Graph(nn.Module):
    """One graph: eager forward, signature, and random inputs to export and verify with.

    Attributes:
        role: "model", "encoder" or "decoder".
        file: Name of its ONNX file, without suffix.
        inputs: In the order of `forward`'s arguments.
        outputs: In the order of `forward`'s results.
        max_length: Limit of each named length, or sum of lengths, in tokens.
    """

    role: str
    file: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    max_length: dict[str, int]

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
        return {"inputs": as_dict[0], "outputs": as_dict[1], "max_length": self.max_length}


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
        return (memory_BTD, *_flatten(self.model.decoder.project(memory_BTD)))

    def sample(self, generator: torch.Generator, batch: int, length: int, past: int = 0) -> list[Tensor]:
        """Make ids and mask."""
        del past
        return _source_sample(self.model.config, generator, batch, length)


class DecoderGraph(Graph):
    """A decoder that continues from a cache; with an encoder, over the source's keys and values too."""

    def __init__(self, model: Transformer) -> None:
        super().__init__(model)
        config = model.config
        self.cross = config.has_encoder
        self.role, self.file = ("decoder", "decoder_model_merged") if self.cross else ("model", "model")
        # Hugging Face tells a decoder's own cache from the encoder's by these names.
        own = ".decoder" if self.cross else ""
        ids = _tokens(config, config.target_vocab_size)
        source_mask = Value(name="encoder_attention_mask", dtype="int64", shape=("batch", "encoder_sequence"), below=2)
        positions = Value(name="cache_position", dtype="int64", shape=("batch",), below=config.max_positions)
        # No `below`: what bounds these is the number of new tokens, which is dynamic.
        wanted = Value(name="logits_position", dtype="int64", shape=("batch", "logits_length"))
        past = _cache(config, "decoder", "past_key_values.{}" + own, "cache_length")
        source = _cache(config, "cross", "past_key_values.{}.encoder", "encoder_sequence")
        self.inputs = (ids, positions, wanted, *((source_mask, *past, *source) if self.cross else past))
        # A model over vectors has no vocabulary to project to.
        logits = Value(name="logits", dtype="float32", shape=("batch", "logits_length", config.target_vocab_size))
        if config.reads_vectors:
            logits = Value(name="last_hidden_state", dtype="float32", shape=("batch", "logits_length", config.d_model))
        self.outputs = (logits, *_cache(config, "decoder", "present.{}" + own, "cache_length"))
        self.max_length = {"cache_length": config.max_positions}

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """(input_ids, cache_position, logits_position[, encoder_attention_mask], past…[, source…]) → (logits, …)."""
        depth = self.model.config.num_decoder_layers
        ids_BS, cache_position_B, logits_position_BP, *rest = tensors
        # What is left are pairs of key and value: the decoder's own layers first, then the
        # source's.
        cross_mask_BT = rest.pop(0) if self.cross else None
        caches = _pair(rest)
        past, cross = caches[:depth], caches[depth:] or None
        logits_BPV, presents = self.model.decoder(
            ids_BS,
            past=past,
            cross=cross,
            cross_mask_BT=cross_mask_BT,
            cache_position_B=cache_position_B,
            logits_position_BP=logits_position_BP,
        )
        return (logits_BPV, *_flatten(presents))

    @torch.no_grad()
    def sample(self, generator: torch.Generator, batch: int, length: int, past: int = 0) -> list[Tensor]:
        """Make new ids, and the caches that eager itself computes for a random past and source.

        The first row has all of the past, the others lose a random part of it: what they had there is left in the
        cache, to be written over or not to be seen. Caches of several rows have room for one token more. Logits are
        wanted after every new token, in an order of each row's own; of three rows or more once again after the first
        of them, since as many may be wanted as one likes.
        """
        config = self.model.config
        ids_BT = _random_tokens(config, config.target_vocab_size, generator, batch, past + length)
        room = min(past + length + (batch > 1), config.max_positions)
        cache = empty_cache(config, batch, room)
        cross, source_mask = None, []
        if self.cross:
            source_BT, *source_mask = _source_sample(config, generator, batch, max(length, 2))
            cross = self.model.decoder.project(self.model.encoder(source_BT, *source_mask))
        # Only the caches of this call are wanted, [1]; its logits belong to the past.
        if past:
            start_B = torch.zeros(batch, dtype=torch.int64)
            cache = self.model.decoder(
                ids_BT[:, :past],
                past=cache,
                cross=cross,
                cross_mask_BT=source_mask[0] if source_mask else None,
                cache_position_B=start_B,
            )[1]
        # Other rows begin anywhere in what was read, and the first right behind it. What lies
        # beyond a row's place stays in the cache, and must not be seen.
        places_B = torch.randint(max(past, 1), (batch,), generator=generator)
        places_B[0] = past
        # The argsort of random numbers is a random order of the positions, of each row its own.
        wanted_BP = torch.rand(batch, length, generator=generator).argsort(1)
        if batch > 2:
            wanted_BP = torch.cat([wanted_BP, wanted_BP[:, :1]], 1)
        new_BS = ids_BT[:, past:].contiguous()
        # In the order of `inputs`.
        return [new_BS, places_B, wanted_BP, *source_mask, *_flatten(cache), *_flatten(cross or [])]


def empty_cache(config: TransformerConfig, batch: int, room: int) -> list[tuple[Tensor, Tensor]]:
    """Make each decoder layer's cache of zeros: keys and values (B, K, C, H), with C = room."""
    # (B, K, C, H); layers may differ in their numbers of heads. Keys and values share one tensor of
    # zeros, which is safe as `write_cache` returns a copy.
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


def _flatten(caches: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [tensor for pair in caches for tensor in pair]


def _pair(tensors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))
