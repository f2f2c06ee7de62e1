"""Bundles to quantize, made once, and a clock that is the same on every machine."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.support import toys
from tests.support.clock import make_steady
from tfm.bundle.manifest import Manifest, read_manifest
from tfm.quantize.storage import save_onnx

OUTLIER = "encoder.layers.0.feed_forward.linear2"
"""The op whose input has a channel 200 times as large as the others in the planted bundle."""


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    make_steady(monkeypatch)


@pytest.fixture(scope="session")
def exported_bundle(export_tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Manifest]:
    """The float32 bundle of a tiny model, without a tokenizer; `edit` changes its graphs."""
    from tfm.export.manifest import write_manifest

    def make(*, edit: Callable[[ir.Model], None] = lambda _: None, **options: Any) -> Manifest:
        folder = tmp_path_factory.mktemp("bundle") / "x.tfm"
        (folder / "onnx").mkdir(parents=True)
        exported, files = export_tiny(**options), {}
        for role, one in exported.items():
            model = ir.load(one.path)
            edit(model)
            files[role] = folder / "onnx" / f"{one.graph.file}.onnx"
            save_onnx(model, files[role])
        graphs = [one.graph for one in exported.values()]
        write_manifest(folder, graphs[0].model.config, "own", graphs, {"fp32": files}, 23, [])
        return read_manifest(folder)

    return make


@pytest.fixture(scope="session")
def planted(exported_bundle: Callable[..., Manifest]) -> Manifest:
    """An encoder with one layer whose hidden state has a channel 200 times as large as the rest, as `OUTLIER` says."""
    options = {"kind": "encoder", "d_model": 64, "nhead": 4, "dim_feedforward": 128}
    return exported_bundle(edit=plant, activation="relu", norm_first=True, **options)


def plant(model: ir.Model) -> None:
    for part, axis, factor in (("linear1", 1, 200.0), ("linear2", 0, 1 / 200.0)):
        products = (node for node in model.graph if node.op_type == "MatMul")
        (node,) = (n for n in products if n.metadata_props.get("tfm.op", "").endswith(f"feed_forward.{part}"))
        array = node.inputs[1].const_value.numpy().copy()
        array[(slice(None), 7) if axis else 7] *= factor
        node.inputs[1].const_value = ir.tensor(array, name=node.inputs[1].name)


@pytest.fixture
def module_bundle(tmp_path: Path) -> Callable[[ir.Model], Manifest]:
    """The bundle of a graph of a few nodes, as of any module."""

    def make(model: ir.Model, name: str = "m.tfm", **changes: Any) -> Manifest:
        folder = tmp_path / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "onnx").mkdir(parents=True)
        ir.save(model, folder / "onnx" / "model.onnx")
        sides = [[described(value) for value in side] for side in (model.graph.inputs, model.graph.outputs)]
        signature = {"model": {"inputs": sides[0], "outputs": sides[1], "max_length": {}}}
        graphs = {"fp32": {"model": "onnx/model.onnx"}}
        common = {"schema": 1, "family": "module", "config": {}, "max_text_tokens": None, "versions": {}, "opset": 23}
        values = {**common, "gates": [], "kind": "module", "graphs": graphs, "signature": signature, "generation": None}
        toys.write_manifest(folder, values | changes)
        return read_manifest(folder)

    return make


def described(value: ir.Value) -> dict[str, Any]:
    dtype = str(np.dtype(value.dtype.numpy()))
    names = {"B": "batch", "S": "sequence"}
    shape = [dim if isinstance(dim, int) else names[str(dim)] for dim in value.shape]
    return {"name": value.name, "dtype": dtype, "shape": shape} | ({"below": 32} if dtype.startswith("int") else {})
