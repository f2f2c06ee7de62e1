"""How much each head and each feed-forward unit matters: what a gate on it would change.

A gate g = 1 multiplies what a head or a unit gives. Its removal, g = 0, changes a loss by -∂L/∂g to first order (Michel
et al. 2019, arXiv:1905.10650, section 4.1; Molchanov et al. 2017, arXiv:1611.06440, section 2.2). What counts is the
root mean square of that over examples: a trained model's loss has next to no slope left on average.

Shapes: B batch, S length, N heads, H head size, D model size, F feed-forward size, V vocabulary.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tfm.errors import VerificationError
from tfm.model import Transformer

from .parts import attentions, feed_forwards

Loss = Callable[[Transformer], Tensor]
"""Runs a batch through the model and gives a loss for each of its B examples, (B,)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Importance:
    """Root mean square of ∂L/∂g over examples, float64, by the name of the module that they are in.

    Attributes:
        heads: Such as "encoder.layers.0.self_attn" → (N,).
        units: Such as "encoder.layers.0.feed_forward" → (F,).
        examples: How many there were.
    """

    heads: Mapping[str, Tensor]
    units: Mapping[str, Tensor]
    examples: int


def measure_importance(model: Transformer, losses: Iterable[Loss]) -> Importance:
    """Measure every head and unit of a model; its weights and their gradients are left alone.

    Args:
        model: In eval mode, or what is dropped at random counts as unimportant.
        losses: One for each batch.

    Raises:
        VerificationError: There is no batch, or a loss is not one finite number per example.
    """
    sums: dict[str, Tensor] = {}
    examples = 0
    for loss in losses:
        with gated(model) as gates:
            loss_B = loss(model)
            if loss_B.dim() != 1 or not loss_B.isfinite().all():
                raise VerificationError(
                    f"importance needs one finite loss per example, (B,), but a batch gave {tuple(loss_B.shape)}: "
                    f"{loss_B.detach().flatten()[:3].tolist()}"
                )
            names = list(gates)
            # Each example has gates of its own, so that one backward of the sum gives the slopes of
            # each.
            gradients = torch.autograd.grad(loss_B.sum(), [gates[name] for name in names])
        for name, gradient_B1G in zip(names, gradients, strict=True):
            # (B, 1, G) → (G,), in float64, as squares of thousands of examples are added up.
            sums[name] = sums.get(name, 0) + gradient_B1G.double().square().sum((0, 1))
        examples += len(loss_B)
    if not examples:
        raise VerificationError("importance is measured on data, but there is no batch")
    found = {name: (total / examples).sqrt() for name, total in sums.items()}
    return Importance(
        heads={name: found[name] for name in attentions(model)},
        units={name: found[name] for name in feed_forwards(model)},
        examples=examples,
    )


@contextlib.contextmanager
def gated(model: Transformer, kept: Mapping[str, Tensor] | None = None) -> Iterator[dict[str, Tensor]]:
    """Put a gate on every head and unit while this context lasts.

    Args:
        model: Whose forward is changed.
        kept: Module name → gates (N,) or (F,), such as 1 of what is kept and 0 of what is not; None: all are 1.

    Yields:
        Module name → the gates that the last forward used, (B, 1, N) or (B, 1, F), with gradients where kept is None.
    """
    gates: dict[str, Tensor] = {}

    def gate_input(name: str, size: int) -> Callable[[nn.Module, tuple[Tensor]], Tensor]:
        def hook(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
            (x_BSX,) = inputs
            if kept is None:
                # One gate for all places of a row.
                gate_B1G = torch.ones(len(x_BSX), 1, size, dtype=x_BSX.dtype, device=x_BSX.device, requires_grad=True)
            else:
                gate_B1G = kept[name].to(x_BSX).expand(len(x_BSX), 1, size)
            gates[name] = gate_B1G
            # (B, S, N · H) → (B, S, N, H) times (B, 1, N, 1), and back; for units (B, S, F, 1).
            return (x_BSX.view(*x_BSX.shape[:2], size, -1) * gate_B1G[..., None]).flatten(-2)

        return hook

    # At the input of what mixes heads, and units: there each still stands by itself.
    handles = [
        part.out_proj.register_forward_pre_hook(gate_input(name, part.nhead))
        for name, part in attentions(model).items()
    ]
    handles += [
        part.linear2.register_forward_pre_hook(gate_input(name, part.linear2.in_features))
        for name, part in feed_forwards(model).items()
    ]
    try:
        yield gates
    finally:
        for handle in handles:
            handle.remove()


def output_loss(ids_BT: Tensor, mask_BT: Tensor, generator: torch.Generator) -> Loss:
    """Make a loss for an encoder without labels: its output along a random direction of ±1.

    The mean square of its slope is the squared length of the output's own change, which is twice what 1 - cosine would
    be of embeddings of unit length: against itself a model has no slope at all.

    Args:
        ids_BT: Token ids, int64 (B, T).
        mask_BT: Which are real, (B, T).
        generator: Of the directions.

    Returns:
        A loss on the sentence embedding, or on the last hidden states where the model has no pooling.
    """

    def loss(model: Transformer) -> Tensor:
        hidden_BTD = model(ids_BT, src_mask=mask_BT)
        output = hidden_BTD * mask_BT[:, :, None] if model.config.pooling is None else model.pool(hidden_BTD, mask_BT)
        # Drawn anew for each batch, and independent for each number of the output.
        signs = torch.randint(0, 2, output.shape, generator=generator) * 2 - 1
        return (output * signs).flatten(1).sum(1)

    return loss


def next_token_loss(ids_BS: Tensor, mask_BS: Tensor) -> Loss:
    """Make a decoder's loss on text: the mean cross-entropy of each row's next tokens, in nats.

    Args:
        ids_BS: Token ids, int64 (B, S), padded on the right.
        mask_BS: Which are real, (B, S).
    """

    def loss(model: Transformer) -> Tensor:
        logits_BSV = model(ids_BS, src_mask=mask_BS)[:, :-1]
        # (B, V, S − 1) against the ids that follow, (B, S − 1).
        cost_BS = F.cross_entropy(logits_BSV.mT, ids_BS[:, 1:], reduction="none") * mask_BS[:, 1:]
        return cost_BS.sum(1) / mask_BS[:, 1:].sum(1).clamp(min=1)

    return loss
