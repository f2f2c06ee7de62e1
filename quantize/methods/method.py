"""The ways to quantize one weight and the op that reads it."""

import dataclasses
import reprlib
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from tfm.errors import QuantizeError

from ..calibration.calibrators import CALIBRATORS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Float32:
    """Left as it is."""

    variant: ClassVar = "float32"

    def __str__(self) -> str:
        return "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dynamic:
    """Weights in 8 bits, one scale per output channel; activations rounded at run time, one scale for the tensor.

    A table that rows are looked up in has one scale per row.

    Attributes:
        alpha: Exponent of smoothing: input channel k is divided by aₖ^α / wₖ^(1-α), its weights multiplied, where aₖ
            and wₖ are the largest magnitudes of both (Xiao et al. 2023, arXiv:2211.10438); None: as they are.
        by_row: Each row is divided by its root mean square first, and the result multiplied: rows that are small beside
            others keep their digits.
    """

    variant: ClassVar = "dynamic"
    alpha: float | None = None
    by_row: bool = False

    def __str__(self) -> str:
        smooth = [] if self.alpha is None else [f"smooth {self.alpha:g}"]
        return ", ".join(["dynamic", *smooth] + ["by row"] * self.by_row)

    @property
    def passes(self) -> int:
        """How many times the activations are read and written on the way, beside the product itself."""
        return int(self.alpha is not None or self.by_row) + 2 * int(self.by_row)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Static:
    """As dynamic, but activations have one scale that calibration data fixed: none sways another, and some are clipped.

    Attributes:
        calibrator: How their range is chosen (`calibrators`).
        alpha: Exponent of smoothing, as in `Dynamic`.
    """

    variant: ClassVar = "static"
    calibrator: str = "minmax"
    alpha: float | None = None

    def __str__(self) -> str:
        smooth = [] if self.alpha is None else [f"smooth {self.alpha:g}"]
        return ", ".join(["static", self.calibrator, *smooth])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """Weights alone, in blocks of their inputs that share a scale (`quantize_to_blocks`).

    Attributes:
        bits: 8 or 4.
        block: Inputs that share a scale.
        calibrated: Whether weights are rounded so that products change least on calibration data (GPTQ, AWQ).
        smoothing: Then each input is divided by its root mean square to this power; 0: not at all.
        products: "int8" where the kernel may round the activations of each block, or "float32".
        outliers: Whether inputs that would spoil their block are multiplied apart, where rounding them is all that is
            lost: the weights lie on a grid that is kept exactly.
    """

    variant: ClassVar = "blocks"
    bits: Literal[8, 4] = 8
    block: int = 64
    calibrated: bool = True
    smoothing: float = 0.5
    products: Literal["int8", "float32"] = "int8"
    outliers: bool = True

    def __str__(self) -> str:
        return ", ".join(
            [f"{self.bits} bits in blocks of {self.block}"]
            + ["calibrated"] * self.calibrated
            + [f"smooth {self.smoothing:g}"] * (self.calibrated and self.smoothing > 0)
            + ["float32 products"] * (self.products == "float32")
        )


Method = Float32 | Dynamic | Static | Blocks

FORMS: dict[str, type[Float32] | type[Dynamic] | type[Static] | type[Blocks]] = {
    kind.variant: kind for kind in (Float32, Dynamic, Static, Blocks)
}


_LARGEST_BLOCK = 1 << 16
"""Inputs that share a scale: a row is filled up to a whole number of blocks, so that a larger one is all filling."""


def speed_class(method: Method) -> str:
    """What methods that take the same time have in common."""
    if isinstance(method, Dynamic):
        return f"dynamic {method.alpha is not None or method.by_row} {method.by_row}"
    if isinstance(method, Static):
        return f"static {method.alpha is not None}"
    return str(method)


def method_to_json(method: Method) -> dict[str, Any]:
    """Give a method as JSON values: its form and every attribute."""
    return {"form": method.variant, **dataclasses.asdict(method)}


def method_from_json(values: Any, place: str) -> Method:
    """Read what `method_to_json` gave.

    Raises:
        QuantizeError: It is no method; the message says where.
    """
    variant = values.get("form") if isinstance(values, Mapping) else None
    if not isinstance(variant, str) or variant not in FORMS:
        raise QuantizeError(f"{place} must have a form of {', '.join(FORMS)}, but is {shown(values)}")
    kind = FORMS[variant]
    known = {field.name: field for field in dataclasses.fields(kind)}
    given = {name: value for name, value in values.items() if name != "form"}
    if unknown := [name for name in given if name not in known]:
        raise QuantizeError(f"{place}: {variant} has no {shown(unknown[0])}; known: {', '.join(known) or 'nothing'}")
    for name, value in given.items():
        if not _fits(name, value):
            raise QuantizeError(f"{place}: {name} cannot be {shown(value)}")
    return kind(**given)


def shown(value: object) -> str:
    """Give a value of a recipe as a message shows it: never more than a line."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, 120, 120
    try:
        return short.repr(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"a {type(value).__name__}"


def _fits(name: str, value: Any) -> bool:
    """Whether an attribute may have a value."""
    if name in ("by_row", "calibrated", "outliers"):
        return isinstance(value, bool)
    if name == "alpha" and value is None:
        return True
    # `type`, here and below: to isinstance, true and false are integers.
    if name in ("alpha", "smoothing"):
        return type(value) in (int, float) and 0 <= value <= 1
    if name == "block":
        return type(value) is int and 16 <= value <= _LARGEST_BLOCK and value & (value - 1) == 0
    if name == "bits":
        return type(value) is int and value in (4, 8)
    return value in {"products": ("int8", "float32"), "calibrator": CALIBRATORS}[name]
