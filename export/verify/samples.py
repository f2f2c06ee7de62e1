"""Random inputs to verify graphs with."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tfm.model import TransformerConfig

from ..graphs import Graph

_LONG = 256
"""Length, in tokens, of the longest sample of a model without a table of positions."""


def cases(graph: Graph, seed: int = 0, count: int = 5) -> list[list[Tensor]]:
    """Make inputs that between them have ragged padding, one token or two, no past, a past, and the greatest length.

    Args:
        graph: The graph to make inputs for.
        seed: Seed of the random ids.
        count: How many; beyond the first five, of random sizes.
    """
    generator = torch.Generator().manual_seed(seed)
    # Of several lengths the greatest: `sample` gives each no more than its own limit.
    longest = _longest(graph, max)
    cached = any(value.name.startswith("past_key_values.") for value in graph.inputs)
    sizes = [(3, 17, 0), (2, 1, 4), (1, 9, 3), (4, 5, 0), (1, longest, 0)]
    sizes = (sizes if cached else [(3, 17, 0), (1, 1, 4), (2, 2, 3), (4, 5, 0), (1, longest, 0)])[:count]
    for _ in range(count - len(sizes)):
        batch, length, past = (int(torch.randint(most, (1,), generator=generator)) for most in (4, min(longest, 48), 8))
        # Over a past several rows go on by one token, or one row by several.
        sizes.append((1 + batch, 1 if cached and batch and past else 1 + length, past))
    # Past and new tokens share the positions that there are.
    shapes = [(batch, min(length, longest), min(past, longest - min(length, longest))) for batch, length, past in sizes]
    return [graph.sample(generator, batch, length, past) for batch, length, past in shapes]


def all_padding(graph: Graph, seed: int = 0) -> list[Tensor] | None:
    """Make a batch whose second row is nothing but padding; None where no input tells padding."""
    inputs = graph.sample(torch.Generator().manual_seed(seed), 2, min(4, _longest(graph)))
    masks = [x for value, x in zip(graph.inputs, inputs, strict=True) if value.name.endswith("attention_mask")]
    for mask in masks:
        # The second row, beside a real one: what it computes must not reach its neighbour.
        mask[1] = 0
    return inputs if masks else None


def every_id(graph: Graph, seed: int = 0, length: int = 128) -> Iterator[list[Tensor]]:
    """Make inputs that between them have every id of the vocabulary, in order, `length` to a row.

    Nothing is made for a graph that reads no ids.
    """
    generator, length = torch.Generator().manual_seed(seed), min(length, _longest(graph))
    for index, value in enumerate(graph.inputs):
        if value.name.endswith("input_ids") and value.below is not None:
            for start in range(0, value.below, length):
                inputs = graph.sample(generator, 1, length)
                # The last row begins anew at id 0, so that all have one length.
                inputs[index] = torch.arange(start, start + length)[None].to(inputs[index].dtype) % value.below
                yield inputs


def _longest(graph: Graph, among: Callable[..., int] = min) -> int:
    longest = among(graph.max_length.values(), default=64)
    if graph.longest_case is not None:
        return min(longest, graph.longest_case)
    return min(longest, _LONG) if _has_no_table(graph) else longest


def _has_no_table(graph: Graph) -> bool:
    """Whether positions are computed, so that nothing ends where a table of them would."""
    config = getattr(graph.model, "config", None)
    if not isinstance(config, TransformerConfig) or config.position_table:
        return False
    return config.positions in ("rotary", "relative", "alibi", "none")
