"""How far a quantized model is from float32 on real inputs: by cosine, or by divergence of what it predicts.

Shapes: B batch, S sequence, D width, V vocabulary or classes.
"""

import dataclasses
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


class Evaluator:
    """Compares runs of a bundle's graphs on samples with float32's, which are run once and kept.

    Attributes:
        measure: "cosine" or "kl".
        description: How many of which samples.
    """

    def __init__(self, manifest: Manifest, samples: Calibration, exact: Mapping[str, Run], *, batch_size: int) -> None:
        """Run float32.

        Args:
            manifest: The bundle's.
            samples: What to run on.
            exact: Role → float32 graph.
            batch_size: Samples at a time: activations rounded together share a scale.

        Raises:
            QuantizeError: There is nothing to compare.
        """
        self.measure, self.description = measure_of(manifest), samples.description
        self._role = _last(manifest)
        self._feeds = list(samples.batches(self._role, batch_size))
        self._sources = list(samples.batches("encoder", batch_size)) if manifest.kind == "encoder-decoder" else []
        self._pad = (manifest.generation.pad_token_id if manifest.generation else None) or 0
        # What a user reads is compared: the sentence embedding or the logits alone, where there are
        # any; else every output of floats.
        specs = manifest.signature[self._role].outputs
        names = [spec.name for spec in specs if spec.dtype.startswith("float") and not spec.name.startswith("present.")]
        self._outputs = next(([name] for name in ("sentence_embedding", "logits") if name in names), names)
        if self._sources:
            presents = [spec.name for spec in manifest.signature["encoder"].outputs]
            self._context = {name: name.replace("present.", "past_key_values.") for name in presents}
            self._context = {k: v for k, v in self._context.items() if k.startswith("present.")}
        self._expected = [self._results(exact, index) for index in range(len(self._feeds))]
        if not any(rows.size for batch in self._expected for rows in batch):
            raise QuantizeError(
                f"{manifest.folder}: its {self._role} gives no floats on {samples.description}, so how far off a "
                "quantized one is cannot be judged"
            )

    def drop(self, runs: Mapping[str, Run]) -> Loss:
        """Compare graphs with float32's.

        Args:
            runs: Role → graph.
        """
        total = flips = count = 0.0
        least = 1.0
        for index, expected in enumerate(self._expected):
            for e_RV, q_RV in zip(expected, self._results(runs, index), strict=True):
                if self.measure == "cosine":
                    gaps = _cosine_gaps(e_RV, q_RV)
                    total, least = total + float(gaps.sum()), min(least, 1 - float(gaps.max(initial=0)))
                else:
                    divergence, flipped = _divergence(e_RV, q_RV)
                    total, flips = total + divergence, flips + flipped
                count += len(e_RV)
        value = total / count
        return Loss(value=value, least=least) if self.measure == "cosine" else Loss(value=value, flips=flips / count)

    def _results(self, runs: Mapping[str, Run], index: int) -> list[Array]:
        """Each output of one batch as rows that count, (R, D)."""
        feeds = self._feeds[index]
        if self._sources:
            # The decoder reads what this mix's encoder gives, not float32's, as it will in the
            # bundle.
            presents = runs["encoder"](list(self._context), self._sources[index])
            feeds = feeds | {self._context[name]: array for name, array in presents.items()}
        found = runs[self._role](self._outputs, feeds)
        real_BS = self._real(feeds)
        rows = []
        for name in self._outputs:
            array = found[name]
            # (B, S, D) → (real tokens, D); what has no positions, as a sentence embedding, counts
            # whole.
            counted = real_BS is not None and array.ndim == 3 and array.shape[:2] == real_BS.shape
            rows.append(array[real_BS] if counted else array.reshape(-1, array.shape[-1] if array.ndim else 1))
        return rows

    def _real(self, feeds: Mapping[str, Array]) -> npt.NDArray[np.bool_] | None:
        """Which positions are no padding: a decoder with a context of its own takes no mask of its targets."""
        if self._sources:
            real_BS: npt.NDArray[np.bool_] = feeds["input_ids"] != self._pad
            real_BS[:, 0] = True  # some start with what pads
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


def _divergence(expected: Array, found: Array) -> tuple[float, float]:
    """Sum over rows of the divergence from softmax(expected), and how many rows' largest moved.

    What float32 rules out (-∞) adds nothing; a row that is no distribution is infinitely far.
    """
    total = flips = 0.0
    step = max(1, _CHUNK // max(expected.shape[-1], 1))
    for start in range(0, len(expected), step):
        with np.errstate(invalid="ignore"):
            e_RV, q_RV = (_log_softmax(rows[start : start + step]) for rows in (expected, found))
            rows_R = np.where(np.isneginf(e_RV) & ~np.isnan(q_RV), 0, np.exp(e_RV) * (e_RV - q_RV)).sum(-1)
        total += float(np.where(np.isnan(rows_R), np.inf, rows_R).sum())
        flips += float((e_RV.argmax(-1) != q_RV.argmax(-1)).sum())
    return total, flips


def _log_softmax(logits: Array) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
