"""An attention of transformers that calls torch's function in one way, whatever it is given.

transformers' own takes another way where it is faster: without a mask where all of it is ones, with grouped heads laid
out as queries where there is one token. What is traced for all inputs has one way, and an op can be compared with eager
only where eager goes it too.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tfm.errors import ExportError

NAME = "tfm_plain"
"""What transformers calls it once it is registered."""


def register(transformers: Any) -> None:
    """Make it known to transformers, by its own means for that."""
    transformers.AttentionInterface.register(NAME, _attend)
    transformers.AttentionMaskInterface.register(NAME, _mask)


def _attend(
    module: Any,
    query_BNSH: Tensor,
    key_BKTH: Tensor,
    value_BKTH: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Give (B, S, N, H), as transformers' functions of attention do, and no weights."""
    mask, position_bias = attention_mask, options.get("position_bias")
    causal = options.get("is_causal")
    # As transformers reads it: a module is causal unless it says otherwise, and a mask says it better.
    causal = bool(getattr(module, "is_causal", True) if causal is None else causal) and mask is None
    if causal and position_bias is not None:
        raise ExportError(f"{type(module).__name__} adds a bias of positions where no mask hides what follows")
    # What is not done here would be left out in silence.
    if refused := [name for name in ("softcap", "s_aux") if options.get(name) is not None]:
        raise ExportError(f"{type(module).__name__} asks its attention for {refused[0]}")
    # Each key and value as often as there are queries' heads for it.
    groups = query_BNSH.size(1) // key_BKTH.size(1)
    key, value = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (key_BKTH, value_BKTH))
    # A bias of positions is added to the scores; what a mask hides stays hidden.
    if position_bias is not None and mask is not None:
        mask = torch.where(mask, position_bias, -torch.inf) if mask.dtype == torch.bool else position_bias + mask
    elif position_bias is not None:
        mask = position_bias
    output = F.scaled_dot_product_attention(
        query_BNSH,
        key,
        value,
        attn_mask=mask,
        dropout_p=options.get("dropout", 0.0),
        scale=options.get("scaling"),
        # One token sees all that is before it; aligned with the first key it would see that alone.
        is_causal=causal and query_BNSH.size(2) > 1,
    )
    return output.transpose(1, 2).contiguous(), None


def _mask(*arguments: Any, **options: Any) -> Tensor | None:
    from transformers.masking_utils import sdpa_mask

    # Always a mask, (B, 1, S, T).
    options |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask: Tensor | None = sdpa_mask(*arguments, **options)
    return mask
