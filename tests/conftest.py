"""Tiny models with random weights, and what they export to: each is exported once per session."""

import dataclasses
import hashlib
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
from tests.support.sharing import Shelf
from tests.support.torchlib import read_once
from tfm.export import OPSET, Graph, graphs_of, to_onnx
from tfm.model import Transformer, TransformerConfig
from tfm.quantize import Target

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

LONGEST = (
    *("test_packaging.py", "test_fuzz.py", "test_bundle.py", "test_minilm.py", "test_generic.py", "test_sweep.py"),
    *("test_mutations.py", "test_onnx_nodes.py", "test_planted.py", "test_odd_configs.py", "test_encodings.py"),
)
"""Files of more than half a minute."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: each goes to one process as a whole, and none should be at it alone in the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


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
def shelf_of_run(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory)


@pytest.fixture(scope="session")
def export_tiny(shelf_of_run: Shelf) -> Callable[..., dict[str, Exported]]:
    """Export a tiny model of these options; gives role → graph and file."""
    made: dict[str, dict[str, Exported]] = {}

    def export(opset: int = OPSET, **options: Any) -> dict[str, Exported]:
        key = f"tiny {opset} {sorted(options.items())}"
        if key not in made:
            graphs = graphs_of(random_model(**options))

            def save(folder: Path) -> None:
                for graph in graphs:
                    ir.save(to_onnx(graph, opset=opset), folder / f"{graph.file}.onnx")

            folder = shelf_of_run.get(key, save)
            made[key] = {graph.role: Exported(graph, folder / f"{graph.file}.onnx") for graph in graphs}
        return made[key]

    return export


@pytest.fixture(scope="session")
def to_onnx_once(shelf_of_run: Shelf) -> Callable[..., ir.Model]:
    """`to_onnx`, which exports a graph of the same weights only once."""

    def export(graph: Graph, *, target: Target | None = None) -> ir.Model:
        weights = hashlib.sha256(b"".join(value.numpy().tobytes() for value in graph.state_dict().values()))
        key = f"{graph.role} {graph.model.config} {target} {weights.hexdigest()}"

        def save(folder: Path) -> None:
            ir.save(to_onnx(graph, target=target), folder / "graph.onnx")

        return ir.from_proto(onnx.load(shelf_of_run.get(key, save) / "graph.onnx"))

    return export


@pytest.fixture(scope="session")
def generation_bundle(shelf_of_run: Shelf) -> Callable[[str], tuple[Path, Any]]:
    """A bundle of a tiny random model of transformers of one of `tiny_bundles.KINDS`, and the model."""

    def make(kind: str) -> tuple[Path, Any]:
        from tests.support.tiny_bundles import read_model, write_bundle

        folder = shelf_of_run.get(f"generation {kind}", lambda folder: write_bundle(folder, kind))
        return folder / "bundle", read_model(folder, kind)

    return make


@pytest.fixture(scope="session")
def packs(shelf_of_run: Shelf) -> Path:
    """A folder with KIND.tfm and KIND-PRECISION, packed for the web, of `tests.support.packs`."""

    def save(folder: Path) -> None:
        from tests.support.packs import SAVERS, write_packs

        for kind in SAVERS:
            (folder / kind).mkdir()
            write_packs(folder / kind, kind)
            for made in (folder / kind).glob(f"{kind}*"):
                made.rename(folder / made.name)

    return shelf_of_run.get("packs", save)


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which Node finds tfm-runtime and transformers.js."""
    from tests.support.javascript import node_folder

    return node_folder(tmp_path_factory.mktemp("node"))
