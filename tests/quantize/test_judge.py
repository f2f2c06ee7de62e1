"""How far a quantized model is from float32: both measures by their definitions, and what must never pass."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tests.support import toys
from tfm.bundle.manifest import Manifest, Signature, TensorSpec, read_manifest
from tfm.errors import QuantizeError
from tfm.quantize.bundle import runs_of
from tfm.quantize.calibration.read import read_calibration
from tfm.quantize.search.evaluator import Evaluator, Loss, measure_of

Array = np.ndarray
D, B, S = 6, 3, 4


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Manifest]:
    made: dict[str, Manifest] = {}

    def get(kind: str) -> Manifest:
        if kind not in made:
            made[kind] = read_manifest(toys.write_bundle(tmp_path_factory.mktemp("toy") / kind, kind))
        return made[kind]

    return get


def spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape, below=None)


@dataclasses.dataclass
class Samples:
    """One batch, without a calibration."""

    feeds: Mapping[str, Array]
    description: str = "1 batch"
    domain: str = "samples"
    are_apart: bool = True

    def batches(self, role: str, batch_size: int, *, in_order: bool = False) -> Any:
        return iter([self.feeds])


@pytest.fixture
def judged(toy: Callable[[str], Manifest]) -> Callable[..., Loss]:
    """The drop from one set of outputs to another of a module that has these."""

    def drop(exact: Mapping[str, Array], found: Mapping[str, Array], feeds: Mapping[str, Array] | None = None) -> Loss:
        outputs = tuple(spec(name, *array.shape, dtype=str(array.dtype)) for name, array in exact.items())
        signature = {"model": Signature(inputs=(spec("x", "batch", D),), outputs=outputs, max_length={})}
        manifest = dataclasses.replace(toy("encoder"), kind="module", signature=signature)
        samples: Any = Samples(feeds or {})
        evaluator = Evaluator(
            manifest, [samples], {"model": lambda names, _: {n: exact[n] for n in names}}, batch_size=1
        )
        return evaluator.drop({"model": lambda names, _: {n: found[n] for n in names}})

    return drop


def rows(seed: int, *shape: int, scale: float = 1.0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


# ------------------------------------------------ the measures


@pytest.mark.parametrize("nmse", [1e-4, 1e-2, 1.0])
def test_cosine(judged: Callable[..., Loss], nmse: float) -> None:
    exact, found = rows(0, B, S, D), rows(0, B, S, D) + rows(1, B, S, D, scale=nmse)
    pairs = zip(exact.reshape(-1, D).astype(float), found.reshape(-1, D).astype(float), strict=True)
    gaps = [scipy.spatial.distance.cosine(e, f) for e, f in pairs]
    drop = judged({"y": exact}, {"y": found})
    assert drop.value == pytest.approx(np.mean(gaps), rel=1e-6, abs=1e-15)
    assert drop.least == pytest.approx(1 - max(gaps), abs=1e-12)
    assert drop.flips is None


@pytest.mark.parametrize("nmse", [1e-3, 0.3, 5.0])
def test_divergence_and_flips(judged: Callable[..., Loss], nmse: float) -> None:
    exact, found = rows(0, B, S, D, scale=3), rows(0, B, S, D, scale=3) + rows(1, B, S, D, scale=nmse)
    p, q = (scipy.special.softmax(array.reshape(-1, D).astype(float), axis=-1) for array in (exact, found))
    drop = judged({"logits": exact}, {"logits": found})
    assert drop.value == pytest.approx(scipy.stats.entropy(p, q, axis=-1).mean(), rel=1e-6)
    assert drop.flips == (p.argmax(-1) != q.argmax(-1)).mean()
    assert drop.least is None


def test_nothing_lost_is_0(judged: Callable[..., Loss]) -> None:
    for name in ("y", "logits"):
        exact = rows(0, B, S, D, scale=50)
        assert judged({name: exact}, {name: exact.copy()}).value == 0
    assert judged({"y": np.zeros((B, D), np.float32)}, {"y": np.zeros((B, D), np.float32)}).value == 0


def test_large_vocabularies_are_compared_in_parts(judged: Callable[..., Loss], monkeypatch: pytest.MonkeyPatch) -> None:
    exact, found = {"logits": rows(0, 7, D)}, {"logits": rows(1, 7, D)}
    whole = judged(exact, found)
    monkeypatch.setattr("tfm.quantize.search.evaluator._CHUNK", 2 * D)
    parts = judged(exact, found)
    assert (parts.value, parts.flips) == (pytest.approx(whole.value, rel=1e-12), whole.flips)


def test_several_outputs_count_by_their_rows(judged: Callable[..., Loss]) -> None:
    exact = {"a": rows(0, 2, D), "b": rows(1, 8, D), "n": np.arange(4)}
    found = {"a": -exact["a"], "b": exact["b"], "n": np.zeros(4)}
    drop = judged(exact, found)
    assert drop.value == pytest.approx(2 * 2 / 10)  # opposite rows are 2 apart; integers do not count
    assert drop.least == pytest.approx(-1)


def test_an_embedding_or_logits_decide_alone(judged: Callable[..., Loss]) -> None:
    exact = {"last_hidden_state": rows(0, B, S, D), "sentence_embedding": rows(1, B, D)}
    found = exact | {"last_hidden_state": -exact["last_hidden_state"]}
    assert judged(exact, found).value == 0


def test_padding_does_not_count(judged: Callable[..., Loss]) -> None:
    exact, mask = rows(0, 2, 4, D), np.array([[1, 1, 0, 0], [1, 1, 1, 1]])
    found = exact.copy()
    found[0, 2:] = np.nan
    assert judged({"y": exact}, {"y": found}, {"attention_mask": mask}).value == 0
    found[1, 3] *= -1
    assert judged({"y": exact}, {"y": found}, {"attention_mask": mask}).value == pytest.approx(2 / 6)
    pooled = rows(0, 2, D)  # not by position: every row counts
    assert judged({"y": pooled}, {"y": -pooled}, {"attention_mask": mask}).value == pytest.approx(2)


# ------------------------------------------------ what is no number


@pytest.mark.parametrize("name", ["y", "logits"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_number_that_is_none_among_very_many_is_as_far_as_can_be(
    judged: Callable[..., Loss], name: str, bad: float
) -> None:
    exact = rows(0, 5000, D)
    found = exact.copy()
    found[4321, 2] = bad
    assert judged({name: exact}, {name: found}).value == math.inf
    assert judged({name: found}, {name: exact}).value == math.inf


def test_infinities_at_the_same_places_say_nothing(judged: Callable[..., Loss]) -> None:
    exact = rows(0, 4, D)
    exact[:, 1] = -np.inf
    assert judged({"y": exact}, {"y": exact.copy()}).value == 0
    assert judged({"logits": exact}, {"logits": exact.copy()}).value == 0
    found = exact.copy()
    found[2, 1] = 3.0  # what float32 rules out: by the definition of the divergence, no term of it but of the sum
    p, q = (scipy.special.softmax(array.astype(float), axis=-1) for array in (exact, found))
    assert judged({"logits": exact}, {"logits": found}).value == pytest.approx(
        scipy.stats.entropy(p, q, axis=-1).mean()
    )
    assert judged({"logits": found}, {"logits": exact}).value == math.inf
    assert judged({"y": exact}, {"y": found}).value == math.inf


@given(st.lists(st.floats(width=32), min_size=D, max_size=D), st.lists(st.floats(width=32), min_size=D, max_size=D))
def test_no_numbers_give_a_drop_that_is_none(
    toy: Callable[[str], Manifest], one: list[float], other: list[float]
) -> None:
    exact, found = np.array([one], np.float32), np.array([other], np.float32)
    for name in ("y", "logits"):
        signature = Signature(inputs=(spec("x", "batch", D),), outputs=(spec(name, "batch", D),), max_length={})
        manifest = dataclasses.replace(toy("encoder"), kind="module", signature={"model": signature})
        samples: Any = Samples({})
        drop = Evaluator(manifest, [samples], {"model": lambda *_, n=name: {n: exact}}, batch_size=1).drop(
            {"model": lambda *_, n=name: {n: found}}
        )
        assert drop.value >= -1e-12  # which NaN is not
        if not np.isfinite(found).all() and np.isfinite(exact).all():
            assert drop.value == math.inf


@pytest.mark.parametrize("outputs", [{"n": np.arange(4)}, {"y": np.zeros((0, D), np.float32)}])
def test_where_nothing_can_be_compared_nothing_passes(
    judged: Callable[..., Loss], outputs: Mapping[str, Array]
) -> None:
    with pytest.raises(QuantizeError, match="its model gives no floats on 1 batch"):
        judged(outputs, outputs)


# ------------------------------------------------ whole bundles


def test_what_bundles_are_judged_by(toy: Callable[[str], Manifest]) -> None:
    kinds = {kind: measure_of(toy(kind)) for kind in ("encoder", "copier", "counter")}
    assert kinds == {"encoder": "cosine", "copier": "kl", "counter": "kl"}


def files_of(manifest: Manifest) -> dict[str, Path]:
    return {role: manifest.folder / path for role, path in manifest.graphs["fp32"].items()}


@pytest.mark.parametrize(("kind", "batch_size"), list(itertools.product(["encoder", "copier", "counter"], [1, 8])))
def test_a_bundle_is_as_it_is(toy: Callable[[str], Manifest], kind: str, batch_size: int) -> None:
    manifest = toy(kind)
    samples = read_calibration(None, manifest, count=5)
    evaluator = Evaluator(manifest, [samples], runs_of(files_of(manifest)), batch_size=batch_size)
    assert evaluator.drop(runs_of(files_of(manifest))).value == 0
    assert evaluator.description == samples.description


def test_a_decoder_is_fed_by_the_encoder_that_is_judged_with_it(toy: Callable[[str], Manifest]) -> None:
    """The toy decoder copies what its encoder's keys hold: one that adds 1 to them changes every word, not the last."""
    manifest = toy("copier")
    exact = runs_of(files_of(manifest))

    def shifted(names: Sequence[str], feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        found = exact["encoder"](names, feeds)
        return {name: array + 1 if name.endswith("key") else array for name, array in found.items()}

    samples = read_calibration(None, manifest, count=6)
    evaluator = Evaluator(manifest, [samples], exact, batch_size=2)
    drop = evaluator.drop({"encoder": shifted, "decoder": exact["decoder"]})
    pairs = zip(samples.batches("encoder", 1), samples.batches("decoder", 1), strict=True)
    lengths = [(int(source["attention_mask"].sum()), target["input_ids"].size) for source, target in pairs]
    # the start and every word predict the next: each word is another one now, the end after them is the same
    assert drop.flips == sum(min(length) for length in lengths) / sum(total for _, total in lengths)
    assert 0 < drop.flips < 1
    assert 0 < drop.value < math.inf
