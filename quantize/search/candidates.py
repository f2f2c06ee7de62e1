"""Which methods an op may be quantized by."""

import dataclasses

import onnx_ir as ir

from tfm.errors import QuantizeError

from ..methods.method import Float32, Method, Situation
from ..methods.ops import Op
from ..methods.registry import METHODS
from .frontier import Variant

PRECISIONS = ("int8", "int4")
"""What a graph can be quantized to: the least bits of its weights."""


@dataclasses.dataclass(eq=False)
class Candidate:
    """An op and the forms that it may have.

    Attributes:
        role: Of its graph.
        op: The op.
        methods: How it may be quantized, float32 first.
        subgraphs: It by itself, in each.
        variants: What was found of each.
    """

    role: str
    op: Op
    methods: list[Method]
    subgraphs: list[ir.Model]
    variants: list[Variant] = dataclasses.field(default_factory=list)

    @property
    def key(self) -> str:
        """What it is known by among the ops of all graphs."""
        return f"{self.role} {self.op.name}"


def candidates(op: Op, precision: str, kind: str, *, objective: str = "size", search: str = "full") -> list[Method]:
    """List the methods worth trying, float32 first: what each of `METHODS` proposes.

    Args:
        op: The op.
        precision: One of `PRECISIONS`.
        kind: The bundle's.
        objective: What is to be least, "size" or the time ("speed").
        search: One of `SEARCHES`; with "none" float32 and one other are given.

    Raises:
        QuantizeError: The precision is unknown.
    """
    if precision not in PRECISIONS:
        raise QuantizeError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    situation = Situation(precision=precision, kind=kind, objective=objective, quick=search == "quick")
    if search == "none":
        fixed = [method.fixed(op, situation) for method in METHODS]
        # Dearer ones are later.
        return [Float32(), *[method for method in fixed if method is not None][-1:]]
    return [Float32(), *(found for method in METHODS for found in method.proposals(op, situation))]
