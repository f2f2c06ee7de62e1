"""How the report writes numbers, and where it puts them on an axis."""

import dataclasses
import math
import re
from collections.abc import Iterable


def finite(value: float | None) -> float | None:
    """A figure, or None where it is infinite or NaN; JSON has neither, and the certificate writes null."""
    return None if value is None or not math.isfinite(value) else float(value)


def error(value: float | None, digits: int = 2) -> str:
    """An error in so many digits, as `7.2e−7`; "∞" where it is infinite or NaN."""
    value = finite(value)
    if value is None:
        return "∞"
    return prose(f"{value:.{digits - 1}e}").replace("-", "−") if value else "0"


def prose(text: str) -> str:
    """A sentence in which `7.2e-07` is written as `7.2e−7`, with the minus sign, at which no line breaks."""
    return re.sub(r"(?<=\d)e([+-])0*(\d+)", lambda m: "e" + m[1].replace("-", "−").strip("+") + m[2], text)


def plain(value: float | None, digits: int = 4) -> str:
    """A figure in at most so many significant digits; just below one, what is missing: `1 − 2.8e−13`."""
    value = finite(value)
    if value is None:
        return "∞"
    return f"1 − {error(1 - value)}" if 0 < 1 - value < 1e-4 else prose(f"{value:.{digits}g}").replace("-", "−")


def factor(value: float) -> str:
    """How many times, as `1.8`: two decimals where one would make 1.04 of it 1.0."""
    return f"{value:.2f}" if value < 1.195 else f"{value:.1f}" if value < 99.5 else f"{value:.0f}"


def length(value: float | None) -> str:
    """A length in three digits, or all before the point."""
    return f"{value:,.0f}" if value is not None and 100 <= value < 1e7 else plain(value, 3)


def percent(share: float | None) -> str:
    """A share as `98.4 %`; never 0 or 100 where it is not; "—" where it is not known."""
    share = finite(share)
    if share is None:
        return "—"
    if share in (0.0, 1.0):
        return f"{100 * share:.0f} %"
    if 0 < share < 5e-4:
        return "< 0.1 %"
    return "> 99.9 %" if 0.9995 <= share < 1 else f"{100 * share:.1f} %".replace("-", "−")


def size(count: int) -> str:
    """Bytes, in the decimal unit that leaves one to three digits before the point."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        # What would be rounded to 1000 of a unit is written in the next one.
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`; of decades where `log` is set.

    Attributes:
        ticks: Position in % and label of what is written at the axis.
        steps: How many equal steps it is ruled in.
    """

    low: float
    high: float
    log: bool
    ticks: tuple[tuple[float, str], ...]
    steps: int

    def at(self, value: float | None) -> float:
        """Where a value lies, in % from 0 to 100; infinity and NaN at 100, whatever is off the axis at its end."""
        value = finite(value)
        if value is None:
            return 100.0
        if self.log:
            # Zero and less lie before every decade: at the start of the axis.
            value = math.log10(value) if value > 0 else -math.inf
        return round(100 * min(max((value - self.low) / (self.high - self.low), 0.0), 1.0), 1)


def decades(values: Iterable[float | None], most: int = 12, least: int = 3) -> Axis:
    """The whole decades that hold all positive values, no value at the very start; if too many, the upper ones."""
    logs = [math.log10(value) for value in map(finite, values) if value is not None and value > 0]
    high = math.ceil(max(logs, default=-6.0))
    # A quarter of a decade free at the start: a bar of the smallest value must be seen.
    low = min(math.floor(min(logs, default=-6.0) - 0.25), high - least)
    low = max(low, high - most)
    # So that labels do not run into each other.
    every = 1 if high - low <= 5 else 2
    ticks = tuple((100 * (e - low) / (high - low), f"1e{e}".replace("-", "−")) for e in range(high, low - 1, -every))
    return Axis(low, high, True, ticks[::-1], high - low)


def decibels(values: Iterable[float | None]) -> Axis:
    """From 0 dB to the next 20 dB above all values."""
    high = 20 * max(math.ceil(max((v for v in map(finite, values) if v is not None), default=0.0) / 20), 2)
    every = 20 if high <= 80 else 40
    return Axis(0.0, high, False, tuple((100 * v / high, f"{v} dB") for v in range(0, high + 1, every)), high // 20)


def linear(values: Iterable[float | None], *, zero: bool, unit: str = "") -> Axis:
    """From a round value below all values, or from 0, to a round one above them."""
    found = [value for value in map(finite, values) if value is not None]
    low, high = 0.0 if zero else min(found, default=0.0), max(found, default=1.0)
    if not high - low > 1e-12 * max(abs(high), 1.0):  # nothing to divide by
        wide = 0.05 * max(abs(low), 1.0)
        low, high = (0.0, 1.0) if zero else (low - wide, low + wide)
    step = round_step(low, high, 4)
    # An end that is a round value but for rounding is that value, not the next one.
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(
        (100 * (index - first) / (last - first), plain(index * step) + unit) for index in range(first, last + 1)
    )
    return Axis(first * step, last * step, False, ticks, last - first)


def round_step(low: float, high: float, count: int) -> float:
    """A round step, about so many between two ends, which may lie further apart than float64 reaches."""
    # Halved first: the difference of the two ends may be more than float64 holds.
    least = (high / 2 - low / 2) / count * 2
    power = 10.0 ** math.floor(math.log10(least))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= least), 10 * power)
