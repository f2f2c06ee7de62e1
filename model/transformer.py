"""The Transformer of "Attention Is All You Need" and its encoder-only and decoder-only forms.

Shapes: B batch, S target (or only) length, T source length, P past length, N heads, H head size,
D model size, F feed-forward size, V vocabulary. Token ids are int64; masks are boolean, True means "real token".
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .activations import is_gated, make_activation
from .attention import CrossAttention, KeyValue, SelfAttention, causal_mask, padding_mask
from .config import TransformerConfig
from .positions import sinusoidal_positions


class FeedForward(nn.Module):
    """W₂σ(W₁x+b₁)+b₂, or its gated form W₂(V x ⊙ σ(G x)) with W₁ = [V; G]."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gated = is_gated(config.activation)
        self.linear1 = nn.Linear(config.d_model, config.dim_feedforward * (2 if self.gated else 1))
        self.activation = make_activation(config.activation)
        self.dropout = nn.Dropout(config.dropout)
        self.linear2 = nn.Linear(config.dim_feedforward, config.d_model)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Transform each position by itself; (B, S, D) → (B, S, D)."""
        hidden = self.linear1(x_BSD)  # (B, S, F), gated: (B, S, 2F)
        if self.gated:
            value_BSF, gate_BSF = hidden.chunk(2, dim=-1)
            hidden_BSF = value_BSF * self.activation(gate_BSF)
        else:
            hidden_BSF = self.activation(hidden)
        return self.linear2(self.dropout(hidden_BSF))


class Embedding(nn.Module):
    """Token, position and segment embeddings, summed."""

    def __init__(self, config: TransformerConfig, vocab_size: int) -> None:
        super().__init__()
        d_model = config.d_model
        self.scale = math.sqrt(d_model) if config.scale_embeddings else 1.0
        self.token = nn.Embedding(vocab_size, d_model, padding_idx=config.pad_token_id)
        if config.scale_embeddings:  # so that scaled tokens weigh as much as positions do
            nn.init.normal_(self.token.weight, std=1.0 / self.scale)
            if config.pad_token_id is not None:
                nn.init.zeros_(self.token.weight[config.pad_token_id])
        if config.positions == "learned":
            self.position = nn.Parameter(torch.randn(config.max_positions, d_model) * 0.02)
        else:
            table_PD = sinusoidal_positions(config.max_positions, d_model)
            self.register_buffer("position", table_PD, persistent=False)
        self.segment = nn.Embedding(config.type_vocab_size, d_model) if config.type_vocab_size else None
        self.norm = nn.LayerNorm(d_model, config.layer_norm_eps) if config.embedding_norm else None
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids_BS: Tensor, past_length: int = 0, token_type_ids_BS: Tensor | None = None) -> Tensor:
        """Embed ids that stand at positions P … P + S - 1; returns (B, S, D)."""
        x_BSD = self.token(ids_BS)
        if self.scale != 1.0:
            x_BSD = x_BSD * self.scale
        if self.segment is not None:
            segment_ids_BS = torch.zeros_like(ids_BS) if token_type_ids_BS is None else token_type_ids_BS
            x_BSD = x_BSD + self.segment(segment_ids_BS)
        position_S = torch.arange(ids_BS.size(1), device=ids_BS.device) + past_length
        x_BSD = x_BSD + F.embedding(position_S, self.position)
        return self.dropout(x_BSD if self.norm is None else self.norm(x_BSD))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with a residual connection and a layer norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.self_attn = SelfAttention(config.d_model, config.nhead, config.dropout)
        self.feed_forward = FeedForward(config)
        self.norm1 = nn.LayerNorm(config.d_model, config.layer_norm_eps)
        self.norm2 = nn.LayerNorm(config.d_model, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BSD: Tensor, mask: Tensor | None) -> Tensor:
        """(B, S, D) → (B, S, D); mask is boolean (B, 1, S, S) or None."""
        if self.norm_first:
            x_BSD = x_BSD + self.dropout(self.self_attn(self.norm1(x_BSD), mask)[0])
            return x_BSD + self.dropout(self.feed_forward(self.norm2(x_BSD)))
        x_BSD = self.norm1(x_BSD + self.dropout(self.self_attn(x_BSD, mask)[0]))
        return self.norm2(x_BSD + self.dropout(self.feed_forward(x_BSD)))


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention where there is a source, and feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.self_attn = SelfAttention(config.d_model, config.nhead, config.dropout)
        self.norm1 = nn.LayerNorm(config.d_model, config.layer_norm_eps)
        if config.has_encoder:
            self.cross_attn = CrossAttention(config.d_model, config.nhead, config.dropout)
            self.norm2 = nn.LayerNorm(config.d_model, config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.norm3 = nn.LayerNorm(config.d_model, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_BSD: Tensor, mask: Tensor, past: KeyValue | None, cross: KeyValue | None, cross_mask: Tensor | None
    ) -> tuple[Tensor, KeyValue]:
        """Return (B, S, D) and this layer's self-attention keys and values, past and new."""
        y_BSD, present = self.self_attn(self.norm1(x_BSD) if self.norm_first else x_BSD, mask, past)
        x_BSD = x_BSD + self.dropout(y_BSD)
        x_BSD = x_BSD if self.norm_first else self.norm1(x_BSD)
        if cross is not None:
            y_BSD = self.cross_attn(self.norm2(x_BSD) if self.norm_first else x_BSD, cross, cross_mask)
            x_BSD = x_BSD + self.dropout(y_BSD)
            x_BSD = x_BSD if self.norm_first else self.norm2(x_BSD)
        x_BSD = x_BSD + self.dropout(self.feed_forward(self.norm3(x_BSD) if self.norm_first else x_BSD))
        return x_BSD if self.norm_first else self.norm3(x_BSD), present


class Encoder(nn.Module):
    """Embedding and a stack of encoder layers."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embedding = Embedding(config, config.vocab_size)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_encoder_layers))
        self.norm = nn.LayerNorm(config.d_model, config.layer_norm_eps) if config.norm_first else None

    def forward(self, ids_BT: Tensor, mask_BT: Tensor | None = None, token_type_ids_BT: Tensor | None = None) -> Tensor:
        """(B, T) → (B, T, D)."""
        mask = None if mask_BT is None else padding_mask(mask_BT, ids_BT.size(1))
        x_BTD = self.embedding(ids_BT, token_type_ids_BS=token_type_ids_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD, mask)
        return x_BTD if self.norm is None else self.norm(x_BTD)


class Decoder(nn.Module):
    """Embedding, a stack of decoder layers and the output projection."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embedding = Embedding(config, config.target_vocab_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_decoder_layers))
        self.norm = nn.LayerNorm(config.d_model, config.layer_norm_eps) if config.norm_first else None
        self.head = nn.Linear(config.d_model, config.target_vocab_size, bias=not config.tie_embeddings)
        if config.tie_embeddings:
            self.head.weight = self.embedding.token.weight

    def project(self, memory_BTD: Tensor) -> list[KeyValue]:
        """Compute each layer's cross-attention keys and values, once per source."""
        return [cast(DecoderLayer, layer).cross_attn.project(memory_BTD) for layer in self.layers]

    def forward(
        self,
        ids_BS: Tensor,
        mask_BT: Tensor | None = None,
        past: Sequence[KeyValue] | None = None,
        cross: Sequence[KeyValue] | None = None,
        cross_mask_BT: Tensor | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """Compute the logits of the next token after each of S tokens that follow P cached ones.

        Args:
            ids_BS: Token ids (B, S).
            mask_BT: Which of all P + S tokens are real, (B, P + S), or None for all.
            past: Per layer the keys and values (B, N, P, H) of the tokens before, or None.
            cross: Per layer the keys and values (B, N, T, H) of the source, from `project`, or None.
            cross_mask_BT: Which source tokens are real, (B, T), or None for all.

        Returns:
            Logits (B, S, V), and per layer the keys and values of all P + S tokens.
        """
        past_length = 0 if past is None else past[0][0].size(2)
        mask = causal_mask(ids_BS.size(1), past_length, ids_BS.device)
        if mask_BT is not None:
            mask = mask & padding_mask(mask_BT, ids_BS.size(1))
        cross_mask = None if cross_mask_BT is None else padding_mask(cross_mask_BT, ids_BS.size(1))
        x_BSD = self.embedding(ids_BS, past_length)
        presents = []
        for index, layer in enumerate(self.layers):
            layer_past = None if past is None else past[index]
            layer_cross = None if cross is None else cross[index]
            x_BSD, present = layer(x_BSD, mask, layer_past, layer_cross, cross_mask)
            presents.append(present)
        return self.head(x_BSD if self.norm is None else self.norm(x_BSD)), presents


class Transformer(nn.Module):
    """An encoder-decoder, an encoder or a decoder, as its configuration says.

    Attributes:
        config: The `TransformerConfig` it was made from.
        encoder: `Encoder`, unless kind is "decoder".
        decoder: `Decoder`, unless kind is "encoder".
        pooler: Linear (D, D) under the tanh of BERT's pooled output, where config.pooler.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        if config.has_encoder:
            self.encoder = Encoder(config)
        if config.has_decoder:
            self.decoder = Decoder(config)
        if config.kind == "encoder-decoder" and config.tie_embeddings and config.tgt_vocab_size is None:
            self.encoder.embedding.token.weight = self.decoder.embedding.token.weight
        if config.pooler:
            self.pooler = nn.Linear(config.d_model, config.d_model)
            self.pooler_activation = nn.Tanh()

    def forward(
        self,
        src: Tensor,
        tgt: Tensor | None = None,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Run the whole model, uncached.

        Args:
            src: Token ids, (B, T); of the only side for an encoder or a decoder.
            tgt: Target token ids, (B, S), for an encoder-decoder; decoding is always causal.
            src_mask: Which source tokens are real, (B, T), boolean or 0/1; None: all.
            tgt_mask: Which target tokens are real, (B, S), boolean or 0/1; None: all.
            token_type_ids: Segment ids, (B, T), where type_vocab_size; None: zeros.

        Returns:
            Encoder: last hidden state (B, T, D). Decoder, encoder-decoder: logits (B, S, V).

        Raises:
            ValueError: An encoder-decoder got no tgt.
        """
        if self.config.kind == "encoder":
            return self.encoder(src, src_mask, token_type_ids)
        if self.config.kind == "decoder":
            return self.decoder(src, src_mask)[0]
        if tgt is None:
            raise ValueError("an encoder-decoder needs tgt, the target token ids (B, S)")
        cross = self.decoder.project(self.encoder(src, src_mask))
        return self.decoder(tgt, tgt_mask, cross=cross, cross_mask_BT=src_mask)[0]

    def pool(self, hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Pool token states into one sentence embedding (B, D), as sentence-transformers does."""
        if self.config.pooling == "cls":
            pooled_BD = hidden_BTD[:, 0]
        else:
            weight_BT1 = mask_BT[:, :, None].to(hidden_BTD.dtype)
            pooled_BD = (hidden_BTD * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=1e-9)
        return F.normalize(pooled_BD, dim=-1) if self.config.normalize else pooled_BD

    def pooler_output(self, hidden_BTD: Tensor) -> Tensor:
        """Compute BERT's pooled output (B, D): tanh of a linear layer on the first token."""
        return self.pooler_activation(self.pooler(hidden_BTD[:, 0]))
