"""The built-in texts: of different kinds, none of them in two, and no kind both chosen by and judged by."""

import json
from pathlib import Path

import numpy as np

import tfm.quantize.calibration.domains as domains
from tfm.quantize.calibration.domains import JUDGED, SEARCHED
from tfm.quantize.search.evaluator import similarity_stats

FOLDER = Path(domains.__file__).parent / "texts"


def texts_of(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]


def test_no_text_is_there_twice() -> None:
    files = sorted(FOLDER.glob("*.jsonl"))
    assert {file.stem for file in files} == {*SEARCHED, *JUDGED} - {"long", "repeated", "rare"}
    texts = [text for file in files for text in texts_of(file)]
    assert len(set(texts)) == len(texts) >= 600
    assert all(len(texts_of(file)) >= 64 for file in files)
    assert not set(SEARCHED) & set(JUDGED)


def test_similarities_that_keep_their_order_and_that_lose_it() -> None:
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((40, 16)).astype(np.float32)
    assert similarity_stats(exact, 3 * exact) == {"spearman": 1.0, "recall_at_10": 1.0}
    near = similarity_stats(exact, exact + 0.01 * rng.standard_normal(exact.shape).astype(np.float32))
    far = similarity_stats(exact, rng.standard_normal(exact.shape).astype(np.float32))
    assert 0.99 < near["spearman"] < 1  # type: ignore[operator]
    assert abs(far["spearman"]) < 0.2  # type: ignore[arg-type]
    assert far["recall_at_10"] < 0.5 < near["recall_at_10"]  # type: ignore[operator]
    assert similarity_stats(exact[:2], exact[:2])["spearman"] is None
