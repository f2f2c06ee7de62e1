"""How the comparison of encoders takes rows, and judges what it is given."""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders import compare, docstring_sentences, ranks

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "peers"))
import encoder_worker
from encoder_worker import Way, batches

ROWS = [[7, 8], [1], [3, 4, 5], [2], [9, 9, 9, 9]]


def opened(embed: Any, **job: Any) -> encoder_worker.Engine:
    engine = encoder_worker.Engine.__new__(encoder_worker.Engine)
    engine._job = {"threads": 1, "side_by_side": False, "whole": False, **job}
    engine._opened, engine._chosen = {}, {}
    engine._open = lambda streams: embed
    return engine


def test_every_row_is_in_one_batch_padded_to_the_longest() -> None:
    parts = batches(ROWS, 2)
    assert [places for places, _, _ in parts] == [[4, 2], [0, 1], [3]]
    for places, ids_BS, mask_BS in parts:
        assert ids_BS.dtype == mask_BS.dtype == np.int64
        for place, ids_S, mask_S in zip(places, ids_BS, mask_BS, strict=True):
            padding = ids_BS.shape[1] - len(ROWS[place])
            assert ids_S.tolist() == ROWS[place] + [0] * padding
            assert mask_S.tolist() == [1] * len(ROWS[place]) + [0] * padding


@pytest.mark.parametrize("way", [Way(1, 1), Way(2, 1), Way(5, 1), Way(2, 2)])
def test_embeddings_keep_their_rows(way: Way) -> None:
    engine = opened(lambda ids_BS, mask_BS: (ids_BS * mask_BS).sum(axis=1))
    found = {}
    for places, sums_B in engine.run(way, batches(ROWS, way.size)):
        found.update(zip(places, sums_B.tolist(), strict=True))
    assert found == {place: sum(row) for place, row in enumerate(ROWS)}


def test_the_fastest_way_is_taken() -> None:
    def costs_by_call(ids_BS: Any, mask_BS: Any) -> Any:
        time.sleep(0.004)
        return ids_BS

    def costs_by_padding(ids_BS: Any, mask_BS: Any) -> Any:
        time.sleep(0.0003 * ids_BS.size)
        return ids_BS

    rows = [[1] * 50, [1] * 50, *[[1]] * 18]  # by 1, 8 and 20 at once: 20, 3 and 1 calls, 118, 412 and 1000 tokens
    assert opened(costs_by_call).best("w", rows, 1) == Way(20, 1)
    assert opened(costs_by_padding).best("w", rows, 1) == Way(1, 1)
    assert opened(costs_by_padding, threads=2, side_by_side=True).best("w", rows, 1) == Way(1, 2)
    assert opened(costs_by_padding, whole=True).best("w", rows, 1) == Way(20, 1)


def test_fidelity_is_1_of_the_same_and_less_of_another() -> None:
    exact_ND = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    same = compare("same", 3 * exact_ND, exact_ND)  # length does not count
    assert same == pytest.approx({"mean": 1, "minimum": 1, "spearman": 1}, abs=1e-12)
    exact_ND[0] *= -1
    other = compare("other", exact_ND * [1] * 8, np.where(np.arange(40)[:, None] == 0, -exact_ND, exact_ND))
    assert other["minimum"] == pytest.approx(-1, abs=1e-12)
    assert other["mean"] == pytest.approx(38 / 40, abs=1e-12)
    assert other["spearman"] < 1


@pytest.mark.parametrize("broken", [np.full((4, 3), np.nan), np.full((4, 3), np.inf), np.ones((3, 3))])
def test_embeddings_that_are_none_are_refused(broken: Any) -> None:
    with pytest.raises(SystemExit, match="a peer gives embeddings"):
        compare("a peer", broken.astype(np.float32), np.ones((4, 3), np.float32))


def test_equal_values_share_a_rank() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_there_are_sentences_enough() -> None:
    found = docstring_sentences()
    assert len(found) == len(set(found)) > 2000
    assert all(text[0].isupper() and text.endswith(".") and len(text) < 400 for text in found)
