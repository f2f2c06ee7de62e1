"""The options of quantizing: one object inside, the same fields as keywords where a user calls."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from tfm.bundle import Manifest
from tfm.errors import QuantizeError
from tfm.export import export_checkpoint
from tfm.quantize import QuantizeKeywords, QuantizeOptions, quantize, quantize_bundle, tune


def test_the_keywords_are_the_fields() -> None:
    fields = {field.name: field.type for field in dataclasses.fields(QuantizeOptions)}
    assert fields == QuantizeKeywords.__annotations__


@pytest.mark.parametrize("value", [-1e-9, math.inf, math.nan])
def test_a_budget_that_is_none(value: float) -> None:
    with pytest.raises(QuantizeError, match="max_drop must be a number of at least 0, but is"):
        QuantizeOptions(max_drop=value)


def test_what_makes_no_sense_is_said_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="objective must be one of size, speed, but is 'time'"):
        quantize_bundle(tmp_path / "nosuch.tfm", objective="time")
    with pytest.raises(QuantizeError, match="search must be one of full, quick, none, but is 'fast'"):
        quantize_bundle(tmp_path / "nosuch.tfm", search="fast")
    with pytest.raises(QuantizeError, match="max_drop must be a number"):
        export_checkpoint(tmp_path / "nosuch.pt", tmp_path / "out.tfm", max_drop=-1.0)


def test_an_argument_that_is_a_field_now_is_named() -> None:
    nothing: Any = None  # it is refused before anything is looked at
    manifest: Manifest = nothing
    with pytest.raises(QuantizeError, match=r"QuantizeOptions now: quantize\(…, options=QuantizeOptions\(calib=…\)\)"):
        quantize(manifest, Path("nosuch"), calib=Path("texts.txt"))
    with pytest.raises(QuantizeError, match=r"QuantizeOptions now: tune\(…, options=QuantizeOptions\(max_drop=…\)\)"):
        tune(manifest, nothing, [], [], max_drop=0.1)
    with pytest.raises(QuantizeError, match="quantize has no argument 'maxdrop'"):
        quantize(manifest, Path("nosuch"), maxdrop=0.1)
