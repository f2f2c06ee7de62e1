"""A clock that is the same on every machine, and on one that others share."""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import pytest

from tfm.quantize.search import cost
from tfm.quantize.search.subgraphs import size_of_subgraph


def make_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ops take as long as their constants are large, and each node a little: what is chosen is always the same."""

    def time_subgraphs(subgraphs: Sequence[ir.Model], feeds: Mapping[str, Any], size: int) -> list[float]:
        return [1e-6 * size_of_subgraph(written) + 1e-6 * len(list(written.graph)) for written in subgraphs]

    monkeypatch.setattr(cost, "time_subgraphs", time_subgraphs)
    monkeypatch.setattr(cost, "interleaved", lambda runs, size: [1e-6 * size])
