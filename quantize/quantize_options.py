"""What quantizing is asked for: one object through all of it, and the same as keywords where a user calls."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from tfm.errors import QuantizeError

from .recipe import Recipe
from .search.frontier import OBJECTIVES

SEARCHES = ("full", "quick", "none")
"""Every form of every op; those that are chosen most; or one fixed form for each kind of op, gated all the same."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """By what graphs are quantized, and what for.

    Attributes:
        calib: What to quantize by and judge by: a .txt, .jsonl or .npz file, or a folder of these; None: what is built
            in.
        max_drop: How far from float32 graphs may be: 1 - mean cosine, or nats; None: `BUDGETS`.
        objective: What they are to have least of within that, bytes ("size") or time ("speed").
        recipe: Methods to replay, without a search.
        search: How much is tried for a mix: one of `SEARCHES`.
        runtime: The oldest onnxruntime that is to open the graphs, as "1.17"; None: the one that is here.
        portable: Whether they are to be of ONNX's own operators alone.

    Raises:
        QuantizeError: One of them makes no sense.
    """

    calib: Path | None = None
    max_drop: float | None = None
    objective: str = "size"
    recipe: Recipe | None = None
    search: str = "full"
    runtime: str | None = None
    portable: bool = False

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise QuantizeError(f"objective must be one of {', '.join(OBJECTIVES)}, but is {self.objective!r}")
        if self.search not in SEARCHES:
            raise QuantizeError(f"search must be one of {', '.join(SEARCHES)}, but is {self.search!r}")
        if self.max_drop is not None and not 0 <= self.max_drop < math.inf:
            raise QuantizeError(f"max_drop must be a number of at least 0, but is {self.max_drop}")


class QuantizeKeywords(TypedDict, total=False):
    """The fields of `QuantizeOptions`, as keywords of what makes a whole bundle."""

    calib: Path | None
    max_drop: float | None
    objective: str
    recipe: Recipe | None
    search: str
    runtime: str | None
    portable: bool


def refuse_moved(function: str, moved: Mapping[str, Any]) -> None:
    """Say where a keyword has gone that a function took before.

    Args:
        function: What was called.
        moved: Keywords that it does not have.

    Raises:
        QuantizeError: There is one.
    """
    fields = {field.name for field in dataclasses.fields(QuantizeOptions)}
    for name in moved:
        if name in fields:
            raise QuantizeError(
                f"{name} is a field of QuantizeOptions now: {function}(…, options=QuantizeOptions({name}=…))"
            )
        raise QuantizeError(f"{function} has no argument {name!r}")
