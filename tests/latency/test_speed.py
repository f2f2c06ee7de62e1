"""What the times of a bundle's graphs show: the one rule of the gate, the terminal, the certificate and report.html."""

import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfm.latency import Job, Latency, Workload, all_speeds, compare_speed, graphs, time_engines
from tfm.latency.rounds import Turns

WORKS = [Workload(name=name, role="model", inputs={"x": np.zeros(1, np.float32)}) for name in ("a", "b")]


def latency(work: str = "model 1×16", rounds: int = 9, **times: float | Sequence[float]) -> Latency:
    every = {name: [value] * rounds if isinstance(value, float) else list(value) for name, value in times.items()}
    return Latency(work=work, rounds=every)


def test_all_work_counts_by_the_geometric_mean() -> None:
    lines = [
        latency("a", eager=20.0, fp32=1.0, int8=2.0),
        latency("b", eager=20.0, fp32=10.0, int8=9.0),
    ]
    (speed,) = compare_speed(lines)
    assert 1 / speed.ratio.value == pytest.approx((2.0 * 0.9) ** 0.5)
    assert (speed.precision, speed.passed, speed.work, speed.milliseconds) == ("int8", False, "a", (2.0, 1.0))
    assert compare_speed([]) == compare_speed([latency(int8=1.0)]) == []
    found = [(one.precision, one.baseline, one.ratio.verdict) for one in all_speeds(lines)]
    assert found == [("fp32", "eager", "faster"), ("int8", "eager", "faster"), ("int8", "fp32", "slower")]


WOBBLY = [1.0, 1.1, 0.9, 1.05, 0.95, 1.0, 1.1, 0.9, 1.0]
WILD = [1.0, 2.0, 1.0, 3.0, 1.0, 2.0, 1.0, 3.0, 1.0]


@pytest.mark.parametrize(
    ("fp32", "int8", "passed", "words"),
    [
        (1.0, 0.5, True, "faster than fp32 here: 0.50× its time (0.50–0.50) over all work, at worst 0.50 ms against"),
        (1.0, 1.5, False, "slower than fp32 here: 1.50× its time (1.50–1.50) over all work, at worst 1.50 ms against"),
        (1.0, WOBBLY, True, "not shown to be faster or slower than fp32 here: 1.00× its time (0.90–1.10) over all"),
        (WILD, WILD, True, "not compared with fp32 on a machine as noisy as this: 1.00× its time"),
        (WILD, [x / 4 for x in WILD], True, "not compared with fp32 on a machine as noisy as this: 0.25× its time"),
        (WILD, [x * 4 for x in WILD], False, "slower than fp32 here: 4.00× its time (4.00–4.00)"),
    ],
    ids=["faster", "slower", "the same", "noisy", "noisy and faster", "noisy and slower"],
)
def test_what_is_said(fp32: Any, int8: Any, passed: bool, words: str) -> None:
    (speed,) = compare_speed([latency(fp32=fp32, int8=int8)])
    assert speed.passed is passed
    assert str(speed).startswith(words)


def noisy_rounds(chance: random.Random, slower: float) -> Latency:
    """Of a machine on which any turn may take up to half as long again, and some three times as long."""

    def turn(time: float) -> float:
        return time * (1 + chance.random() / 2) * (3.0 if chance.random() < 0.15 else 1.0)

    return latency(fp32=[turn(1.0) for _ in range(graphs.ROUNDS)], int8=[turn(slower) for _ in range(graphs.ROUNDS)])


@pytest.mark.parametrize(
    ("slower", "refused"), [(1.0, (0.0, 0.05)), (0.7, (0.0, 0.005)), (2.0, (0.8, 1.0)), (3.0, (0.95, 1.0))]
)
def test_noise_refuses_nothing_and_hides_nothing_that_is_much_slower(
    slower: float, refused: tuple[float, float]
) -> None:
    """An interval of 95 % lies below 1 by chance in at most 2.5 % of cases, which 400 of them may exceed a little."""
    chance = random.Random(1)
    found = [not compare_speed([noisy_rounds(chance, slower)])[0].passed for _ in range(400)]
    assert refused[0] <= statistics.mean(found) <= refused[1]


def test_a_median_would_refuse_half_of_what_is_as_fast() -> None:
    """Which is what the gate did: the interval is what keeps noise from refusing a bundle."""
    chance = random.Random(1)
    lines = [noisy_rounds(chance, 1.0) for _ in range(400)]
    slower = [line.milliseconds["int8"] > line.milliseconds["fp32"] for line in lines]
    assert 0.4 < statistics.mean(slower) < 0.6


@pytest.mark.parametrize(("wild", "times"), [((), 1), ((1,), 2), ((1, 2), 2)], ids=["calm", "once", "always"])
def test_a_noisy_machine_is_tried_again(monkeypatch: pytest.MonkeyPatch, wild: tuple[int, ...], times: int) -> None:
    calls: list[int] = []

    def take_turns(engines: Mapping[str, Job], workloads: Sequence[Any], *, rounds: int, **_: Any) -> Turns:
        calls.append(rounds)
        noise = WILD if len(calls) in wild else [1.0] * 9
        return Turns([{name: [{"run": [0.001 * x]} for x in noise] for name in engines} for _ in workloads], {}, {})

    monkeypatch.setattr(graphs, "take_turns", take_turns)
    lines = time_engines({name: Job(worker=name, options={}) for name in ("eager", "fp32", "int8")}, WORKS)
    assert len(calls) == times
    assert compare_speed(lines)[0].ratio.noisy == (len(wild) == 2)


def test_engines_are_tried_on_the_first_work_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(graphs, "take_turns", lambda _, workloads, **options: told.append((len(workloads), options)))
    graphs.try_engines({"fp32": Job(worker="x", options={})}, WORKS)
    assert told == [(1, {"rounds": 0, "warmup": 1})]


def test_what_is_written_down() -> None:
    line = latency(eager=2.0, int8=1.0)
    ratio = {"ratio": 2.0, "low": 2.0, "high": 2.0, "verdict": "faster", "said": "faster 2.0× (2.0–2.0)"}
    assert line.to_dict() == {
        "work": "model 1×16",
        "milliseconds": {"eager": 2.0, "int8": 1.0},
        "baseline": "eager",
        "ratios": {"int8": ratio},
    }
    assert all_speeds([line])[0].to_dict() == {"precision": "int8", "baseline": "eager", **ratio}


def test_inputs_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tfm.errors import VerificationError

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(graphs.np, "savez", full)
    with pytest.raises(VerificationError, match=r"the temporary folder \S+: No space left on device; make room there"):
        time_engines({"fp32": Job(worker="x", options={})}, WORKS)
