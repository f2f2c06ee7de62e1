"""How four other tools tell whether an ONNX file is its PyTorch module: what each reports of a file.

Each is asked by its own code where that takes a graph that it did not export: torch's VerificationInfo and its
interpreter, Polygraphy's Comparator, optimum's validate_model_outputs. Needs polygraphy and optimum-onnx.
"""

import contextlib
import dataclasses
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from optimum.exporters.onnx.convert import validate_model_outputs
from optimum.utils import DEFAULT_DUMMY_SHAPES
from optimum.utils.input_generators import DummyInputGenerator
from polygraphy import constants
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnx import ModifyOutputs
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.common import TensorMetadata
from polygraphy.comparator import Comparator, DataLoader, SimpleCompareFunc
from polygraphy.logger import G_LOGGER
from torch.onnx import ONNXProgram
from torch.onnx.verification import verify_onnx_program

from tfm.export import Graph

G_LOGGER.module_severity = G_LOGGER.CRITICAL
logging.getLogger("optimum.exporters.onnx.convert").setLevel(logging.CRITICAL)
LAYERS_OF_TORCH = logging.getLogger("torch.onnx._internal.exporter._verification")
LAYERS_OF_TORCH.propagate = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A module with its right export.

    Attributes:
        graph: The eager module.
        program: What torch's exporter gave for it, around our graph.
        path: That graph.
        cases: Inputs that we verify it with.
    """

    graph: Graph
    program: ONNXProgram
    path: Path
    cases: Sequence[Sequence[torch.Tensor]]


Report = list[str] | None
"""Names of what a tool finds wrong, in its order: none of a file that it cannot run. None where nothing is wrong."""

Check = Callable[[Subject, Path, float | None, frozenset[str]], Report]
"""(subject, file, tolerance, noise) → what is reported but for the names in noise; without a tolerance, by the tool's
own defaults and inputs."""


def torch_verify(subject: Subject, file: Path, tolerance: float | None, noise: frozenset[str]) -> Report:
    """`torch.onnx.export(verify=True)`: the outputs, on the example of the export; else on our inputs."""
    try:
        # Its steps 4 to 6, which are no function of their own.
        onnx.checker.check_model(onnx.load(file))
        infos = [info for args in _arguments(subject, tolerance) for info in _verify(subject, file, args)]
    except Exception:  # which torch prints, and goes on
        return []
    return [info.name for info in infos if _exceeds(info, tolerance) and info.name not in noise] or None


def _exceeds(info: Any, tolerance: float | None) -> bool:
    if tolerance is None:
        return bool(info.max_abs_diff >= 5e-3 or info.max_rel_diff >= 1e-1)
    return not info.max_abs_diff <= tolerance  # a NaN too


def torch_intermediates(subject: Subject, file: Path, tolerance: float | None, noise: frozenset[str]) -> Report:
    """`verify_onnx_program(compare_intermediates=True)`: what it warns of; else every value that is off by more."""
    for args in _arguments(subject, tolerance):
        with _warnings() as warned:
            try:
                infos = _verify(subject, file, args, compare_intermediates=True)
            except Exception:  # of two shapes that it cannot subtract
                return [name for name in warned if name not in noise]
        wrong = list(warned) if tolerance is None else [i.name for i in infos if _exceeds(i, tolerance)]
        # Of the defaults' warnings, those that are no matter of a tolerance.
        wrong += [name for name, why in warned.items() if why.startswith("Failed") and name not in wrong]
        wrong = [name for name in wrong if name not in noise]
        if wrong:
            return wrong
    return None


def _arguments(subject: Subject, tolerance: float | None) -> Sequence[Any]:
    return [None] if tolerance is None else [tuple(case) for case in subject.cases]


class Program(ONNXProgram):
    """An ONNXProgram that computes all values of its graph at once; torch's makes a session for each."""

    values: Mapping[str, torch.Tensor] | None = None

    def compute_values(self, value_names: Sequence[str], args: Any = (), kwargs: Any = None) -> Sequence[torch.Tensor]:
        """Look the values up; of a graph that fails somewhere, compute them alone, as those before it can be."""
        if self.values is None:
            names = [str(value.name) for node in self.model.graph for value in node.outputs if value.name]
            try:
                self.values = dict(zip(names, super().compute_values(names, args, kwargs), strict=True))
            except Exception:
                self.values = {}
        if not self.values:
            return super().compute_values(value_names, args, kwargs)
        return [self.values[name] for name in value_names]


def _verify(subject: Subject, file: Path, args: Any, **options: Any) -> list[Any]:
    program = Program(ir.load(file), subject.program.exported_program)
    try:
        with torch.no_grad():
            return verify_onnx_program(program, args, **options)
    finally:
        program.release()


@contextlib.contextmanager
def _warnings() -> Iterator[dict[str, str]]:
    """Name of a value → the warning that torch logs of it."""
    found: dict[str, str] = {}
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.setdefault(str(record.args[0]), str(record.msg))  # type: ignore[method-assign]
    LAYERS_OF_TORCH.addHandler(handler)
    try:
        yield found
    finally:
        LAYERS_OF_TORCH.removeHandler(handler)


class EagerRunner(BaseRunner):
    """Runs the PyTorch module for Polygraphy, which has no runner of its own for it."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(name="eager")
        self.graph = graph

    def get_input_metadata_impl(self) -> TensorMetadata:
        """Names, types and shapes, None where dynamic."""
        found = TensorMetadata()
        for value in self.graph.inputs:
            shape = [None if isinstance(dim, str) else dim for dim in value.shape]
            found.add(value.name, dtype=np.dtype(value.dtype), shape=shape)
        return found

    @torch.no_grad()
    def infer_impl(self, feed_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the outputs."""
        outputs = self.graph(*(torch.from_numpy(feed_dict[value.name]) for value in self.graph.inputs))
        self.inference_time = 0.0
        return {value.name: x.numpy(force=True).copy() for value, x in zip(self.graph.outputs, outputs, strict=True)}


def polygraphy_outputs(subject: Subject, file: Path, tolerance: float | None, noise: frozenset[str]) -> Report:
    """Comparator.run of the module and of the file."""
    return _compare(subject, [EagerRunner(subject.graph), OnnxrtRunner(SessionFromOnnx(str(file)))], tolerance, noise)


def polygraphy_layers(subject: Subject, file: Path, tolerance: float | None, noise: frozenset[str]) -> Report:
    """Comparator.run of the right graph and of the file, every tensor marked as an output."""
    runners = []
    for each in (subject.path, file):
        marked = ModifyOutputs(onnx.load(each), outputs=constants.MARK_ALL)()
        runners.append(OnnxrtRunner(SessionFromOnnx(marked.SerializeToString())))
    return _compare(subject, runners, tolerance, noise)


def _compare(subject: Subject, runners: list[BaseRunner], tolerance: float | None, noise: frozenset[str]) -> Report:
    names = [value.name for value in subject.graph.inputs]
    if tolerance is None:
        loader, rule = _data_loader(subject.graph), SimpleCompareFunc()
    else:
        loader = [{n: x.numpy() for n, x in zip(names, case, strict=True)} for case in subject.cases]
        rule = SimpleCompareFunc(atol=tolerance, rtol=tolerance, infinities_compare_equal=True)
    try:
        results = Comparator.run(runners, data_loader=loader)
        compared = Comparator.compare_accuracy(results, compare_func=rule)
    except Exception:  # of a file that cannot be run
        return []
    outputs = [
        output for result in compared for per_pair in result.values() for each in per_pair for output in each.items()
    ]
    return [name for name, right in outputs if not right and name not in noise] or None


def _data_loader(graph: Graph) -> DataLoader:
    """Polygraphy's own random inputs, of optimum's size; ids in [0, 1], its default, would leave tables unread."""
    sizes, shapes, ranges = sizes_of(graph), TensorMetadata(), {"": (0.0, 1.0)}
    for value in graph.inputs:
        shapes.add(value.name, dtype=np.dtype(value.dtype), shape=shape_of(value.shape, sizes))
        if value.dtype == "int64":
            ranges[value.name] = (0, _most(graph, value.name) - 1)
    return DataLoader(input_metadata=shapes, val_range=ranges)


def _most(graph: Graph, name: str) -> int:
    if name == "num_logits_to_keep":  # 0, which is all of them, as in transformers
        return 1
    return next(value.below for value in graph.inputs if value.name == name) or 2


def sizes_of(graph: Graph) -> dict[str, int]:
    """What the dynamic dimensions are for the tools' own inputs: optimum's 2×16; a decoder's one token behind 8."""
    rows, length = DEFAULT_DUMMY_SHAPES["batch_size"], DEFAULT_DUMMY_SHAPES["sequence_length"]
    names = {dim for value in graph.inputs for dim in value.shape if isinstance(dim, str)}
    sizes = {name: min(length, graph.max_length.get(name, length)) for name in names} | {"batch": rows}
    if "past_sequence" in sizes:
        past = length // 2
        sizes |= {
            "sequence": 1,
            "past_sequence": past,
            "total_sequence": past + 1,
            "past_sequence + sequence": past + 1,
        }
    return sizes


def shape_of(shape: Sequence[str | int], sizes: Mapping[str, int]) -> list[int]:
    """The shape, in numbers."""
    return [dim if isinstance(dim, int) else sizes[dim] for dim in shape]


class NamedOutputs(torch.nn.Module):
    """A graph that is called, and answers, by names, as a model of transformers does."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the outputs."""
        outputs = self.graph(*(inputs[value.name] for value in self.graph.inputs))
        return {value.name: x for value, x in zip(self.graph.outputs, outputs, strict=True)}


class OptimumConfig:
    """What validate_model_outputs asks of optimum's configuration of an architecture."""

    ATOL_FOR_VALIDATION = 1e-5  # of optimum's ExporterConfig, which those of BERT, GPT-2, Llama and T5 inherit
    torch_to_onnx_output_map: Mapping[str, str] = {}

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.inputs, self.outputs = (
            {v.name: {axis: dim for axis, dim in enumerate(v.shape) if isinstance(dim, str)} for v in values}
            for values in (graph.inputs, graph.outputs)
        )

    def generate_dummy_inputs(self, framework: str = "pt") -> dict[str, torch.Tensor]:
        """Make random inputs, by optimum's generators."""
        sizes, made = sizes_of(self.graph), {}
        for value in self.graph.inputs:
            shape = shape_of(value.shape, sizes)
            if value.default is not None:
                made[value.name] = torch.tensor(value.default)
            elif value.name.endswith("attention_mask"):
                made[value.name] = DummyInputGenerator.random_mask_tensor(shape, framework=framework)
            elif value.dtype == "int64":
                most = _most(self.graph, value.name)
                made[value.name] = DummyInputGenerator.random_int_tensor(shape, most, framework=framework)
            else:
                made[value.name] = DummyInputGenerator.random_float_tensor(shape, framework=framework)
        return made

    def generate_dummy_inputs_for_validation(self, inputs: dict[str, Any], names: list[str]) -> dict[str, Any]:
        """Give the inputs as they are."""
        del names
        return inputs

    def rename_ambiguous_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Give the inputs as they are."""
        return inputs

    def patch_model_for_export(self, model: Any, model_kwargs: Any = None) -> Any:
        """Leave the model as it is."""
        del model, model_kwargs
        return contextlib.nullcontext()


def optimum(subject: Subject, file: Path, tolerance: float | None, noise: frozenset[str]) -> Report:
    """`validate_model_outputs`, of one draw of its inputs; with a tolerance, of five."""
    names = [value.name for value in subject.graph.outputs]
    for seed in range(1 if tolerance is None else 5):
        random.seed(seed)
        torch.manual_seed(seed)
        try:
            validate_model_outputs(
                OptimumConfig(subject.graph),
                NamedOutputs(subject.graph),
                file,
                names,
                atol=tolerance,
                use_subprocess=False,
            )
        except Exception as error:  # AtolError, ShapeError, OutputMatchError, or whatever onnxruntime says
            lines = [line for line in str(error).splitlines() if line.startswith("- ")]
            named = [line.removeprefix("- ").partition(":")[0] for line in lines]
            if not named or not noise.issuperset(named):
                return [name for name in named if name not in noise]
    return None


CHECKS: dict[str, Check] = {
    "torch verify": torch_verify,
    "torch intermediates": torch_intermediates,
    "Polygraphy": polygraphy_outputs,
    "Polygraphy, layers": polygraphy_layers,
    "optimum": optimum,
}
