"""Which methods an op may be quantized by."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tfm.errors import QuantizeError

from ..calibration.observe import Observed, joined
from ..methods.emulation import choose, choose_static
from ..methods.method import Blocks, Dynamic, Float32, Method
from ..methods.ops import Op
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


def candidates(
    op: Op, precision: str, kind: str, observed: Mapping[str, Observed], *, objective: str = "size"
) -> list[Method]:
    """List the methods worth trying, float32 first.

    A decoder multiplies one row at a time, so that reading the weights is what takes time: they go in blocks. It reads
    prompts as well, many rows at once, where integers are fastest; these have more bytes and are less exact, and so are
    tried where the objective is speed, row by row: it then matters little which are read together. Other graphs
    multiply many rows always, in integers.

    Args:
        op: The op.
        precision: One of `PRECISIONS`.
        kind: The bundle's.
        observed: What goes into products.
        objective: What is to be least, "size" or the time ("speed").

    Raises:
        QuantizeError: The precision is unknown.
    """
    if precision not in PRECISIONS:
        raise QuantizeError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    exact: list[Method] = [Float32()]
    if precision == "int4":  # rows that are looked up, and a head tied to them, would lose most
        looked_up = "embedding" in op.kinds
        small = Blocks(bits=8, outliers=False) if looked_up else Blocks(bits=4, block=32, outliers=False)
        return [*exact, small, Blocks(bits=8)]
    seen = joined(op, observed)
    if kind == "decoder":
        in_blocks: list[Method] = [*exact, Blocks(bits=8), Blocks(bits=8, products="float32")]
        if "embedding" in op.kinds or seen is None or objective == "size":
            return in_blocks
        return [*in_blocks, choose(_matrix(op), seen, by_row=True)]
    if "matmul" not in op.kinds:
        return [*exact, Dynamic()]
    blocks = Blocks(bits=8, block=32, calibrated=False)
    # A tied table has its scales by rows, and can be neither smoothed nor static.
    if op.tied or seen is None:
        return [*exact, Dynamic(), Dynamic(by_row=True), blocks]
    weight_KN = _matrix(op)
    chosen = [choose(weight_KN, seen, by_row=by_row) for by_row in (False, True)]
    # A static scale is of all rows, so the smoothing is the one chosen without scales by row.
    static = choose_static(weight_KN, seen, chosen[0].alpha)
    return list(dict.fromkeys([*exact, Dynamic(), *chosen, static, blocks]))


def _matrix(op: Op) -> npt.NDArray[np.float32]:
    """What an op multiplies by, (K, N)."""
    return np.ascontiguousarray(op.matrix_KN(next(use for use in op.uses if not use.is_lookup)))
