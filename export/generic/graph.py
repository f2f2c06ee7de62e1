"""The one graph that an arbitrary nn.Module becomes, from example inputs and the names of their dynamic axes.

What a Transformer's configuration says of a native model is read off the examples here: sizes, dtypes, ids and masks.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tfm.errors import ExportError

from ..fast_path import has_fast_path, no_fast_path
from ..graphs import Graph, Shape, Value
from ..reasons import reason_of

Examples = Mapping[str, Any] | Sequence[Any]
"""Arguments of the module's forward, by name or in order."""

DynamicAxes = Mapping[str, Mapping[int, str]]
"""Input name → axis → name of its dimension; equal names are equal sizes."""

_FIXED = (bool, int, float, str, type(None))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenericConfig:
    """What a bundle says of a module in place of a TransformerConfig.

    Attributes:
        family: What it came from.
        values: Its own configuration, for information.
        notes: What there is to say of how it was read.
    """

    family: str = "module"
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    kind: str = "module"

    def to_dict(self) -> dict[str, Any]:
        """Give the module's own configuration as JSON values."""
        return dict(self.values)


class GenericGraph(Graph):
    """An nn.Module, called with its examples' tensors; every other argument stays as in the examples.

    A dimension named "batch…" counts rows (where none is, the first dynamic axis 0 does). Every other one is a length,
    and may be as long as in the examples: what lies beyond has not been verified, and may lie beyond a position table.
    `lengthen` finds out how far it goes.

    Attributes:
        config: What the bundle says of the module.
    """

    role = "model"
    file = "model"

    def __init__(
        self,
        module: nn.Module,
        examples: Examples,
        dynamic_axes: DynamicAxes,
        *,
        in_order: Sequence[str] = (),
        config: GenericConfig | None = None,
    ) -> None:
        # Not Graph's own, which takes a Transformer.
        nn.Module.__init__(self)
        module = module.float()
        # What torch.export gives refuses eval(): its mode was fixed when it was traced.
        self.model: Any = module if isinstance(module, torch.fx.GraphModule) else module.eval()
        self.config = config or GenericConfig()
        arguments = _arguments(module, examples)
        # By position where the examples came so: a forward of *args takes no names.
        self._in_order = tuple(in_order) if isinstance(examples, Mapping) else tuple(arguments)
        self._fixed = {name: value for name, value in arguments.items() if not isinstance(value, Tensor)}
        self._examples = {name: _plain(name, value) for name, value in arguments.items() if isinstance(value, Tensor)}
        if not self._examples:
            raise ExportError("the example inputs hold no tensor")
        self._sizes = _sizes(self._examples, dynamic_axes)
        rows = [dim for dim in self._sizes if "batch" in dim]
        rows = rows or [axes[0] for axes in dynamic_axes.values() if 0 in axes][:1]
        self._lengths = [dim for dim in self._sizes if dim not in rows]
        self.max_length = {dim: self._sizes[dim] for dim in self._lengths}
        shapes = {name: _shape(x, dynamic_axes.get(name, {})) for name, x in self._examples.items()}
        # This runs the module, for which all above must be set; the inputs below need its answer.
        bounds = self._id_bounds()
        self.inputs = tuple(
            Value(name=name, dtype=_dtype(x), shape=shapes[name], below=bounds.get(name))
            for name, x in self._examples.items()
        )
        self.outputs = self._describe_outputs()

    @property
    def graphs(self) -> "list[GenericGraph]":
        """What the module becomes."""
        return [self]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Call the module; give the tensors that it returns, in its order."""
        return tuple(self._call(tensors).values())

    def sample(self, generator: torch.Generator, batch: int, length: int, past: int = 0) -> list[Tensor]:
        """Make inputs like the examples: random ids and numbers, ragged masks, and anything else as it is there."""
        del past
        # A length is never below 2, where the example allows it: torch takes a size of 1 for a
        # constant.
        lengths: dict[str, int] = {}
        for dim in self._lengths:
            most = size = min(length, self.max_length[dim])
            # Different ones where possible: equal sizes could hide a mix-up.
            while size in lengths.values() and size > 2:
                size -= 1
            lengths[dim] = max(size, min(most, 2))
        return self.sample_at(generator, batch, lengths)

    def sample_at(self, generator: torch.Generator, batch: int, lengths: Mapping[str, int]) -> list[Tensor]:
        """Make inputs like the examples, of lengths that each have a size of their own."""
        sizes = dict.fromkeys(self._sizes, batch) | dict(lengths)
        return [self._sample(value, sizes, generator) for value in self.inputs]

    def _call(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        given = self._fixed | dict(zip(self._examples, tensors, strict=True))
        # pop: what goes by position must not go by name as well.
        # Under a mode of any kind PyTorch takes no fused path, which is compared as well where there is one.
        with contextlib.nullcontext() if has_fast_path(self.model) else SortedTopK():
            result = self.model(*[given.pop(name) for name in self._in_order], **given)
        # A graph's inputs and outputs share one space of names.
        return {(f"{name}_out" if name in self._examples else name): x for name, x in _tensors(result).items()}

    def _sample(self, value: Value, sizes: dict[str, int], generator: torch.Generator) -> Tensor:
        example = self._examples[value.name]
        shape = [dim if isinstance(dim, int) else sizes[dim] for dim in value.shape]
        # The order matters: ids are integers that must stay within their table, a mask's zeros must
        # be a run at the end, and only what is left is noise or a copy.
        if value.below is not None:
            return torch.randint(value.below, shape, generator=generator)
        if _is_padding_mask(value, example):
            # Most of an example is no padding.
            real = example.flatten().float().mean() >= 0.5
            # At least one real token a row; the first row is full.
            lengths_B1 = torch.randint(1, shape[1] + 1, (shape[0], 1), generator=generator)
            lengths_B1[0] = shape[1]
            return ((torch.arange(shape[1]) < lengths_B1) == real).to(example.dtype)
        # Noise of the example's own scale. The deviation of one number is NaN, and a constant is no
        # noise.
        if example.is_floating_point() and example.isfinite().all() and example.numel() > 1 and example.std() > 0:
            return torch.randn(shape, generator=generator) * example.std() + example.mean()
        # Anything else may only be certain numbers, so the example's are repeated: index modulo
        # size.
        for axis, size in enumerate(shape):
            example = example.index_select(axis, torch.arange(size) % example.size(axis))
        return example.contiguous()

    @torch.no_grad()
    def _id_bounds(self) -> dict[str, int]:
        """The number of rows of the table that each input looks up, where one does."""
        with no_fast_path(), _Embeddings() as seen:
            try:
                self(*self._examples.values())
            except ExportError:
                raise
            except Exception as error:  # whatever a module raises
                raise ExportError(f"the module fails on its own example inputs: {reason_of(error)}") from error
        # Known by address: only what reaches the table itself, or as a view, is certain to be ids.
        # A negative number is no id, so an input with one holds something else too.
        integers = {name: x for name, x in self._examples.items() if x.dtype in (torch.int64, torch.int32)}
        return {n: seen.rows[x.data_ptr()] for n, x in integers.items() if x.data_ptr() in seen.rows and x.min() >= 0}

    @torch.no_grad()
    def _describe_outputs(self) -> tuple[Value, ...]:
        """Name each axis of each output after the dimension that it is as long as, at two different sizes."""
        # As far as the examples are long enough, no two dimensions are equal within a run, and all
        # differ between the runs, so that an output's axis follows one dimension and no other by
        # chance.
        (sizes, first), (other_sizes, second) = self._try(3, 9), self._try(2, 4)
        if not first:
            raise ExportError("the module returns no tensor")
        if list(first) != list(second):
            raise ExportError("the module returns other outputs for inputs of other sizes")
        outputs = []
        for name, x in first.items():
            shape: list[str | int] = []
            for axis, pair in enumerate(zip(x.shape, second[name].shape, strict=True)):
                same = [d for d in self._sizes if (sizes[d], other_sizes[d]) == pair]
                # As a named dimension; else as a fixed size; else it depends on sizes in a way of
                # its own.
                shape.append(same[0] if same else pair[0] if pair[0] == pair[1] else f"{name}_axis_{axis}")
            outputs.append(Value(name=name, dtype=_dtype(x), shape=tuple(shape)))
        return tuple(outputs)

    def _try(self, batch: int, length: int) -> tuple[dict[str | int, int], dict[str, Tensor]]:
        """Run the module on inputs of some sizes; give the size of each dimension, and what it returned."""
        inputs = self.sample(torch.Generator().manual_seed(0), batch, length)
        pairs = list(zip(self.inputs, inputs, strict=True))
        sizes = {d: s for v, x in pairs for d, s in zip(v.shape, x.shape, strict=True)}
        try:
            with no_fast_path():
                return sizes, self._call(inputs)
        except ExportError:
            raise
        except Exception as error:  # whatever a module raises
            shapes = ", ".join(f"{v.name} {list(x.shape)}" for v, x in pairs)
            raise ExportError(
                f"the module fails on inputs of other sizes than its examples ({shapes}): {reason_of(error)}; "
                "name only those axes in dynamic_axes that may change"
            ) from error


class SortedTopK(TorchFunctionMode):
    """Has `topk` give the largest first where any order is asked for, so that eager and the graph have the same one.

    Which experts a token goes to may be in any order; yet each is compared with what stands at its place.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func in (torch.topk, Tensor.topk):
            # topk(input, k, dim=-1, largest=True, sorted=True)
            args = args[:4]
            options["sorted"] = True
        return func(*args, **options)


class _Embeddings(TorchFunctionMode):
    """Notes the height of the table that each looked-up tensor of ids goes into."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.embedding, torch.embedding, torch.ops.aten.embedding.default):
            # F.embedding takes (ids, table), ATen's functions (table, ids).
            ids, table = args[:2] if func is F.embedding else reversed(args[:2])
            # One input may be looked up in several tables: ids must be within the smallest.
            self.rows[ids.data_ptr()] = min(table.size(0), self.rows.get(ids.data_ptr(), table.size(0)))
        return func(*args, **(kwargs or {}))


def _arguments(module: nn.Module, examples: Any) -> dict[str, Any]:
    """The example arguments by name."""
    if isinstance(examples, Mapping):
        named = dict(examples)
    elif isinstance(examples, Sequence) and not isinstance(examples, str):
        named = _named(module, examples)
    else:
        raise ExportError(f"example inputs must be a dict or a tuple, but are a {type(examples).__name__}")
    for name, value in named.items():
        if not isinstance(name, str) or not isinstance(value, (Tensor, *_FIXED)):
            raise ExportError(
                f"the example input {name!r} is a {type(value).__name__}; each must be a tensor, or a plain value that "
                "stays as it is"
            )
    return named


def _named(module: nn.Module, examples: Sequence[Any]) -> dict[str, Any]:
    # **kwargs has no name of its own to give.
    parameters = [p.name for p in inspect.signature(module.forward).parameters.values() if p.kind != p.VAR_KEYWORD]
    return {
        (parameters[i] if i < len(parameters) and parameters[i] != "args" else f"input_{i}"): value
        for i, value in enumerate(examples)
    }


def _plain(name: str, tensor: Tensor) -> Tensor:
    if tensor.is_complex() or tensor.layout != torch.strided:
        raise ExportError(f"the example input {name!r} is {tensor.dtype}, {tensor.layout}; it must be dense and real")
    tensor = tensor.detach().cpu()
    return tensor.float() if tensor.is_floating_point() else tensor


def _sizes(examples: Mapping[str, Tensor], dynamic_axes: Any) -> dict[str, int]:
    """The examples' size of each named dimension."""
    form = "{input name: {axis: dimension name}}"
    if not isinstance(dynamic_axes, Mapping):
        raise ExportError(f"dynamic_axes must be {form}, but are a {type(dynamic_axes).__name__}")
    sizes: dict[str, int] = {}
    for name, axes in dynamic_axes.items():
        if name not in examples:
            raise ExportError(f"dynamic_axes name an input {name!r}; the examples' tensors are {', '.join(examples)}")
        if not isinstance(axes, Mapping):
            raise ExportError(f"dynamic_axes must be {form}, but {name!r} has {axes!r}")
        for axis, dim in axes.items():
            _check_axis(name, examples[name], axis, dim, form)
            size: int = examples[name].shape[axis]
            # One name is one size, in every input: the examples have to agree with that.
            if sizes.setdefault(dim, size) != size:
                raise ExportError(f"the dimension {dim!r} is {sizes[dim]} in one example input and {size} in {name!r}")
            # torch.export takes a size of 1 for a constant. Rows are sampled in other numbers
            # anyway.
            if size < 2 and axis != 0:
                raise ExportError(
                    f"the dimension {dim!r} is {size} in the example input {name!r}; a dynamic one needs at least 2"
                )
    return sizes


def _check_axis(name: str, example: Tensor, axis: Any, dim: Any, form: str) -> None:
    # type(), since True would be taken for axis 1.
    if type(axis) is not int or not isinstance(dim, str) or not dim.isidentifier():
        raise ExportError(f"dynamic_axes must be {form}, but {name!r} has {axis!r}: {dim!r}")
    if not 0 <= axis < example.dim():
        raise ExportError(f"dynamic_axes: {name!r} has no axis {axis}; its example is {_form(example)}")


def _tensors(result: Any) -> dict[str, Tensor]:
    """Name what a module returned."""
    if isinstance(result, Tensor):
        return {"output": result}
    if isinstance(result, Mapping):
        named = dict(result)
    elif isinstance(result, tuple | list):
        # A namedtuple says what its parts are called.
        fields = getattr(result, "_fields", None) or [f"output_{index}" for index in range(len(result))]
        named = dict(zip(fields, result, strict=True))
    else:
        raise ExportError(f"the module returns a {type(result).__name__}; it must return tensors, in a tuple or dict")
    # Optional outputs that were not asked for are None.
    named = {str(name): value for name, value in named.items() if value is not None}
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise ExportError(f"the module returns a {type(value).__name__} as {name!r}; every output must be a tensor")
    return named


def _is_padding_mask(value: Value, example: Tensor) -> bool:
    """Whether an input tells real tokens from padding: a (B, T) "…mask…" of zeros and ones."""
    rows, *lengths = value.shape
    named = "mask" in value.name and len(lengths) == 1 and isinstance(rows, str) and rows != lengths[0]
    return named and bool(torch.isin(example.float(), torch.tensor([0.0, 1.0])).all())


def _shape(tensor: Tensor, axes: Mapping[int, str]) -> Shape:
    return tuple(axes.get(axis, size) for axis, size in enumerate(tensor.shape))


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _form(tensor: Tensor) -> str:
    return f"{_dtype(tensor)} {list(tensor.shape)}"
