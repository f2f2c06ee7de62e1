"""Fine-tune a smaller encoder to give what the original gives, on text without labels.

Shapes: B batch, T length, D model size.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfm.errors import VerificationError
from tfm.model import Transformer

Batch = tuple[Tensor, Tensor]
"""Token ids, int64 (B, T), and which of them are real, (B, T) of 0 and 1."""

_WARM_UP = 0.05
"""Share of the steps in which the learning rate rises; after it falls to nothing along a cosine."""

_EMBEDDINGS = 4.0
"""Weight of the embeddings' loss beside the states': they are what the model is for, and the smaller of the two."""


def distil(
    model: Transformer,
    original: Transformer,
    batches: Sequence[Batch],
    *,
    steps: int,
    learning_rate: float = 5e-4,
    seed: int = 0,
    autocast: bool = False,
    progress: Callable[[int, int, float], None] = lambda *_: None,
) -> None:
    """Train `model` in place until its states after every layer, and its sentence embeddings, are the original's.

    The loss is 1 - cosine of the embeddings, where the model pools them, and the squared error of each layer's states
    relative to their mean square (Jiao et al. 2020, "TinyBERT", arXiv:1909.10351, section 3). AdamW. The embedding of
    tokens stays as it is: nothing was cut from it, and most of it is of tokens that the text does not have.

    Args:
        model: An encoder of as many layers of the same size D; left in eval mode.
        original: What it is to be like.
        batches: Taken in random order, each as often as the others.
        steps: How many to take.
        learning_rate: Its greatest.
        seed: Of the order.
        autocast: Compute in bfloat16, where a CPU is faster at that.
        progress: Told how many steps of how many are done, and the loss of the last.

    Raises:
        VerificationError: There is nothing to learn from, or the loss is not finite any more.
    """
    if not batches or steps < 1:
        raise VerificationError(f"distillation needs a batch and a step, but has {len(batches)} and {steps}")
    generator = torch.Generator().manual_seed(seed)
    trained = [p for name, p in model.named_parameters() if not name.startswith("encoder.embedding.")]
    # Biases and the scales of norms are not decayed.
    matrices, vectors = [p for p in trained if p.dim() > 1], [p for p in trained if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    warm_up = max(1, round(_WARM_UP * steps))
    # Drawn anew whenever it has run out, so that each batch is taken as often as the others.
    order: list[int] = []
    model.eval()  # its noise would be learned, too
    with states_of(model) as ours, states_of(original.eval()) as theirs:
        for step in range(steps):
            order = order or torch.randperm(len(batches), generator=generator).tolist()
            ids_BT, mask_BT = batches[order.pop()]
            # Up in a line, then down along a cosine, whichever is lower.
            rate = min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * rate
            with torch.autocast(ids_BT.device.type, torch.bfloat16, enabled=autocast):
                with torch.no_grad():
                    target_BTD = original(ids_BT, src_mask=mask_BT)
                # Both forwards fill `theirs` and `ours` by their hooks.
                hidden_BTD = model(ids_BT, src_mask=mask_BT)
            loss = _states_loss(ours, theirs, mask_BT)
            if model.config.pooling is not None:
                loss = loss + _EMBEDDINGS * (1 - _cosine(model, hidden_BTD, original, target_BTD, mask_BT)).mean()
            if not loss.isfinite():
                raise VerificationError(f"the loss is {loss.item()} at step {step + 1}; try a lower learning rate")
            optimizer.zero_grad()
            # Into these alone: the embedding's gradient would be a matrix as large as the vocabulary.
            torch.autograd.backward(loss, inputs=trained)
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            progress(step + 1, steps, loss.item())


@torch.no_grad()
def mean_cosine(model: Transformer, original: Transformer, batches: Sequence[Batch]) -> float:
    """Compare two encoders: mean cosine of their sentence embeddings, or of each real token's last states.

    Raises:
        VerificationError: There is nothing to compare, or a value is not finite.
    """
    found = [
        _cosine(model, model(ids, src_mask=mask), original, original(ids, src_mask=mask), mask) for ids, mask in batches
    ]
    cosines = torch.cat(found).double() if found else torch.empty(0)
    if not len(cosines) or not cosines.isfinite().all():
        raise VerificationError(f"the cosine of {len(cosines)} embeddings cannot be told: there is none, or NaN in one")
    return float(cosines.mean())


@contextlib.contextmanager
def states_of(model: Transformer) -> Iterator[list[Tensor]]:
    """Collect the states (B, T, D) after every layer of an encoder's last forward while this context lasts."""
    states: list[Tensor] = []

    def collect(_: nn.Module, __: object, output: tuple[Tensor, object]) -> None:
        # A layer gives its states and its cache.
        states.append(output[0])

    def clear(*_: object) -> None:
        states.clear()

    handles = [layer.register_forward_hook(collect) for layer in model.encoder.layers]
    # The next forward begins with an empty list.
    handles.append(model.register_forward_pre_hook(clear))
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _states_loss(ours: Sequence[Tensor], theirs: Sequence[Tensor], mask_BT: Tensor) -> Tensor:
    real_BT = mask_BT.bool()
    parts = [
        # (M, D) of the real tokens; relative to their own size, so that each layer counts alike.
        F.mse_loss(own_BTD[real_BT].float(), state_BTD[real_BT].float()) / state_BTD[real_BT].float().square().mean()
        for own_BTD, state_BTD in zip(ours, theirs, strict=True)
    ]
    return torch.stack(parts).mean()


def _cosine(
    model: Transformer, hidden_BTD: Tensor, original: Transformer, target_BTD: Tensor, mask_BT: Tensor
) -> Tensor:
    """Cosines of sentence embeddings (B,), or of all real tokens' states, (M,)."""
    if model.config.pooling is None:
        real_BT = mask_BT.bool()
        return F.cosine_similarity(hidden_BTD[real_BT].float(), target_BTD[real_BT].float(), dim=-1)
    ours_BD = model.pool(hidden_BTD.float(), mask_BT)
    return F.cosine_similarity(ours_BD, original.pool(target_BTD.float(), mask_BT), dim=-1)
