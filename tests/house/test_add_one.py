"""What is added often is one entry or one file: each of these tests adds one, and touches nothing else.

A quantization method is added in tests/quantize/test_add_method.py."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfm.export import activation_curve, verify
from tfm.export.sweeps import groups, sweep
from tfm.export.verify.samples import cases
from tfm.model import FAMILIES, TransformerConfig, load_checkpoint, make_activation
from tfm.ops import ACTIVATIONS, GATED, Activation, GatedActivation, activation_names, derivative_of
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
