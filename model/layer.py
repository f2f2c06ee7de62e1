"""One layer of a Transformer: attention, feed-forward and the residual connections around them.

Shapes: B batch, S length, D model size, F feed-forward size.
"""

from torch import Tensor, nn

from tfm.ops import is_gated

from .activations import make_activation
from .attention import CrossAttention, KeyValue, Rotation, SelfAttention
from .config import TransformerConfig
from .norms import make_norm


class FeedForward(nn.Module):
    """W₂σ(W₁x+b₁)+b₂, or its gated form W₂(V x ⊙ σ(G x)) with W₁ = [V; G]."""

    def __init__(self, config: TransformerConfig, size: int | None = None) -> None:
        super().__init__()
        size = config.dim_feedforward if size is None else size
        self.gated = is_gated(config.activation)
        bias = config.feed_forward_bias
        self.linear1 = nn.Linear(config.d_model, size * (2 if self.gated else 1), bias=bias)
        self.activation = make_activation(config.activation)
        self.dropout = nn.Dropout(config.dropout)
        self.linear2 = nn.Linear(size, config.d_model, bias=bias)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Transform each position by itself; (B, S, D) → (B, S, D)."""
        # (B, S, F), gated: (B, S, 2F).
        hidden = self.linear1(x_BSD)
        if self.gated:
            # The order of W₁'s rows: every form of checkpoint is packed as value, then gate.
            value_BSF, gate_BSF = hidden.chunk(2, dim=-1)
            hidden_BSF = value_BSF * self.activation(gate_BSF)
        else:
            hidden_BSF = self.activation(hidden)
        return self.linear2(self.dropout(hidden_BSF))


class Residual(nn.Module):
    """A sub-layer's residual connection and its norms: before it, after the sum, or on both of its sides.

    Of a sub-layer F, with the residual connection r(x, y) = x + y, or act(Wx + b + y) where it is projected:

        norm_first = False     norm(r(x, F(x)))
        norm_first = True      r(x, F(norm(x)))
        sandwich_norm          r(x, inner(F(norm(x)))); without input_norm, r(x, inner(F(x)))
        parallel_blocks        r(x, F(norm(x)) + G(norm(x))), one for both sub-layers
        parallel_norms         r(x, F(norm(x)) + G(other(x)))

    A residual_scale multiplies what is added to x.
    """

    def __init__(self, config: TransformerConfig, *, enters: bool = True) -> None:
        super().__init__()
        self.norm_first, self.scale = config.norm_first, config.residual_scale
        self.norm = make_norm(config) if config.input_norm and enters else None
        self.inner = make_norm(config) if config.sandwich_norm else None
        self.dropout = nn.Dropout(config.dropout)
        projected = config.residual == "projected"
        self.project = nn.Linear(config.d_model, config.d_model) if projected else None
        self.activation = make_activation(config.residual_activation or "relu") if projected else None

    def enter(self, x_BSD: Tensor) -> Tensor:
        """Give what the sub-layer reads."""
        return self.norm(x_BSD) if self.norm_first and self.norm is not None else x_BSD

    def leave(self, x_BSD: Tensor, y_BSD: Tensor) -> Tensor:
        """Join the sub-layer's result y with what came in."""
        # Dropout is of the sub-layer's result, before it is added, as in the paper's section 5.4.
        y_BSD = self.dropout(y_BSD if self.inner is None else self.inner(y_BSD))
        # Behind the norm, if there is one: Granite scales what is added, not what is normed.
        if self.scale != 1.0:
            y_BSD = y_BSD * self.scale
        x_BSD = (x_BSD if self.project is None else self.project(x_BSD)) + y_BSD
        if self.activation is not None:
            x_BSD = self.activation(x_BSD)
        return x_BSD if self.norm_first or self.norm is None else self.norm(x_BSD)


class Layer(nn.Module):
    """Self-attention, cross-attention where there is a source, and feed-forward, each with a residual connection."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        cross: bool,
        heads: int | None = None,
        cross_heads: int | None = None,
        feed_forward: int | None = None,
        first: bool = False,
    ) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config, heads)
        self.self_attn_residual = Residual(config, enters=config.first_norm or not first)
        self.cross_attn = CrossAttention(config, cross_heads) if cross else None
        self.cross_attn_residual = Residual(config) if cross else None
        self.feed_forward = FeedForward(config, feed_forward)
        self.feed_forward_residual = None if config.parallel_blocks else Residual(config)
        self.parallel_norm = make_norm(config) if config.parallel_norms else None

    def forward(
        self,
        x_BSD: Tensor,
        mask: Tensor | None,
        rotation: Rotation | None = None,
        past: KeyValue | None = None,
        cross: KeyValue | None = None,
        cross_mask: Tensor | None = None,
        cache_position_B: Tensor | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """Return (B, S, D) and the self-attention's keys and values, past and new."""
        # Kept, for parallel blocks read it twice.
        entered_BSD = self.self_attn_residual.enter(x_BSD)
        y_BSD, present = self.self_attn(entered_BSD, mask, past, rotation, cache_position_B)
        # Parallel blocks.
        if self.feed_forward_residual is None:
            # Either both read one normed input, or each norms the same one for itself.
            entered_BSD = entered_BSD if self.parallel_norm is None else self.parallel_norm(x_BSD)
            return self.self_attn_residual.leave(x_BSD, y_BSD + self.feed_forward(entered_BSD)), present
        x_BSD = self.self_attn_residual.leave(x_BSD, y_BSD)
        if cross is not None and self.cross_attn is not None and self.cross_attn_residual is not None:
            y_BSD = self.cross_attn(self.cross_attn_residual.enter(x_BSD), cross, cross_mask)
            x_BSD = self.cross_attn_residual.leave(x_BSD, y_BSD)
        y_BSD = self.feed_forward(self.feed_forward_residual.enter(x_BSD))
        return self.feed_forward_residual.leave(x_BSD, y_BSD), present
