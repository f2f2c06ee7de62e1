"""A whole study of a toy task: what is trained alike, what is kept, and what an interruption leaves."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from activation_study.run import Run
from activation_study.schedule import Schedule
from activation_study.statistics import differences
from activation_study.study import run_study
from activation_study.summary import markdown, summarize
from activation_study.task import load_task
from activation_study.training import configure, train, units_of
from activation_study.worker import STAGES

from tfm.errors import ConfigError, InputError, VerificationError
from tfm.model import Transformer

TOY = Path(__file__).parent / "toy"
SCHEDULE = Schedule(steps=27, batch_size=16)
"""Losses are kept every 25 steps, so that there are two of them."""

Told = list[tuple[str, int, int]]


@pytest.fixture(scope="module")
def task() -> Any:
    return load_task(TOY)


def run_toy(
    output: Path, *names: str, schedule: Schedule = SCHEDULE, folder: Path = TOY, told: Told | None = None
) -> dict[str, Any]:
    tell = (lambda *a: None) if told is None else (lambda *a: told.append(a))
    return run_study(folder, output, activations=names, seeds=1, schedule=schedule, rounds=6, tell=tell)


@pytest.fixture(scope="module")
def study(task: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Of one activation, trained and deployed in this process: what a worker does, without its start."""
    output = tmp_path_factory.mktemp("study")
    run = Run(activation="swiglu", seed=0, schedule=SCHEDULE, folder=output / "swiglu-0")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for stage in STAGES.values():
        stage(task, run, lambda done: None)
    torch.set_num_threads(threads)
    return output, run_toy(output, "swiglu")


def check(results: dict[str, Any], *names: str) -> None:
    assert [(run["activation"], run["seed"]) for run in results["runs"]] == [(name, 0) for name in names]
    for run in results["runs"]:
        assert run["deployed"]["passed"], run["deployed"]["faults"]
        assert run["deployed"]["activation"]["count"] == 3
        assert set(run["deployed"]["errors"]) == {"fp32", "int8"}
        assert run["trained"]["loss"][-1] < run["trained"]["loss"][0]
        assert set(run["trained"]["units"]) == {"encoder.layers.0", "decoder.layers.0", "decoder.layers.1"}
    assert {line["precision"] for line in results["speed"]} == {"fp32", "int8"}


def test_everything_is_measured(study: Any) -> None:
    output, results = study
    assert json.loads((output / "results.json").read_text()) == results
    check(results, "swiglu")


@pytest.mark.slow
def test_a_whole_study_of_two(tmp_path: Path) -> None:
    told: Told = []
    results = run_toy(tmp_path, "relu", "swiglu", told=told)
    check(results, "relu", "swiglu")
    assert told[-1][1] == told[-1][2]
    assert ("train 2 of 2 models", 2 * 27, 2 * 27) in told
    assert set(results["speed"][0]["ratio"]) == {"swiglu"}


def test_the_summary_is_of_the_raw_results(study: Any) -> None:
    _, results = study
    other = copy.deepcopy(results["runs"][0]) | {"activation": "relu"}
    rates = other["deployed"]["errors"]["fp32"]
    rates["word_error"] /= 2
    # The other one first: it is the baseline.
    lines = summarize(results | {"activations": ["relu", "swiglu"], "runs": [other, *results["runs"]]})
    rate = results["runs"][0]["deployed"]["errors"]["fp32"]["word_error"]
    assert rate > 0
    assert lines[0].against is None
    assert lines[1].against == differences({"relu": [rate / 2], "swiglu": [rate]}, "relu")["swiglu"]
    assert lines[1].errors["word_error"].mean == rate
    assert markdown(lines).count("\n") == 4


def test_what_is_finished_is_not_done_again(study: Any) -> None:
    output, results = study
    told: Told = []
    assert run_toy(output, "swiglu", told=told) == results
    assert {what for what, _, _ in told} <= {"train 0 of 1 models", "deploy 0 of 1 models"}


def test_another_study_is_not_mixed_in(study: Any) -> None:
    output, _ = study
    with pytest.raises(InputError, match="is of another study"):
        run_toy(output, "swiglu", schedule=dataclasses.replace(SCHEDULE, steps=28))


def test_a_run_that_breaks_down_is_named(tmp_path: Path) -> None:
    """In a process of its own, which tells how far it is; its third step is the one that fails."""
    broken = tmp_path / "task"
    broken.mkdir()
    fault = (
        "\n\nsound = loss\nsteps = []\n\ndef loss(*a):\n    steps.append(1 / (2 - len(steps)))\n    return sound(*a)\n"
    )
    (broken / "task.py").write_text((TOY / "task.py").read_text() + fault)
    told: Told = []
    with pytest.raises(VerificationError, match=r"train relu, seed 0, broke down: .*division by zero"):
        run_toy(tmp_path / "out", "relu", folder=broken, told=told)
    assert told[-1] == ("train 1 of 1 models", 2, 27)
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
    first, second = (train(task, task.CONFIG, 3, Schedule(steps=2, batch_size=4)) for _ in range(2))
    assert first[1] == second[1]
    assert train(task, task.CONFIG, 4, Schedule(steps=2, batch_size=4))[1]["loss"] != first[1]["loss"]


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
