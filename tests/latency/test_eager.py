"""PyTorch as an engine: that it computes what the bundle does, cached and on ragged rows; and when it cannot run."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tfm.bundle.manifest import Generation
from tfm.export import eager_engine
from tfm.export.eager_engine import GreedyLoop, token_times
from tfm.export.latency import COMPILED, eager_engines
from tfm.export.manifest import write_manifest
from tfm.export.verify.fidelity import eager_greedy
from tfm.latency import LatencyOptions, measure_latency
from tfm.latency.worker import UnableError
from tfm.model import Transformer, save_checkpoint

ROWS = [[3, 4, 5, 6, 7], [8, 9], [10, 11, 12, 3], [5]]
NEW = 6


def generation(*ends: int) -> Generation:
    return Generation(pad_token_id=0, bos_token_id=1, eos_token_ids=ends, max_new_tokens=8, split_on_whitespace=False)


def as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def uncached(model: Transformer, row: list[int], count: int) -> list[int]:
    """The likeliest continuation, every token of which reads the whole row again, by itself."""
    ids = list(row)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(row) :]


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_decoder_continues_ragged_rows(make_model: Callable[..., Transformer], positions: str) -> None:
    model = make_model(kind="decoder", activation="gelu", num_encoder_layers=0, positions=positions)
    found, stamps = GreedyLoop(model, generation(), as_it_is).run(ROWS, NEW)
    assert found == [uncached(model, row, NEW) for row in ROWS]
    assert len({tuple(row) for row in found}) > 1
    assert len(stamps) == NEW
    assert stamps == sorted(stamps)


def test_an_encoder_decoder(make_model: Callable[..., Transformer]) -> None:
    model = make_model(kind="encoder-decoder", activation="gelu", bos_token_id=1, eos_token_id=2, pad_token_id=0)
    rng = random.Random(0)
    rows = [[rng.randrange(3, 19) for _ in range(rng.randrange(1, 16))] for _ in range(32)]
    found, _ = GreedyLoop(model, generation(2), as_it_is).run(rows, NEW)
    expected = eager_greedy(model, rows, NEW)
    assert len({tuple(row) for row in expected}) > 1
    for one, other in zip(found, expected, strict=True):
        assert (one[: one.index(2)] if 2 in one else one) == other


def test_it_ends_where_every_row_has(make_model: Callable[..., Transformer]) -> None:
    model = make_model(kind="decoder", activation="gelu", num_encoder_layers=0)
    whole = [uncached(model, row, NEW) for row in ROWS]
    ends = {row[2] for row in whole}
    last = max(next(place for place, token in enumerate(row) if token in ends) for row in whole)
    loop = GreedyLoop(model, generation(*ends), as_it_is)
    assert len(loop.run(ROWS, NEW, ends=True)[1]) == last + 1 < NEW
    times = token_times(loop, ROWS, NEW)
    assert (len(times["first token"]), len(times["token"])) == (1, NEW - 1)


@pytest.fixture(scope="module")
def exported(
    make_model: Callable[..., Transformer],
    export_tiny: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:
    """A tiny encoder's bundle and its checkpoint."""
    folder = tmp_path_factory.mktemp("eager")
    options = {"kind": "encoder", "activation": "gelu", "pooling": "mean"}
    save_checkpoint(make_model(**options), folder / "model.pt")
    one = export_tiny(**options)["model"]
    (folder / "model.tfm" / "onnx").mkdir(parents=True)
    file = Path(shutil.copy(one.path, folder / "model.tfm" / "onnx" / "model.onnx"))
    files = {"fp32": {"model": file}}
    write_manifest(folder / "model.tfm", one.graph.model.config, "own", [one.graph], files, 24, [])
    return folder / "model.tfm", folder / "model.pt"


FAST: dict[str, Any] = {"rounds": 6, "seconds": 0.002, "warmup": 1, "batch_sizes": (1, 2), "lengths": (3,), "starts": 1}


def test_beside_its_bundle(exported: tuple[Path, Path]) -> None:
    bundle, checkpoint = exported
    engines, left_out = eager_engines(checkpoint, compiled=False)
    report = measure_latency(bundle, LatencyOptions(**FAST), engines=engines, left_out=left_out)
    assert [(line.work, line.baseline, list(line.timings)) for line in report.lines] == [
        (work, "eager", ["eager", "fp32"]) for work in ("1×3", "2×3", "corpus")
    ]
    assert list(report.starts) == ["eager", "fp32"]
    assert report.left_out == {}


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_what_generates(
    make_model: Callable[..., Transformer], make_bundle: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    save_checkpoint(make_model(kind=kind, activation="gelu"), tmp_path / "model.pt")
    options = eager_engines(tmp_path / "model.pt", compiled=False)[0]["eager"].options
    rows = {"rows": [[3, 4], [5, 6]], "texts": [], "file": None, "new_tokens": NEW}
    workloads = [{"kind": "rows", **rows}, {"kind": "corpus", **rows, "rows": ROWS * 5}, {"kind": "answer", **rows}]
    job = {**options, "bundle": str(make_bundle("counter")), "threads": 1, "works": workloads}
    measured = [{name: len(times) for name, times in run().items()} for run in eager_engine.open_workloads(job) if run]
    assert measured == [{"first token": 1, "token": NEW - 1}, {"run": 1}, {"run": 1}]


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.delenv("CXX", raising=False)
    engines, left_out = eager_engines("model.pt")
    assert list(engines) == ["eager"]
    assert left_out == {COMPILED: "torch.compile needs a C++ compiler, and none of g++, clang++, c++, cl is there"}
    monkeypatch.setenv("CXX", "nosuch")
    assert "none of nosuch, g++" in eager_engines("model.pt")[1][COMPILED]


def test_with_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "clang++" else None)
    engines, left_out = eager_engines("model.pt")
    assert (list(engines), left_out) == (["eager", COMPILED], {})
    assert engines[COMPILED].options["compiled"]
    assert not engines["eager"].options["compiled"]


def test_a_compiler_that_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: Any, **_: Any) -> Any:
        raise RuntimeError("Python.h: No such file\nand much more")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UnableError, match=r"torch\.compile does not work here: Python\.h: No such file$"):
        eager_engine._prepare_compiler()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
def test_compiled(exported: tuple[Path, Path]) -> None:
    """Minutes, where nothing is in its cache."""
    bundle, checkpoint = exported
    engines, left_out = eager_engines(checkpoint)
    report = measure_latency(bundle, LatencyOptions(**FAST), engines=engines, left_out=left_out)
    assert [list(line.timings) for line in report.lines] == [["eager", COMPILED, "fp32"]] * 2 + [["eager", "fp32"]]
    assert report.left_out == {}
