"""Multi-head attention, softmax(QKᵀ/√H)V ("Attention Is All You Need", section 3.2), and its masks.

Shapes: B batch, S query length, T key length, P past length, N heads, K key/value heads, H head size, D model size.
Every attention goes through `F.scaled_dot_product_attention`, but for the soft-capped one, which torch has no
function for. Boolean masks: True means "may attend". Float masks are added to the scores.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import TransformerConfig
from .norms import make_head_norm
from .positions import rotate

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one attention, each (B, K, T, H)."""

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines of the new tokens' positions, each (B or 1, S, I)."""


class SelfAttention(nn.Module):
    """Attention of a sequence over itself and over what a cache holds of its past."""

    def __init__(self, config: TransformerConfig, nhead: int | None = None) -> None:
        super().__init__()
        self.nhead, self.head_size = config.nhead if nhead is None else nhead, config.head_size
        self.kv_heads = config.kv_heads_of(self.nhead)
        self.scale, self.softcap, self.dropout = config.attention_scale, config.attention_softcap, config.dropout
        width = (self.nhead + 2 * self.kv_heads) * self.head_size
        # Rows: Q, then K, then V.
        self.in_proj = nn.Linear(config.d_model, width, bias=config.qkv_bias)
        self.out_proj = nn.Linear(self.nhead * self.head_size, config.d_model, bias=config.out_bias)
        self.q_norm, self.k_norm = make_head_norm(config, self.nhead), make_head_norm(config, self.kv_heads)
        self.norm_span = config.qk_norm_span

    def forward(
        self,
        x_BSD: Tensor,
        mask: Tensor | None,
        past: KeyValue | None = None,
        rotation: Rotation | None = None,
        cache_position_B: Tensor | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """Attend.

        Args:
            x_BSD: Tensor (B, S, D).
            mask: Boolean or float tensor that broadcasts to (B, N, S, T), or None. Over a past without
                cache_position_B it adds to the causal one, and has the T keys in full.
            past: Keys and values of earlier tokens, or None: of P tokens, each (B, K, P or more, H), with T = P + S;
                or, with cache_position_B, a cache that has room for T, each (B, K, T, H).
            rotation: Where positions are rotary, those of the new tokens.
            cache_position_B: Where in the cache each row's new tokens go.

        Returns:
            Tensor (B, S, D), and the keys and values of all T tokens, each (B, K, T, H), or of the past's length where
            that is greater.
        """
        own, shared = self.nhead * self.head_size, self.kv_heads * self.head_size
        # (B, S, (N + 2K) · H) → (B, S, N · H) and twice (B, S, K · H).
        q, k, v = self.in_proj(x_BSD).split([own, shared, shared], dim=-1)
        q, k = self._normed(q, k)
        # After the norms, as in Qwen 3; and before the cache, so that keys are turned once: their
        # positions do not change.
        if rotation is not None:
            q, k = rotate(q, *rotation, self.nhead), rotate(k, *rotation, self.kv_heads)
        if past is not None and cache_position_B is None:
            y_BSD, *present = cached_attention(
                q, k, v, *past, mask, self.scale or self.head_size**-0.5, self.softcap or 0.0
            )
            return self.out_proj(y_BSD), (present[0], present[1])
        # (B, S, N · H) → (B, N, S, H), and likewise twice (B, K, S, H).
        q, k, v = split_heads(q, self.nhead), split_heads(k, self.kv_heads), split_heads(v, self.kv_heads)
        # A cache of fixed length is written at each row's place.
        if past is not None and cache_position_B is not None:
            k, v = write_cache(past[0], k, cache_position_B), write_cache(past[1], v, cache_position_B)
        dropout = self.dropout if self.training else 0.0
        y_BNSH = attend(q, k, v, mask, scale=self.scale, softcap=self.softcap, dropout=dropout)
        return self.out_proj(merge_heads(y_BNSH)), (k, v)

    def _normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Normalize queries (B, S, N · H) and keys (B, S, K · H): all heads as one vector, or each by itself."""
        if self.q_norm is None or self.k_norm is None:
            return q, k
        if self.norm_span == "all":
            return self.q_norm(q), self.k_norm(k)
        return _each_head(self.q_norm, q, self.nhead), _each_head(self.k_norm, k, self.kv_heads)


def _each_head(norm: nn.Module, x_BSD: Tensor, heads: int) -> Tensor:
    # (B, S, N · H) → (B, S, N, H) and back.
    found: Tensor = norm(x_BSD.reshape(*x_BSD.shape[:2], heads, -1)).flatten(-2)
    return found


class CrossAttention(nn.Module):
    """Attention over another sequence, whose keys and values are computed once by `project`."""

    def __init__(self, config: TransformerConfig, nhead: int | None = None) -> None:
        super().__init__()
        self.nhead, self.head_size = config.nhead if nhead is None else nhead, config.head_size
        self.kv_heads = config.kv_heads_of(self.nhead)
        self.scale, self.softcap, self.dropout = config.attention_scale, config.attention_softcap, config.dropout
        self.q_proj = nn.Linear(config.d_model, self.nhead * self.head_size, bias=config.qkv_bias)
        self.kv_proj = nn.Linear(config.d_model, 2 * self.kv_heads * self.head_size, bias=config.qkv_bias)
        self.out_proj = nn.Linear(self.nhead * self.head_size, config.d_model, bias=config.out_bias)

    def project(self, memory_BTD: Tensor) -> KeyValue:
        """Compute the keys and values of the sequence to attend over, each (B, K, T, H)."""
        # (B, T, 2K · H) → twice (B, K, T, H).
        k, v = (split_heads(part, self.kv_heads) for part in self.kv_proj(memory_BTD).chunk(2, dim=-1))
        return k, v

    def forward(self, x_BSD: Tensor, memory: KeyValue, mask: Tensor | None) -> Tensor:
        """Attend over `memory`; mask is boolean (B, 1, S, T) or None. Returns (B, S, D)."""
        q = split_heads(self.q_proj(x_BSD), self.nhead)
        dropout = self.dropout if self.training else 0.0
        y_BNSH = attend(q, *memory, mask, scale=self.scale, softcap=self.softcap, dropout=dropout)
        return self.out_proj(merge_heads(y_BNSH))


def attend(
    q_BNSH: Tensor,
    k_BKTH: Tensor,
    v_BKTH: Tensor,
    mask: Tensor | None,
    *,
    scale: float | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Attend by whichever function computes it: (B, N, S, H)."""
    if softcap is not None:
        # The op wants a mask; this one hides nothing.
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=q_BNSH.device) if mask is None else mask
        return softcapped_attention(q_BNSH, k_BKTH, v_BKTH, mask, scale or q_BNSH.size(-1) ** -0.5, softcap)
    grouped = q_BNSH.size(1) != k_BKTH.size(1)
    return F.scaled_dot_product_attention(q_BNSH, k_BKTH, v_BKTH, mask, dropout, scale=scale, enable_gqa=grouped)


@torch.library.custom_op("tfm::softcapped_attention", mutates_args=())
def softcapped_attention(
    q_BNSH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, mask: Tensor, scale: float, softcap: float
) -> Tensor:
    """Attention whose scores s become c · tanh(s / c) before the mask (Gemma 2, arXiv:2408.00118, section 2).

    An op of its own, since torch has no function for it and ONNX-23 Attention computes it inside.

    Args:
        q_BNSH: Queries (B, N, S, H).
        k_BKTH: Keys (B, K, T, H); N is a multiple of K.
        v_BKTH: Values (B, K, T, H).
        mask: Boolean, broadcasts to (B, N, S, T).
        scale: Factor on QKᵀ.
        softcap: c.

    Returns:
        Tensor (B, N, S, H).
    """
    # (B, K, T, H) → (B, N, T, H): neighboring queries share a head of keys and values.
    groups = q_BNSH.size(1) // k_BKTH.size(1)
    k_BNTH, v_BNTH = k_BKTH.repeat_interleave(groups, 1), v_BKTH.repeat_interleave(groups, 1)
    score_BNST = torch.tanh(q_BNSH @ k_BNTH.mT * scale / softcap) * softcap
    # Softmax of nothing but -∞ is NaN. F.scaled_dot_product_attention gives such a row zeros.
    # A fully masked row: zeros.
    weight_BNST = score_BNST.masked_fill(~mask, -math.inf).softmax(-1).nan_to_num(0.0)
    return weight_BNST @ v_BNTH


@softcapped_attention.register_fake
def _(q_BNSH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, mask: Tensor, scale: float, softcap: float) -> Tensor:
    return torch.empty_like(q_BNSH)


@torch.library.custom_op("tfm::cached_attention", mutates_args=())
def cached_attention(
    q_BSD: Tensor,
    k_BSD: Tensor,
    v_BSD: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention of S new tokens over themselves and P earlier ones, whose keys and values a cache has.

    An op of its own, since it becomes one GroupQueryAttention, which writes into the cache in place where past and
    present are one piece of memory.

    Args:
        q_BSD: Queries (B, S, N·H).
        k_BSD: Keys (B, S, K·H); N is a multiple of K.
        v_BSD: Values (B, S, K·H).
        past_key: Keys (B, K, C, H), of which the first P are there; C = P, or more where there is room.
        past_value: Values, likewise.
        mask: What may be attended to of all T = P + S, beside that nothing later may: boolean, or float to be added to
            the scores; (B or 1, N or 1, S, T). Each query must see a key at least. None: P = C, and all of it.
        scale: Factor on QKᵀ.
        softcap: Scores s become c · tanh(s / c) before the mask; 0: they do not.

    Returns:
        Tensor (B, S, N·H), and keys and values (B, K, the larger of C and T, H), with zeros behind the first T.
    """
    new = k_BSD.size(1)
    total = past_key.size(2) + new if mask is None else mask.size(-1)
    kv_heads, before = past_key.size(1), total - new
    q_BNSH = split_heads(q_BSD, q_BSD.size(-1) // past_key.size(-1))
    k, v = (
        _append(past_key, split_heads(k_BSD, kv_heads), before),
        _append(past_value, split_heads(v_BSD, kv_heads), before),
    )
    key_T = torch.arange(total, device=q_BSD.device)
    seen = causal_mask(key_T[None, before:], key_T)
    if mask is not None:
        seen = seen & mask if mask.dtype == torch.bool else mask.masked_fill(~seen, -math.inf)
    y_BNSH = attend(q_BNSH, k[:, :, :total], v[:, :, :total], seen, scale=scale, softcap=softcap or None, dropout=0.0)
    return merge_heads(y_BNSH), k, v


def _append(past_BKCH: Tensor, new_BKSH: Tensor, before: int) -> Tensor:
    """Put new keys or values behind the first `before` of the past; zeros into the room that is left, if there is."""
    after = before + new_BKSH.size(2)
    room = torch.zeros_like(past_BKCH[:, :, after:])
    return torch.cat([past_BKCH[:, :, :before], new_BKSH, room], dim=2)


@cached_attention.register_fake
def _(
    q_BSD: Tensor,
    k_BSD: Tensor,
    v_BSD: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    mask: Tensor | None,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    # As long as all tokens, or as the past where that is longer: nothing but outputs depends on it.
    total = past_key.size(2) + k_BSD.size(1) if mask is None else mask.size(-1)
    batch, kv_heads, _, size = past_key.shape
    present = past_key.new_empty(batch, kv_heads, total, size)
    return torch.empty_like(q_BSD, memory_format=torch.contiguous_format), present, torch.empty_like(present)


@torch.library.custom_op("tfm::last_tokens", mutates_args=())
def last_tokens(x_BSD: Tensor, count: Tensor) -> Tensor:
    """Keep the last tokens of each row, so many of them; 0: all.

    An op of its own, since torch.export wants to know how many there are.

    Args:
        x_BSD: Tensor (B, S, D).
        count: int64, a scalar of at most S.

    Returns:
        Tensor (B, count or S, D).
    """
    return x_BSD[:, -int(count) :].clone()


@last_tokens.register_fake
def _(x_BSD: Tensor, count: Tensor) -> Tensor:
    kept = torch.library.get_ctx().new_dynamic_size()
    return x_BSD.new_empty(x_BSD.size(0), kept, x_BSD.size(2))


@torch.library.custom_op("tfm::write_cache", mutates_args=())
def write_cache(cache_BKTH: Tensor, new_BKSH: Tensor, cache_position_B: Tensor) -> Tensor:
    """Put what is new into a cache of fixed length, each row at its own place.

    For eager PyTorch, whose compiler would make a new function for every length of a cache that grows.

    Args:
        cache_BKTH: Keys or values (B, K, T, H).
        new_BKSH: Those of S new tokens, (B, K, S, H).
        cache_position_B: Place of the first of them in each row, int64 (B,), at most T - S.

    Returns:
        A tensor (B, K, T, H).
    """
    # (B, S); `scatter` wants a place for every number, (B, K, S, H).
    place_BS = cache_position_B[:, None] + torch.arange(new_BKSH.size(2), device=new_BKSH.device)
    return cache_BKTH.scatter(2, place_BS[:, None, :, None].expand_as(new_BKSH), new_BKSH)


@write_cache.register_fake
def _(cache_BKTH: Tensor, new_BKSH: Tensor, cache_position_B: Tensor) -> Tensor:
    return torch.empty_like(cache_BKTH)


def split_heads(x_BSD: Tensor, nhead: int) -> Tensor:
    """(B, S, N·H) → (B, N, S, H)."""
    return x_BSD.view(*x_BSD.shape[:2], nhead, -1).transpose(1, 2)


def merge_heads(y_BNSH: Tensor) -> Tensor:
    """(B, N, S, H) → (B, S, N·H)."""
    return y_BNSH.transpose(1, 2).flatten(2)


def padding_mask(mask_BT: Tensor, query_length: int) -> Tensor:
    """Spread a mask of real tokens (B, T), boolean or 0/1, over S queries: boolean (B, 1, S, T)."""
    return mask_BT.to(torch.bool)[:, None, None, :].expand(-1, 1, query_length, -1)


def window_mask(query_BS: Tensor, key_T: Tensor, window: int) -> Tensor:
    """Let each query see fewer than `window` keys to either side, and its own: boolean (B, 1, S, T)."""
    return ((key_T - query_BS[:, :, None]).abs() < window)[:, None]


def causal_mask(query_BS: Tensor, key_T: Tensor, window: int | None = None) -> Tensor:
    """Let each query see the keys at its own and earlier places, the last `window` of them: boolean (B, 1, S, T)."""
    # (T,) against (B, S, 1): with a cache, rows are at places of their own.
    seen_BST = key_T <= query_BS[:, :, None]
    if window is not None:
        seen_BST = seen_BST & (key_T > query_BS[:, :, None] - window)
    return seen_BST[:, None]
