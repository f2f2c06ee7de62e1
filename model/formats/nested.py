"""Where in a training checkpoint the weights are, which every training loop calls by a name of its own."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from tfm.errors import CheckpointError

from ..fields import shown

_DEEPEST = 3
"""Dicts within each other in which weights are looked for."""


def find_weights(file: Any, content: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Find the one dict of tensors in a checkpoint: `{"net": …, "epoch": 3}`, `{"checkpoint": {"weights": …}}`.

    Args:
        file: Named in errors.
        content: What the checkpoint holds.

    Returns:
        That dict; the content itself where there is none, or where all of it is tensors.

    Raises:
        CheckpointError: There are several.
    """
    if _is_weights(content):
        return content
    found = dict(_dicts(content, "", _DEEPEST))
    if len(found) > 1:
        raise CheckpointError(
            f"{file} holds weights under {' and '.join(shown(path) for path in sorted(found)[:4])}; save the ones "
            "meant by themselves: torch.save({'state_dict': …}, path)"
        )
    return next(iter(found.values()), content)


def trained_module(file: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the module that Lightning trained out of all that its LightningModule holds, such as metrics' counts.

    Args:
        file: Named in errors.
        weights: All tensors by name, "net.layers.0.weight" and "accuracy.tp".

    Returns:
        Those under the first part of a name that has most numbers, with their names; the others count, and multiply
        nothing.

    Raises:
        CheckpointError: The others have a matrix among them, which may be a part of the model.
    """
    sizes = Counter[str]()
    for name, tensor in weights.items():
        sizes[name.partition(".")[0]] += tensor.numel()
    ((largest, _),) = sizes.most_common(1)
    others = [name for name in weights if name.partition(".")[0] != largest]
    # Hugging Face's own models have several parts at the top, all of them with matrices or norms.
    if any(weights[name].dim() > 1 for name in others):
        return weights
    if kept := [name for name in others if name.endswith((".weight", ".bias"))]:
        raise CheckpointError(
            f"{file} holds {shown(kept[0])} beside the weights under {shown(largest)}; save what is to be exported by "
            "itself: torch.save({'state_dict': module.state_dict()}, path)"
        )
    return {name: weights[name] for name in weights.keys() - set(others)}


def _dicts(content: Mapping[Any, Any], path: str, depth: int) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    for key, value in content.items():
        # An optimizer's moments are tensors too.
        if not isinstance(value, dict) or "optim" in str(key):
            continue
        if _is_weights(value):
            yield f"{path}{key}", value
        elif depth > 1:
            yield from _dicts(value, f"{path}{key}.", depth - 1)


def _is_weights(content: Mapping[Any, Any]) -> bool:
    named = all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    return bool(content) and named and any(value.dim() > 1 for value in content.values())
