"""The page as text: nothing that failed is hidden, everything is named, and it refers to nothing else."""

import copy
import functools
import html.parser
import itertools
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tfm.errors import BundleError
from tfm.report import ActivationCurve, write_report

VOID = {"meta", "link", "img", "br", "rect", "circle", "path", "image"}
NAMES = ("encoder", "failing", "encoder_decoder", "big", "null_everything", "long_names")


class Page(html.parser.HTMLParser):
    """The elements of a page, its text, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @functools.cached_property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture
def page(tmp_path: Path) -> Any:
    def write(certificate: dict[str, Any], **more: Any) -> Page:
        write_report(tmp_path / "report.html", certificate, **more)
        return Page((tmp_path / "report.html").read_text(encoding="utf-8"))

    return write


@pytest.mark.parametrize("name", NAMES)
def test_the_page_is_whole(page: Any, samples: SimpleNamespace, name: str) -> None:
    found = page(getattr(samples, name)(), maps=samples.attention_maps(2, 3), curves=samples.activation_curves())
    assert not found.unbalanced
    assert not found.open
    ids = [attrs["id"] for _, attrs in found.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in found.elements:
        for key in ("aria-labelledby", "href"):
            if (attrs.get(key) or "").startswith("#") or key == "aria-labelledby":
                assert attrs.get(key) is None or attrs[key].lstrip("#") in ids
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(
        attrs.get("aria-label") if attrs.get("role") == "img" else attrs["aria-hidden"] for attrs in found.of("svg")
    )
    assert all(attrs.get("scope") for attrs in found.of("th"))
    assert all(attrs.get("alt") for attrs in found.of("img"))
    assert found.of("table")
    assert len(found.of("caption")) == len(found.of("table"))


@pytest.mark.parametrize("name", NAMES)
def test_the_page_refers_to_nothing_else(page: Any, samples: SimpleNamespace, name: str) -> None:
    found = page(getattr(samples, name)(), maps=samples.attention_maps(2, 3), curves=samples.activation_curves())
    assert not found.of("script")
    assert not [attrs for _, attrs in found.elements if any(key.startswith("on") for key in attrs)]
    links = [
        attrs[key] for _, attrs in found.elements for key in ("href", "src", "xlink:href", "data") if attrs.get(key)
    ]
    assert [link for link in links if not link.startswith(("#", "data:"))] == []


def test_every_op_and_figure_is_in_the_page(page: Any, samples: SimpleNamespace) -> None:
    for name in ("encoder", "encoder_decoder", "big"):
        certificate = getattr(samples, name)()
        found = page(certificate)
        labels = {(attrs.get("aria-label") or "").split(": own ")[0] for attrs in found.of("svg")}
        for graph in certificate["graphs"]:
            for op in graph["ops"]:
                assert op["op"] in labels
                assert op["source"] in found.text
            for output in graph["outputs"]:
                assert re.sub(r"\.\d+\.", ".*.", output["name"]) in found.text


def test_a_row_says_its_figures(page: Any, samples: SimpleNamespace) -> None:
    certificate = samples.encoder()
    op = certificate["graphs"][0]["ops"][7]
    for key, value in (("own", 7.2e-7), ("inherited", 1.1e-6), ("free", 2.5e-6), ("optimized", 2.6e-6)):
        op[key]["max_abs"] = value
    quantized = certificate["graphs"][1]["ops"][7]
    quantized["own"]["max_abs"] = 7.2e-7
    for key, value in (("own", 141.4), ("inherited", 38.0), ("free", -0.6), ("optimized", 36.0)):
        quantized[key]["snr_db"] = value
    labels = {attrs["aria-label"] for attrs in page(certificate).of("svg") if attrs.get("aria-label")}
    assert (
        f"{op['op']}: own 7.2e−7 ≤ 1.6e−5, inherited 1.1e−6, in place 2.5e−6 ≤ 4.0e−4, optimized 2.6e−6 ≤ 4.0e−4"
        in labels
    )
    assert f"{op['op']}: own 141 dB 7.2e−7 ≤ 1.6e−5, inherited 38 dB, in place −1 dB, optimized 36 dB" in labels


def test_what_passed_is_said_first(page: Any, samples: SimpleNamespace) -> None:
    found = page(samples.encoder())
    assert "Verified all-MiniLM-L6-v2.tfm 12 attention and activation ops, in fp32 and int8" in found.text
    assert "✗" not in found.text
    assert "12 of 12" in found.text


def test_the_first_fault_is_said_first_with_its_source(page: Any, samples: SimpleNamespace) -> None:
    found = page(samples.failing())
    begin = found.text.index("Not verified")
    fault = "activation encoder.layers.2.feed_forward.activation off by itself by 4.7e−4, more than 1.6e−5"
    assert found.text.index(fault) < begin + 100
    assert f"{fault} model · fp32 · CPU · tfm/model/transformer.py:61" in found.text
    assert "5 of 12" in found.text
    faults = sum(bool(entry["fault"]) for g in samples.failing()["graphs"] for entry in (*g["ops"], *g["outputs"]))
    assert f"{faults - 1} more faults" in found.text


def test_the_certificate_decides_which_fault_is_first(page: Any, samples: SimpleNamespace) -> None:
    certificate = samples.failing()
    graph = certificate["graphs"][0]
    other = next(op for op in graph["ops"] if op["op"] == "attention encoder.layers.4.self_attn")
    graph |= {"first_fault": f"{other['op']}: {other['fault']}", "first_failed": {"op": other["op"]}}
    text = page(certificate).text
    assert text.index(other["op"]) < text.index("activation encoder.layers.2.feed_forward.activation")
    graph |= {"first_fault": "the whole graph cannot be run: no such file", "first_failed": None}
    assert "First fault the model graph the whole graph cannot be run: no such file" in page(certificate).text


def test_a_fault_is_not_taken_for_one_whose_name_begins_likewise(page: Any, samples: SimpleNamespace) -> None:
    certificate = samples.failing()
    graph = certificate["graphs"][0]
    names = ("attention a.1", "attention a.1 1", "attention a.10", "attention a.1.b")
    for op, name in zip(graph["ops"], names, strict=False):
        op |= {"op": name, "passed": False, "fault": "off", "source": f"{name}.py"}
    for name in names:
        graph |= {"first_fault": f"{name}: off", "first_failed": {"op": name}}
        assert f"First fault {name} off model · fp32 · CPU · {name}.py" in page(certificate).text


def test_an_output_may_be_the_first_fault(page: Any, samples: SimpleNamespace) -> None:
    certificate = samples.failing()
    graph = certificate["graphs"][0]
    output = graph["outputs"][-1]
    graph["first_failed"] = {"output": output["name"], "level": output["level"]}
    assert f"First fault output {output['name']} ({output['level']}) off by 2.0e−3" in page(certificate).text


def test_what_an_older_certificate_says_in_words_is_not_taken_apart(page: Any, samples: SimpleNamespace) -> None:
    certificate = samples.failing()
    graph = certificate["graphs"][0]
    del graph["first_failed"]
    first = next(op for op in graph["ops"] if op["fault"])
    graph["first_fault"] = f"{[op for op in graph['ops'] if op['fault']][-1]['op']}: off"
    assert f"First fault {first['op']} off by itself" in page(certificate).text
    certificate["speed"][1]["said"] = "1.2 times as fast, perhaps"
    assert "as fast as eager PyTorch, in int8 5.3× 95 % interval 4.6–6.2" in page(certificate).text


def hide(change: Any) -> Any:
    return pytest.param(change, id=re.sub(r"\W+", "_", change.__doc__ or "")[:40])


def first_op(certificate: dict[str, Any]) -> dict[str, Any]:
    return certificate["graphs"][0]["ops"][7]


def says_it_failed(c: Any) -> str:
    """the certificate failed, and does not say why"""
    c["passed"] = False
    return "nothing in it says why"


def graph_failed(c: Any) -> str:
    """a graph failed, and does not say why"""
    c["graphs"][1]["passed"] = False
    return "the model graph it failed, and nothing in it says why model · int8"


def op_failed_without_reason(c: Any) -> str:
    """an op failed without a reason"""
    first_op(c)["passed"] = False
    return f"{first_op(c)['op']} failed, without a reason given"


def op_past_its_limit(c: Any) -> str:
    """an op past its limit that says it passed"""
    first_op(c)["own"]["max_abs"] = 1.0
    return f"{first_op(c)['op']} off by 1.0e0, more than 1.6e−5"


def op_in_place_is_nan(c: Any) -> str:
    """an op that is NaN in place and says it passed"""
    first_op(c)["free"]["max_abs"] = None
    return f"{first_op(c)['op']} NaN or infinity"


def op_optimized_is_nan(c: Any) -> str:
    """an op that is NaN once optimized and says it passed"""
    c["graphs"][1]["ops"][7]["optimized"]["max_abs"] = math.nan
    return f"{first_op(c)['op']} NaN or infinity"


def output_past_its_limit(c: Any) -> str:
    """an output past its limit that says it passed"""
    c["graphs"][0]["outputs"][5]["max_abs"] = 1.0
    return "output sentence_embedding (extended) off by 1.0e0, more than 7.3e−5"


def layer_around_failed(c: Any) -> str:
    """a folded layer failed"""
    c["graphs"][1]["ops"][1] |= {"passed": False, "fault": "its weights differ"}
    return "linear encoder.layers.0.linear_0 its weights differ"


def fidelity_failed(c: Any) -> str:
    """the task failed"""
    c["fidelity"][1]["passed"] = False
    return "cosine in int8 0.9924 on sentence embeddings"


def fidelity_below(c: Any) -> str:
    """the task is below its floor, and says it passed"""
    c["fidelity"][1]["value"] = 0.5
    return "cosine in int8 0.5 on sentence embeddings"


def no_graphs(c: Any) -> str:
    """nothing was compared"""
    c["graphs"] = []
    return "it holds no graph: nothing was compared"


def no_outputs(c: Any) -> str:
    """a graph without outputs"""
    c["graphs"][0]["outputs"] = []
    return "the model graph nothing was compared in it"


def no_verdict(c: Any) -> str:
    """passed is no boolean"""
    c["passed"] = "false"
    return "nothing in it says why"


@pytest.mark.parametrize(
    "change",
    [
        hide(f)
        for f in (
            says_it_failed,
            graph_failed,
            op_failed_without_reason,
            op_past_its_limit,
            op_in_place_is_nan,
            op_optimized_is_nan,
            output_past_its_limit,
            layer_around_failed,
            fidelity_failed,
            fidelity_below,
            no_graphs,
            no_outputs,
            no_verdict,
        )
    ],
)
def test_no_failure_is_hidden(page: Any, samples: SimpleNamespace, change: Any) -> None:
    certificate = samples.encoder()
    expected = change(certificate)
    text = page(certificate).text
    assert "Not verified all-MiniLM-L6-v2.tfm First fault" in text
    assert expected in text


def test_a_curve_past_its_limit_is_a_fault(page: Any, samples: SimpleNamespace) -> None:
    wrong = ActivationCurve(name="gelu", x=[0.0, 1.0], y=[0.0, 0.8], error=[0.0, math.nan], limit=1e-6)
    assert "First fault the sweep of gelu off by ∞, more than 1.0e−6" in page(samples.encoder(), curves=[wrong]).text


def test_a_quantized_op_that_matches_perfectly_is_not_a_broken_one(page: Any, samples: SimpleNamespace) -> None:
    certificate = samples.encoder()
    own, free = (certificate["graphs"][1]["ops"][7][key] for key in ("own", "free"))
    own |= {"max_abs": 0.0, "nmse": 0.0, "snr_db": None}
    free |= {"max_abs": 0.1, "nmse": None, "snr_db": None}  # where zeros were expected
    labels = [attrs["aria-label"] or "" for attrs in page(certificate).of("svg") if "aria-label" in attrs]
    (label,) = [label for label in labels if label.startswith(f"{first_op(certificate)['op']}: own ∞ dB 0 ≤")]
    assert "in place −∞ dB" in label


def test_text_of_the_certificate_stays_text(page: Any, samples: SimpleNamespace) -> None:
    certificate = samples.failing()
    evil = "<script>alert(1)</script>\"'><b onclick=x>"
    certificate["name"] = evil
    first_op(certificate).update(op=evil, source=evil, path=f"layers.0.{evil}", fault=evil, passed=False)
    certificate["tolerances"][0]["reason"] = evil
    certificate["files"] = {evil: {"size": 1, "sha256": evil}}
    maps = samples.attention_maps(1, 1, (evil, "b"))
    found = page(certificate, maps=maps)
    assert not found.of("script")
    assert not found.of("b") or all("onclick" not in attrs for attrs in found.of("b"))
    assert not found.unbalanced
    assert evil in found.text


def test_kinds_that_are_not_known_are_not_folded_away(page: Any, samples: SimpleNamespace) -> None:
    certificate = samples.encoder()
    for op in certificate["graphs"][0]["ops"]:
        op["kind"] = "novel"
    assert "layers around them" not in page(certificate).text.split("model · int8 · CPU")[0]


def test_ops_that_became_the_same_are_one_row_of_the_fusion_report(page: Any, samples: SimpleNamespace) -> None:
    text = page(samples.encoder()).text.split("Fusion: what each op became")[1]
    assert "6 × attention" in text
    assert "BiasGelu was slower than Gelu" in text
    assert "compared at view_3" in text


def test_what_was_not_judged_is_said(page: Any, samples: SimpleNamespace) -> None:
    """And the speed is that of the smallest that was timed."""
    certificate = samples.encoder()
    certificate["sizes"]["fp16"] = 100
    assert "as fast as eager PyTorch, in int8 5.3× 95 % interval 4.6–6.2, one thread" in page(certificate).text
    certificate["not_judged"] = ["The speed of fp16 was <i>not judged."]
    found = page(certificate)
    assert "The speed of fp16 was <i>not judged." in found.text.split("Speed and size")[-1]
    del certificate["not_judged"]  # as older exports
    assert "not judged" not in page(certificate).text


SLOWER = {"ratio": 0.5, "low": 0.4, "high": 0.625, "verdict": "slower", "said": "slower 2.0× (1.6–2.5)"}
SAME = {"ratio": 1.1, "low": 0.9, "high": 1.4, "verdict": "no difference shown", "said": "no difference shown"}
NOISY = {"ratio": 8.0, "low": 3.0, "high": 29.9, "verdict": "too noisy", "said": "too noisy"}


@pytest.mark.parametrize(
    ("ratio", "tile"),
    [
        (SLOWER, "the time of eager PyTorch, in int8 2.0× 95 % interval 1.6–2.5, one thread"),
        (SAME, "no difference shown between the time of int8 and eager PyTorch — one thread"),
        (NOISY, "too noisy a machine to compare int8 with eager PyTorch — one thread"),
    ],
)
def test_a_speed_without_an_interval_that_shows_it_is_not_claimed(
    page: Any, samples: SimpleNamespace, ratio: dict[str, Any], tile: str
) -> None:
    certificate = samples.encoder()
    certificate["speed"][1].update(ratio)
    for line in certificate["latency"]:
        line["ratios"]["int8"] = ratio
    text = page(certificate).text
    assert tile in text
    assert "as fast as" not in text
    assert text.count(ratio["said"]) >= 2  # beside each time
    assert "verified" in text.split("First fault")[0]


def test_where_eager_was_not_timed_fp32_is_compared_with(page: Any, samples: SimpleNamespace) -> None:
    certificate = samples.encoder()
    certificate["speed"] = certificate["speed"][-1:]
    assert "as fast as fp32, in int8 2.8× 95 % interval 2.4–3.3" in page(certificate).text


def test_of_an_older_certificate_times_alone_are_shown(page: Any, samples: SimpleNamespace) -> None:
    certificate = samples.encoder()
    del certificate["speed"]
    for line in certificate["latency"]:
        del line["baseline"], line["ratios"]
    text = page(certificate).text
    assert "as fast as" not in text
    assert "7.92 ms" in text.split("Speed and size")[-1]


def test_what_is_slower_than_fp32_is_a_fault(page: Any, samples: SimpleNamespace) -> None:
    """Also on a noisy machine, and whatever the certificate says of itself."""
    certificate = samples.encoder()
    certificate["speed"][2].update(NOISY, low=0.4, high=0.625)
    text = page(certificate).text
    assert "First fault the speed of int8 it takes 1.6 to 2.5 times as long as fp32 (95 % interval)" in text
    certificate["speed"][2].update(high=1.0)
    assert "First fault" not in page(certificate).text


@pytest.mark.parametrize("schema", [1, 4, None, "2", "3"])
def test_another_schema_is_refused(tmp_path: Path, samples: SimpleNamespace, schema: object) -> None:
    certificate = copy.deepcopy(samples.encoder()) | {"schema": schema}
    with pytest.raises(BundleError, match=r"schema 2 or 3, and this one is of schema .*: export the bundle anew"):
        write_report(tmp_path / "report.html", certificate)
    assert not (tmp_path / "report.html").exists()


def test_a_big_model_gives_a_page_that_opens(tmp_path: Path, samples: SimpleNamespace) -> None:
    certificate = samples.big()
    assert sum(len(graph["ops"]) for graph in certificate["graphs"]) == 2 * (1 + 30 * 10)
    write_report(
        tmp_path / "r.html", certificate, maps=samples.attention_maps(30, 9), curves=samples.activation_curves()
    )
    assert (tmp_path / "r.html").stat().st_size < 1.5e6
