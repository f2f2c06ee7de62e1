"""A gate: one thing that a bundle was held to, by how much it passed or failed, and why."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

Stage = Literal["graph", "task", "budget", "speed", "golden", "machine"]
"""What was looked at: a graph op by op and end to end; the bundle through the runtime; what quantizing costs; time;
what a graph gives where it runs, beside what eager PyTorch gave; what a machine has, and whether its kernels are right.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """One gate, with its verdict.

    Attributes:
        name: What a reader calls it, "int8 budget".
        stage: What was looked at.
        precision: Whose gate it is, such as "int8"; "" of a machine.
        op: The op, output or work that it is about, where it is one.
        passed: The verdict.
        figure: What was measured, where it is one number.
        limit: What that was held against.
        reason: Why it failed, in a sentence that stands by itself; "" where it passed.
    """

    name: str
    stage: Stage
    precision: str
    op: str = ""
    passed: bool
    figure: float | None = None
    limit: float | None = None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON values, which have neither infinity nor NaN; `op` only where it is about one."""
        values = dataclasses.asdict(self)
        if not self.op:
            del values["op"]
        for name in ("figure", "limit"):
            values[name] = values[name] if values[name] is None or math.isfinite(values[name]) else None
        return values

    @property
    def may_be_overruled(self) -> bool:
        """Whether a user may ship what failed it: what int8 costs is for them to weigh, a wrong graph is not."""
        return self.stage in ("budget", "speed") or (self.stage == "task" and self.precision != "fp32")


class Judged:
    """What every report has in common: its gates, by which it passes and says what is wrong."""

    def gates(self) -> list[Gate]:
        """List every gate, with its verdict."""
        raise NotImplementedError

    @property
    def passed(self) -> bool:
        """Whether there are gates, and all of them passed."""
        return all_passed(self.gates())

    def faults(self) -> list[str]:
        """Name what is wrong, in the order of the gates."""
        return [gate.reason for gate in self.gates() if gate.reason]


def nothing_compared(stage: Stage) -> Gate:
    """Make the gate of a report that would have none."""
    return Gate(name=stage, stage=stage, precision="", passed=False, reason="nothing was compared")


def all_passed(gates: Iterable[Gate]) -> bool:
    """Whether there are gates, and all of them passed: what was held to nothing has not passed."""
    verdicts = [gate.passed for gate in gates]
    return bool(verdicts) and all(verdicts)


def precision_of(gate: Mapping[str, Any]) -> str:
    """Name the precision of a gate in a manifest; older ones say it in the gate's name alone."""
    return str(gate.get("precision") or str(gate.get("name", "")).partition(" ")[0])
