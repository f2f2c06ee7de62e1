"""What is said of texts that have more tokens than a model reads."""

import sys
import warnings
from collections.abc import Sequence
from typing import Any, Literal

from tfm.bundle import brief
from tfm.errors import InputError, TextWarning

LongTexts = Literal["warn", "cut", "refuse"]
_KNOWN: tuple[LongTexts, ...] = ("warn", "cut", "refuse")
_PACKAGE = __name__.partition(".")[0] + "."


def check_long_texts(value: Any) -> LongTexts:
    """Return what is to become of texts that are too long.

    Raises:
        InputError: It is none of what can.
    """
    for known in _KNOWN:
        if value == known:
            return known
    raise InputError(f"long_texts must be one of {', '.join(_KNOWN)}, but is {brief(value)}")


def tell_of_cut(rows: Sequence[Any], most: int | None, how: LongTexts, start: int = 0) -> None:
    """Warn of rows whose text was cut, or refuse them.

    Args:
        rows: Of one call, or of one window of a stream.
        most: How many tokens are read.
        how: What is to become of them.
        start: Number of the first one.

    Raises:
        InputError: There is one, and they are refused.
    """
    if how == "cut":
        return
    found = {start + n if row.place is None else row.place for n, row in enumerate(rows) if getattr(row, "cut", False)}
    # Each once, though several rows may be of one input.
    cut = sorted(found)
    if not cut:
        return
    named = f"inputs[{cut[0]}] has more tokens than the {most} that are read"
    if how == "refuse":
        raise InputError(f'{named}; shorten it, or pass long_texts="cut"')
    others = f", and so have {len(cut) - 1} others" if len(cut) > 1 else ""
    warn(f'{named}{others}: the rest does not count; shorten it, or pass long_texts="cut" to be told no more')


def warn(message: str) -> None:
    """Give a `TextWarning` at the line that called into this package."""
    # By hand, since `skip_file_prefixes` is not in Python 3.11.
    level, frame = 1, sys._getframe()
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith(_PACKAGE):
        # None at the end.
        frame, level = frame.f_back, level + 1  # type: ignore[assignment]
    warnings.warn(message, TextWarning, stacklevel=level)
