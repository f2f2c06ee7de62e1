"""From a bundle to a report: what is in it, what is refused, and that nothing heavy is needed."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import tfm.latency
from tests.support import parity_schema
from tfm.errors import InputError
from tfm.latency import LatencyOptions, LatencyReport, latency_options, measure, measure_latency
from tfm.latency.rounds import Job, Turns
from tfm.latency.testing import assert_latency

ROOT = Path(__file__).resolve().parents[2]
FAST: dict[str, Any] = {"rounds": 6, "seconds": 0.002, "warmup": 1, "batch_sizes": (1, 2), "lengths": (2, 4)}

MakeBundle = Callable[..., Path]


@pytest.fixture
def problems() -> Callable[[Mapping[str, Any]], list[str]]:
    """What a report and docs/latency.md do not agree in."""
    return lambda values: [
        one for one in parity_schema.problems(values, "latency.md") if not one.startswith("left_out")
    ]


def test_an_encoder(make_bundle: MakeBundle, problems: Any) -> None:
    told: list[tuple[int, int, str]] = []
    report = measure_latency(
        make_bundle("encoder"),
        LatencyOptions(**FAST, starts=2, texts=["a b", "c", "d e f"]),
        progress=lambda *step: told.append(step),
    )
    names = [(line.work, line.measure, line.rows) for line in report.lines]
    workloads = [("1×2", "run", 1), ("1×4", "run", 1), ("2×2", "run", 2), ("2×4", "run", 2)]
    assert names == [*workloads, ("corpus", "corpus", 3)]
    for line in report.lines:
        assert list(line.timings) == ["fp32", "int8"]
        assert (line.baseline, line.timings["fp32"].ratio) == ("fp32", None)
        ratio = line.timings["int8"].ratio
        assert ratio is not None
        assert 0 < ratio.low <= ratio.value <= ratio.high
        assert line.per_second("int8") == pytest.approx(line.rows / line.timings["int8"].spread.median)
    opened = "open fp32, int8 on 1 thread, and warm up"
    assert told == [(0, 1, "start fp32, int8 anew, in turn, 2×"), (0, 1, opened)] + [
        (done, 60, opened) for done in range(1, 61)
    ]
    assert (report.kind, report.corpus, report.left_out) == ("encoder", "3 texts", {})
    assert list(report.starts) == list(report.sizes) == list(report.peaks[1]) == ["fp32", "int8"]
    for start in report.starts.values():
        assert start.starts == 2
        assert 0 < start.opened < start.answered < 60
        assert 0 < start.imported < 60
    values = json.loads(json.dumps(report.to_dict()))
    assert problems(values) == []


def test_a_field_that_drifts_is_noticed(make_bundle: MakeBundle, problems: Any) -> None:
    values = measure_latency(make_bundle("encoder"), LatencyOptions(**FAST, starts=1)).to_dict()
    values["lines"][0]["engines"]["fp32"]["mean_ms"] = 1.0
    values["settings"]["rounds"] = "6"
    del values["bundle"]
    assert sorted(problems(values)) == [
        "bundle is documented, and not there",
        "lines[].engines.*.mean_ms is not documented",
        "settings.rounds is '6', documented as integer",
    ]


@pytest.mark.parametrize("kind", ["counter", "copier"])
def test_what_generates(make_bundle: MakeBundle, kind: str) -> None:
    """The first token and each one after it, however soon the toy would have ended by itself."""
    report = measure_latency(make_bundle(kind), LatencyOptions(**FAST, starts=1, new_tokens=4, texts=["ab", "c"]))
    assert [(line.work, line.measure) for line in report.lines] == [
        *((work, measure) for work in ("1×2", "1×4", "2×2", "2×4") for measure in ("first token", "token")),
        ("corpus", "corpus"),
    ]
    for first, token in zip(report.lines[:-1:2], report.lines[1:-1:2], strict=True):
        (one,), (other,) = first.timings.values(), token.timings.values()
        assert other.spread.runs == 3 * one.spread.runs  # of four tokens
        assert (one.ratio, first.baseline, first.noise) == (None, None, None)


def test_a_module(make_bundle: MakeBundle, toys: Any) -> None:
    folder = toys.add_golden(make_bundle("encoder"))
    toys.write_manifest(folder, json.loads((folder / "manifest.json").read_text()) | {"kind": "module"})
    report = measure_latency(folder, LatencyOptions(**FAST, starts=1))
    assert [line.work for line in report.lines] == ["1×1 + 1×1 + 1×1", "2×3 + 2×3 + 2×3"]
    assert report.corpus == "this bundle reads no texts"


def test_an_encoder_without_a_task(make_bundle: MakeBundle) -> None:
    report = measure_latency(make_bundle("encoder without pooling"), LatencyOptions(**FAST, starts=1))
    assert [line.work for line in report.lines] == ["1×2", "1×4", "2×2", "2×4"]
    assert report.corpus == "this bundle has no task for texts as they are"


def test_a_zip_and_one_precision(make_bundle: MakeBundle) -> None:
    folder = make_bundle("encoder")
    archive = shutil.make_archive(str(folder), "zip", folder)
    report = measure_latency(archive, LatencyOptions(**FAST, starts=0, corpus=False, precisions=["int8"]))
    assert (report.bundle, report.starts, report.corpus) == ("encoder.tfm.zip", {}, "not asked for")
    assert {(*line.timings, line.baseline) for line in report.lines} == {("int8", None)}


def test_several_numbers_of_threads(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[tuple[int, Any]] = []

    def take_turns(engines: Mapping[str, Job], workloads: Sequence[Any], **options: Any) -> Turns:
        handed.extend((job.options["threads"], options["cores"]) for job in engines.values())
        return made_up(engines, workloads, **options)

    monkeypatch.setattr(measure, "take_turns", take_turns)
    monkeypatch.setattr(latency_options, "usable_cores", lambda: 4)
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(measure.os, "sched_getaffinity", lambda _: {9, 2, 5, 3})
    report = measure_latency(make_bundle("encoder"), LatencyOptions(threads=(1, 3), starts=0, corpus=False))
    assert list(dict.fromkeys(line.threads for line in report.lines)) == list(report.peaks) == [1, 3]
    assert [threads for threads, _ in handed] == [1, 1, 3, 3]
    if hasattr(os, "sched_getaffinity"):
        assert [cores for _, cores in handed] == [[2], [2], [2, 3, 5], [2, 3, 5]]


SPEED = {"eager": 4.0, "fp32": 2.0, "int8": 1.0}


def made_up(engines: Mapping[str, Job], workloads: Sequence[Any], *, rounds: int, **_: Any) -> Turns:
    """Every engine is as fast as `SPEED` says, but for 1 % of noise that all have in common."""
    times = [
        {name: [{"run": [SPEED[name] * (1 + 0.01 * (turn % 2))] * 3} for turn in range(rounds)] for name in engines}
        for _ in workloads
    ]
    return Turns(times, dict.fromkeys(engines, 1000), {})


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "take_turns", made_up)


@pytest.mark.usefixtures("fake")
def test_eager_is_what_all_are_compared_with(make_bundle: MakeBundle) -> None:
    eager = {"eager": Job(worker="none", options={})}
    report = measure_latency(make_bundle("encoder"), LatencyOptions(starts=0, corpus=False), engines=eager)
    for line in report.lines:
        assert (list(line.timings), line.baseline) == (["eager", "fp32", "int8"], "eager")
        assert [str(timing.ratio) for timing in line.timings.values()] == [
            "None", "faster 2.0× (2.0–2.0)", "faster 4.0× (4.0–4.0)"
        ]  # fmt: skip
        assert line.timings["int8"].spread.median == pytest.approx(1.0)


@pytest.mark.usefixtures("fake")
def test_another_baseline(make_bundle: MakeBundle) -> None:
    report = measure_latency(make_bundle("encoder"), LatencyOptions(starts=0, corpus=False, baseline="int8"))
    assert str(report.lines[0].timings["fp32"].ratio) == "slower 2.0× (2.0–2.0)"
    with pytest.raises(InputError, match="there is no engine 'int4' to compare with"):
        measure_latency(make_bundle("counter"), LatencyOptions(baseline="int4"))


def test_a_noisy_machine_is_told_of(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(engines: Mapping[str, Job], workloads: Sequence[Any], *, rounds: int, **_: Any) -> Turns:
        turns = [{name: [{"run": [1.0 + turn % 4]} for turn in range(rounds)] for name in engines} for _ in workloads]
        return Turns(turns, {}, {})

    monkeypatch.setattr(measure, "take_turns", noisy)
    monkeypatch.setattr(measure.os, "getloadavg", lambda: (99.0, 0.0, 0.0), raising=False)
    report = measure_latency(
        make_bundle("encoder"), LatencyOptions(starts=0, corpus=False, batch_sizes=(1,), lengths=(2,))
    )
    busy, nothing = report.warnings
    assert report.made["load"] == 99.0
    assert busy.startswith("the machine was busy when this began: a load of 99.0 on ")
    assert nothing.startswith("1×2 on 1 thread: nothing is concluded, as the quartiles of fp32's rounds lie ")
    ratio = report.lines[0].timings["int8"].ratio
    assert ratio is not None
    assert ratio.verdict == "too noisy"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"precisions": ["int9"]}, "has no precision 'int9'; .*int8"),
        ({"precisions": []}, "precisions is empty"),
        ({"threads": ()}, "threads is empty"),
        ({"threads": (4096,)}, "4096 threads cannot be pinned to .* usable cores"),
        ({"threads": (0,)}, "threads must be an integer of at least 1"),
        ({"rounds": 5}, "rounds must be at least 6"),
        ({"seconds": 0.0}, "seconds must be a number above 0"),
        ({"seconds": float("nan")}, "seconds must be a number above 0"),
        ({"new_tokens": 1}, "new_tokens must be at least 2"),
        ({"batch_sizes": ()}, "batch_sizes is empty"),
        ({"lengths": (0,)}, "lengths must be an integer of at least 1"),
    ],
    ids=str,
)
def test_what_makes_no_sense(make_bundle: MakeBundle, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure_latency(make_bundle("encoder"), LatencyOptions(**asked))


def test_an_argument_that_is_a_field_now_is_named() -> None:
    with pytest.raises(InputError, match=r"LatencyOptions now: measure_latency\(bundle, LatencyOptions\(rounds=…\)\)"):
        measure_latency("nosuch.tfm", rounds=6)
    with pytest.raises(InputError, match="no argument 'say'; progress is told that too"):
        measure_latency("nosuch.tfm", say=print)


@pytest.mark.usefixtures("fake")
def test_a_bundle_that_is_fast_enough(make_bundle: MakeBundle) -> None:
    bundle = make_bundle("encoder")
    assert isinstance(assert_latency(bundle, length=3), LatencyReport)
    assert_latency(bundle, "fp32", 1.99, length=3)
    assert_latency(bundle, "eager", 3.99, length=3, engines={"eager": Job(worker="none", options={})})


@pytest.mark.usefixtures("fake")
def test_a_bundle_that_is_not(make_bundle: MakeBundle) -> None:
    bundle = make_bundle("encoder")
    with pytest.raises(AssertionError, match=r"1×3 run: 2\.00× as fast as fp32 \(2\.00–2\.00\), and more than 2×"):
        assert_latency(bundle, at_least=2.0, length=3)
    with pytest.raises(AssertionError, match=r"0\.50× as fast as int8"):
        assert_latency(bundle, "int8", precision="fp32")
    with pytest.raises(AssertionError, match="nan"):
        assert_latency(bundle, at_least=float("nan"))
    with pytest.raises(InputError, match="cannot be faster than itself"):
        assert_latency(bundle, "int8")
    with pytest.raises(InputError, match="has no precision 'eager'"):
        assert_latency(bundle, "eager")


def test_one_whose_interval_begins_too_early(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def wide(engines: Mapping[str, Job], workloads: Sequence[Any], *, rounds: int, **_: Any) -> Turns:
        seconds = {"fp32": [2.0] * rounds, "int8": [1.0, 1.0, 1.9] * rounds}
        times = {name: [{"run": [seconds[name][turn]]} for turn in range(rounds)] for name in engines}
        return Turns([times] * len(workloads), {}, {})

    monkeypatch.setattr(measure, "take_turns", wide)
    bundle = make_bundle("encoder")
    assert_latency(bundle, at_least=1.01, rounds=6)
    with pytest.raises(AssertionError, match=r"2\.00× as fast as fp32 \(1\.05–2\.00\), and more than 1\.2× is wanted"):
        assert_latency(bundle, at_least=1.2, rounds=6)


def test_one_that_cannot_be_shown(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise is tried again, and a slow one is not: else it would pass by chance."""
    tried: list[float] = []

    def noisy(engines: Mapping[str, Job], workloads: Sequence[Any], *, rounds: int, **_: Any) -> Turns:
        tried.append(0.0)
        wild = len(tried) < 3
        times = {n: [{"run": [SPEED[n] * (1 + 2 * wild * (r % 2))]} for r in range(rounds)] for n in engines}
        return Turns([times] * len(workloads), {}, {})

    monkeypatch.setattr(measure, "take_turns", noisy)
    bundle = make_bundle("encoder")
    with pytest.raises(AssertionError, match=r"2\.00× as fast as fp32 .*, but fp32's rounds vary by"):
        assert_latency(bundle, attempts=2)
    assert len(tried) == 2
    tried.clear()
    assert_latency(bundle, attempts=3)
    assert len(tried) == 3
    with pytest.raises(AssertionError, match="more than 3× is wanted"):
        assert_latency(bundle, at_least=3.0, attempts=3)
    assert len(tried) == 4


def test_one_of_which_nothing_was_measured(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "take_turns", lambda *_, **__: Turns([{}], {}, {"fp32": "no luck"}))
    with pytest.raises(AssertionError, match="nothing was measured: no luck"):
        assert_latency(make_bundle("encoder"))


def test_public_names_are_all_there() -> None:
    assert all(getattr(tfm.latency, name).__doc__ for name in tfm.latency.__all__)


HEAVY = ("torch", "onnx", "onnxscript", "onnx_ir", "transformers", "safetensors", "tokenizers", "rich", "jinja2")


def test_it_works_where_nothing_heavy_is_installed(make_bundle: MakeBundle, tmp_path: Path) -> None:
    """Nor in the processes that are timed; without tokenizers the corpus is of random ids."""
    (tmp_path / "absent").mkdir()
    for name in HEAVY:
        (tmp_path / "absent" / f"{name}.py").write_text(f"raise ModuleNotFoundError('no {name}', name='{name}')\n")
    program = "from tfm.cli import main; main()"
    options = ["--rounds", "6", "--seconds", "0.002", "--batch-size", "1", "--seq", "2", "--starts", "1", "--json"]
    command = [sys.executable, "-W", "error", "-c", program, "latency", str(make_bundle("encoder")), *options]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "absent")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert [line["work"] for line in values["lines"]] == ["1×2", "corpus"]
    assert values["corpus"].startswith("128 rows of random ids, as texts need the package tokenizers")
