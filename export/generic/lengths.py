"""How long the inputs of a module may be, beyond its examples: tried, since nothing says it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..fast_path import no_fast_path
from .graph import GenericGraph

FARTHEST = 512
"""The greatest length that is tried, which is that of most encoders of text. Longer examples reach farther."""

_MOST_WORK = 1 << 28
"""Numbers that a module may compute at one length, all its functions together: each of its ops is proved there."""


def lengthen(graph: GenericGraph, bounds: Mapping[str, int] | None = None) -> GenericGraph:
    """Let the lengths of a graph go as far as its module does in one way, and as can be proved.

    What is tried is eager PyTorch. That the exported graph goes as far is for `verify`, whose longest case is of these
    lengths.

    Args:
        graph: Of a module whose examples are as long as its author chose; no length becomes less.
        bounds: What lengths may be at most, as an exported program says; of others `FARTHEST`.

    Returns:
        The graph itself.
    """
    examples = dict(graph.max_length)
    usual = _way(graph, examples)
    for dim, least in examples.items():
        most = min(FARTHEST, (bounds or {}).get(dim, FARTHEST))
        # Beside what the others have become, so that all together work too.
        graph.max_length[dim] = _farthest(graph, dim, least, most, usual)
    return graph


def _farthest(graph: GenericGraph, dim: str, least: int, most: int, usual: list[str] | None) -> int:
    """Search the greatest size of a dimension: doubled until it fails, then halved between."""

    def works(size: int) -> bool:
        return usual is not None and _way(graph, {**graph.max_length, dim: size}) == usual

    good, bad = least, most + 1
    while good < most and bad > most:
        size = min(2 * good, most)
        good, bad = (size, bad) if works(size) else (good, size)
    while bad <= most and bad - good > 1:
        size = (good + bad) // 2
        good, bad = (size, bad) if works(size) else (good, size)
    return good


def _way(graph: GenericGraph, lengths: Mapping[str, int]) -> list[str] | None:
    """Name what eager calls for one row of these lengths; None where it fails, or computes too much to be proved.

    A module that branches by a length calls other functions beyond it, and so would torch.export refuse it.
    """
    inputs = graph.sample_at(torch.Generator().manual_seed(0), 1, lengths)
    calls = _Calls()
    try:
        with torch.no_grad(), no_fast_path(), calls:
            graph(*inputs)
    except Exception:  # whatever a module raises at a length that it does not take
        return None
    return calls.names


class _TooMuch(Exception):
    """More is computed than can be proved."""


class _Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the functions that are called, and ends what computes too many numbers: counted, not timed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self._left = _MOST_WORK

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.append(str(func))
        parts = result if isinstance(result, tuple | list) else (result,)
        self._left -= sum(part.numel() for part in parts if isinstance(part, Tensor))
        if self._left < 0:
            raise _TooMuch
        return result
