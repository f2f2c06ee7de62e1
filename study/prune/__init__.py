"""Whole heads and feed-forward units removed by importance: a genuinely smaller model."""

from .distil import Batch, distil, mean_cosine
from .importance import Importance, gated, measure_importance, next_token_loss, output_loss
from .remove import Kept, choose_by_count, choose_by_share, remove, share_within
from .workflow import Pruned, PruneOptions, prune_checkpoint

__all__ = [
    "Batch",
    "Importance",
    "Kept",
    "PruneOptions",
    "Pruned",
    "choose_by_count",
    "choose_by_share",
    "distil",
    "gated",
    "mean_cosine",
    "measure_importance",
    "next_token_loss",
    "output_loss",
    "prune_checkpoint",
    "remove",
    "share_within",
]
