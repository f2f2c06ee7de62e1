"""What is added often is one entry or one file: each of these tests adds one, and touches nothing else.

A quantization method is added in tests/quantize/test_add_method.py."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from tfm.export import activation_curve, to_onnx, verify
from tfm.export.generic.graph import GenericGraph
from tfm.export.graphs import Value
from tfm.export.sweeps import groups, sweep
from tfm.export.sweeps.run import GROUPS
from tfm.export.sweeps.subjects import Case, Check, Group, OpGraph, Source
from tfm.export.verify.samples import cases
from tfm.model import FAMILIES, TransformerConfig, load_checkpoint, make_activation
from tfm.ops import (
    ACTIVATIONS,
    GATED,
    KINDS,
    Activation,
    GatedActivation,
    OpKind,
    Tolerance,
    activation_names,
    derivative_of,
    tolerance_table,
)
from tfm.report.bars import chart
from tfm.study.activations.table import tabulate


@pytest.fixture
def relu6(monkeypatch: pytest.MonkeyPatch) -> None:
    """An activation that the registry does not have, and a gated one of it."""
    entry = Activation(
        formula="min(max(x, 0), 6)",
        source="Krizhevsky 2010",
        oracle=lambda x: np.clip(x, 0.0, 6.0),
        derivative=lambda x: ((x > 0) & (x < 6)).astype(np.float64),
        module="ReLU6",
        aliases=("clipped_relu",),
    )
    monkeypatch.setitem(ACTIVATIONS, "relu6", entry)
    monkeypatch.setitem(GATED, "re6glu", GatedActivation(gate="relu6", formula="v min(max(g, 0), 6)", source="here"))


@pytest.mark.usefixtures("relu6")
@pytest.mark.parametrize("name", ["relu6", "re6glu"])
def test_an_activation_is_an_entry(export_tiny: Any, name: str) -> None:
    assert name in activation_names()
    assert TransformerConfig(vocab_size=3, d_model=2, nhead=1, activation=name).activation == name
    for made in export_tiny(activation=name).values():  # exported, and verified as every other
        report = verify(made.graph, made.path, cases(made.graph))
        assert report.passed, report.first_fault
        assert any(str(op.op).startswith("activation") for op in report.ops)
    assert name in groups()["activations"]  # swept against its oracle, over the whole domain
    assert sweep([name], levels=["all"]).passed
    curve = activation_curve(name)
    assert max(curve.error) < 1e-6
    slope = derivative_of(name)
    assert slope is not None
    assert slope(np.array([-1.0, 3.0, 7.0])).tolist() == [0.0, 1.0, 0.0]
    (row,) = tabulate([name], timing=False).rows  # and studied
    assert row.definition is (GATED.get(name) or ACTIVATIONS[name])


def test_an_activation_by_another_name(relu6: None, tmp_path: Path, hugging_face_bert: Any) -> None:
    """What Hugging Face's configurations call it needs no table of any family."""
    model = load_checkpoint(hugging_face_bert(tmp_path, hidden_act="clipped_relu"))
    assert model.config.activation == "relu6"
    assert type(make_activation("relu6")).__name__ == "ReLU6"


def test_a_family_is_a_function(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hugging_face_bert: Any) -> None:
    """One file of model/families and its line in `FAMILIES`: folders of that model_type are then read."""
    folder = hugging_face_bert(tmp_path)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"model_type": "bert"', '"model_type": "newbert"'))
    monkeypatch.setitem(FAMILIES, "newbert", FAMILIES["bert"])
    assert load_checkpoint(folder).config.num_encoder_layers == 1


class Block(nn.Module):
    """A convolution by each of the two ways to pad, and an activation: what is promised of a graph."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv1d(3, 4, 3, padding=1), nn.Conv1d(4, 2, 5, padding="same", bias=False)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.second(self.first(x)))


def convolved(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """One channel in float64, by numpy's own convolution, which turns its second argument round."""
    return np.convolve(x.astype(np.float64), weight[::-1].astype(np.float64), mode="same")


def conv_sweep(name: str, dtypes: tuple[str, ...], full: bool) -> list[Source]:
    del full
    torch.manual_seed(0)
    x, y = (Value(name=name, dtype="float32", shape=("batch", 1, "length")) for name in ("x", "y"))
    module = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def cases(graph: OpGraph, dtype: str) -> Any:
        fed = np.random.default_rng(0).standard_normal((1, 1, 21)).astype(np.float32)
        expected = convolved(fed[0, 0], module.weight.detach().numpy()[0, 0])[None, None]
        yield Case(feeds=(fed,), checks=(Check(form="padded", output="y", expected=expected, where="21 entries"),))

    made = OpGraph(module, (x,), (y,), lambda generator, batch, length, past: [torch.randn(batch, 1, length + 5)])
    limits = {"float32": Tolerance(1e-6, 1e-6, "three products")}
    return [Source(group="convolutions", op=name, tolerances=limits, title=name, make=lambda: made, cases=cases)]


@pytest.fixture
def conv(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions as a kind of op that is verified, and their sweep."""
    kind = OpKind(
        functions=("nn.functional.conv1d",),
        aten=("aten.conv1d.default", "aten.convolution.default"),  # the second where padding is said in words
        is_layer=True,
        tolerance=Tolerance(2e-6, 4e-6, "As of a linear layer: a sum of products in another order."),
    )
    monkeypatch.setitem(KINDS, "conv", kind)
    monkeypatch.setitem(GROUPS, "convolutions", Group(names=lambda: ("conv",), subjects=conv_sweep))


@pytest.mark.usefixtures("conv")
def test_a_verified_kind_is_an_entry(tmp_path: Path) -> None:
    graph = GenericGraph(Block(), {"x": torch.randn(2, 3, 9)}, {"x": {0: "batch", 2: "time"}})
    model, path = to_onnx(graph), tmp_path / "model.onnx"
    ir.save(model, path)
    inputs = [graph.sample(torch.Generator().manual_seed(seed), 2, 7) for seed in range(2)]
    report = verify(graph, path, inputs)
    assert report.passed, report.first_fault
    found = {str(op.op): op for op in report.ops}
    assert list(found) == ["conv first", "conv second", "activation act"]  # watched in eager, named in the graph
    assert [found[name].form for name in ("conv first", "conv second")] == ["Conv", "Conv"]
    for op in (found["conv first"], found["conv second"]):  # its weights, itself, in place, and as onnxruntime has it
        assert op.is_layer
        assert op.weights == "identical"
        assert op.own.count == op.free.count > 0
        assert op.own_limit is not None
        assert op.own.max_abs <= op.own_limit < 1e-4
    drawn = chart(report.to_dict(), "g0")  # the report shows it among the layers
    assert [row.words.split()[0] for _, rows in drawn.around for row in rows] == ["conv", "conv"]
    assert "conv, by itself" in [row["what"] for row in tolerance_table()]  # and the certificate its tolerance
    # What is wrong in it is found there, not at the activation behind it.
    weight = next(value for value in model.graph.initializers.values() if value.shape == (2, 4, 5))
    assert weight.const_value is not None
    array = weight.const_value.numpy().copy()
    array[0, 0, 0] = np.nextafter(array[0, 0, 0], np.inf)
    weight.const_value = ir.tensor(array, name=weight.name)
    ir.save(model, path)
    fault = verify(graph, path, inputs).first_fault
    assert fault.startswith("conv second: its weights are not eager's: 1 of 40 numbers differ")


@pytest.mark.usefixtures("conv")
def test_a_sweep_is_an_entry() -> None:
    assert groups()["convolutions"] == ("conv",)
    found = sweep(["conv"], levels=["all"])
    assert found.passed, found.faults()
    assert sum(op.count for op in found.ops) == 21
