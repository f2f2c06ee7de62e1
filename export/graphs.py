"""Which ONNX graphs a Transformer becomes, with their inputs, outputs, limits and sample inputs.

    encoder          model                  ids → last hidden state, sentence embedding or pooled output
    decoder          model                  ids and cache → logits and cache
    encoder-decoder  encoder                ids → last hidden state, and the cross-attention's keys and values
                     decoder                ids, cache and those keys and values → logits and cache

Names are Hugging Face's. Shapes: B batch, S new tokens, P past tokens, T source tokens, N heads, H head size.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

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
            past: Number of cached tokens P, where the graph has a cache.
        """
        raise NotImplementedError

    def signature(self) -> dict[str, Any]:
        """Describe inputs, outputs and limits as JSON values, for the manifest."""
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
        hidden = Value(name="last_hidden_state", dtype="float32", shape=("batch", "sequence", config.d_model))
        vectors = {"sentence_embedding": config.pooling is not None, "pooler_output": config.pooler}
        rows = [
            Value(name=name, dtype="float32", shape=("batch", config.d_model))
            for name, there in vectors.items()
            if there
        ]
        self.outputs = (hidden, *rows)
        self.max_length = {"sequence": config.max_positions}

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """(input_ids, attention_mask[, token_type_ids]) → (last_hidden_state[, pooled rows…])."""
        hidden_BTD = self.model.encoder(*tensors)
        config = self.model.config
        pooled = [self.model.pool(hidden_BTD, tensors[1])] if config.pooling else []
        return (hidden_BTD, *pooled, *([self.model.pooler_output(hidden_BTD)] if config.pooler else []))

    def sample(self, generator: torch.Generator, batch: int, length: int, past: int = 0) -> list[Tensor]:
        """Make ids, mask and, where there are segments, random segment ids."""
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
        self.outputs = (hidden, *_cache(config, "present.{}.encoder", "sequence"))
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
        own = ".decoder" if self.cross else ""
        ids = Value(name="input_ids", dtype="int64", shape=("batch", "sequence"), below=config.target_vocab_size)
        mask = Value(name="encoder_attention_mask", dtype="int64", shape=("batch", "encoder_sequence"), below=2)
        past = _cache(config, "past_key_values.{}" + own, "past_sequence")
        source = _cache(config, "past_key_values.{}.encoder", "encoder_sequence")
        self.inputs = (ids, mask, *past, *source) if self.cross else (ids, *past)
        logits = Value(name="logits", dtype="float32", shape=("batch", "sequence", config.target_vocab_size))
        self.outputs = (logits, *_cache(config, "present.{}" + own, "past_sequence + sequence"))
        self.max_length = {"past_sequence + sequence": config.max_positions}

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """(input_ids[, encoder_attention_mask], past…[, source…]) → (logits, present…)."""
        caches = _pair(tensors[2:] if self.cross else tensors[1:])
        depth = self.model.config.num_decoder_layers
        cross = {"cross": caches[depth:], "cross_mask_BT": tensors[1]} if self.cross else {}
        logits_BSV, presents = self.model.decoder(tensors[0], past=caches[:depth], **cross)
        return (logits_BSV, *_flatten(presents))

    @torch.no_grad()
    def sample(self, generator: torch.Generator, batch: int, length: int, past: int = 0) -> list[Tensor]:
        """Make new ids, and the caches that eager itself computes for a random past and source."""
        config = self.model.config
        ids_BS = torch.randint(config.target_vocab_size, (batch, past + length), generator=generator)
        cross: dict[str, Any] = {}
        source: list[Tensor] = []
        if self.cross:
            ids_BT, mask_BT = _source_sample(config, generator, batch, max(length, 2))
            keys_values = self.model.decoder.project(self.model.encoder(ids_BT, mask_BT))
            cross, source = {"cross": keys_values, "cross_mask_BT": mask_BT}, _flatten(keys_values)
        empty = torch.zeros(batch, config.nhead, 0, config.d_model // config.nhead)
        cache = [(empty, empty)] * config.num_decoder_layers
        if past:
            cache = self.model.decoder(ids_BS[:, :past], **cross)[1]
        masks = [cross["cross_mask_BT"]] if self.cross else []
        return [ids_BS[:, past:].contiguous(), *masks, *_flatten(cache), *source]


def graphs_of(model: Transformer) -> list[Graph]:
    """List the graphs that a model becomes."""
    if model.config.kind == "encoder":
        return [EncoderGraph(model)]
    decoder = DecoderGraph(model)
    return [decoder] if model.config.kind == "decoder" else [SourceGraph(model), decoder]


def _source_inputs(config: TransformerConfig) -> tuple[Value, ...]:
    shape = ("batch", "sequence")
    bounds = {"input_ids": config.vocab_size, "attention_mask": 2}
    bounds |= {"token_type_ids": config.type_vocab_size} if config.type_vocab_size else {}
    return tuple(Value(name=name, dtype="int64", shape=shape, below=below) for name, below in bounds.items())


def _source_sample(config: TransformerConfig, generator: torch.Generator, batch: int, length: int) -> list[Tensor]:
    ids_BT = torch.randint(config.vocab_size, (batch, length), generator=generator)
    lengths_B = torch.randint(1, length + 1, (batch,), generator=generator)
    lengths_B[0] = length
    mask_BT = (torch.arange(length) < lengths_B[:, None]).to(torch.int64)
    segments = (
        [torch.randint(config.type_vocab_size, ids_BT.shape, generator=generator)] if config.type_vocab_size else []
    )
    return [ids_BT, mask_BT, *segments]


def _cache(config: TransformerConfig, prefix: str, length: str) -> tuple[Value, ...]:
    shape = ("batch", config.nhead, length, config.d_model // config.nhead)
    names = [
        f"{prefix.format(layer)}.{part}" for layer in range(config.num_decoder_layers) for part in ("key", "value")
    ]
    return tuple(Value(name=name, dtype="float32", shape=shape) for name in names)


def _flatten(caches: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [tensor for pair in caches for tensor in pair]


def _pair(tensors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(tensors[::2], tensors[1::2], strict=True))
