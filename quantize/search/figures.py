"""What a journal's lines must hold to be taken for figures that a search has found; others are found anew."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from .evaluator import Loss


def numbers(count: int, *, positive: bool = False) -> Callable[[Any], bool]:
    """Make the check that a value is a list of so many numbers, none of them negative, or each above 0 and finite."""

    def fits(value: Any) -> bool:
        if not isinstance(value, list) or len(value) != count:
            return False
        return all(_is_number(each) and (0 < each < math.inf if positive else each >= 0) for each in value)

    return fits


def is_loss(value: Any) -> bool:
    """Whether a value is what a `Loss` is written as."""
    names = {field.name for field in dataclasses.fields(Loss)}
    if not isinstance(value, dict) or set(value) != names or not _is_number(value["value"]):
        return False
    return all(each is None or _is_number(each) for each in value.values())


def _is_number(value: Any) -> bool:
    # JSON has integers that no float holds; `type`, as true is an integer to isinstance.
    return type(value) is float or (type(value) is int and abs(value) < 1 << 53)
