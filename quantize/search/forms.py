"""The forms of an op that what is written for has: what it lacks is not tried."""

from collections.abc import Callable, Sequence

import onnx_ir as ir

from tfm.errors import QuantizeError

from ..methods.dynamic import Dynamic
from ..methods.method import Float32, Method
from ..methods.ops import Op
from ..target import Target
from .candidates import Candidate


def write_forms(
    role: str,
    op: Op,
    methods: Sequence[Method],
    target: Target,
    write: Callable[[Op, Method], ir.Model],
    *,
    replayed: bool = False,
) -> Candidate:
    """Write an op in every form that a target has; in integers with dynamic scales where it has no other.

    Args:
        role: Of its graph.
        op: The op.
        methods: How it may be quantized, float32 first.
        target: What graphs are written for.
        write: Makes the model of an op in one form.
        replayed: Whether a recipe says how it is quantized.

    Raises:
        QuantizeError: A recipe's form is one that the target lacks.
    """
    found, refusals = _fitting(op, methods, target, write)
    # A recipe was asked for: what it says is not exchanged for something else in silence.
    if replayed and refusals:
        method, reason = next(iter(refusals.items()))
        raise QuantizeError(f"the recipe has {op.name} as {str(method)!r}, but {reason}; leave out --recipe")
    # As those of old engines, for decoders.
    if len(found) == 1 < len(methods):
        others = [Dynamic(by_row=True)] if "matmul" in op.kinds else [Dynamic()]
        found |= _fitting(op, others, target, write)[0]
    return Candidate(role=role, op=op, methods=list(found), subgraphs=list(found.values()))


def _fitting(
    op: Op, methods: Sequence[Method], target: Target, write: Callable[[Op, Method], ir.Model]
) -> tuple[dict[Method, ir.Model], dict[Method, str]]:
    """Give the forms that the target has, and why it has not the others."""
    found, refusals = dict[Method, ir.Model](), dict[Method, str]()
    for method in methods:
        written = write(op, method)
        written.ir_version = target.ir_version
        refusal = None if method == Float32() else target.refusal(written)
        if refusal is None:
            found[method] = written
        else:
            refusals[method] = refusal
    return found, refusals
