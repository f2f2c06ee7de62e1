"""Watch what eager PyTorch feeds to, and gets from, each attention, softmax, activation and layer."""

import contextlib
import dataclasses
import functools
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tfm.ops import ATTENTION, KINDS, OpId, is_layer

from ..fast_path import no_fast_path
from ..graphs import Graph
from ..torch_ops import class_name, kinds_of_aten, kinds_of_functions, kinds_of_modules


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordedCall:
    """One call of one op, just made: the tensors are eager's own, and the next functions may work on them in place.

    Attributes:
        op: Which.
        inputs: Attention: query (B, N, S, H), key and value (B, K, T, H), mask or None; a causal attention's mask is
            written out. Over a cache: query (B, S, N·H), key and value (B, S, K·H), mask or None, past key and value.
            All others: its argument.
        output: Attention: (B, N, S, H); over a cache (B, S, N·H). Softmax, activation and norm: the argument's shape.
        presents: Of an attention over a cache, what it holds after it: keys and values.
        weights: The layer's weight and bias, as far as it has them.
        source: The line of the model that called it, "package/module.py:line"; "" where there is no such file.
        attend: An attention's function of other values, (B, K, T, any size).
    """

    op: OpId
    inputs: tuple[Tensor | None, ...]
    output: Tensor
    weights: tuple[Tensor, ...]
    source: str
    attend: Callable[[Tensor], Tensor] | None = None
    presents: tuple[Tensor, ...] = ()


def watch(graph: Graph, inputs: list[Tensor], visit: Callable[[RecordedCall], None]) -> list[Tensor]:
    """Run a graph's module eagerly, showing every op to `visit` as soon as it has run; give the outputs.

    Nothing is kept of what was shown, so that a large model needs no more memory than when it runs alone.
    """
    recorder = _Recorder(visit)
    with torch.no_grad(), no_fast_path(), _follow(graph.model, recorder), recorder:
        outputs = graph(*inputs)
    return list(outputs)


class _Recorder(TorchFunctionMode):
    def __init__(self, visit: Callable[[RecordedCall], None]) -> None:
        super().__init__()
        self.visit = visit
        self.path: list[str] = []
        self.calls: Counter[tuple[str, str]] = Counter()
        self.composites: list[Tensor] = []  # arguments of the modules that are one op and are running
        self._of_functions, self._of_aten = kinds_of_functions(), kinds_of_aten()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Inside a composite its functions are parts of one op, which `leave` shows as a whole.
        kind = None if self.composites else self._kind(func)
        if kind is None:
            # A mode is switched off while it handles a call. A Python function of torch, such as
            # F.multi_head_attention_forward, would then run its attention unseen, so it is run with
            # the mode on again, by a copy that does not hand itself back to the mode for ever.
            seen = _without_override_checks(func)
            if seen is None:
                return func(*args, **kwargs)
            with self:  # what a Python function of torch calls is recorded too
                return seen(*args, **kwargs)
        # Arguments are taken before the call, since relu_ and the like overwrite theirs.
        weights: tuple[Tensor, ...] = ()
        attend = None
        given: tuple[Tensor | None, ...]
        if func is torch.ops.tfm.cached_attention.default:
            query, key, value, past_key, past_value, mask, *_ = args
            given = query, key, value, mask, past_key, past_value
            attend = functools.partial(_attend_over_cache, func, args)
        elif kind == ATTENTION:
            given = _attention_inputs(*args, **kwargs)
            attend = functools.partial(_attend_to, func, args, kwargs)
        elif is_layer(kind):
            # ATen has the table of a lookup first.
            swapped = KINDS[kind].looks_up and isinstance(func, torch._ops.OpOverload)
            given, weights = _layer_inputs(args, kwargs, swapped=swapped)
        else:
            given = (_snapshot(_argument(args, kwargs)),)
        result = func(*args, **kwargs)
        output, *presents = result if isinstance(result, tuple) else (result,)
        self.show(kind, given, output, weights, attend, tuple(presents))
        return result

    def show(
        self,
        kind: str,
        inputs: tuple[Tensor | None, ...],
        output: Tensor,
        weights: tuple[Tensor, ...] = (),
        attend: Callable[[Tensor], Tensor] | None = None,
        presents: tuple[Tensor, ...] = (),
    ) -> None:
        # Numbered per kind and module, in the order of calls: NameOps numbers the graph's nodes
        # likewise.
        path = self.path[-1] if self.path else ""
        op = OpId(kind=kind, path=path, call=self.calls[kind, path])
        self.calls[kind, path] += 1
        call = RecordedCall(op=op, inputs=inputs, output=output, weights=weights, source=_source(), attend=attend)
        self.visit(dataclasses.replace(call, presents=presents) if presents else call)

    def _kind(self, func: Callable[..., Any]) -> str | None:
        # An exported program calls ATen's operators themselves, no function of torch's.
        if isinstance(func, torch._ops.OpOverload):
            return self._of_aten.get(str(func))
        return self._of_functions.get(func)


def _without_override_checks(func: Callable[..., Any]) -> Callable[..., Any] | None:
    """A copy of a Python function of torch.nn.functional that does its work instead of handing itself to the mode."""
    if not isinstance(func, types.FunctionType) or func.__module__ != F.__name__:
        return None
    checks = [name for name in func.__code__.co_names if name.startswith("has_torch_function")]
    if not checks:
        return None
    # The same code with other globals: the checks say that nobody overrides anything.
    names = {**func.__globals__, **dict.fromkeys(checks, lambda *_: False)}
    copy = types.FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def _source() -> str:
    """The innermost line that is neither torch's nor this file's, without the folders of this machine."""
    # From here outwards, past the hooks and torch's own layers, to the first line of somebody's
    # model.
    frame = sys._getframe()
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name != __name__ and name.partition(".")[0] not in ("torch", "contextlib"):
            is_file = not frame.f_code.co_filename.startswith("<")
            return f"{name.replace('.', '/')}.py:{frame.f_lineno}" if is_file else ""
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def _snapshot(tensor: Tensor) -> Tensor:
    """Copy a tensor, strides included (they decide how it is summed): the function may work on it in place."""
    # clone() of the tensor itself would make gaps and expanded axes dense, and sums over it might
    # differ in the last bits.
    storage: Any = tensor.untyped_storage().clone()  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=tensor.dtype).set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else next(kwargs[name] for name in ("input", "self") if name in kwargs)


def _layer_inputs(
    args: tuple[Any, ...], kwargs: dict[str, Any], *, swapped: bool
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The argument of a layer, and its weights; no layer works on its argument in place."""
    # Weights are all other tensors, wherever they stand: bias may go by position or by name.
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    argument = tensors[1] if swapped else _argument(args, kwargs)
    return (argument,), tuple(tensor for tensor in tensors if tensor is not argument)


def _attend_to(func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], values: Tensor) -> Tensor:
    """Call an attention again, with other values."""
    if "value" in kwargs:
        return func(*args, **kwargs | {"value": values})
    return func(*args[:2], values, *args[3:], **kwargs)


def _attend_over_cache(func: Callable[..., Any], args: tuple[Any, ...], values: Tensor) -> Tensor:
    """Likewise of an attention over a cache: the values of all, (B, K, T, any size); gives (B, N, S, that size)."""
    query, key, _, past_key, _, *rest = args
    before = values.size(2) - key.size(1)
    new = values[:, :, before:].transpose(1, 2).flatten(2)
    y_BSD = func(query, key, new, past_key, values[:, :, :before], *rest)[0]
    return y_BSD.reshape(*y_BSD.shape[:2], -1, values.size(-1)).transpose(1, 2)


def _attention_inputs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *_: Any,
    **__: Any,
) -> tuple[Tensor | None, ...]:
    # Written out as the lower triangle from the first query and key on, as torch aligns it.
    if is_causal is True:
        attn_mask = torch.ones(query.size(-2), key.size(-2), dtype=torch.bool).tril()
    return query, key, value, attn_mask


@contextlib.contextmanager
def _follow(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Keep `recorder.path` at the module that is running, and record modules that are one op as such."""
    handles = []
    flat = isinstance(model, torch.fx.GraphModule)  # has no modules to speak of
    kinds = kinds_of_modules()
    # Defaults bind this turn's values; a closure would see the last module's in every hook.
    for name, module in () if flat else model.named_modules():
        composite = kinds.get(class_name(module))

        def enter(module: nn.Module, args: Any, composite: str | None = composite, name: str = name) -> None:
            recorder.path.append(name)
            if composite is not None:
                recorder.composites.append(_snapshot(args[0]))

        def leave(module: nn.Module, args: Any, output: Any, composite: str | None = composite) -> None:
            if composite is not None:
                argument = recorder.composites.pop()
                # A composite may be made of others: the outermost is the op.
                if not recorder.composites:
                    weights = tuple(module.parameters()) if is_layer(composite) else ()
                    recorder.show(composite, (argument,), output, weights)
            recorder.path.pop()

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
