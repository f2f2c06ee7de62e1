"""The table of other tools' checks: every defect is in it, once, and an op can be named right."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import yardsticks

from tests.support.defects import DEFECTS
from tests.support.planting import MODELS

REPO = Path(__file__).parents[2]


def test_each_defect_is_in_one_class() -> None:
    classified = Counter(name for members in yardsticks.CLASSES.values() for name in members)
    assert set(classified) == set(DEFECTS)
    assert set(classified.values()) == {1}


@pytest.mark.parametrize("model", ["encoder", "llama"])
def test_what_a_defect_must_be_named_is_where_a_value_can_lie(
    export_tiny: Callable[..., dict[str, Any]], model: str
) -> None:
    options, role = MODELS[model]
    places = set().union(*yardsticks.places_of(ir.load(export_tiny(**options)[role].path)).values())
    wanted = {yardsticks.op_of(d.named) for name, d in DEFECTS.items() if d.model == model}
    wanted.discard("activation encoder.layers.9.feed_forward.activation")  # of the op that eager does not have
    assert wanted <= places


def test_a_value_of_no_op_lies_where_it_leads_to(export_tiny: Callable[..., dict[str, Any]]) -> None:
    options, role = MODELS["encoder"]
    model = ir.load(export_tiny(**options)[role].path)
    places = yardsticks.places_of(model)
    attentions = [node for node in model.graph if node.op_type == "Attention"]
    names = {f"attention encoder.layers.{i}.self_attn" for i in range(2)}
    assert places[str(attentions[0].inputs[3].name)] == names  # the mask, which both read
    assert places[str(attentions[1].outputs[0].name)] == {"attention encoder.layers.1.self_attn"}
    assert places["sentence_embedding"] == {"output sentence_embedding"}


@pytest.mark.parametrize(
    ("named", "op"),
    [
        ("output present.0.key (disabled): off by", "output present.0.key"),
        ("linear pooler: its weights are not eager's", "linear pooler"),
        ("softmax : off by itself", "softmax "),
        ("activation decoder: no node of the graph computes it", "activation decoder"),
    ],
)
def test_the_op_at_the_head_of_a_fault(named: str, op: str) -> None:
    assert yardsticks.op_of(named) == op


def test_the_docs_have_the_tables_that_were_measured() -> None:
    found = json.loads(yardsticks.RESULTS.read_text(encoding="utf-8"))
    page = (REPO / "docs" / "verification.md").read_text(encoding="utf-8")
    for table in yardsticks.tables(found).split("\n\n"):
        assert table in page
    for package, version in found["versions"].items():
        assert f"{package} {version}" in page
