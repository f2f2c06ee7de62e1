"""Weights too large for one protobuf message lie beside it, and everything works all the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfm.export.bundle as bundle
import tfm.quantize.storage as storage
from tfm.errors import BundleError
from tfm.export import export_checkpoint
from tfm.model import save_checkpoint
from tfm.runtime import load


def test_bundle_with_weights_outside(make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "LIMIT", 0)
    monkeypatch.setattr(bundle, "measure_latency", lambda *_: [])
    save_checkpoint(make_model(kind="encoder", activation="gelu", vocab_size=100), tmp_path / "model.pt")
    report = export_checkpoint(tmp_path / "model.pt", tmp_path / "x.tfm")
    assert report.passed, report.faults()
    weights = tmp_path / "x.tfm" / "onnx" / "model.onnx_data"
    assert weights.stat().st_size > 0
    assert report.sizes["fp32"] == weights.stat().st_size + weights.with_suffix(".onnx").stat().st_size
    ids = np.ones((1, 3), np.int64)
    for precision in ("fp32", "int8"):
        found = load(tmp_path / "x.tfm", precision=precision).run(input_ids=ids, attention_mask=ids)
        assert np.isfinite(found["last_hidden_state"]).all()
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx_data"):
        load(tmp_path / "x.tfm", precision="fp32")
