"""The other side of the planted defects: modules that are right, of many makings, none of which may be refused."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from tests.support.right_models import MODELS
from tfm.export import to_onnx, verify
from tfm.export.generic.graph import GenericGraph
from tfm.export.generic.lengths import lengthen
from tfm.export.verify.fidelity import _cosines
from tfm.export.verify.samples import cases

DAILY = {"an unused pooler", "several outputs", "a scalar", "masked by a boolean"}
"""What was refused before; the others are for `make test-slow`."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in DAILY else [pytest.mark.slow]) for name in MODELS]
)
def test_right_and_passes(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    graph = GenericGraph(*MODELS[name]())
    if name not in DAILY:  # as a factory's, which takes longer
        lengthen(graph)
    ir.save(to_onnx(graph), tmp_path / "model.onnx")
    report = verify(graph, tmp_path / "model.onnx", cases(graph))
    faults = [part.fault for part in (*report.ops, *report.outputs) if not part.passed]
    assert not faults
    assert report.passed


def test_there_are_enough() -> None:
    assert len(MODELS) >= 40


@pytest.mark.parametrize(
    ("found", "expected", "mean"),
    [
        ([[1.0, 0.0], [0.0, 0.0]], [[2.0, 0.0], [0.0, 0.0]], 1.0),  # a row of padding
        ([[1.0, 0.0], [1e-9, 0.0]], [[2.0, 0.0], [0.0, 0.0]], 0.5),  # zero on one side alone
        ([[0.0, 0.0]], [[0.0, 0.0]], 0.0),  # nothing was proved
        (3.0, 2.0, 1.0),
        (-3.0, 2.0, -1.0),
    ],
)
def test_cosines_of_zero_rows_and_of_numbers(found: Any, expected: Any, mean: float) -> None:
    assert _cosines(np.array(found), np.array(expected)).mean() == pytest.approx(mean)
