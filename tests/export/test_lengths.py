"""How long the inputs of a module of one's own may be: as far as it goes, not as far as its example."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from tests.support.right_models import plain
from tfm.errors import ExportError
from tfm.export import to_onnx, verify
from tfm.export.fast_path import no_fast_path
from tfm.export.generic import lengths
from tfm.export.generic.factory import from_factory
from tfm.export.generic.graph import GenericGraph
from tfm.export.generic.lengths import FARTHEST, lengthen
from tfm.export.generic.open import open_generic
from tfm.export.verify.samples import cases


def made(call: Callable[..., Tensor], **parts: nn.Module) -> GenericGraph:
    """A graph of a function of six tokens of 16 numbers."""
    torch.manual_seed(0)
    return lengthen(GenericGraph(*plain(call, parts)))


class Two(nn.Module):
    """Two inputs of lengths of their own, which share a table of 40 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 16)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        both = torch.cat([a, b], 1)
        return both + self.table(torch.arange(both.size(1)))


def positions(m: Any, x: Tensor) -> Tensor:
    return m.layer(x + m.table(torch.arange(x.size(1))))


def sliced(m: Any, x: Tensor) -> Tensor:
    return x + m.table.weight[: x.size(1)]


@pytest.mark.parametrize("rows", [6, 7, 40, 511, 700])
@pytest.mark.parametrize("call", [positions, sliced])
def test_a_table_of_positions_ends_a_length(call: Callable[..., Tensor], rows: int) -> None:
    graph = made(call, table=nn.Embedding(rows, 16), layer=nn.Linear(16, 16))
    assert graph.max_length == {"sequence": min(rows, FARTHEST)}


def test_what_is_longer_than_the_example_is_verified(tmp_path: Path) -> None:
    """Its example has five tokens; the same file is right for more."""
    graph = from_factory(f"{__name__}:layers")
    file = tmp_path / "model.onnx"
    ir.save(to_onnx(graph), file)
    tried = cases(graph)
    assert max(inputs[0].size(1) for inputs in tried) == FARTHEST
    assert verify(graph, file, tried).passed
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    x = torch.randn(3, 9, 32)
    with torch.no_grad(), no_fast_path():
        np.testing.assert_allclose(session.run(None, {"src": x.numpy()})[0], graph(x)[0].numpy(), rtol=0, atol=1e-5)


def layers() -> Any:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, dropout=0.0)
    encoder = nn.TransformerEncoder(layer, 2)
    return encoder.eval(), {"src": torch.randn(1, 5, 32)}, {"src": {0: "batch", 1: "sequence"}}


def test_another_way_beyond_a_length_ends_it(tmp_path: Path) -> None:
    """torch.export would refuse the branch where both sides of it are within the limit."""
    graph = made(lambda m, x: torch.relu(x) if x.size(1) <= 20 else torch.sigmoid(x))
    assert graph.max_length == {"sequence": 20}
    ir.save(to_onnx(graph), tmp_path / "model.onnx")
    assert verify(graph, tmp_path / "model.onnx", cases(graph)).passed


def test_lengths_that_share_a_table_fit_into_it_together() -> None:
    examples = {"a": torch.randn(2, 5, 16), "b": torch.randn(2, 4, 16)}
    axes = {"a": {0: "batch", 1: "left"}, "b": {0: "batch", 1: "right"}}
    graph = lengthen(GenericGraph(Two(), examples, axes))
    assert graph.max_length == {"left": 36, "right": 4}
    assert [x.size(1) for x in cases(graph)[-1]] == [36, 4]  # each its own limit


def test_what_is_too_much_to_prove_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "_MOST_WORK", 20_000)
    graph = made(lambda m, x: torch.softmax(x @ x.mT, -1) @ m.layer(x), layer=nn.Linear(16, 16))
    assert 24 < graph.max_length["sequence"] < 100


def test_a_program_goes_as_far_as_it_says(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(16, 16), nn.GELU())
    for most, expected in ((64, 64), (None, FARTHEST)):
        dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", min=2, max=most)}
        program = torch.export.export(module, (torch.randn(2, 6, 16),), dynamic_shapes=(dims,))
        torch.export.save(program, tmp_path / "p.pt2")
        assert open_generic(tmp_path / "p.pt2").max_length == {"sequence": expected}


def test_what_does_not_run_is_still_said() -> None:
    with pytest.raises(ExportError, match="fails on its own example inputs"):
        made(lambda m, x: x @ x)
