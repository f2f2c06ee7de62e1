"""What is put into the certificate as it is."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.support.planted_quantization import encoder_weights, planted
from tfm.bundle import PARITY_SCHEMA
from tfm.export import Tolerance
from tfm.export.certificate import certify
from tfm.export.source import Source


def certified(**more: Any) -> dict[str, Any]:
    subject = cast(Source, SimpleNamespace(family="bert", config=SimpleNamespace(kind="encoder"), parameters=7))
    nothing: dict[str, Any] = {"graphs": [], "fidelity": [], "latency": []}
    return certify("a.tfm", subject, {}, opset=23, tolerance=Tolerance(1e-5, 1e-5), **nothing, **more)


def test_quantization_is_put_in_as_it_is() -> None:
    entry = {"int8": planted(encoder_weights())}
    assert certified(quantization=entry)["quantization"] == entry


@pytest.mark.parametrize("more", [{}, {"quantization": None}, {"quantization": {}}])
def test_without_quantization_its_field_is_there_and_empty(more: dict[str, Any]) -> None:
    found = certified(**more)
    assert found["quantization"] == {}
    assert found["schema"] == PARITY_SCHEMA == 3
