"""For other people's test suites: that a bundle is still as fast as it should be, in one line."""

import os
from collections.abc import Mapping

from tfm.errors import InputError
from tfm.runtime import check_count

from .latency_options import LatencyOptions
from .measure import measure_latency
from .report import LatencyReport
from .rounds import ROUNDS, SECONDS, Job

__all__ = ["assert_latency"]


def assert_latency(
    bundle: str | os.PathLike[str],
    faster_than: str = "fp32",
    at_least: float = 1.0,
    *,
    precision: str = "int8",
    batch_size: int = 1,
    length: int = 128,
    threads: int = 1,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    attempts: int = 3,
    engines: Mapping[str, Job] | None = None,
) -> LatencyReport:
    """Fail unless a precision of a bundle is shown to be faster than another, or than eager PyTorch.

    Shown is what the whole 95 % interval of the ratio says, in every measure: of a bundle that generates, both the time
    to the first token and that of each further one. What else a machine does makes it hard to show, never easy: where
    the rounds vary too much, it is tried again, and where nothing can be concluded, it fails and says so.

    Example::

        from tfm.latency.testing import assert_latency

        def test_int8_pays():
            assert_latency("model.tfm", faster_than="fp32", at_least=1.5)

    Args:
        bundle: The bundle.
        faster_than: Another of its precisions, or one of `engines`.
        at_least: How many times as fast.
        precision: The one that is to be faster.
        batch_size: Number of rows.
        length: Tokens of each row, prompt or source.
        threads: Number of threads of each engine.
        rounds: How often each engine has its turn, at least 6.
        seconds: How long a turn is.
        attempts: How often to try on a machine that is too noisy.
        engines: Those that are no precisions, as `tfm.export.latency.eager_engines("model.pt")[0]` gives them.

    Returns:
        What was measured, where it is fast enough.

    Raises:
        AssertionError: It is not, or that cannot be shown; the message says which, with the figures.
        TfmError: The bundle is bad, or has no such precision.
    """
    others = dict(engines or {})
    if faster_than == precision:
        raise InputError(f"{precision} cannot be faster than itself; name another engine in faster_than")
    wanted = [precision] if faster_than in others else [precision, faster_than]
    options = LatencyOptions(
        precisions=wanted,
        batch_sizes=[batch_size],
        lengths=[length],
        threads=[threads],
        rounds=rounds,
        seconds=seconds,
        corpus=False,
        starts=0,
        baseline=faster_than,
    )
    others = {name: job for name, job in others.items() if name == faster_than}
    # Only noise is a reason to try again. A precision that is too slow would else be tried until it
    # passes by chance.
    for left in reversed(range(check_count("attempts", attempts))):
        report = measure_latency(bundle, options, engines=others)
        if not left or not any(line.noisy for line in report.lines):
            break
    if faults := _faults(report, precision, faster_than, at_least):
        raise AssertionError(f"{precision} of {bundle} is not shown to be fast enough: " + "; ".join(faults))
    return report


def _faults(report: LatencyReport, precision: str, faster_than: str, at_least: float) -> list[str]:
    if not report.lines:
        return [f"nothing was measured: {reason}" for reason in report.left_out.values()] or ["nothing was measured"]
    found = []
    for line in report.lines:
        timing = line.timings.get(precision)
        if timing is None or timing.ratio is None:
            found.append(f"{line.work} {line.measure}: nothing was compared")
            continue
        ratio = timing.ratio
        figures = f"{ratio.value:.2f}× as fast as {faster_than} ({ratio.low:.2f}–{ratio.high:.2f})"
        if line.noisy:
            found.append(f"{line.work} {line.measure}: {figures}, but {faster_than}'s rounds vary by {line.noise:.0%}")
        # The lower end of the interval, not the median: fast enough must be shown.
        elif not ratio.low > at_least:
            found.append(f"{line.work} {line.measure}: {figures}, and more than {at_least:g}× is wanted")
    return found
