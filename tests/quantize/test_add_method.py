"""A quantization method is one class: once it is among `METHODS` it is proposed, written, measured, and replayed."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest

import tfm.quantize.methods.registry as registry
import tfm.quantize.search.candidates as candidates
from tests.quantize.test_tune import tuned
from tests.support.small_graphs import graph_of
from tfm.bundle import Manifest
from tfm.quantize import Observed, Recipe
from tfm.quantize.methods.edit import initializer, replace
from tfm.quantize.methods.hessian import Hessian
from tfm.quantize.methods.method import Method, Situation, method_to_json
from tfm.quantize.methods.ops import Op

pytestmark = pytest.mark.usefixtures("steady")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Halved(Method):
    """Weights in half precision, widened where they are read."""

    form: ClassVar = "halved"
    keep: int = 11

    def __str__(self) -> str:
        return f"halved to {self.keep} bits"

    def write(self, graph: ir.Graph, op: Op, observed: Mapping[str, Observed], hessian: Hessian | None) -> str:
        half = initializer(graph, f"{op.weight.name}_half", op.values.astype(np.float16))
        for use in op.uses:
            wide = ir.node("Cast", [half], {"to": ir.DataType.FLOAT})
            product = ir.node(use.node.op_type, [use.x, wide.outputs[0]], name=use.node.name)
            replace(graph, use.node, [wide, product])
        return str(self)

    @classmethod
    def proposals(cls, op: Op, situation: Situation) -> Sequence[Method]:
        return [cls()] if op.kinds == ["matmul"] else []

    @classmethod
    def fits(cls, name: str, value: Any) -> bool:
        return type(value) is int


def test_a_method_is_a_class(module_bundle: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (registry, candidates):
        monkeypatch.setattr(module, "METHODS", [registry.Float32, registry.Dynamic, Halved])
    bundle = module_bundle(graph_of("bias"))
    found = tuned(bundle, max_drop=1e-6)  # which eight bits do not keep
    (op,) = found.report["ops"]
    assert op["method"] == "halved to 11 bits"
    assert 0 < found.report["drop"] < 1e-6
    (values,) = (method_to_json(method) for method in found.recipe.methods["model"].values())
    assert values == {"form": "halved", "keep": 11}
    recipe = Recipe(precision="int8", methods={"model": {op["weight"]: registry.method_from_json(values, "here")}})
    again = tuned(bundle, max_drop=1e-6, recipe=recipe)
    assert ir.to_proto(again.models["model"]) == ir.to_proto(found.models["model"])
