"""One training of a study: the same model, data, order and number of steps, whatever the activation."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tfm.errors import VerificationError
from tfm.model import Transformer, TransformerConfig, save_checkpoint
from tfm.ops import is_gated
from tfm.study.inspect import measure_units

from .run import Run
from .schedule import Schedule
from .task import Batch, Task

SAMPLED = 25
"""Losses are averaged over, and gradients measured every, so many steps."""


def configure(config: TransformerConfig, activation: str) -> TransformerConfig:
    """Give the configuration with another activation, and a gated one's width such that the parameters stay as many.

    A gated feed-forward has three matrices of D × F where a plain one has two (Shazeer 2020): F becomes two thirds of
    a plain one's, three halves of a gated one's where a plain one takes its place.
    """
    width = config.dim_feedforward
    if is_gated(activation) != is_gated(config.activation):
        width = round(width * (2 / 3 if is_gated(activation) else 3 / 2))
    return dataclasses.replace(config, activation=activation, dim_feedforward=width)


def train(
    task: Task, config: TransformerConfig, seed: int, schedule: Schedule, tell: Callable[[int], None] = lambda _: None
) -> tuple[Transformer, dict[str, Any]]:
    """Train a model from its seed.

    Args:
        task: What it learns.
        config: What it is.
        seed: Of its first weights, its dropout and the order of its data: the same order for every activation.
        schedule: How.
        tell: Told the number of finished steps.

    Returns:
        The model in evaluation mode, and a record: "parameters", "loss" (every 25 steps, the mean since), and
        "gradient_norm" (layer → mean over the same steps of the norm of its parameters' gradient, before clipping).
    """
    # First weights and dropout. The order of the data has a generator of its own.
    torch.manual_seed(seed)
    model = Transformer(config).train()
    # Biases and the scales of norms are not decayed.
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": schedule.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=schedule.lr, betas=(0.9, 0.98))
    layers = layers_of(model)
    losses: list[float] = []
    curve: list[float] = []
    norms: dict[str, list[float]] = {name: [] for name in layers}
    for step, batch in zip(range(schedule.steps), task.batches(schedule.batch_size, seed), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr_at(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = task.loss(model, batch)
        torch.autograd.backward(loss)
        losses.append(loss.item())
        if len(losses) == SAMPLED or step + 1 == schedule.steps:
            curve.append(sum(losses) / len(losses))
            losses.clear()
            for name, layer in layers.items():
                # Before clipping, which would make all norms alike.
                norms[name].append(_norm(layer))
        nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        optimizer.step()
        tell(step + 1)
    return model.eval(), {
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": curve,
        "gradient_norm": {name: sum(values) / len(values) for name, values in norms.items()},
    }


def layers_of(model: Transformer) -> dict[str, Any]:
    """Give the model's layers by their paths, such as "encoder.layers.0"."""
    halves = [name for name in ("encoder", "decoder") if hasattr(model, name)]
    return {
        f"{half}.layers.{index}": layer for half in halves for index, layer in enumerate(getattr(model, half).layers)
    }


def units_of(model: Transformer, inputs: Batch) -> dict[str, dict[str, float]]:
    """Measure how many units of each layer work, on all tokens of `inputs` but padding's.

    Args:
        model: In evaluation mode; it reads source ids (B, T) and, as an encoder-decoder, target ids (B, S), in which
            config.pad_token_id is padding.
        inputs: Those.

    Returns:
        Layer → `tfm.study.inspect.UnitStatistics` as a dict.
    """
    found: dict[str, dict[str, float]] = {}
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = []
    for name, layer in layers_of(model).items():
        feed_forward: Any = layer.feed_forward

        # name=name: a closure would see the loop's last name.
        def keep_input(_: nn.Module, arguments: tuple[Tensor, ...], __: Tensor, name: str = name) -> None:
            seen[name] = (arguments[0].detach(), seen[name][1])

        def keep_hidden(_: nn.Module, arguments: tuple[Tensor, ...], __: Tensor, name: str = name) -> None:
            seen[name] = (seen[name][0], arguments[0].detach())

        seen[name] = (torch.empty(0), torch.empty(0))
        hooks += [feed_forward.activation.register_forward_hook(keep_input)]
        hooks += [feed_forward.linear2.register_forward_hook(keep_hidden)]
    try:
        with torch.no_grad():
            model(*inputs, src_mask=_real(inputs[0], model.config))
    finally:
        for hook in hooks:
            hook.remove()
    for name, layer in layers_of(model).items():
        ids = inputs[0] if name.startswith("encoder") or len(inputs) == 1 else inputs[1]
        real = _real(ids, model.config).flatten()
        # (B, S, F) → (M, F), without padding's tokens.
        x_MF, hidden_MF = (tensor.flatten(0, 1)[real] for tensor in seen[name])
        # The slope by autograd, in float64: of the sum, each element has its own.
        leaf = x_MF.double().requires_grad_()
        feed_forward = layer.feed_forward
        (slope_MF,) = torch.autograd.grad(feed_forward.activation(leaf).sum(), leaf)
        found[name] = dataclasses.asdict(measure_units(slope_MF.numpy(), hidden_MF.numpy()))
    return found


def _real(ids: Tensor, config: TransformerConfig) -> Tensor:
    # -1 is no id: without padding all tokens are real.
    return torch.ne(ids, -1 if config.pad_token_id is None else config.pad_token_id)


def _norm(layer: nn.Module) -> float:
    gradients = [p.grad for p in layer.parameters() if p.grad is not None]
    if not gradients:
        raise VerificationError("a layer got no gradient: its task's loss does not depend on it")
    return math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))


def train_run(task: Task, run: Run, tell: Callable[[int], None]) -> None:
    """Train, look at the units, and keep the checkpoint and train.json."""
    run.folder.mkdir(parents=True, exist_ok=True)
    model, record = train(task, configure(task.CONFIG, run.activation), run.seed, run.schedule, tell)
    record["units"] = units_of(model, task.held_out())
    task.write_files(run.folder)
    save_checkpoint(model, run.checkpoint)
    # Last of all: where the record is, the checkpoint is there too.
    run.write("train", record)
