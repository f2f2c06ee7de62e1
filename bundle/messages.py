"""How values are shown in errors: in few words, whatever they are."""

import reprlib
from typing import Any

_REPR = reprlib.Repr()
_REPR.maxstring = 100


def kind_of(value: Any) -> str:
    """Name anything's type, in errors: "a list", "an int", "None"."""
    name = type(value).__name__
    article = "an" if name[0] in "aeiouAEIOU" or name == "ndarray" else "a"
    return "None" if value is None else f"{article} {name}"


def brief(value: Any) -> str:
    """Show the beginning of anything's repr, in errors."""
    try:
        return _REPR.repr(value)
    except Exception:  # an integer of more digits than Python prints
        return f"<{type(value).__name__} that cannot be shown>"
