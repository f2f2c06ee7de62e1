"""activations.html: the derivative is drawn where it belongs, figures are as they are, and names are no markup."""

import copy
import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tfm.errors import BundleError, VerificationError
from tfm.report import ActivationCurve
from tfm.report.curves import plot
from tfm.study.activations import write_activations


def speed(rows: int, **changes: Any) -> dict[str, Any]:
    common = {"rows": rows, "width": 1536, "microseconds": 2.5, "noise": 0.02}
    nothing = dict.fromkeys(["relative", "low", "high", "verdict", "said"])
    return common | nothing | changes


def error(**changes: Any) -> dict[str, Any]:
    figures = {"max_abs": 4.5e-7, "limit": 1e-6, "torch_max_abs": 1e-7, "where": "x = -5.075", "compared": 10}
    return figures | {"passed": True} | changes


def ratio(**changes: Any) -> dict[str, Any]:
    figures = {"db": 40.25, "low": 39.7, "high": 40.6, "beside_relu": None, "verdict": None, "said": None}
    return figures | changes


def activation(name: str, **changes: Any) -> dict[str, Any]:
    values = {
        "activation": name,
        "gated": False,
        "formula": "x < <b>1</b>",
        "source": "A & B 2000",
        "exported": ["com.microsoft.QuickGelu"],
        "optimized": ["com.microsoft.QuickGelu"],
        "kernels": [{"op": "Softplus", "provider": "CPUExecutionProvider"}, {"op": "Mul", "provider": "CPU"}],
        "errors": {"float32": error(), "float16": error(max_abs=0.0)},
        "speed": [speed(1), speed(128, microseconds=2071.4, verdict="slower", said="slower 123× (122–127)")],
        "sqnr": {
            "per_tensor": ratio(verdict="no difference shown", said="no difference shown"),
            "per_token": ratio(db=None, low=None, high=None),
        },
        "fault": "",
    }
    return values | changes


CONTENT: dict[str, Any] = {
    "schema": 1,
    "passed": True,
    "made": {"date": "2026-01-02", "machine": "a processor", "system": "a system", "load": 0.5, "versions": {"a": "1"}},
    "rounds": 15,
    "call_microseconds": 1.94,
    "inputs": {"source": "normal", "about": "normal inputs, not a <i>model's</i>"},
    "warnings": [],
    "activations": [activation("relu"), activation("gelu")],
}


def curve(name: str, derivative: tuple[float, ...] = (0.0, 1.0, 3.0)) -> ActivationCurve:
    return ActivationCurve(
        name=name, x=[-1, 0, 1], y=[-1, 0, 1], error=[0, 1e-8, 1e-7], limit=1e-6, derivative=derivative
    )


CURVES = [curve("relu"), curve("gelu")]


class Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def written(folder: Path, content: dict[str, Any] = CONTENT) -> Page:
    write_activations(folder / "activations.html", content, CURVES)
    return Page((folder / "activations.html").read_text(encoding="utf-8"))


def points(path: str) -> list[tuple[float, ...]]:
    return [tuple(map(float, point.split())) for point in re.split("[ML]", path)[1:]]


def test_the_derivative_is_drawn_on_the_axes_of_the_function() -> None:
    """Between -1 and 3, on 110 units of height: a quarter of them for each step of 1."""
    drawn = plot(curve("x"))
    assert points(drawn.curve) == [(0.0, 110.0), (150.0, 82.5), (300.0, 55.0)]
    assert points(drawn.derivative) == [(0.0, 82.5), (150.0, 55.0), (300.0, 0.0)]


def test_a_picture_without_derivative_is_what_it_was() -> None:
    drawn = plot(curve("x", ()))
    assert drawn.derivative == ""
    assert points(drawn.curve) == [(0.0, 110.0), (150.0, 55.0), (300.0, 0.0)]


def test_a_derivative_that_is_none_is_left_out_of_the_picture() -> None:
    drawn = plot(curve("x", (0.0, float("nan"), float("inf"))))
    assert points(drawn.derivative) == [(0.0, 55.0)]
    with pytest.raises(VerificationError, match="2 derivatives at 3 x"):
        curve("x", (0.0, 1.0))


def test_the_points_of_a_derivative_stay_with_theirs_when_x_is_sorted() -> None:
    turned = dataclasses.replace(curve("x"), x=[1, 0, -1], y=[1, 0, -1], derivative=[3.0, 1.0, 0.0])
    assert plot(turned).derivative == plot(curve("x")).derivative


def test_it_refers_to_nothing_else(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert not [tag for tag, _ in page.tags if tag in ("script", "img", "iframe", "object")]
    anchors = {attributes.get("id") for _, attributes in page.tags}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src"):
                assert value == "data:," or str(value).removeprefix("#") in anchors
    assert "http" not in (tmp_path / "activations.html").read_text(encoding="utf-8").replace("http-equiv", "")
    assert "x < <b>1</b>" in page.text
    assert "not a <i>model's</i>" in page.text
    assert "A & B 2000" in page.text


def test_what_it_says(tmp_path: Path) -> None:
    text = written(tmp_path).text
    for said in (
        "1.9 µs of each is the call of onnxruntime",
        "medians of 15 interleaved rounds",
        "4.5e−7at x = −5.075",
        "0nowhere off",
        "2,071slower 123× (122–127)",
        "2.50",
        "40.2 (39.7–40.6)no difference shown",
        "exported asQuickGelu",
        "kernels that ranSoftplus · Mul",
    ):
        assert said in text, said
    assert text.count("slower 123×") == 4  # of two activations, in the table and at each
    assert "✗" not in text


def test_without_times_it_says_so(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT) | {"rounds": 0, "call_microseconds": None}
    for values in content["activations"]:
        values["speed"] = []
    page = written(tmp_path, content)
    assert "Times were not taken." in page.text
    assert "µs" not in page.text


def test_a_fault_and_a_warning_stand_first(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT) | {"passed": False, "warnings": ["busy"]}
    content["activations"][1] |= {"fault": "gelu, float32: off", "errors": {"float32": error(passed=False)}}
    page = written(tmp_path, content)
    assert page.text.index("✗ gelu, float32: off") < page.text.index("busy") < page.text.index("Side by side")
    failed = [attributes for _, attributes in page.tags if "failed" in (attributes.get("class") or "").split()]
    assert len(failed) == 2  # the row, and the card
    assert failed[1]["id"] == "a-gelu"


def test_what_it_cannot_be_written_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="schema 1, and these are of schema 2: measure anew"):
        write_activations(tmp_path / "x.html", CONTENT | {"schema": 2}, CURVES)
    with pytest.raises(BundleError, match=r"the curves are of \['gelu', 'relu'\]"):
        write_activations(tmp_path / "x.html", CONTENT, CURVES[::-1])
    assert not (tmp_path / "x.html").exists()
