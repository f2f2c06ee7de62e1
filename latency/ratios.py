"""What single runs and rounds say: percentiles, and how much faster one engine is than another, with an interval."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

LEAST_ROUNDS = 6
"""Fewer cannot give a 95 % interval of a median: even from the least of five to the largest it covers 94 %."""

NOISE_LIMIT = 0.15
"""Nothing is concluded where the quartiles of the baseline's rounds lie further apart than this share of the median.

In 14 works of MiniLM and g2p in fp32 on two cores with a load of 2 to 3 they lay 1 to 11 % apart; of eager PyTorch,
while others timed their work on the same cores, up to 68 %.
"""

FASTER, SLOWER, SAME, NOISY = "faster", "slower", "no difference shown", "too noisy"
"""What can be said of an engine beside the baseline."""

_LEVEL = 0.95
_RESAMPLES = 4000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """Times of single runs, in seconds.

    Attributes:
        runs: How many there were.
        median: The median.
        p90: The time that nine in ten kept within; None: fewer than 10 runs tell nothing of it.
        p99: The time that 99 in 100 kept within; None: fewer than 100 runs.
    """

    runs: int
    median: float
    p90: float | None
    p99: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ratio:
    """The baseline's time over an engine's: 2 is twice as fast.

    Attributes:
        value: The median over the rounds.
        low: Where its 95 % interval begins.
        high: Where it ends.
        noisy: Whether the baseline varied so much that nothing is concluded.
    """

    value: float
    low: float
    high: float
    noisy: bool

    @property
    def verdict(self) -> str:
        """`FASTER` or `SLOWER` where the interval lies on one side of 1, `SAME` where not; or `NOISY`."""
        if self.noisy:
            return NOISY
        return FASTER if self.low > 1 else SLOWER if self.high < 1 else SAME

    @property
    def is_slower(self) -> bool:
        """Whether the whole interval lies below 1: what a gate refuses, on a noisy machine too.

        Who has the first turn is drawn anew in every round, so that noise moves a ratio up as often as down. How large
        it is cannot be told then, which is why `verdict` tells nothing.
        """
        return self.high < 1

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON values, with what it says in words."""
        return {
            "ratio": self.value,
            "low": self.low,
            "high": self.high,
            "verdict": self.verdict,
            "said": str(self),
        }

    def __str__(self) -> str:
        if self.verdict == SLOWER:
            return f"{SLOWER} {times(1 / self.value)} ({_number(1 / self.high)}–{_number(1 / self.low)})"
        if self.verdict == FASTER:
            return f"{FASTER} {times(self.value)} ({_number(self.low)}–{_number(self.high)})"
        return self.verdict


def times(value: float) -> str:
    """A factor, as "1.8×"."""
    return f"{_number(value)}×"


def _number(value: float) -> str:
    """Two decimals where one would make 1.04 of it 1.0."""
    return f"{value:.2f}" if value < 1.195 else f"{value:.1f}" if value < 99.5 else f"{value:.0f}"


def spread_of(seconds: Sequence[float]) -> Spread:
    """Describe the times of single runs, at least one."""
    count = len(seconds)
    return Spread(
        runs=count,
        median=statistics.median(seconds),
        # Of fewer runs it would be an extrapolation.
        p90=float(np.quantile(seconds, 0.9)) if count >= 10 else None,
        p99=float(np.quantile(seconds, 0.99)) if count >= 100 else None,
    )


def noise_of(rounds: Sequence[float]) -> float:
    """How far the quartiles of a figure of each round lie apart, as a share of the median."""
    low, middle, high = np.quantile(rounds, [0.25, 0.5, 0.75])
    return float((high - low) / middle)


def bootstrap_median(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Find a 95 % interval of a median by the bootstrap, and no narrower than one that holds for any distribution.

    By itself the bootstrap (the percentiles of the medians of resamples; Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, section 13.3) covers the median of a few values too rarely: of 15 normal ones in 91 %
    of 400 trials.
    So it is widened to the order statistics between which the median lies in 95 % of cases, by the binomial
    distribution (David and Nagaraja, Order Statistics, 2003, section 7.1): of 15 values, the fourth and the twelfth.

    Args:
        values: At least one; fewer than `LEAST_ROUNDS` get a narrower interval.
        seed: Of the resamples.
    """
    found = np.sort(np.asarray(values, np.float64))
    count = len(found)
    chosen = np.random.default_rng(seed).integers(count, size=(_RESAMPLES, count))
    low, high = np.quantile(np.median(found[chosen], axis=1), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    # Each value lies below the median with a chance of one half. So many are left out at each end as
    # can be without a chance of more than 2.5 % that the median is among them.
    left_out, below = 0, 2.0**-count  # the chance that no value, and then that so many, lie below the median
    while below + math.comb(count, left_out + 1) * 2.0**-count <= (1 - _LEVEL) / 2:
        left_out += 1
        below += math.comb(count, left_out) * 2.0**-count
    return min(float(low), float(found[left_out])), max(float(high), float(found[-1 - left_out]))


def ratio_of(baseline: Sequence[float], engine: Sequence[float]) -> Ratio:
    """Compare an engine with the baseline, round by round.

    Args:
        baseline: Its median time in each round.
        engine: That of the engine in the same rounds.
    """
    # Round by round: what a machine does else changes from minute to minute, and hits both alike.
    ratios = [one / other for one, other in zip(baseline, engine, strict=True)]
    low, high = bootstrap_median(ratios)
    return Ratio(value=statistics.median(ratios), low=low, high=high, noisy=noise_of(baseline) > NOISE_LIMIT)
