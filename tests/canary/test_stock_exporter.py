"""Where `torch.onnx.export` or onnxruntime, left to itself, goes wrong in silence or stops: what ours does instead.

Each failure is shown on the installed versions first: the day it is gone, that test fails and says so.
"""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from onnx import ModelProto
from torch import Tensor, nn
from torch.export import Dim

from tfm.errors import InputError
from tfm.export import to_onnx
from tfm.export.generic.graph import GenericGraph
from tfm.export.manifest import write_manifest
from tfm.export.to_onnx import _quiet
from tfm.runtime import Module, load

B, N, S, T, H, V, P = 2, 3, 4, 6, 8, 11, 8  # P: number of positions
ATOL = 2e-6  # a sum of H products, a softmax over T and a sum over T in float32: measured at most 4e-7
LEVELS = (
    ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
)
MASKED = {"bool": None, "-inf": -torch.inf, "finfo.min": torch.finfo(torch.float32).min}
"""Form of mask → what it adds to the score of a key that must not be seen."""

Axes = dict[str, dict[int, str]]
Made = tuple[nn.Module, dict[str, Tensor], Axes]


class Attends(nn.Module):
    """Attention under a padding mask, which becomes (B, 1, 1, T) or, where spread, (B, 1, S, T)."""

    def __init__(self, form: str, *, spread: bool) -> None:
        super().__init__()
        self.masked, self.spread = MASKED[form], spread

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.bool()[:, None, None, :]
        if self.spread:
            mask = mask.expand(-1, -1, query.size(2), -1)
        if self.masked is not None:
            mask = torch.zeros(mask.shape).masked_fill(~mask, self.masked)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class Places(nn.Module):
    """Each place of the output, of as many as there are tokens, attends over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(V, H), nn.Embedding(P, H)

    def forward(self, ids: Tensor) -> Tensor:
        query_1SH = self.places(torch.arange(ids.size(1)))[None]
        tokens_BTH = self.tokens(ids)
        return (query_1SH @ tokens_BTH.mT).softmax(-1) @ tokens_BTH


def attends(form: str, *, spread: bool) -> Made:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(B, N, length, H, generator=generator) for length in (S, T, T))
    mask = torch.tensor([[1] * T, [1] * (T - 2) + [0] * 2])
    axes = {
        "query": {0: "batch", 2: "query"},
        "key": {0: "batch", 2: "key"},
        "value": {0: "batch", 2: "key"},
        "attention_mask": {0: "batch", 1: "key"},
    }
    inputs = {"query": query, "key": key, "value": value, "attention_mask": mask}
    return Attends(form, spread=spread), inputs, axes


def places() -> Made:
    torch.manual_seed(0)
    ids = torch.randint(V, (B, P))
    return Places(), {"ids": ids}, {"ids": {0: "batch", 1: "sequence"}}


def without_first_row(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same inputs, where the first row of the batch is nothing but padding."""
    mask = inputs["attention_mask"].clone()
    mask[0] = 0
    return inputs | {"attention_mask": mask}


def eager(module: nn.Module, inputs: dict[str, Tensor]) -> np.ndarray:
    with torch.no_grad():
        return module(**inputs).numpy()


def arrays(inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in inputs.items()}


def stock(made: Made, opset: int | None = None) -> bytes:
    """What `torch.onnx.export` makes of a module, with the same dynamic axes."""
    module, inputs, axes = made
    dims = {name: Dim(name) for dims in axes.values() for name in dims.values()}
    dynamic = {name: {axis: dims[dim] for axis, dim in named.items()} for name, named in axes.items()}
    with torch.no_grad(), _quiet():
        exported = torch.onnx.export(
            module.eval(), (), kwargs=inputs, dynamo=True, opset_version=opset, dynamic_shapes=dynamic, verbose=False
        )
    assert exported is not None
    return ir.to_proto(exported.model).SerializeToString()


def our_file(graph: GenericGraph, opset: int) -> bytes:
    return ir.to_proto(to_onnx(graph, opset=opset)).SerializeToString()


@cache
def our_attends(form: str, opset: int, *, spread: bool) -> bytes:
    return our_file(GenericGraph(*attends(form, spread=spread)), opset)


@cache
def stock_attends(form: str, opset: int, *, spread: bool) -> bytes:
    return stock(attends(form, spread=spread), opset)


def run(graph: bytes, inputs: dict[str, np.ndarray], level: ort.GraphOptimizationLevel = LEVELS[-1]) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def ours(made: Made, folder: Path, opset: int = 23, exported: bytes | None = None) -> Module:
    """The same module as a bundle, opened; `exported` is what `to_onnx` has made of it already."""
    module, inputs, axes = made
    graph = GenericGraph(module, inputs, axes)
    file = folder / "onnx" / "model.onnx"
    file.parent.mkdir()
    file.write_bytes(exported or our_file(graph, opset))
    write_manifest(folder, graph.config, graph.config.family, [graph], {"fp32": {"model": file}}, opset, gates=[])
    bundle = load(folder, provider="cpu")
    assert isinstance(bundle, Module)
    return bundle


# ------------------------------------------------ padding masks at opset 23


@pytest.mark.parametrize("form", MASKED)
def test_stock_a_padding_mask_at_opset_23_does_not_run(form: str) -> None:
    graph = stock_attends(form, 23, spread=False)
    _, inputs, _ = attends(form, spread=False)
    for level in LEVELS:
        with pytest.raises(Exception, match="inconsistent q_sequence_length"):
            run(graph, arrays(inputs), level)


@pytest.mark.parametrize("form", MASKED)
def test_ours_a_padding_mask_at_opset_23(form: str, tmp_path: Path) -> None:
    made = attends(form, spread=False)
    module, inputs, _ = made
    found = ours(made, tmp_path, exported=our_attends(form, 23, spread=False)).run(**arrays(inputs))["output"]
    np.testing.assert_allclose(found, eager(module, inputs), atol=ATOL, rtol=0)


# ------------------------------------------------ rows that may see nothing


def zeros(inputs: dict[str, Tensor]) -> np.ndarray:
    return np.zeros((N, S, H), np.float32)


def nans(inputs: dict[str, Tensor]) -> np.ndarray:
    return np.full((N, S, H), np.nan, np.float32)


def mean_of_values(inputs: dict[str, Tensor]) -> np.ndarray:
    return inputs["value"][0].mean(1, keepdim=True).expand(-1, S, -1).numpy()


Row = Callable[[dict[str, Tensor]], np.ndarray]
EAGER: dict[str, Row] = {"bool": zeros, "-inf": zeros, "finfo.min": mean_of_values}
STOCK: dict[tuple[str, int], Row] = {
    ("bool", 20): mean_of_values,
    ("-inf", 20): nans,
    ("finfo.min", 20): mean_of_values,
    ("bool", 23): zeros,
    ("-inf", 23): zeros,
    ("finfo.min", 23): zeros,
}
"""Form of mask and opset → what becomes of a row of nothing but padding; wrong in three of the six."""


def test_opset_20_is_the_stock_exporter_s_own_choice(stock_places: bytes) -> None:
    assert [(entry.domain, entry.version) for entry in ModelProto.FromString(stock_places).opset_import] == [("", 20)]


@pytest.mark.parametrize(("form", "opset"), STOCK, ids=str)
def test_stock_a_fully_masked_row(form: str, opset: int) -> None:
    module, inputs, _ = attends(form, spread=True)
    inputs = without_first_row(inputs)
    expected = eager(module, inputs)
    np.testing.assert_allclose(expected[0], EAGER[form](inputs), atol=ATOL, rtol=0)
    for level in LEVELS:
        found = run(stock_attends(form, opset, spread=True), arrays(inputs), level)
        np.testing.assert_allclose(found[0], STOCK[form, opset](inputs), atol=ATOL, rtol=0)
        np.testing.assert_allclose(found[1], expected[1], atol=ATOL, rtol=0)


@pytest.mark.parametrize("spread", [False, True], ids=["B11T", "B1ST"])
@pytest.mark.parametrize("opset", [23, 25])
@pytest.mark.parametrize("form", MASKED)
def test_ours_a_fully_masked_row(form: str, opset: int, spread: bool, tmp_path: Path) -> None:
    made = attends(form, spread=spread)
    module, inputs, _ = made
    bundle = ours(made, tmp_path, opset, our_attends(form, opset, spread=spread))
    inputs = without_first_row(inputs)
    expected = eager(module, inputs)
    np.testing.assert_allclose(bundle.run(**arrays(inputs))["output"], expected, atol=ATOL, rtol=0)
    for level in LEVELS:
        found = run((tmp_path / "onnx" / "model.onnx").read_bytes(), arrays(inputs), level)
        np.testing.assert_allclose(found, expected, atol=ATOL, rtol=0)


# ------------------------------------------------ what onnxruntime lets pass


@pytest.fixture(scope="module")
def stock_places() -> bytes:
    return stock(places())


@pytest.fixture(scope="module")
def our_places(tmp_path_factory: pytest.TempPathFactory) -> Module:
    return ours(places(), tmp_path_factory.mktemp("places"))


def test_stock_a_sequence_past_the_positions_is_cut(stock_places: bytes) -> None:
    module, _, _ = places()
    ids = torch.ones(B, P + 3, dtype=torch.int64)
    with pytest.raises(IndexError):
        eager(module, {"ids": ids})
    for level in LEVELS[:2]:
        with pytest.raises(Exception, match="indices element out of data bounds"):
            run(stock_places, {"ids": ids.numpy()}, level)
    for level in LEVELS[2:]:  # Range and Gather have become a Slice
        assert run(stock_places, {"ids": ids.numpy()}, level).shape == (B, P, H)


def test_ours_a_sequence_past_the_positions_is_refused(our_places: Module) -> None:
    with pytest.raises(InputError, match=r"^sequence is 11, but this model takes at most 8; shorten the input$"):
        our_places.run(ids=np.ones((B, P + 3), np.int64))
    assert our_places.run(ids=np.ones((B, P), np.int64))["output"].shape == (B, P, H)


def test_stock_a_negative_id_wraps(stock_places: bytes) -> None:
    module, _, _ = places()
    ids = np.array([[-1, 3, 5]])
    with pytest.raises(IndexError):
        eager(module, {"ids": torch.from_numpy(ids)})
    for level in LEVELS:
        found = run(stock_places, {"ids": ids}, level)
        np.testing.assert_array_equal(found, run(stock_places, {"ids": np.array([[V - 1, 3, 5]])}, level))


@pytest.mark.parametrize("token", [-1, -V, V])
def test_ours_a_negative_id_is_refused(our_places: Module, token: int) -> None:
    message = f"ids[0, 0] is {token}; ids must be in [0, {V})"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        our_places.run(ids=np.array([[token, 3, 5]]))


def swapped(inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """The same inputs, the queries in the other byte order."""
    given = arrays(inputs)
    return given | {"query": given["query"].astype(given["query"].dtype.newbyteorder())}


def test_stock_the_other_byte_order_is_read_as_garbage() -> None:
    module, inputs, _ = attends("bool", spread=True)
    expected, given = eager(module, inputs), swapped(inputs)
    np.testing.assert_array_equal(given["query"], inputs["query"].numpy())  # the same numbers
    for level in LEVELS:
        found = run(stock_attends("bool", 20, spread=True), given, level)
        assert found.shape == expected.shape
        assert not np.allclose(found, expected, atol=0.1)


def test_ours_the_other_byte_order_is_refused(tmp_path: Path) -> None:
    made = attends("bool", spread=True)
    with pytest.raises(InputError, match=r"^query is [<>]f4 in the other byte order, .* convert it with \.astype"):
        ours(made, tmp_path, exported=our_attends("bool", 23, spread=True)).run(**swapped(made[1]))
