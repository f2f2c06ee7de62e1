"""What a sweep found, as data."""

import dataclasses
import math
from typing import Any

from .tally import Tally


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpSweep:
    """The verdict on one form of one op in one dtype, at all levels.

    Attributes:
        group: "activations", "attention", "cached_attention", "positions" or "norms".
        op: Name of the op.
        form: Which form of it; "" where there is one.
        dtype: "float32" or "float16".
        cases: Number of comparisons at each level.
        count: Number of elements compared, at all levels.
        max_abs: Largest absolute difference from the float64 oracle; of an activation, for |x| up to 20.
        limit: The largest allowed there.
        where: Which element or case that is.
        level: At which of onnxruntime's optimization levels.
        share: Largest part of its limit that any element takes, wherever it is; above 1 the form fails.
        max_ulp: Largest error of an activation's results of magnitude 0.1 and more, in units in the last place. Below,
            and in sums as attention and norms are (None), last places of what cancels mean nothing.
        torch_max_abs: As `max_abs`, of eager PyTorch in the same dtype.
        notes: Where ±inf and NaN are not what the limit of the function is.
        fault: Why it failed; "" where it passed.
    """

    group: str
    op: str
    form: str
    dtype: str
    cases: int
    count: int
    max_abs: float
    limit: float
    where: str
    level: str
    share: float
    max_ulp: float | None
    torch_max_abs: float
    notes: tuple[str, ...]
    fault: str

    @property
    def passed(self) -> bool:
        """Whether the form is verified."""
        return not self.fault

    @property
    def name(self) -> str:
        """The op, and which form and dtype of it."""
        return f"{self.op}{f' ({self.form})' if self.form else ''}, {self.dtype}"

    def to_dict(self) -> dict[str, Any]:
        """Give the verdict as JSON values; an infinite figure is null."""
        values = dataclasses.asdict(self) | {"notes": list(self.notes), "passed": self.passed}
        return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepReport:
    """The verdict on every op that was swept.

    Attributes:
        ops: In the order of the table.
        levels: onnxruntime's optimization levels that each was run at.
    """

    ops: tuple[OpSweep, ...]
    levels: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether something was compared, and all of it is verified."""
        return bool(self.ops) and all(op.passed for op in self.ops)

    def faults(self) -> list[str]:
        """Say what failed, and why."""
        return [f"{op.name}: {op.fault}" for op in self.ops if op.fault] or ([] if self.ops else ["nothing was swept"])

    def to_dict(self) -> dict[str, Any]:
        """Give the report as JSON values."""
        ops = [op.to_dict() for op in self.ops]
        return {"passed": self.passed, "levels": list(self.levels), "faults": self.faults(), "ops": ops}


def verdict(group: str, op: str, form: str, dtype: str, tally: Tally) -> OpSweep:
    """Judge a tally."""
    tally.judge()
    return OpSweep(
        group=group,
        op=op,
        form=form,
        dtype=dtype,
        cases=tally.cases,
        count=tally.count,
        max_abs=tally.largest.error,
        limit=tally.largest.limit,
        where=tally.largest.where,
        level=tally.largest.level,
        share=max(tally.nearest.measure, 0.0),
        max_ulp=tally.max_ulp,
        torch_max_abs=tally.eager.error,
        notes=tuple(tally.notes),
        fault=tally.fault,
    )
