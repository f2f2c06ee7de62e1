"""The distance of an op from its oracle, gathered over all its cases."""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from tfm.ops import Tolerance

from .subjects import Array, Check

_CORE = 20.0
"""Magnitude of x up to which an activation's largest error is shown; beyond, it is the last place of a large number."""

_LARGE = 0.1
"""Magnitude of a result from which on its last places mean something."""


@dataclasses.dataclass
class Extreme:
    """The element for which some measure is greatest.

    Attributes:
        measure: How great.
        error: Its distance from the oracle.
        limit: The largest distance allowed it.
        where: Which element or case it is.
        level: At which of onnxruntime's optimization levels.
    """

    measure: float = -1.0
    error: float = 0.0
    limit: float = 0.0
    where: str = ""
    level: str = ""

    def add(self, measure: Array, error: Array, limit: Array, where: str | Array, level: str) -> None:
        """Take the greatest of arrays of one shape; entries of -1 do not count."""
        # One element speaks for all: its error, its limit and its place belong together.
        index = np.unravel_index(int(np.argmax(measure)), measure.shape)
        # Greater, not equal: the first that was found stays, so that reports are the same each
        # time.
        if float(measure[index]) > self.measure:
            self.measure, self.error, self.limit = float(measure[index]), float(error[index]), float(limit[index])
            self.where, self.level = place(where, index), level


class Tally:
    """Figures of one form of one op in one dtype.

    NaN equals only NaN and an infinity only itself. Where x is infinite or NaN, what eager PyTorch gives is right as
    well as the limit, and a note says where either is not the limit.

    Attributes:
        cases: Number of comparisons at each level.
        count: Number of elements compared.
        largest: The largest error; of an activation, for |x| up to 20.
        nearest: The error that is largest beside its limit, everywhere.
        eager: The largest error of eager PyTorch.
        max_ulp: Largest error of an activation's results of at least 0.1, in units of their last place; else None.
        notes: What a reader should know.
        fault: Why it failed; "" where it passed.
    """

    def __init__(self, tolerance: Tolerance) -> None:
        self.tolerance = tolerance
        self.cases = self.count = 0
        self.largest, self.nearest, self.eager = Extreme(), Extreme(), Extreme()
        self.max_ulp: float | None = None
        self.notes: dict[str, None] = {}
        self.fault = ""

    def fail(self, fault: str) -> None:
        """Keep the first fault."""
        self.fault = self.fault or fault

    def add(self, check: Check, actual: Array, level: str, eager: Array) -> None:
        """Compare what one output gave at one level; `eager` is what PyTorch gave."""
        shape = check.expected.shape
        if actual.shape != shape or eager.shape != shape:
            self.fail(f"its shape is {actual.shape}, eager's is {eager.shape}, {shape} was expected ({level})")
        elif actual.size:
            # inf - inf and 0 / 0 are masked out below, element by element.
            with np.errstate(all="ignore"):
                self._add(check, actual, level, eager)

    def judge(self) -> None:
        """Fail where nothing was compared, or something lies too far off."""
        nearest = self.nearest
        # Not ">": NaN must fail.
        if not nearest.measure <= 1.0:
            by = f"off by {nearest.error:.1e}, more than {nearest.limit:.1e}"
            self.fail(f"{by}, at {nearest.where} ({nearest.level})")
        if nearest.measure < 0.0:
            self.fail("no number was compared")

    def _add(self, check: Check, actual: Array, level: str, eager: Array) -> None:
        self.count += actual.size
        # What the dtype makes of the exact value: beyond its largest number that is an infinity,
        # and giving it is right.
        rounded = check.expected.astype(actual.dtype)
        by_x = isinstance(check.where, np.ndarray)
        # Of an op that is no activation nothing is "at x", and nothing is excused there.
        x: Array = check.where if isinstance(check.where, np.ndarray) else np.zeros_like(rounded)
        self._check_infinities(check, actual, rounded, eager, ~np.isfinite(x), level)

        # Per element, not per tensor as in `Tolerance.limit`: here every number's own terms are
        # known.
        limit = self.tolerance.atol * check.unit + self.tolerance.rtol * np.abs(check.expected)
        finite, core = np.isfinite(actual) & np.isfinite(rounded), np.abs(x) <= _CORE
        # A unit of NaN or 0 would make every comparison pass or fail by itself.
        if (finite & ~(limit > 0.0)).any():
            self.fail("a number has no limit to be judged by")
        error = np.abs(actual - check.expected)
        self.largest.add(np.where(finite & core, error, -1.0), error, limit, check.where, level)
        self.nearest.add(np.where(finite, error / limit, -1.0), error, limit, check.where, level)
        eager_error = np.abs(eager - check.expected)
        shown = np.isfinite(eager) & np.isfinite(rounded) & core
        self.eager.add(np.where(shown, eager_error, -1.0), eager_error, limit, check.where, level)
        if by_x:
            # In units of the last place of what is expected, in the dtype that is judged.
            large = finite & (np.abs(rounded) >= _LARGE)
            ulp = error[large] / np.spacing(np.abs(rounded[large])).astype(np.float64)
            self.max_ulp = max(self.max_ulp or 0.0, float(ulp.max(initial=0.0)))

    def _check_infinities(
        self, check: Check, actual: Array, rounded: Array, eager: Array, at_infinity: Array, level: str
    ) -> None:
        wrong = _differ(actual, rounded) & ~(at_infinity & _same(actual, eager))
        if wrong.any():
            index = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
            what = f"{actual[index]:g} where {rounded[index]:g} is expected"
            self.fail(f"it gives {what}, at {place(check.where, index)} ({level})")
        # A note for each of the two, so that a remark on infinite x does not hide one on finite.
        for here in (at_infinity, ~at_infinity):
            own, others = here & _differ(actual, rounded), here & _differ(eager, rounded)
            if (own & others).any():
                self._note("gives {}, as eager PyTorch does,", check, actual, rounded, own & others)
            if (own & ~others).any():
                self._note("gives {}", check, actual, rounded, own & ~others)
            if (others & ~own).any():
                self._note("eager PyTorch gives {}", check, eager, rounded, others & ~own)

    def _note(self, text: str, check: Check, values: Array, rounded: Array, found: npt.NDArray[np.bool_]) -> None:
        index = np.unravel_index(int(np.argmax(found)), found.shape)
        text = text.format(f"{values[index]:g}")
        # A dict for its order without doubles. Adding 0.0 turns -0 into 0.
        self.notes[f"{text} at {place(check.where, index)}, where the limit is {rounded[index] + 0.0:.5g}"] = None


def place(where: str | Array, index: tuple[Any, ...]) -> str:
    """Say which element it is."""
    return where if isinstance(where, str) else f"x = {where[index]:.5g}"


def _same(a: Array, b: Array) -> npt.NDArray[np.bool_]:
    same: npt.NDArray[np.bool_] = (a == b) | (np.isnan(a) & np.isnan(b))
    return same


def _differ(values: Array, rounded: Array) -> npt.NDArray[np.bool_]:
    """Where one of the two is no number and the other is another."""
    return ~_same(values, rounded) & ~(np.isfinite(values) & np.isfinite(rounded))
