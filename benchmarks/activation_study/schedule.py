"""How every model of a study is trained."""

import dataclasses
import math

_WARMUP = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """How every model of a study is trained.

    Attributes:
        steps: Number of optimizer steps.
        batch_size: Rows of a batch.
        lr: Learning rate at its height; it rises for a tenth of the steps and falls to 0 as a cosine.
        weight_decay: AdamW's, on matrices.
        clip: Gradients are scaled down to this norm.
    """

    steps: int = 1200
    batch_size: int = 128
    lr: float = 2e-3
    weight_decay: float = 0.01
    clip: float = 1.0

    def lr_at(self, step: int) -> float:
        """Give the learning rate of a step, counted from 0."""
        warmup = max(1, round(self.steps * _WARMUP))
        return self.lr * min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / self.steps))
