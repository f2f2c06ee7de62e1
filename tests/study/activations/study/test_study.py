"""A whole study of a toy task: what is trained alike, what is kept, and what an interruption leaves."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tfm.errors import ConfigError, InputError, VerificationError
from tfm.model import Transformer
from tfm.study.activations.study import Schedule, differences, load_task, run_study
from tfm.study.activations.study.run import Run
from tfm.study.activations.study.summary import markdown, summarize
from tfm.study.activations.study.training import configure, train, units_of

TOY = Path(__file__).parent / "toy"
SCHEDULE = Schedule(steps=60, batch_size=32)


@pytest.fixture(scope="module")
def task() -> Any:
    return load_task(TOY)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[tuple[str, int, int]]]:
    told: list[tuple[str, int, int]] = []
    output = tmp_path_factory.mktemp("study")
    results = run_study(
        TOY,
        output,
        activations=["relu", "swiglu"],
        seeds=1,
        schedule=SCHEDULE,
        rounds=6,
        tell=lambda *a: told.append(a),
    )
    return output, results, told


def test_everything_is_measured(study: Any) -> None:
    output, results, told = study
    assert json.loads((output / "results.json").read_text()) == results
    assert [(run["activation"], run["seed"]) for run in results["runs"]] == [("relu", 0), ("swiglu", 0)]
    for run in results["runs"]:
        assert run["deployed"]["passed"], run["deployed"]["faults"]
        assert run["deployed"]["activation"]["count"] == 3
        assert set(run["deployed"]["errors"]) == {"fp32", "int8"}
        assert run["trained"]["loss"][-1] < run["trained"]["loss"][0]
        assert set(run["trained"]["units"]) == {"encoder.layers.0", "decoder.layers.0", "decoder.layers.1"}
    assert {line["precision"] for line in results["speed"]} == {"fp32", "int8"}
    assert told[-1][1] == told[-1][2]
    assert ("train 2 of 2 models", 2 * 60, 2 * 60) in told


def test_the_summary_is_of_the_raw_results(study: Any) -> None:
    _, results, _ = study
    lines = summarize(results)
    rates = {
        name: [r["deployed"]["errors"]["fp32"]["word_error"] for r in results["runs"] if r["activation"] == name]
        for name in ("relu", "swiglu")
    }
    assert lines[0].against is None
    assert lines[1].against == differences(rates, "relu")["swiglu"]
    assert lines[1].errors["word_error"].mean == rates["swiglu"][0]
    assert markdown(lines).count("\n") == 4


def test_what_is_finished_is_not_done_again(study: Any) -> None:
    output, results, _ = study
    told: list[tuple[str, int, int]] = []
    again = run_study(
        TOY,
        output,
        activations=["relu", "swiglu"],
        seeds=1,
        schedule=SCHEDULE,
        rounds=6,
        tell=lambda *a: told.append(a),
    )
    assert again == results
    assert not [what for what, _, _ in told if not what.startswith(("train 0", "deploy 0"))]


def test_another_study_is_not_mixed_in(study: Any) -> None:
    output, _, _ = study
    with pytest.raises(InputError, match="is of another study"):
        run_study(TOY, output, activations=["relu"], seeds=1, schedule=Schedule(steps=61, batch_size=32))


def test_a_run_that_breaks_down_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "task"
    broken.mkdir()
    (broken / "task.py").write_text((TOY / "task.py").read_text() + "\n\ndef loss(model, batch):\n    1 / 0\n")
    with pytest.raises(VerificationError, match=r"train relu, seed 0, broke down: .*division by zero"):
        run_study(broken, tmp_path / "out", activations=["relu"], seeds=1, schedule=SCHEDULE)
    assert not (tmp_path / "out/relu-0/train.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "it has no task.py"), ("1 / 0", "cannot be imported: ZeroDivisionError"), ("loss = 1", "lacks CONFIG")],
)
def test_what_is_no_task(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "task.py").write_text(text)
    with pytest.raises(InputError, match=message):
        run_study(tmp_path, tmp_path / "out")


def test_unknown_activations_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'gelu'"):
        run_study(TOY, tmp_path, activations=["gelo"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("activation", ["relu", "geglu"])
def test_gated_widths_are_matched_in_parameters(task: Any, activation: str) -> None:
    wide = dataclasses.replace(task.CONFIG, d_model=160, nhead=4, dim_feedforward=480)
    plain, other = (Transformer(configure(wide, name)) for name in ("relu", activation))
    counts = [sum(p.numel() for p in model.parameters()) for model in (plain, other)]
    assert counts[1] == pytest.approx(counts[0], rel=2e-3)  # biases: 2/3 of 2 × 480 are 640
    assert configure(configure(wide, "geglu"), "relu").dim_feedforward == 480


def test_a_training_repeats_itself(task: Any) -> None:
    first, second = (train(task, task.CONFIG, 3, Schedule(steps=5, batch_size=8)) for _ in range(2))
    assert first[1] == second[1]
    assert train(task, task.CONFIG, 4, Schedule(steps=5, batch_size=8))[1]["loss"] != first[1]["loss"]


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [Schedule(steps=100, lr=1.0).lr_at(step) for step in range(100)]
    assert rates[0] == 0.1
    assert max(rates) == rates[9]
    assert rates[99] < 1e-3
    assert sorted(rates[9:], reverse=True) == rates[9:]


def test_units_of_real_tokens_alone(task: Any) -> None:
    model = Transformer(task.CONFIG).eval()
    with torch.no_grad():
        for half in (model.encoder, model.decoder):
            for layer in half.layers:
                layer.feed_forward.linear1.bias[:12] = -1e3  # half of the 24 units can never open
    src, tgt = task.held_out()
    found = units_of(model, (src, tgt))
    for layer in found.values():
        assert layer["dead"] >= 0.5
        assert 0.5 <= layer["zero"] < 1
    padded = (torch.nn.functional.pad(src, (0, 3)), torch.nn.functional.pad(tgt, (0, 2)))
    for name, layer in units_of(model, padded).items():
        assert layer == pytest.approx(found[name], abs=1e-3)


def test_a_record_is_whole_or_not_there(tmp_path: Path) -> None:
    run = Run(activation="relu", seed=0, schedule=SCHEDULE, folder=tmp_path)
    assert run.read("train") is None
    with pytest.raises(TypeError):
        run.write("train", {"loss": object()})
    assert run.read("train") is None
