"""From tokens or image patches to the first layer's input.

Shapes: B batch, S sequence, P patches, C channels, D model size, E embedding size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import TransformerConfig
from .norms import make_norm
from .positions import sinusoidal_positions


class Embedding(nn.Module):
    """Token, position and segment embeddings, summed.

    In training, each position's row may get noise: PE(p) + ε, ε ~ N(0, σ²), drawn anew in every pass.
    """

    def __init__(self, config: TransformerConfig, vocab_size: int) -> None:
        super().__init__()
        size = config.d_model if config.embedding_size is None else config.embedding_size
        self.scale = _scale(config)
        self.token = nn.Embedding(vocab_size, size, padding_idx=config.pad_token_id)
        # So that scaled tokens weigh as much as positions do.
        if config.scale_embeddings:
            nn.init.normal_(self.token.weight, std=1.0 / self.scale)
            # `normal_` has filled the row of the padding, too.
            self.token._fill_padding_idx_with_zero()
        self.noise = config.position_noise
        # Only where there is one: what a padding id is, no other model asks.
        self.padding_id = config.pad_token_id if config.count_tokens else None
        self.position: Tensor | None = None
        if config.positions == "learned" or config.position_table:
            rows = config.max_positions + config.count_tokens
            self.position = nn.Parameter(torch.randn(rows, size) * 0.02)
        elif config.positions == "sinusoidal":
            # `register_buffer` refuses the name of an attribute that is there.
            del self.position
            self.register_buffer("position", sinusoidal_positions(config.max_positions, size), persistent=False)
        self.segment = nn.Embedding(config.type_vocab_size, size) if config.type_vocab_size else None
        self.norm = make_norm(config, size) if config.embedding_norm else None
        self.dropout = nn.Dropout(config.dropout)
        self.project = nn.Linear(size, config.d_model) if size != config.d_model else None

    def forward(self, ids_BS: Tensor, position_ids: Tensor, token_type_ids_BS: Tensor | None = None) -> Tensor:
        """Embed ids (B, S) at positions (B or 1, S); returns (B, S, D)."""
        x_BSE = self.token(ids_BS)
        if self.scale != 1.0:
            x_BSE = x_BSE * self.scale
        if self.segment is not None:
            segment_ids_BS = torch.zeros_like(ids_BS) if token_type_ids_BS is None else token_type_ids_BS
            x_BSE = x_BSE + self.segment(segment_ids_BS)
        if self.position is not None:
            if self.padding_id is not None:
                # From 1 on, by what the ids are, whatever the mask says; padding has position 0.
                real_BS = (ids_BS != self.padding_id).long()
                position_ids = real_BS.cumsum(1) * real_BS
            position_BSE = F.embedding(position_ids, self.position)
            if self.training and self.noise:
                position_BSE = position_BSE + self.noise * torch.randn_like(position_BSE)
            x_BSE = x_BSE + position_BSE
        x_BSE = self.dropout(x_BSE if self.norm is None else self.norm(x_BSE))
        return x_BSE if self.project is None else self.project(x_BSE)


def _scale(config: TransformerConfig) -> float:
    """Give the factor on token embeddings."""
    # A factor that is told goes before the paper's.
    if config.embedding_scale is not None:
        return config.embedding_scale
    return math.sqrt(config.d_model) if config.scale_embeddings else 1.0


class NoEmbedding(nn.Module):
    """Vectors come in as they are."""

    def forward(self, x_BSD: Tensor, position_ids: Tensor) -> Tensor:
        """Return x."""
        del position_ids
        return x_BSD


class PatchEmbedding(nn.Module):
    """An image cut into patches, each projected, behind a class token (Dosovitskiy et al. 2021, "ViT")."""

    def __init__(self, config: TransformerConfig, image_size: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(config.num_channels, config.d_model, config.patch_size, stride=config.patch_size)
        self.cls_token = nn.Parameter(torch.randn(1, 1, config.d_model) * 0.02)
        patches = (image_size // config.patch_size) ** 2
        self.position = nn.Parameter(torch.randn(1 + patches, config.d_model) * 0.02)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Embed images (B, C, height, width), float; returns (B, 1 + P, D)."""
        # (B, D, height / patch, width / patch) → (B, P, D).
        patch_BPD = self.patch(pixels_BCHW).flatten(2).transpose(1, 2)
        cls_B1D = self.cls_token.expand(pixels_BCHW.size(0), -1, -1)
        return self.dropout(torch.cat([cls_B1D, patch_BPD], dim=1) + self.position)
