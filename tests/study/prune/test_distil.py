"""Distillation: that it learns, what it leaves alone, and what it refuses."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from tfm.errors import VerificationError
from tfm.model import Transformer
from tfm.study.prune import choose_by_count, distil, mean_cosine, measure_importance, output_loss, remove

MakeModel = Callable[..., Transformer]
GENERATOR = torch.Generator().manual_seed(0)
MASK = (torch.arange(6) < torch.tensor([[6], [4], [6], [2]])).long()
BATCHES = [(torch.randint(19, (4, 6), generator=GENERATOR), MASK) for _ in range(24)]
TRAIN, HELD_OUT = BATCHES[:20], BATCHES[20:]
POOLED = {"kind": "encoder", "pooling": "mean", "normalize": True}


def cut(model: Transformer) -> Transformer:
    importance = measure_importance(model, [output_loss(ids, mask, GENERATOR) for ids, mask in TRAIN[:4]])
    return remove(model, choose_by_count(model, importance, heads=1, units=16))


@pytest.mark.parametrize("options", [POOLED, {"kind": "encoder"}], ids=["embeddings", "states"])
def test_it_comes_nearer_to_the_original(make_model: MakeModel, options: dict[str, object]) -> None:
    original = make_model(**options)
    before = {name: value.clone() for name, value in original.state_dict().items()}
    told: list[tuple[int, int, float]] = []
    smaller = cut(original)
    start = mean_cosine(smaller, original, HELD_OUT)
    distil(smaller, original, TRAIN, steps=200, learning_rate=1e-2, progress=lambda *step: told.append(step))
    end = mean_cosine(smaller, original, HELD_OUT)
    assert 1 - end < 0.75 * (1 - start)  # measured: 0.38 and 0.61 of it
    assert [done for done, _, _ in told] == list(range(1, 201))
    assert told[-1][2] < told[0][2]
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
    assert not smaller.training


def test_it_is_reproducible(make_model: MakeModel) -> None:
    original = make_model(**POOLED)
    start, found = cut(original), []
    for seed in (0, 0, 1):
        smaller = copy.deepcopy(start)
        distil(smaller, original, TRAIN, steps=8, seed=seed)
        found.append(smaller.encoder.layers[0].feed_forward.linear1.weight)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_the_cosine_is_that_of_real_tokens_alone(make_model: MakeModel) -> None:
    original, other = make_model(**POOLED), make_model(1, **POOLED)
    padded = [(ids, mask) for ids, mask in HELD_OUT[:1]]
    rows = [(ids[row : row + 1, :length], torch.ones(1, length, dtype=torch.int64))
            for ids, mask in padded for row, length in enumerate(mask.sum(1).tolist())]  # fmt: skip
    cosines = []
    for ids, _ in rows:
        with torch.no_grad():
            pair = [F.normalize(m(ids).mean(1), dim=-1) for m in (original, other)]
        cosines.append((pair[0] * pair[1]).sum().item())
    assert mean_cosine(other, original, padded) == pytest.approx(sum(cosines) / 4, abs=1e-6)
    assert mean_cosine(original, original, padded) == pytest.approx(1.0, abs=1e-6)


def test_nothing_to_learn_from_or_to_compare_is_refused(make_model: MakeModel) -> None:
    model = make_model(**POOLED)
    with pytest.raises(VerificationError, match="needs a batch and a step, but has 0 and 5"):
        distil(model, model, [], steps=5)
    with pytest.raises(VerificationError, match="the cosine of 0 embeddings cannot be told"):
        mean_cosine(model, model, [])
    broken = make_model(**POOLED)
    with torch.no_grad():
        broken.encoder.layers[0].feed_forward.linear2.bias[0] = float("nan")
    with pytest.raises(VerificationError, match="NaN in one"):
        mean_cosine(broken, model, HELD_OUT)
    with pytest.raises(VerificationError, match="the loss is nan at step 1"):
        distil(broken, model, TRAIN, steps=2)
