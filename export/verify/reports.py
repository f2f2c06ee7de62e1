"""What a verification found, op by op and output by output: the content of parity.json's "graphs"."""

import dataclasses
import enum
from typing import Any

from tfm.bundle import Gate
from tfm.ops import OpId
from tfm.runtime import ErrorStats

BROKEN = "the whole graph cannot be run"


class Cause(enum.Enum):
    """What a fault is of."""

    RESULT = enum.auto()
    """What is computed, alone or in place, or what it is fed."""
    WEIGHTS = enum.auto()
    OPTIMIZATION = enum.auto()
    """What onnxruntime made of it."""
    BREAKAGE = enum.auto()
    """That the whole graph cannot be run."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """Why something failed, in words and by cause; false where it did not."""

    text: str = ""
    cause: Cause = Cause.RESULT

    def __bool__(self) -> bool:
        return bool(self.text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimized:
    """An op in the graph that onnxruntime made of ours.

    Attributes:
        level: The optimization level.
        node: Type of the node that gives the op's result, or of the one that swallowed it.
        at: The op or output at whose result it was compared: itself, unless it was swallowed.
        swallowed: Whether no value of the optimized graph is the op's own result any more.
        figures: Its error inside the optimized graph.
        limit: The largest `figures.max_abs` allowed; None where it is not judged.
    """

    level: str
    node: str
    at: str
    swallowed: bool
    figures: ErrorStats
    limit: float | None

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON values."""
        names = {"level": self.level, "node": self.node, "at": self.at, "swallowed": self.swallowed}
        return names | self.figures.to_dict() | {"limit": self.limit}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """What ran an op, as onnxruntime's profile says.

    Attributes:
        op_type: The operator.
        domain: Its domain; "" is ONNX's own.
        provider: The execution provider.
        advice: Why it is not the best known form, and what to do; "" where it is.
    """

    op_type: str
    domain: str
    provider: str
    advice: str

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON values."""
        return dataclasses.asdict(self) | {"best": not self.advice}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpReport:
    """The verdict on one attention, softmax, activation or layer.

    Attributes:
        op: Which.
        source: The line of the model that calls it.
        form: The ONNX nodes it became; "" where there are none.
        weights: "identical" to eager's, bit by bit; "quantized"; or None where it has none.
        own: Its own error, fed what eager fed to it.
        own_limit: The largest `own.max_abs` allowed; None where it is not judged (a quantized layer).
        inherited: The error of what is fed to it inside the whole graph.
        free: Its error inside the whole graph.
        free_limit: The largest `inherited.max_abs` and `free.max_abs` allowed; None where they are not judged (a
            quantized graph).
        optimized: The same inside the optimized graph; None where that could not be compared.
        kernel: What ran it; None where that is not known.
        fault: Why it failed, "" where it passed.
        cause: What the fault is of.
    """

    op: OpId
    source: str = ""
    form: str = ""
    weights: str | None = None
    own: ErrorStats = dataclasses.field(default_factory=ErrorStats)
    own_limit: float | None = None
    inherited: ErrorStats = dataclasses.field(default_factory=ErrorStats)
    free: ErrorStats = dataclasses.field(default_factory=ErrorStats)
    free_limit: float | None = None
    optimized: Optimized | None = None
    kernel: Kernel | None = None
    fault: str = ""
    cause: Cause = Cause.RESULT

    @property
    def passed(self) -> bool:
        """Whether the op is verified."""
        return not self.fault

    @property
    def is_layer(self) -> bool:
        """Whether it is one of the layers around the attentions and activations."""
        return self.op.is_layer

    @property
    def stage(self) -> int:
        """At which stage its fault shows: see `_stage`."""
        return _stage(self.cause)

    @property
    def key(self) -> dict[str, str]:
        """What names it among the entries of a graph, as JSON values."""
        return {"op": str(self.op)}

    @property
    def said(self) -> str:
        """Its fault in words, with its name and the line that calls it."""
        return f"{self.op}: {self.fault}" + (f", called at {self.source}" if self.source else "")

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON values."""
        return {
            "op": str(self.op),
            **dataclasses.asdict(self.op),
            "source": self.source,
            "form": self.form,
            "passed": self.passed,
            "fault": self.fault,
            "weights": self.weights,
            "own": self.own.to_dict() | {"limit": self.own_limit},
            "inherited": self.inherited.to_dict(),
            "free": self.free.to_dict() | {"limit": self.free_limit},
            "optimized": None if self.optimized is None else self.optimized.to_dict(),
            "kernel": None if self.kernel is None else self.kernel.to_dict(),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputReport:
    """The verdict on one output of the whole graph at one optimization level."""

    name: str
    level: str
    figures: ErrorStats
    limit: float | None
    fault: str
    cause: Cause = Cause.RESULT

    @property
    def passed(self) -> bool:
        """Whether the output is verified."""
        return not self.fault

    @property
    def stage(self) -> int:
        """At which stage its fault shows: see `_stage`."""
        return _stage(self.cause, self.level)

    @property
    def key(self) -> dict[str, str]:
        """What names it among the entries of a graph, as JSON values."""
        return {"output": self.name, "level": self.level}

    @property
    def said(self) -> str:
        """Its fault in words, with its name."""
        return f"output {self.name} ({self.level}): {self.fault}"

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON values."""
        names = {"name": self.name, "level": self.level, "passed": self.passed, "fault": self.fault}
        return names | self.figures.to_dict() | {"limit": self.limit}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphReport:
    """The verdict on one graph in one precision on one execution provider."""

    role: str
    precision: str
    provider: str = "CPUExecutionProvider"
    ops: tuple[OpReport, ...]
    outputs: tuple[OutputReport, ...]

    @property
    def promised(self) -> tuple[OpReport, ...]:
        """The attentions, softmaxes and activations."""
        return tuple(op for op in self.ops if not op.is_layer)

    @property
    def passed(self) -> bool:
        """Whether attentions or activations were found, and all ops and all outputs are verified."""
        compared = bool(self.promised) and bool(self.outputs)
        return compared and all(op.passed for op in self.ops) and all(output.passed for output in self.outputs)

    @property
    def gate(self) -> Gate:
        """Whether the graph is verified."""
        name = f"{self.precision} {self.role}"
        return Gate(
            name=name,
            stage="graph",
            precision=self.precision,
            passed=self.passed,
            reason="" if self.passed else f"{name}: {self.first_fault}",
        )

    @property
    def first_fault(self) -> str:
        """The first op or output past tolerance, why, and the line that calls it; "" where all passed."""
        first = self._first_failed
        if first is not None:
            return first.said
        return "" if self.passed else f"nothing was compared in the {self.role} graph"

    @property
    def _first_failed(self) -> OpReport | OutputReport | None:
        # min() takes the first of equals: within a stage that is the order of eager's calls.
        parts: list[OpReport | OutputReport] = [*self.ops, *self.outputs]
        failed = [part for part in parts if part.fault]
        return min(failed, key=lambda part: part.stage, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Give the report as JSON values."""
        return {
            "role": self.role,
            "precision": self.precision,
            "provider": self.provider,
            "passed": self.passed,
            "first_fault": self.first_fault,
            "first_failed": None if self._first_failed is None else self._first_failed.key,
            "ops": [op.to_dict() for op in self.ops],
            "outputs": [output.to_dict() for output in self.outputs],
        }


def _stage(cause: Cause, level: str | None = None) -> int:
    """Rank a fault by the stage that it shows at: the earlier says more, and what breaks all that follows the least."""
    # Alone and in place come first: they name the op. Then the outputs of our own graph; then what
    # onnxruntime made of ops, and of outputs. A graph that cannot be run explains nothing, as the
    # op that breaks it has a fault of its own.
    if cause is Cause.BREAKAGE:
        return 4
    if level is None:
        return 2 if cause is Cause.OPTIMIZATION else 0
    return 1 if level == "disabled" else 3
