"""The page of `tfm inspect` in headless Chromium: quiet, within the window, readable, and heads that open."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.pages import CONTRASTS, OVERFLOWING, SCHEMES, opened
from tfm.study.inspect import write_inspect

SIZES = {"phone": (390, 800), "desktop": (1280, 900)}
WORDS = ["[CLS]", "the", "animal", "did", "not", "cross", "the", "street", "because", "it", "was", "tired", "[SEP]"]
KINDS = ("encoder", "both", "deep", "long")


def stack(role: str, tokens: list[str], layers: int, heads: int, over: dict[str, int], spread: float) -> dict[str, Any]:
    """Figures that are well-formed, and as large as they come."""
    rng = np.random.default_rng(layers)
    count, names = len(tokens), [f"{role}.layers.{layer}" for layer in range(layers)]

    def per_token(low: float, high: float) -> dict[str, Any]:
        values = np.exp(rng.uniform(np.log(low), np.log(high), count))
        return {"mean": float(values.mean()), "tokens": values.tolist()}

    def head(index: int, keys: int) -> dict[str, Any]:
        label, share = (("previous token", 0.5 + 0.4 * rng.random()), ("", None), ("spread evenly", None))[index % 3]
        strongest = rng.integers(keys, size=count).tolist()
        return {"entropy": 1.23, "relative_entropy": 0.45, "strongest": strongest, "label": label, "share": share}

    return {
        "role": role,
        "ids": list(range(count)),
        "tokens": tokens,
        "attentions": [
            {"op": f"{name}.{kind}", "over": whose, "heads": [head(index, keys) for index in range(heads)]}
            for name in names
            for kind, (whose, keys) in zip(("self_attn", "cross_attn"), over.items(), strict=False)
        ],
        "feed_forwards": [
            {"op": f"{name}.feed_forward", "units": 1536, "dead": 0.001, "saturated": 0.58, "near_zero": 1, "zero": 0}
            for name in names
        ],
        "residual": {
            "start": per_token(1, spread),
            "sublayers": [
                {"op": f"{name}.{kind}", "norm": per_token(1, spread), "added": per_token(0.01, 2)}
                for name in names
                for kind in ("self_attn", "feed_forward")
            ],
        },
    }


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inspect")
    n = len(WORDS)
    stacks = {
        "encoder": [stack("encoder", WORDS, 3, 12, {"encoder": n}, 5)],
        "both": [
            stack("encoder", WORDS, 2, 4, {"encoder": n}, 3),
            stack("decoder", ["<s>", "x" * 60, "y"], 2, 4, {"decoder": 3, "encoder": n}, 40),
        ],
        "deep": [stack("model", WORDS, 30, 9, {"model": n}, 30000)],
        "long": [stack("model", [f"token{i}" for i in range(70)], 2, 5, {"model": 70}, 2)],
    }
    for name, found in stacks.items():
        content = {"schema": 1, "bundle": f"{name}.tfm", "kind": "encoder", "precision": "fp32", "activation": "gelu"}
        content |= {"text": " ".join(found[0]["tokens"]), "output": "y " * 9 if len(found) > 1 else None}
        content |= {"unseen": ["decoder.layers.9.self_attn: none of its nodes gives weights"], "stacks": found}
        lengths = {one["role"]: len(one["tokens"]) for one in found}
        rng = np.random.default_rng(0)
        maps = {
            one["op"]: rng.dirichlet(np.ones(lengths[one["over"]]), (len(one["heads"]), lengths[s["role"]])).astype(
                "f4"
            )
            for s in found
            for one in s["attentions"]
        }
        write_inspect(folder / f"{name}.html", content, maps)
    return {name: folder / f"{name}.html" for name in stacks}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", KINDS)
def test_it_fits_and_can_be_read(
    name: str, size: str, scheme: str, chromium: Any, pages: dict[str, Path], screenshots: Path
) -> None:
    with opened(chromium, pages[name], SIZES[size], scheme) as page:
        page.screenshot(path=screenshots / f"inspect_{name}_{size}_{scheme}.png", full_page=True)
        page.evaluate("document.querySelectorAll('details:not([name])').forEach(d => { d.open = true })")
        page.add_style_tag(content=".scroll{overflow:hidden!important}.scroll *{visibility:hidden}")
        outside = page.evaluate(OVERFLOWING.replace("!e.closest('.heard')", "!e.closest('.heard, .scroll')"))
        assert outside == []
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
        assert [entry for entry in page.evaluate(CONTRASTS) if entry[0] < 4.5] == []


@pytest.mark.parametrize("size", SIZES)
def test_labels_of_maps_are_large_enough(size: str, chromium: Any, pages: dict[str, Path]) -> None:
    """Text of 10 units is drawn at least so large: where a map has no room, it is scrolled."""
    with opened(chromium, pages["encoder"], SIZES[size]) as page:
        scales = page.evaluate(
            "[...document.querySelectorAll('.map')].filter(e => e.checkVisibility()).map(e => e.getScreenCTM().a)"
        )
    assert scales
    assert min(scales) >= 0.999


def test_choosing_a_head_shows_it_large(chromium: Any, pages: dict[str, Path]) -> None:
    """One head of an attention at a time, across the whole panel, with its tokens beside it."""
    with opened(chromium, pages["encoder"]) as page:
        heads = page.locator(".panels").first.locator(":scope > details")
        assert heads.count() == 12
        (before,) = page.evaluate(
            "[...document.querySelector('.panels').children].map((e, i) => e.open ? i : -1).filter(i => i >= 0)"
        )
        chosen = 5 if before != 5 else 6
        heads.nth(chosen).locator("summary").click()
        states = page.evaluate("[...document.querySelector('.panels').children].map(e => e.open)")
        assert [index for index, is_open in enumerate(states) if is_open] == [chosen]
        box, panel = heads.nth(chosen).bounding_box(), page.locator(".panels").first.bounding_box()
        assert box["width"] == pytest.approx(panel["width"], abs=1)
        assert heads.nth(chosen).locator("svg").is_visible()
        assert heads.nth(chosen).locator("li").count() == len(WORDS)


def test_the_map_lies_in_its_frame(chromium: Any, pages: dict[str, Path]) -> None:
    with opened(chromium, pages["both"]) as page:
        for svg in page.locator(".map").all():
            if not svg.is_visible():
                continue
            image, text = svg.locator("image").bounding_box(), svg.bounding_box()
            assert text["x"] < image["x"]
            assert text["y"] < image["y"]
            assert image["x"] + image["width"] <= text["x"] + text["width"] + 0.5
            assert image["y"] + image["height"] <= text["y"] + text["height"] + 0.5
