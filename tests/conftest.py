"""Tiny models with random weights, and what they export to: each is exported once per session."""

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import onnx
import onnx_ir as ir
import pytest
import torch

from tests.support import toys as hand_built
from tests.support.torchlib import read_once
from tfm.export import Graph, graphs_of, to_onnx
from tfm.model import Transformer, TransformerConfig

TINY = {
    "vocab_size": 19,
    "d_model": 16,
    "nhead": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "dim_feedforward": 24,
    "max_positions": 16,
}


@dataclasses.dataclass(frozen=True)
class Exported:
    """An eager graph and the ONNX file that it became."""

    graph: Graph
    path: Path


def random_model(seed: int = 0, **options: Any) -> Transformer:
    """A model whose every weight, biases and norms too, is random, and large enough that activations bend."""
    torch.manual_seed(seed)
    model = Transformer(TransformerConfig(**(TINY | options))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if "norm" in name and "weight" in name else 0.0))
    return model


# an example is judged by what it gives: how long it takes is the machine's affair, which others share
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

read_once()

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background: Ctrl-C would be tested in vain
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def toys() -> Any:
    """The hand-built bundles of tests/support."""
    return hand_built


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Transformer]:
    return random_model


@pytest.fixture(scope="session")
def export_tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Exported]]:
    """Export a tiny model of these options; gives role → graph and file."""
    made: dict[tuple[Any, ...], dict[str, Exported]] = {}

    def export(opset: int = 24, **options: Any) -> dict[str, Exported]:
        key = (opset, *sorted(options.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("tiny")
            made[key] = {}
            for graph in graphs_of(random_model(**options)):
                ir.save(to_onnx(graph, opset=opset), folder / f"{graph.file}.onnx")
                made[key][graph.role] = Exported(graph, folder / f"{graph.file}.onnx")
        return made[key]

    return export


@pytest.fixture(scope="session")
def to_onnx_once() -> Callable[..., ir.Model]:
    """`to_onnx`, which exports a graph of the same weights only once."""
    made: dict[tuple[Any, ...], bytes] = {}

    def export(graph: Graph, *, opset: int = 24) -> ir.Model:
        weights = b"".join(value.numpy().tobytes() for value in graph.state_dict().values())
        key = (graph.role, str(graph.model.config), opset, hash(weights))
        if key not in made:
            made[key] = ir.to_proto(to_onnx(graph, opset=opset)).SerializeToString()
        return ir.from_proto(onnx.ModelProto.FromString(made[key]))

    return export
