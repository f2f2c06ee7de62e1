"""How far a quantized model will be from float32 on a kind of text that it was not judged on.

Of one kind of text the mean has an interval by the spread of its rows, which tells how well that kind is known, and
nothing of others. How far kinds are apart is what their own means show.

Derivation. Let m be the mean drop of a kind. Drops are squared errors, of which a kind of text makes a multiple, so
that not m but ln m is taken to vary about one middle, alike to both sides: ln m = c + d, where d has a standard
deviation σ that holds both how kinds differ and what chance adds to a kind of so many rows. Of k kinds the mean a of
ln m is off c with variance σ²/k; a further kind is off c with variance σ², by itself. So its ln m is off a with
variance σ²(1 + 1/k); σ is estimated by the k kinds' own standard deviation s, with k - 1 degrees of freedom; and

    exp(a ± t · s · √(1 + 1/k)),  t the 97.5th percentile of Student's distribution with k - 1 degrees of freedom,

holds the mean of a further kind 19 times in 20 (a prediction interval; Hahn and Meeker 1991, Statistical Intervals,
section 4.7). It supposes that the further kind is no stranger than those are to each other, which is why they are
strange: rows of rare tokens, one word repeated, 28 languages. Of several further kinds the farthest lies outside it
more often than one does. Ways of running, as alone or padded by 32, are taken one by one.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence

from .evaluator import DomainStats

_LEAST = 3
"""Kinds of text without which nothing is said of others: with two, t is 12.7."""

_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""The 97.5th percentiles of Student's distribution with 1, 2, … degrees of freedom."""

_NORMAL = 1.959964
"""That of the normal distribution."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """Where the mean drop on a further kind of text lies, 19 times in 20; the module tells how it is found.

    Attributes:
        way: How its rows are run, as in `DomainStats`.
        low: Where the interval begins.
        high: Where it ends.
        kinds: How many kinds of text it was found by.
    """

    way: str
    low: float
    high: float
    kinds: int


def elsewhere(stats: Sequence[DomainStats]) -> list[Elsewhere]:
    """Predict the mean drop on a further kind of text, for every way that rows were run.

    Args:
        stats: What was found on each kind, in each way.

    Returns:
        An interval for each way; none for one with fewer than three kinds, or where a mean is 0, infinite or no number.
    """
    found = []
    for way in dict.fromkeys(one.way for one in stats):
        means = [one.mean for one in stats if one.way == way]
        if len(means) >= _LEAST and all(mean > 0 and math.isfinite(mean) for mean in means):
            logs = [math.log(mean) for mean in means]
            middle, count = statistics.fmean(logs), len(logs)
            half = student(count - 1) * statistics.stdev(logs) * math.sqrt(1 + 1 / count)
            found.append(
                Elsewhere(way=way, low=math.exp(middle - half), high=math.exp(min(middle + half, 700)), kinds=count)
            )
    return found


def student(freedom: int) -> float:
    """The 97.5th percentile of Student's distribution, to three digits.

    Args:
        freedom: Degrees of freedom, at least 1.
    """
    if freedom <= len(_T):
        return _T[freedom - 1]
    # Fisher's expansion about the normal distribution, off by less than 0.0005 from 16 on.
    z, terms = _NORMAL, ((4, 0, 1, 1), (96, 5, 16, 3))
    expanded = sum((a * z**5 + b * z**3 + c * z) / (by * freedom**n) for n, (by, a, b, c) in enumerate(terms, 1))
    return z + expanded + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
