"""Write attention in products and a softmax, for engines that have no kernel of it."""

import math
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from tfm.errors import ExportError

from .writer import Writer

_BOOL, _FLOAT, _INT64 = ir.DataType.BOOL, ir.DataType.FLOAT, ir.DataType.INT64


class LowerAttention(InPlacePass):
    """Turn ONNX-23 Attention into MatMul, Softmax and MatMul.

    As Attention, it gives zeros for a query that may attend nowhere: its scores are left as they are, so that no row of
    them is all -inf, and its result is multiplied by 0. Grouped heads share their keys by broadcasting.

    Requires: queries and keys of known numbers of heads; each attention has its op's name.
    Ensures: the same function, of operators of opset 18. Where there is a past, its present is a new tensor.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite every attention."""
        prepared: dict[object, ir.Value] = {}
        modified = False
        for node in list(model.graph):
            if node.op_type == "Attention" and node.domain == "":
                _Attention(model.graph, node, prepared).rewrite()
                modified = True
        return PassResult(model, modified=modified)


class _Attention:
    """One attention, and what of it is written already.

    Shapes: B batch, N heads, K of keys and values, G = N / K, S queries, T keys, P of them past, H head size.
    """

    def __init__(self, graph: ir.Graph, node: ir.Node, prepared: dict[object, ir.Value]) -> None:
        self.graph, self.node, self.prepared = graph, node, prepared
        self.write = Writer(graph, node)
        self.query, self.key, self.value, self.mask, *past = [*node.inputs, None, None, None][:6]
        self.past_key, self.past_value = past
        self.merged = "q_num_heads" in node.attributes
        self.heads, self.kv_heads = self._heads()
        self.groups = self.heads // self.kv_heads

    def rewrite(self) -> None:
        write = self.write
        # (B, N, S, H).
        query = self._by_heads(self.query, self.heads, "query")
        # (B, K, T, H).
        key = self._with_past("key", self.key, self.past_key, 1)
        value = self._with_past("value", self.value, self.past_value, 2)
        size = self._size()
        scale = self.node.attributes.get_float("scale", 1 / math.sqrt(size))
        named = {} if self.merged else {"query": 0}
        query = write("Mul", [query, write.number(scale, query)], enters=named)
        # (B, K, G, S, H), and a group's keys (B, K, 1, T, H).
        if self.groups > 1:
            query = write("Reshape", [query, write.integers([0, self.kv_heads, self.groups, -1, size])])
        # Scores are scaled before they are computed: of the two, queries are fewer numbers.
        # (B, K, T, H) → (B, K, H, T), a copy of all keys at each step, as the product wants them so.
        turned = write("Transpose", [key], {"perm": [0, 1, 3, 2]}, enters=self._unless_kept("key", self.past_key))
        scores = write("MatMul", [query, self._for_groups(turned)])
        if softcap := self.node.attributes.get_float("softcap", 0.0):
            cap = write.number(softcap, scores)
            scores = write("Mul", [write("Tanh", [write("Div", [scores, cap])]), cap])
        # The bias is finite in each row somewhere, so that no softmax divides by zero.
        bias, alive = self._bias()
        if bias is not None:
            scores = write("Add", [scores, bias])
        weights = write("Softmax", [scores], {"axis": -1})
        enters = self._unless_kept("value", self.past_value)
        if self.groups > 1:
            value, enters = self._for_groups(value, enters), {}
        output = write("MatMul", [weights, value], enters=dict.fromkeys(enters, 1))
        if alive is not None:
            output = write("Mul", [output, alive])
        # (B, K, G, S, H) → (B, N, S, H) → (B, S, N·H)
        if self.groups > 1:
            output = write("Reshape", [output, write.integers([0, self.heads, -1, self._value_size()])])
        if self.merged:
            output = write("Transpose", [output], {"perm": [0, 2, 1, 3]})
            output = write("Reshape", [output, write.integers([0, 0, -1])])
        write.finish(output, what="output")
        self._remove()

    def _remove(self) -> None:
        if any(old.uses() for old in self.node.outputs[1:]):
            raise ExportError(f"{self.node.name}: an attention that gives out its scores cannot be written out")
        self.graph.remove(self.node, safe=True)

    def _heads(self) -> tuple[int, int]:
        if self.merged:
            return self.node.attributes["q_num_heads"].as_int(), self.node.attributes["kv_num_heads"].as_int()
        found = [None if x is None or x.shape is None else x.shape[1] for x in (self.query, self.key)]
        heads = [number for number in found if isinstance(number, int)]
        if len(heads) != 2:
            raise ExportError(
                f"{self.node.name}: its numbers of heads are not known, so that it cannot be written out for an older "
                "onnxruntime; 1.23 and later have Attention itself"
            )
        return heads[0], heads[1]

    def _size(self) -> int:
        return self._size_of(self.query, self.heads)

    def _value_size(self) -> int:
        return self._size_of(self.value, self.kv_heads)

    def _size_of(self, x: ir.Value | None, heads: int) -> int:
        width = None if x is None or x.shape is None else x.shape[-1]
        if not isinstance(width, int):
            raise ExportError(
                f"{self.node.name}: its head size is not known, so that it cannot be written out for an older "
                "onnxruntime; 1.23 and later have Attention itself"
            )
        return width // heads if self.merged else width

    def _by_heads(self, x: ir.Value | None, heads: int, what: str) -> ir.Value:
        """(B, S, N·H) → (B, N, S, H)."""
        assert x is not None
        if not self.merged:
            return x
        split = self.write("Reshape", [x, self.write.integers([0, 0, heads, -1])], enters={what: 0})
        return self.write("Transpose", [split], {"perm": [0, 2, 1, 3]})

    def _with_past(self, what: str, x: ir.Value | None, past: ir.Value | None, index: int) -> ir.Value:
        new = self._by_heads(x, self.kv_heads, what)
        if past is None:
            return new
        named = {} if self.merged else {what: 1}
        whole = self.write("Concat", [past, new], {"axis": 2}, enters={f"past {what}": 0, **named})
        if index < len(self.node.outputs):
            self.write.finish(whole, index, f"present {what}")
        return whole

    def _unless_kept(self, what: str, past: ir.Value | None) -> dict[str, int]:
        """Where keys or values by heads enter: here, unless they were reshaped or put behind a past before."""
        return {} if self.merged or past is not None else {what: 0}

    def _for_groups(self, x: ir.Value, enters: Mapping[str, int] | None = None) -> ir.Value:
        return self.write("Unsqueeze", [x, self.write.integers([2])], enters=enters) if self.groups > 1 else x

    def _bias(self) -> tuple[ir.Value | None, ir.Value | None]:
        """What to add to the scores, and what to multiply the result by: 0 where there is nothing to attend to."""
        write = self.write
        causal = self.node.attributes.get_int("is_causal", 0)
        if self.mask is None and not causal:
            return None, None
        hidden = write.constant("tfm.hidden", np.array(-np.inf, np.float32))
        zero, one = (write.constant(f"tfm.float32_{x!r}", np.array(x, np.float32)) for x in (0.0, 1.0))
        # (S, T): each query sees the first key at least.
        if self.mask is None:
            return write("Where", [self._causal(), zero, hidden], dtype=_FLOAT, enters={"causal": 0}), None
        bias, enters = self._mask_of_numbers(hidden, zero), {"mask": 0}
        if causal:
            masked = [self._causal(), bias, hidden]
            bias, enters = write("Where", masked, dtype=_FLOAT, enters={"causal": 0, "mask": 1}), {}
        top = write("ReduceMax", [bias, write.integers([-1])], {"keepdims": 1}, enters=enters)
        blind = write("IsInf", [top], {"detect_positive": 0}, dtype=_BOOL)
        bias = write("Where", [blind, zero, bias], dtype=_FLOAT)
        alive = write("Where", [blind, zero, one], dtype=_FLOAT)
        return self._of_groups(bias), self._of_groups(alive)

    def _of_groups(self, bias: ir.Value) -> ir.Value:
        """(B or 1, N or 1, S, T) → (B or 1, K or 1, G or 1, S, T), where heads are grouped."""
        assert self.mask is not None
        shape = self.mask.shape
        if self.groups == 1 or (shape is not None and shape.rank() < 3):
            return bias
        if shape is None or shape.rank() != 4:
            raise ExportError(f"{self.node.name}: a mask of grouped heads must have 4 dimensions to be written out")
        if shape[1] == 1:
            return self.write("Unsqueeze", [bias, self.write.integers([2])])
        first = self.write("Shape", [bias], {"start": 0, "end": 1}, dtype=_INT64)
        last = self.write("Shape", [bias], {"start": 2}, dtype=_INT64)
        sizes = [first, self.write.integers([self.kv_heads, self.groups]), last]
        return self.write("Reshape", [bias, self.write("Concat", sizes, {"axis": 0})])

    def _mask_of_numbers(self, hidden: ir.Value, zero: ir.Value) -> ir.Value:
        """The mask as numbers to add, -inf where a key may not be seen; layers with one mask share them."""
        assert self.mask is not None
        if self.mask.dtype != _BOOL:
            return self.mask
        if self.mask not in self.prepared:
            prepare = Writer(self.graph, self.node, named=False)
            numbers = prepare("Where", [self.mask, zero, hidden], dtype=_FLOAT)
            numbers.shape = self.mask.shape
            self.prepared[self.mask] = numbers
        return self.prepared[self.mask]

    def _causal(self) -> ir.Value:
        """Which keys a query may see, (S, T): those up to its own; layers of the same lengths share it."""
        lengths = [None if x is None or x.shape is None else str(x.shape[at]) for x, at in self._lengths()]
        key = None if "None" in map(str, lengths) else ("causal", *lengths)
        if key is None or key not in self.prepared:
            made = self._make_causal()
            if key is None:
                return made
            self.prepared[key] = made
        return self.prepared[key]

    def _lengths(self) -> list[tuple[ir.Value | None, int]]:
        """Off which dimensions S, the new of T and P are read."""
        place = 1 if self.merged else 2
        past = [(self.past_key, 2)] if self.past_key is not None else []
        return [(self.query, place), (self.key, place), *past]

    def _make_causal(self) -> ir.Value:
        prepare = Writer(self.graph, self.node, named=False)
        scalar = prepare.constant("tfm.no_axis", np.array([], np.int64))
        zero, one = (prepare.constant(f"tfm.scalar_{n}", np.array(n, np.int64)) for n in (0, 1))
        sizes = [prepare("Shape", [x], {"start": at, "end": at + 1}, dtype=_INT64) for x, at in self._lengths()]
        new, total, *past = (prepare("Reshape", [size, scalar]) for size in sizes)
        rows = prepare("Range", [zero, new, one])
        if past:
            rows = prepare("Add", [rows, past[0]])
            total = prepare("Add", [total, past[0]])
        columns = prepare("Range", [zero, total, one])
        return prepare("LessOrEqual", [columns, prepare("Unsqueeze", [rows, prepare.integers([1])])], dtype=_BOOL)
