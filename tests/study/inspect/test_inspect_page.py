"""inspect.html: maps, bars and lines where the figures say, nothing from elsewhere, and tokens that are no markup."""

import base64
import copy
import re
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfm.errors import BundleError
from tfm.report.numbers import length
from tfm.study.inspect.inspect_page import draw_attention, draw_axes, name_heads, write_inspect
from tfm.study.inspect.inspect_stream import draw_stream

TOKENS = ["<s>", "a", "<i>b</i>"]


def head(label: str = "", share: float | None = None, relative: float | None = 0.5) -> dict[str, Any]:
    return {"entropy": 0.69, "relative_entropy": relative, "strongest": [0, 0, 1], "label": label, "share": share}


def tokens_of(*values: float | None) -> dict[str, Any]:
    found = [value for value in values if value is not None]
    return {"mean": sum(found) / len(found) if len(found) == len(values) else None, "tokens": list(values)}


WEIGHTS = np.array([[[1, 0, 0], [0.75, 0.25, 0], [0.125, 0.5, 0.375]]] * 2, np.float32)
STACK: dict[str, Any] = {
    "role": "model",
    "ids": [1, 4, 5],
    "tokens": TOKENS,
    "attentions": [{"op": "layers.0.self_attn", "over": "model", "heads": [head(), head("first token", 0.625)]}],
    "feed_forwards": [{"op": "l.0.ff", "units": 1536, "dead": 0.25, "saturated": 0.5, "near_zero": 0.125, "zero": 0.0}],
    "residual": {
        "start": tokens_of(10.0, 10.0, 10.0),
        "sublayers": [
            {"op": "d.layers.0.self_attn", "norm": tokens_of(20.0, 10.0, 0.0), "added": tokens_of(0.5, 1.0, 0.0)},
            {"op": "d.layers.0.feed_forward", "norm": tokens_of(40.0, 30.0, 20.0), "added": tokens_of(1.0, 2.0, None)},
        ],
    },
}
CONTENT: dict[str, Any] = {
    "schema": 1,
    "bundle": "<b>x</b>.tfm",
    "kind": "encoder",
    "precision": "fp32",
    "activation": "gelu",
    "text": "a <u>b</u>",
    "output": None,
    "unseen": ["layers.1.attn: <u>none</u>"],
    "stacks": [STACK],
}
MAPS = {"layers.0.self_attn": WEIGHTS}


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def written(folder: Path, content: dict[str, Any] = CONTENT, maps: Any = MAPS) -> Page:
    write_inspect(folder / "inspect.html", content, maps)
    return Page((folder / "inspect.html").read_text(encoding="utf-8"))


def opacity(uri: str) -> np.ndarray:
    """The last channel of a picture, decoded here."""
    content = base64.b64decode(uri.partition(",")[2])
    width, height = struct.unpack(">II", content[16:24])
    data = zlib.decompress(content[content.index(b"IDAT") + 4 : content.index(b"IEND") - 8])
    return np.frombuffer(data, np.uint8).reshape(height, 1 + 4 * width)[:, 4::4]


def test_it_refers_to_nothing_else(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "object", "u")]
    anchors = {attributes.get("id") for _, attributes in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src"):
                assert value is not None
                assert value.startswith("data:") or value[1:] in anchors, tag
    assert "http" not in (tmp_path / "inspect.html").read_text(encoding="utf-8").replace("http-equiv", "")
    for said in ("<b>x</b>.tfm: a look inside", "a <u>b</u>", "layers.1.attn: <u>none</u>", "<i>b</i>"):
        assert said in page.text


def test_what_it_says(tmp_path: Path) -> None:
    text = re.sub(r"\s+", " ", written(tmp_path).text)
    for said in (
        "entropy 50 % · 1 first token, 1 mixed",
        "2 · first token 62.5 %",
        "1 · mixed",
        "entropy 0.69 nats, 50 %",
        "a → <s>75.0 %",
        "<i>b</i> → a50.0 %",
        "1 of 2",
        "1,536 units",
        "25.0 %",
        "40 at “<s>”",
    ):
        assert said in text, said
    assert ", model" not in text


def test_maps_show_the_weights() -> None:
    axes = draw_axes("x", TOKENS, TOKENS)
    panel = draw_attention(STACK["attentions"][0], WEIGHTS, TOKENS, TOKENS, axes, True)
    np.testing.assert_allclose(opacity(panel.heads[0].picture) / 255, WEIGHTS[0], atol=0.5 / 255)
    assert [one.open for one in panel.heads] == [False, True]  # the one that has a name
    assert panel.heads[1].strongest == (("<s>", "<s>", "100 %"), ("a", "<s>", "75.0 %"), ("<i>b</i>", "a", "50.0 %"))
    assert [label.text for label in axes.rows] == TOKENS
    assert (axes.shape, axes.cut, axes.width, axes.height) == ((3, 3), "", 42, 42)


def test_of_a_long_text_the_beginning_is_shown() -> None:
    axes = draw_axes("x", ["q"] * 50, ["k"] * 70)
    assert (axes.shape, axes.rows) == ((50, 64), ())
    assert axes.cut == "Shown: the first 50 of 50 queries and 64 of 70 keys."
    weights = np.zeros((1, 50, 70), np.float32)
    weights[:, :, 69] = 0.9  # out of sight
    weights[:, :, 3] = 0.1
    attention = {"op": "x", "over": "model", "heads": [{**head(), "strongest": [69] * 50}]}
    (picture,) = draw_attention(attention, weights, ["q"] * 50, [str(i) for i in range(70)], axes, True).heads
    shown = opacity(picture.picture)
    assert shown.shape == (50, 64)
    assert set(np.flatnonzero(shown[0])) == {3}
    assert picture.strongest[0] == ("q", "69", "90.0 %")


def test_long_tokens_are_cut() -> None:
    axes = draw_axes("x", ["x" * 90], ["y"])
    assert [label.text for label in (*axes.rows, *axes.columns)] == ["xxxxxxxxx…", "y"]
    assert axes.left > axes.top


def test_the_stream_lies_where_its_figures_say() -> None:
    stream = draw_stream(STACK)
    assert [label for _, label in stream.axis.ticks] == ["0", "10", "20", "30", "40"]
    assert stream.lines[0] == ("M0.0 75.0L50.0 50.0L100.0 0.0", "<s>")
    assert stream.mean == "M0.0 75.0L50.0 75.0L100.0 25.0"
    assert stream.x_ticks == ((0.0, "in"), (50.0, "0"))
    assert [(point.x, point.style, point.words) for point in stream.added] == [
        (50.0, "attention", "d.layers.0.self_attn: 0.5×"),
        (100.0, "feed-forward", "d.layers.0.feed_forward: ∞"),
    ]
    assert stream.rows[0] == ("d.layers.0.self_attn", "10", "20 at “<s>”", "0.5×")


def test_a_wide_stream_has_a_log_axis() -> None:
    stack = copy.deepcopy(STACK)
    for step, value in zip(stack["residual"]["sublayers"], (1000.0, 10.0), strict=True):
        step["norm"] = tokens_of(value, 10.0, 10.0)
    stream = draw_stream(stack)
    assert [label for _, label in stream.axis.ticks] == ["1", "10", "100", "1000"]
    assert stream.lines[0][0].startswith("M0.0 66.7L50.0 0.0L100.0 66.7")


def test_of_many_layers_some_are_named() -> None:
    stack = copy.deepcopy(STACK)
    step = stack["residual"]["sublayers"][0]
    stack["residual"]["sublayers"] = [{**step, "op": f"d.layers.{layer}.self_attn"} for layer in range(30)]
    assert [label for _, label in draw_stream(stack).x_ticks] == ["in", "4", "8", "12", "16", "20", "24", "28"]


def test_kinds_of_sublayers() -> None:
    stack = copy.deepcopy(STACK)
    step = stack["residual"]["sublayers"][0]
    ops = ["d.layers.0.cross_attn", "d.layers.0.self_attn + d.layers.0.feed_forward", "encoder.layer.0.output"]
    stack["residual"]["sublayers"] = [{**step, "op": op} for op in ops]
    assert [point.style for point in draw_stream(stack).added] == ["cross-attention", "both", "feed-forward"]


def test_what_was_not_seen_is_left_out(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    content["stacks"][0] |= {"attentions": [], "feed_forwards": [], "residual": {"start": None, "sublayers": []}}
    page = written(tmp_path, content, {})
    assert not [tag for tag, _ in page.tags if tag in ("h2", "table", "img")]


def test_a_head_without_a_choice(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    content["stacks"][0]["attentions"][0]["heads"] = [head(relative=None), head(relative=None)]
    assert "entropy 0.69 nats, —" in written(tmp_path, content).text


def test_names_are_counted_the_most_first() -> None:
    labels = ["", "itself", "first token", "first token", ""]
    assert name_heads([head(label) for label in labels]) == "2 first token, 1 itself, 2 mixed"


@pytest.mark.parametrize(("value", "text"), [(995.4, "995"), (21763.2, "21,763"), (3.14159, "3.14"), (None, "∞")])
def test_lengths(value: float | None, text: str) -> None:
    assert length(value) == text


def test_another_schema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="of schema 1, and this one is of schema 2: look again"):
        write_inspect(tmp_path / "x.html", {**CONTENT, "schema": 2}, MAPS)
    assert list(tmp_path.iterdir()) == []
