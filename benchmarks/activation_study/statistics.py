"""Means of a few trainings, and what of their differences is more than chance."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from scipy.special import stdtrit

from tfm.errors import InputError

LEVEL = 0.95

BETTER, WORSE, SAME = "better", "worse", "no difference shown"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with its 95 % interval; of a single value the interval is unknown, and without bounds.

    Attributes:
        mean: The mean.
        low: Where the interval begins.
        high: Where it ends.
    """

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What a difference from the baseline shows, where less is better."""
        return BETTER if self.high < 0 else WORSE if self.low > 0 else SAME


def mean_of(values: Sequence[float]) -> Estimate:
    """Estimate the mean of normal values by Student's t."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean=mean, low=-math.inf, high=math.inf)
    half = float(stdtrit(len(values) - 1, 0.5 + LEVEL / 2)) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean=mean, low=mean - half, high=mean + half)


def differences(values: Mapping[str, Sequence[float]], baseline: str) -> dict[str, Estimate]:
    """Compare every treatment with a baseline, in a randomised block design whose blocks are the seeds.

    Runs of one seed see the same data in the same order, so a seed's own luck is taken out; the rest of the variance is
    estimated from all runs together (Montgomery, Design and Analysis of Experiments, section 4.1). The intervals hold
    for all comparisons at once (Bonferroni): in 95 % of studies none of them excludes the truth.

    Args:
        values: Treatment → a value for each seed, in one order of the seeds.
        baseline: One of the treatments.

    Returns:
        Every other treatment → its mean less the baseline's.

    Raises:
        InputError: Treatments have different numbers of values.
    """
    count = len(values[baseline])
    if any(len(row) != count for row in values.values()):
        found = sorted({len(row) for row in values.values()})
        raise InputError(f"treatments have {found} values; they must have as many each")
    others = [name for name in values if name != baseline]
    means = {name: statistics.fmean(row) for name, row in values.items()}
    # Of the residuals: treatments and blocks have used up the others.
    freedom = (len(values) - 1) * (count - 1)
    # One seed or one activation leaves nothing to estimate a variance from.
    if not freedom:
        return {name: Estimate(mean=means[name] - means[baseline], low=-math.inf, high=math.inf) for name in others}
    total = statistics.fmean(means.values())
    blocks = [statistics.fmean(row[index] for row in values.values()) for index in range(count)]
    # What neither treatment nor block explains: the squares of the residuals.
    rest = sum(
        (value - means[name] - block + total) ** 2
        for name, row in values.items()
        for value, block in zip(row, blocks, strict=True)
    )
    # Bonferroni: the risk is shared among the comparisons. A difference of two means has twice the
    # variance of one.
    half = float(stdtrit(freedom, 1 - (1 - LEVEL) / 2 / len(others))) * math.sqrt(2 * rest / freedom / count)
    gains = {name: means[name] - means[baseline] for name in others}
    return {name: Estimate(mean=gain, low=gain - half, high=gain + half) for name, gain in gains.items()}
