"""Greedy generation of a decoder that is not native, whose cache grows by each step as transformers' own does."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from tfm.bundle import Generation

from .generic.cached import CachedGraph
from .generic.cached_pair import CachedTarget


class GrowingLoop:
    """Greedy generation over a graph's caches.

    Attributes:
        generation: How the bundle generates.
    """

    def __init__(
        self, graph: CachedGraph, generation: Generation, prepare: Callable[[Callable[..., Any]], Callable[..., Any]]
    ) -> None:
        self.generation = generation
        self._graph, self._step = graph, prepare(graph)
        if isinstance(graph, CachedTarget):
            self._encode = prepare(graph.source)

    @torch.inference_mode()
    def run(self, rows: list[list[int]], new_tokens: int, ends: bool = False) -> tuple[list[list[int]], list[float]]:
        """Continue prompts, or write targets; arguments and results are those of `eager_engine.GreedyLoop.run`."""
        ids_BS, mask_BT, context = self._begin(rows)
        caches: list[Tensor] = self._graph.empty(len(rows))
        masks = context[:1]
        ended_B = torch.zeros(len(rows), dtype=torch.bool)
        end_ids = torch.tensor(self.generation.eos_token_ids, dtype=torch.int64)
        found: list[Tensor] = []
        stamps: list[float] = []
        # A step reads what the one before chose; the first reads the prompts.
        for _ in range(new_tokens):
            # Positions count what is real; of a step only the last is new.
            place_BS = (mask_BT.cumsum(1) - 1).clamp(min=0)[:, -ids_BS.size(1) :]
            places = [place_BS] if self._graph.positions else []
            logits_B1V, *caches = self._step(ids_BS, mask_BT, *places, *masks, *caches, *context[1:], torch.tensor(1))
            ids_BS = logits_B1V.argmax(-1)
            stamps.append(perf_counter())
            found.append(ids_BS)
            mask_BT = torch.cat([mask_BT, torch.ones_like(ids_BS)], 1)
            ended_B |= torch.isin(ids_BS[:, 0], end_ids)
            if ends and ended_B.all():
                break
        return torch.cat(found, dim=1).tolist(), stamps

    def _begin(self, rows: list[list[int]]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """What the first step reads (B, S), its mask, and what the source gives: its mask, keys and values."""
        longest = max(map(len, rows))
        if isinstance(self._graph, CachedTarget):
            source_BT = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
            mask_BT = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
            start_B1 = torch.full((len(rows), 1), self.generation.bos_token_id or 0)
            return start_B1, torch.ones_like(start_B1), [mask_BT, *self._encode(source_BT, mask_BT)[1:]]
        # Rows end at one place, so that all go on from the last one: (B, T), padded on the left.
        ids_BS = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        return ids_BS, torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]), []
