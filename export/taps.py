"""Record what eager PyTorch feeds to, and gets from, each attention and activation."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tfm.model import COMPOSITES

from .graphs import Graph
from .ops import ACTIVATION, ATTENTION, FUNCTIONS, Kind, OpId


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tap:
    """One recorded call of one op.

    Attributes:
        op: Which.
        inputs: Attention: query (B, N, S, H), key and value (B, K, T, H), mask or None. Activation: its argument.
        output: Attention: (B, N, S, H). Activation: the argument's shape.
    """

    op: OpId
    inputs: tuple[Tensor | None, ...]
    output: Tensor


def record(graph: Graph, inputs: list[Tensor]) -> tuple[list[Tensor], list[Tap]]:
    """Run a graph's module eagerly; give its outputs and a tap for every op, in the order of the calls."""
    recorder = _Recorder()
    with torch.no_grad(), _follow(graph.model, recorder), recorder:
        outputs = graph(*inputs)
    return list(outputs), recorder.taps


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.taps: list[Tap] = []
        self.path: list[str] = []
        self.calls: Counter[tuple[Kind, str]] = Counter()
        self.inside_composite = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        kind = None if self.inside_composite else FUNCTIONS.get(func)
        if kind == ATTENTION:
            self.add(ATTENTION, _attention_inputs(*args, **(kwargs or {})), result)
        elif kind == ACTIVATION:
            self.add(ACTIVATION, (args[0],), result)
        return result

    def add(self, kind: Kind, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
        path = self.path[-1] if self.path else ""
        op = OpId(kind=kind, path=path, call=self.calls[kind, path])
        self.calls[kind, path] += 1
        self.taps.append(Tap(op=op, inputs=inputs, output=output))


def _attention_inputs(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
) -> tuple[Tensor | None, ...]:
    return query, key, value, attn_mask


@contextlib.contextmanager
def _follow(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Keep `recorder.path` at the module that is running, and record composite activations as one op."""
    handles = []
    for name, module in model.named_modules():

        def enter(module: nn.Module, args: Any, name: str = name) -> None:
            recorder.path.append(name)
            recorder.inside_composite |= isinstance(module, COMPOSITES)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(module, COMPOSITES):
                recorder.inside_composite = False
                recorder.add(ACTIVATION, (args[0],), output)
            recorder.path.pop()

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
