"""Multi-head attention, softmax(QKᵀ/√H)V ("Attention Is All You Need", section 3.2), and its masks.

Shapes: B batch, S query length, T key length, P past length, N heads, H head size, D = N·H model size.
Every attention goes through `F.scaled_dot_product_attention`; masks are boolean, True means "may attend".
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one attention, each (B, N, T, H)."""


class SelfAttention(nn.Module):
    """Attention of a sequence over itself and over what a cache holds of its past."""

    def __init__(self, d_model: int, nhead: int, dropout: float) -> None:
        super().__init__()
        self.nhead = nhead
        self.dropout = dropout
        self.in_proj = nn.Linear(d_model, 3 * d_model)  # rows: Q, then K, then V
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x_BSD: Tensor, mask: Tensor | None, past: KeyValue | None = None) -> tuple[Tensor, KeyValue]:
        """Attend.

        Args:
            x_BSD: Tensor (B, S, D).
            mask: Boolean tensor (B or 1, 1, S, T) with T = P + S, or None.
            past: Keys and values of the P earlier tokens, each (B, N, P, H), or None.

        Returns:
            Tensor (B, S, D), and the keys and values of all T tokens, each (B, N, T, H).
        """
        q, k, v = (split_heads(part, self.nhead) for part in self.in_proj(x_BSD).chunk(3, dim=-1))
        if past is not None:
            k = torch.cat([past[0], k], dim=2)
            v = torch.cat([past[1], v], dim=2)
        y_BNSH = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        return self.out_proj(merge_heads(y_BNSH)), (k, v)


class CrossAttention(nn.Module):
    """Attention over another sequence, whose keys and values are computed once by `project`."""

    def __init__(self, d_model: int, nhead: int, dropout: float) -> None:
        super().__init__()
        self.nhead = nhead
        self.dropout = dropout
        self.q_proj = nn.Linear(d_model, d_model)
        self.kv_proj = nn.Linear(d_model, 2 * d_model)  # rows: K, then V
        self.out_proj = nn.Linear(d_model, d_model)

    def project(self, memory_BTD: Tensor) -> KeyValue:
        """Compute the keys and values of the sequence to attend over, each (B, N, T, H)."""
        k, v = (split_heads(part, self.nhead) for part in self.kv_proj(memory_BTD).chunk(2, dim=-1))
        return k, v

    def forward(self, x_BSD: Tensor, memory: KeyValue, mask: Tensor | None) -> Tensor:
        """Attend over `memory`; mask is boolean (B, 1, S, T) or None. Returns (B, S, D)."""
        q = split_heads(self.q_proj(x_BSD), self.nhead)
        y_BNSH = F.scaled_dot_product_attention(q, *memory, mask, self.dropout if self.training else 0.0)
        return self.out_proj(merge_heads(y_BNSH))


def split_heads(x_BSD: Tensor, nhead: int) -> Tensor:
    """(B, S, D) → (B, N, S, H)."""
    return x_BSD.view(*x_BSD.shape[:2], nhead, -1).transpose(1, 2)


def merge_heads(y_BNSH: Tensor) -> Tensor:
    """(B, N, S, H) → (B, S, D)."""
    return y_BNSH.transpose(1, 2).flatten(2)


def padding_mask(mask_BT: Tensor, query_length: int) -> Tensor:
    """Spread a mask of real tokens (B, T), boolean or 0/1, over S queries: boolean (B, 1, S, T)."""
    return mask_BT.to(torch.bool)[:, None, None, :].expand(-1, 1, query_length, -1)


def causal_mask(query_length: int, past_length: int, device: torch.device) -> Tensor:
    """Let query i, which stands at position P + i, see keys 0 … P + i: boolean (1, 1, S, P + S)."""
    key_T = torch.arange(past_length + query_length, device=device)
    query_S = torch.arange(query_length, device=device) + past_length
    return (key_T[None, :] <= query_S[:, None])[None, None]
