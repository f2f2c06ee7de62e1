"""docs/parity.md documents every field of the certificate, and none that it does not have."""

import copy
from typing import Any

import pytest


@pytest.mark.parametrize("name", ["encoder", "failing", "encoder_decoder"])
def test_the_document_says_what_a_certificate_holds(samples: Any, problems: Any, name: str) -> None:
    assert problems(getattr(samples, name)()) == []


def test_where_nothing_was_quantized_there_is_an_empty_object(samples: Any, problems: Any) -> None:
    certificate = samples.encoder() | {"quantization": {}}
    assert problems(certificate) == []
    certificate["quantization"] = None
    assert problems(certificate)[0] == "quantization is None, documented as object"
    del certificate["quantization"]
    assert "quantization is documented, and not there" in problems(certificate)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda c: c.update(extra=1), "extra is not documented"),
        (lambda c: c.pop("family"), "family is documented, and not there"),
        (lambda c: c["graphs"][0]["ops"][0]["own"].update(ulp=3), "graphs[].ops[].own.ulp is not documented"),
        (lambda c: c["graphs"][1]["ops"][0]["kernel"].update(best=1), "graphs[].ops[].kernel.best is 1"),
        (lambda c: c.update(passed=None), "passed is None"),
        (lambda c: c["graphs"][0]["ops"][0].update(own=None), "graphs[].ops[].own is not documented"),
        (lambda c: c["sizes"].update(int8="22 MB"), "sizes.* is '22 MB'"),
        (lambda c: c["quantization"]["int8"].update(budget=1), "quantization.*.budget is not documented"),
        (lambda c: c["quantization"]["int8"].pop("front"), "quantization.*.front[].drop is documented, and not there"),
        (lambda c: c["quantization"]["int8"]["ops"][0].update(shape=[1.5]), "quantization.*.ops[].shape[] is 1.5"),
        (lambda c: c["files"]["onnx/model.onnx"].update(md5=""), "files.*.md5 is not documented"),
    ],
)
def test_a_field_that_drifts_is_noticed(samples: Any, problems: Any, change: Any, problem: str) -> None:
    certificate = copy.deepcopy(samples.encoder())
    change(certificate)
    assert any(found.startswith(problem) for found in problems(certificate)), problems(certificate)
