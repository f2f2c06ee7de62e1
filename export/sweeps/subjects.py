"""What is swept: an op of ours in a graph of its own, what to feed to it, and what has to come out."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from tfm.ops import SWEEPS, Tolerance

from ..graphs import Graph, Value

Array = npt.NDArray[Any]


class OpGraph(Graph):
    """A graph of one op: exported as a whole model is, by the same translations and passes.

    Attributes:
        draw: Makes inputs to export with, of a batch, a length and a past.
    """

    role = "op"
    file = "op"

    def __init__(
        self,
        module: nn.Module,
        inputs: tuple[Value, ...],
        outputs: tuple[Value, ...],
        draw: Callable[[torch.Generator, int, int, int], list[Tensor]],
    ) -> None:
        # Not Graph's own, which takes a Transformer.
        nn.Module.__init__(self)
        self.model: Any = module.eval()
        self.inputs, self.outputs, self.draw = inputs, outputs, draw
        self.max_length = {}

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs."""
        result = self.model(*tensors)
        return result if isinstance(result, tuple) else (result,)

    def sample(self, generator: torch.Generator, batch: int, length: int, past: int = 0) -> list[Tensor]:
        """Make random inputs."""
        return self.draw(generator, batch, length, past)

    @torch.no_grad()
    def outputs_of(self, feeds: tuple[Array, ...]) -> dict[str, Array]:
        """Run eager PyTorch."""
        results = self(*(torch.from_numpy(x) for x in feeds))
        return {value.name: y.numpy() for value, y in zip(self.outputs, results, strict=True)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """What one output has to be.

    Attributes:
        form: Which form of the op it shows.
        output: Its name.
        expected: float64, as the oracle has it.
        unit: What a tolerance's `atol` is multiplied by: how large the terms are that an element is made of.
        where: What a reader is told of the case; of an activation the x of each element.
    """

    form: str
    output: str
    expected: npt.NDArray[np.float64]
    unit: Array | float = 1.0
    where: str | Array = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One run of the graph: its inputs, in order, and what some of its outputs have to be."""

    feeds: tuple[Array, ...]
    checks: tuple[Check, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """One exported graph and all that is fed to it.

    Attributes:
        group: "activations", "attention", "positions" or "norms".
        op: Name of the op.
        tolerances: By dtype.
        title: What a progress bar says.
        dtypes: What it is swept in: "float32", "float16".
        make: Builds the graph, in float32.
        cases: Makes the cases of a dtype.
    """

    group: str
    op: str
    tolerances: Mapping[str, Tolerance]
    title: str
    dtypes: tuple[str, ...] = ("float32",)
    make: Callable[[], OpGraph]
    cases: Callable[[OpGraph, str], Iterator[Case]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Ops that are swept alike.

    Attributes:
        names: Gives what can be asked for.
        subjects: Lists the sweeps of one name in some of `dtypes`; the whole product of options, or its pairs alone.
        dtypes: What they are swept in.
    """

    names: Callable[[], Sequence[str]]
    subjects: Callable[[str, tuple[str, ...], bool], list[Source]]
    dtypes: tuple[str, ...] = ("float32",)


def limits_of(kind: str) -> dict[str, Tolerance]:
    """Give the tolerances of a kind in `SWEEPS`, by dtype."""
    return {dtype: tolerance for (dtype, each), tolerance in SWEEPS.items() if each == kind}


def to_float16(content: bytes) -> bytes:
    """Turn every float32 input, output, value and weight of a serialized graph of activations into float16."""
    model = ir.from_proto(onnx.ModelProto.FromString(content))
    # Nothing is cast: types are changed, as an exported float16 graph has them.
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        value.dtype = _half(value.dtype)
    for name, value in model.graph.initializers.items():
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16), name=name)
            value.dtype = ir.DataType.FLOAT16
    return ir.to_proto(model).SerializeToString()


def _half(dtype: ir.DataType | None) -> ir.DataType | None:
    return ir.DataType.FLOAT16 if dtype == ir.DataType.FLOAT else dtype
