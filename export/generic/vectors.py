"""A native model that reads vectors in place of tokens, as one graph that takes all its inputs at once."""

import math

import torch
from torch import Tensor, nn

from tfm.errors import ExportError
from tfm.model import Transformer

from .graph import GenericConfig, GenericGraph

_LARGEST = 1 << 26
"""Numbers of an example input: 256 MiB."""


class Whole(nn.Module):
    """Encoder and decoder, as far as there are both, in one call."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, decoder_inputs_embeds: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute the last state (B, S, D) of vectors (B, T, D), their mask (B, T) and a target's vectors (B, S, D)."""
        return {"last_hidden_state": self.transformer(inputs_embeds, decoder_inputs_embeds, src_mask=attention_mask)}


def from_vectors(model: Transformer) -> GenericGraph:
    """Make the graph of a model whose config.reads_vectors. A cache would be of no use: what is next is not told."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    size = (2, config.max_positions, config.d_model)
    # The example has the greatest length, as that becomes the graph's limit.
    if math.prod(size) > _LARGEST:
        raise ExportError(
            f"example inputs of {config.max_positions} vectors of {config.d_model} numbers are too large to verify "
            "with; lower max_positions in the configuration"
        )
    examples = {
        "inputs_embeds": torch.randn(size, generator=generator),
        "attention_mask": torch.ones(size[:2], dtype=torch.int64),
    }
    axes = {name: {0: "batch", 1: "sequence"} for name in examples}
    if config.kind == "encoder-decoder":
        examples["decoder_inputs_embeds"] = torch.randn(size, generator=generator)
        axes["decoder_inputs_embeds"] = {0: "batch", 1: "decoder_sequence"}
    described = GenericConfig(family="transformer", values=config.to_dict())
    return GenericGraph(Whole(model), examples, axes, config=described)
