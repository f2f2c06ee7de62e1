"""How far a quantized model is from float32 on real inputs: by cosine, or by divergence of what it predicts.

Shapes: B batch, S sequence, D width, V vocabulary or classes.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tfm.bundle import Manifest
from tfm.errors import QuantizeError

from ..calibration.read import Calibration

Array = npt.NDArray[Any]
Run = Callable[[Sequence[str], Mapping[str, Array]], Mapping[str, Array]]
"""Runs a graph: names of outputs, inputs by name → outputs by name."""

Measure = Literal["cosine", "kl"]

_CHUNK = 1 << 22
"""Logits that are compared at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """How far from float32 results are.

    Attributes:
        value: By "cosine": 1 - the mean cosine; by "kl": the mean Kullback-Leibler divergence from float32's
            distribution, in nats.
        flips: By "kl": share of distributions whose most likely one is not float32's; else None.
        least: By "cosine": the least cosine; else None.
    """

    value: float
    flips: float | None = None
    least: float | None = None


def measure_of(manifest: Manifest) -> Measure:
    """What a bundle is judged by: "kl" where it predicts tokens or classes, else "cosine"."""
    return "kl" if "logits" in {spec.name for spec in manifest.signature[_last(manifest)].outputs} else "cosine"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DomainStats:
    """How far from float32 results are on one kind of text, run in one way; `Loss` says what the figures are.

    Attributes:
        domain: Which kind of text.
        way: "alone", "by 8", … as its rows were batched, or "beside an outlier".
        rows: How many results were compared.
        mean: As `Loss.value`.
        low: Where the 95 % interval of the mean begins, by the spread of the rows.
        high: Where it ends.
        first_percentile: By "cosine": the cosine that one row of a hundred is below; else None.
        least: By "cosine": the least; else None.
        spearman: Of sentence embeddings: rank correlation of the similarities of all pairs with float32's; else None.
        recall_at_10: Of sentence embeddings: share of each row's ten nearest in float32 that are among its ten nearest;
            None where there are fewer than 20 rows.
        top_1: By "kl": share of distributions whose most likely one is float32's; else None.
    """

    domain: str
    way: str
    rows: int
    mean: float
    low: float
    high: float
    first_percentile: float | None = None
    least: float | None = None
    spearman: float | None = None
    recall_at_10: float | None = None
    top_1: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Domain:
    """Samples and what float32 makes of them, each output's rows in the samples' order."""

    samples: Calibration
    expected: list[Array]


class Evaluator:
    """Compares runs of a bundle's graphs on samples with float32's, which are run once and kept.

    Attributes:
        measure: "cosine" or "kl".
        description: How many of which samples.
    """

    def __init__(
        self,
        manifest: Manifest,
        domains: Sequence[Calibration],
        exact: Mapping[str, Run],
        *,
        batch_size: int,
    ) -> None:
        """Run float32.

        Args:
            manifest: The bundle's.
            domains: What to run on, by kind.
            exact: Role → float32 graph.
            batch_size: Samples at a time: activations rounded together share a scale.

        Raises:
            QuantizeError: There is nothing to compare.
        """
        self.measure, self.description = measure_of(manifest), ", ".join(one.description for one in domains)
        self._role, self._size, self._teaches = _last(manifest), batch_size, manifest.kind == "encoder-decoder"
        self._pad = (manifest.generation.pad_token_id if manifest.generation else None) or 0
        # What a user reads is compared: the sentence embedding or the logits alone, where there are
        # any; else every output of floats.
        specs = manifest.signature[self._role].outputs
        names = [spec.name for spec in specs if spec.dtype.startswith("float") and not spec.name.startswith("present.")]
        self._outputs = next(([name] for name in ("sentence_embedding", "logits") if name in names), names)
        if self._teaches:
            presents = [spec.name for spec in manifest.signature["encoder"].outputs]
            self._context = {name: name.replace("present.", "past_key_values.") for name in presents}
            self._context = {k: v for k, v in self._context.items() if k.startswith("present.")}
        self._domains = [_Domain(samples=one, expected=self._results(exact, one, batch_size)) for one in domains]
        if not any(rows.size for domain in self._domains for rows in domain.expected):
            raise QuantizeError(
                f"{manifest.folder}: its {self._role} gives no floats on {self.description}, so how far off a "
                "quantized one is cannot be judged"
            )

    def drop(self, runs: Mapping[str, Run]) -> Loss:
        """Compare graphs with float32's, on the kind of text where they are farthest from it.

        Args:
            runs: Role → graph.
        """
        found = [self._compare(runs, domain, self._size) for domain in self._domains]
        worst = max(float(losses.mean()) for losses, _ in found)
        if self.measure == "cosine":
            return Loss(value=worst, least=1 - max(float(losses.max()) for losses, _ in found))
        return Loss(value=worst, flips=max(float(flips.mean()) for _, flips in found))

    def stats(self, runs: Mapping[str, Run], ways: Mapping[str, int]) -> list[DomainStats]:
        """Compare graphs with float32's on every kind of text, in every way that they are run.

        Args:
            runs: Role → graph.
            ways: What each is called, and how many samples it puts together, padded as they come; float32's results
                are those of `batch_size`.
        """
        return [self._stats(runs, domain, size, way) for domain in self._domains for way, size in ways.items()]

    def _stats(self, runs: Mapping[str, Run], domain: _Domain, size: int, way: str) -> DomainStats:
        rows = self._results(runs, domain.samples, size)
        losses, flips = self._losses(domain.expected, rows)
        mean, half = float(losses.mean()), 1.96 * float(losses.std()) / math.sqrt(len(losses))
        figures: dict[str, float | None] = {}
        if self.measure == "kl":
            figures["top_1"] = 1 - float(flips.mean())
        else:
            figures |= {"first_percentile": 1 - float(np.quantile(losses, 0.99)), "least": 1 - float(losses.max())}
        if self._outputs == ["sentence_embedding"] and domain.samples.are_apart and np.isfinite(losses).all():
            figures |= similarity_stats(domain.expected[0], rows[0])
        return DomainStats(
            domain=domain.samples.domain,
            way=way,
            rows=len(losses),
            mean=mean,
            low=max(0.0, mean - half),
            high=mean + half,
            **figures,
        )

    def _compare(self, runs: Mapping[str, Run], domain: _Domain, size: int) -> tuple[Array, Array]:
        return self._losses(domain.expected, self._results(runs, domain.samples, size))

    def _losses(self, expected: Sequence[Array], found: Sequence[Array]) -> tuple[Array, Array]:
        """Each row's loss, and whether its largest moved; of all outputs, one after the other."""
        pairs = list(zip(expected, found, strict=True))
        if self.measure == "cosine":
            losses = np.concatenate([_cosine_gaps(e_RV, q_RV) for e_RV, q_RV in pairs])
            return losses, np.zeros(len(losses), np.bool_)
        parts = [_divergence(e_RV, q_RV) for e_RV, q_RV in pairs]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _results(self, runs: Mapping[str, Run], samples: Calibration, size: int) -> list[Array]:
        """Each output of all samples as rows that count, (R, D)."""
        rows: list[list[Array]] = [[] for _ in self._outputs]
        sources = samples.batches("encoder", size) if self._teaches else itertools.repeat(None)
        for feeds, source in zip(samples.batches(self._role, size, in_order=True), sources, strict=False):
            if source is not None:
                # The decoder reads what this mix's encoder gives, not float32's, as it will in the
                # bundle.
                presents = runs["encoder"](list(self._context), source)
                feeds = feeds | {self._context[name]: array for name, array in presents.items()}
            found = runs[self._role](self._outputs, feeds)
            real_BS = self._real(feeds)
            for name, kept in zip(self._outputs, rows, strict=True):
                array = found[name]
                # (B, S, D) → (real tokens, D); what has no positions, as a sentence embedding, counts
                # whole.
                counted = real_BS is not None and array.ndim == 3 and array.shape[:2] == real_BS.shape
                kept.append(array[real_BS] if counted else array.reshape(-1, array.shape[-1] if array.ndim else 1))
        # What has as many numbers in every batch is one table of rows, however it was batched.
        return [
            array
            for kept in rows
            for array in ([np.concatenate(kept)] if len({a.shape[1] for a in kept}) == 1 else kept)
        ]

    def _real(self, feeds: Mapping[str, Array]) -> npt.NDArray[np.bool_] | None:
        """Which positions are no padding: a decoder with a context of its own takes no mask of its targets."""
        if self._teaches:
            real_BS: npt.NDArray[np.bool_] = feeds["input_ids"] != self._pad
            # Some start with what pads.
            real_BS[:, 0] = True
            return real_BS
        mask = feeds.get("attention_mask")
        return None if mask is None or mask.ndim != 2 else mask == 1


def _last(manifest: Manifest) -> str:
    """The role of the graph whose outputs count."""
    return "decoder" if manifest.kind == "encoder-decoder" else "model"


def _cosine_gaps(expected: Array, found: Array) -> npt.NDArray[np.float64]:
    """1 - cosine of each row, as half the squared distance of unit vectors: exact where the cosine is almost 1.

    What is infinite or not a number counts as nothing where both have it, and as infinitely far where one has.
    """
    same = (expected == found) | (np.isnan(expected) & np.isnan(found))
    units = []
    for rows_RD in (expected, found):
        rows_RD = np.where(same & ~np.isfinite(expected), 0, rows_RD.astype(np.float64))
        # What is still not finite is so in one of the two only: its row has no direction.
        rows_RD = np.where(np.isfinite(rows_RD).all(-1, keepdims=True), rows_RD, np.nan)
        norms_R1 = np.linalg.norm(rows_RD, axis=-1, keepdims=True)
        # A row of zeros stays one, instead of 0 / 0.
        units.append(rows_RD / np.maximum(norms_R1, np.finfo(np.float64).tiny))
    gaps: npt.NDArray[np.float64] = np.square(units[0] - units[1]).sum(-1) / 2
    return np.where(np.isnan(gaps), np.inf, gaps)


def _divergence(expected: Array, found: Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Each row's divergence from softmax(expected), and whether its largest moved.

    What float32 rules out (-∞) adds nothing; a row that is no distribution is infinitely far.
    """
    losses, flips = [np.zeros(0)], [np.zeros(0, np.bool_)]
    step = max(1, _CHUNK // max(expected.shape[-1], 1))
    for start in range(0, len(expected), step):
        with np.errstate(invalid="ignore"):
            e_RV, q_RV = (_log_softmax(rows[start : start + step]) for rows in (expected, found))
            rows_R = np.where(np.isneginf(e_RV) & ~np.isnan(q_RV), 0, np.exp(e_RV) * (e_RV - q_RV)).sum(-1)
        losses.append(np.where(np.isnan(rows_R), np.inf, rows_R))
        flips.append(e_RV.argmax(-1) != q_RV.argmax(-1))
    return np.concatenate(losses), np.concatenate(flips)


def _log_softmax(logits: Array) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def similarity_stats(expected: Array, found: Array, nearest: int = 10) -> dict[str, float | None]:
    """How well similarities of embeddings keep their order.

    Args:
        expected: Float32's embeddings (R, D).
        found: The others.
        nearest: Neighbors that are looked for.

    Returns:
        "spearman" and "recall_at_10" of `DomainStats`; None where there are too few rows.
    """
    count = len(expected)
    if count < 3:
        return {"spearman": None, "recall_at_10": None}
    e_RR, q_RR = (_similarities(rows) for rows in (expected, found))
    pairs = np.triu_indices(count, 1)
    ranks = [np.argsort(np.argsort(s_RR[pairs], kind="stable"), kind="stable") for s_RR in (e_RR, q_RR)]
    apart = float(np.square(ranks[0] - ranks[1]).sum(dtype=np.float64))
    spearman = 1 - 6 * apart / (len(ranks[0]) * (len(ranks[0]) ** 2 - 1))
    recall = None
    if count >= 2 * nearest:
        near = [np.argsort(-s_RR, axis=1, kind="stable")[:, :nearest] for s_RR in (e_RR, q_RR)]
        recall = float(np.mean([len({*a} & {*b}) / nearest for a, b in zip(*near, strict=True)]))
    return {"spearman": spearman, "recall_at_10": recall}


def _similarities(rows_RD: Array) -> Array:
    """Cosines of all pairs; a row beside itself counts as farthest."""
    units = rows_RD.astype(np.float64)
    units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    similar = units @ units.T
    np.fill_diagonal(similar, -np.inf)
    return similar
