"""`tfm latency`: tables, JSON, a drawing, and what is refused before anything is measured."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tfm.cli import main
from tfm.cli.latency_tables import print_latency
from tfm.latency import LatencyReport, Line, Start, Timing, measure
from tfm.latency.ratios import ratio_of, spread_of
from tfm.latency.rounds import Turns

Run = Callable[..., tuple[int, str, str]]
FAST = ["--rounds", "6", "--seconds", "0.002", "--warmup", "1", "--batch-size", "1,2", "--seq", "3", "--starts", "1"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `tfm latency`; gives exit code, stdout and stderr."""

    def invoke(*arguments: Any) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["latency", *map(str, arguments)])
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return invoke


def test_a_table(make_bundle: Callable[..., str], run: Run) -> None:
    code, out, err = run(make_bundle("encoder"), *FAST)
    assert code == 0
    lines = [line.split() for line in out.splitlines() if line]
    assert " ".join(lines[0]) == "latency on 1 thread, pinned, milliseconds of single runs in 6 rounds"
    assert lines[1] == ["work", "median", "p90", "p99", "beside", "fp32"]
    assert [line[:2] for line in lines[2:6:2]] == [["1×3", "fp32"], ["2×3", "fp32"]]
    assert [line[0] for line in lines[3:6:2]] == ["int8", "int8"]
    assert " ".join(lines[6]) == "throughput on 1 thread, pinned, on 128 sentences of built-in English"
    assert lines[8][:2] == ["corpus", "fp32"]
    assert " ".join(lines[10]) == "size and start, milliseconds, median of 1 in fresh processes"
    assert lines[11] == ["file", "import", "open", "first", "answer", "memory", "at", "most"]
    assert [line[0] for line in lines[12:14]] == ["fp32", "int8"]
    assert err.splitlines()[:2] == [
        "start fp32, int8 anew, in turn, 1×",
        "open fp32, int8 on 1 thread, and warm up",
    ]
    assert "36/36 (100%)" in err


def test_json_and_a_drawing(make_bundle: Callable[..., str], run: Run, tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("a b\n\nc\n")
    options = ["--text", tmp_path / "texts", "--precision", "int8, fp32", "--html", tmp_path / "x.html", "--json"]
    code, out, _ = run(make_bundle("encoder"), *FAST, *options)
    values = json.loads(out)
    assert (code, values["corpus"]) == (0, "2 texts")
    assert list(values["lines"][0]["engines"]) == ["int8", "fp32"]
    assert "int8" in (tmp_path / "x.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "1,x"], "'1,x' is no list of integers of at least 1, such as 1,8"),
        (["--seq", "0"], "'0' is no list of integers of at least 1"),
        (["--threads", ""], "'' is no list of integers of at least 1"),
        (["--threads", "5000"], "5000 threads cannot be pinned to"),
        (["--rounds", "3"], "rounds must be at least 6, as fewer show nothing, but is 3"),
        (["--seconds", "0"], "seconds must be a number above 0"),
        (["--precision", "int9"], "has no precision 'int9'"),
        (["--precision", ","], "precisions is empty"),
        (["--nhead", "2"], "--nhead is for comparing with a checkpoint: give --ckpt too"),
        (["--no-compile"], "--no-compile is for comparing with a checkpoint: give --ckpt too"),
        (["--text", "nosuch", "--no-corpus"], "--text and --no-corpus exclude each other"),
        (["--text", "nosuch"], "nosuch cannot be read as text"),
        (["--html", "nosuch/x.html"], "--html: there is no folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage(
    make_bundle: Callable[..., str], run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(measure, "take_turns", lambda *_, **__: pytest.fail("something was measured"))
    code, out, err = run(make_bundle("encoder"), *arguments)
    assert (code, out) == (2, "")
    assert message in " ".join(err.replace("│", " ").split())


def test_no_bundle(run: Run, tmp_path: Path) -> None:
    code, _, err = run(tmp_path / "nosuch.tfm")
    assert code == 2
    assert "nosuch.tfm" in err


@pytest.mark.parametrize(
    ("absent", "option", "extra"),
    [("torch", ["--ckpt", "model.pt"], "export"), ("jinja2", ["--html", "x"], "quantize")],
)
def test_what_an_option_needs(
    make_bundle: Callable[..., str], tmp_path: Path, absent: str, option: list[str], extra: str
) -> None:
    (tmp_path / f"{absent}.py").write_text(f"raise ModuleNotFoundError('no {absent}', name='{absent}')\n")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from tfm.cli import main; main()"
    command = [sys.executable, "-c", program, "latency", make_bundle("encoder"), *option]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        f"tfm: {option[0]} needs the package {absent}: pip install 'tfm-export[{extra}]'"
    )  # fmt: skip


def line(work: str, measure_: str, times: dict[str, list[float]], threads: int = 1) -> Line:
    """Made of the times of rounds of one run each, the baseline first."""
    (baseline, first), *_ = times.items()
    timings = {
        name: Timing(spread=spread_of(rounds), ratio=None if name == baseline else ratio_of(first, rounds))
        for name, rounds in times.items()
    }
    return Line(
        work=work, measure=measure_, threads=threads, rows=4, baseline=baseline, noise=0.0, timings=timings
    )  # fmt: skip


def report_of(*lines: Line, **changes: Any) -> LatencyReport:
    starts = {"int8": Start(starts=5, imported=0.1, opened=0.0514, answered=1.5, peak=120_000_000)}
    values: dict[str, Any] = {
        "bundle": "x.tfm", "kind": "decoder", "made": {}, "settings": {"rounds": 8}, "corpus": "3 texts",
        "warnings": [], "left_out": {}, "lines": lines, "starts": starts,
        "peaks": {1: {"eager": None, "int8": 130_000_000}}, "sizes": {"int8": 22_900_000},
    }  # fmt: skip
    return LatencyReport(**values | changes)


def test_each_work_of_a_precision_is_a_gate() -> None:
    """Engines that are in no bundle are none, nor is what was compared with nothing."""
    eager = [0.020] * 8
    report = report_of(
        line("1×16", "first token", {"eager": eager, "torch.compile": [0.1] * 8, "int8": [0.010] * 8}),
        line("1×16", "token", {"eager": eager, "int8": [0.030] * 8}, threads=2),
        line("8×16", "run", {"int8": eager}),
    )
    faster, slower = report.gates()
    assert (faster.name, faster.stage, faster.op) == (
        "int8 not slower than eager",
        "speed",
        "first token 1×16, 1 threads",
    )
    assert (faster.passed, faster.figure, faster.limit, faster.reason) == (True, 2.0, 1.0, "")
    assert not slower.passed
    assert slower.reason == (
        "int8 is slower than eager on 1×16 (token, threads: 2): 1.50× its time (1.50–1.50)"
    )  # fmt: skip
    assert report.to_dict()["gates"] == [faster.to_json(), slower.to_json()]


def test_every_verdict_and_unit(capsys: pytest.CaptureFixture[str]) -> None:
    eager = [0.020] * 8
    report = report_of(
        line("1×16", "first token", {"eager": eager, "int8": [0.010] * 8}),
        line("1×16", "token", {"eager": eager, "int8": [0.030] * 8}),
        line("8×16", "run", {"eager": eager, "int8": [0.020] * 8}, threads=2),
        line("corpus", "corpus", {"eager": eager, "int8": [0.000123] * 8}, threads=2),
        warnings=["the machine was busy"],
        left_out={"torch.compile": "no compiler"},
    )
    print_latency(report)
    assert capsys.readouterr().out.splitlines() == [
        "",
        "latency on 1 thread, pinned, milliseconds of single runs in 8 rounds",
        "  work                      median  p90  p99  beside eager",
        "  first token, 1×16  eager    20.0    —    —",
        "                     int8     10.0    —    —  faster 2.0× (2.0–2.0)",
        "  token after 1×16   eager    20.0    —    —",
        "                     int8     30.0    —    —  slower 1.5× (1.5–1.5)",
        "",
        "latency on 2 threads, pinned, milliseconds of single runs in 8 rounds",
        "  work         median  p90  p99  beside eager",
        "  8×16  eager    20.0    —    —",
        "        int8     20.0    —    —  no difference shown",
        "",
        "throughput on 2 threads, pinned, on 3 texts",
        "  work           rows/s  beside eager",
        "  corpus  eager     200",
        "          int8   32,520  faster 163× (163–163)",
        "",
        "size and start, milliseconds, median of 5 in fresh processes",
        "            file  import  open  first answer  memory  at most",
        "  eager        —       —     —             —       —        —",
        "  int8   22.9 MB     100  51.4          1500  120 MB   130 MB",
        "",
        "  torch.compile was left out: no compiler",
        "  the machine was busy",
    ]


def test_one_engine_alone(capsys: pytest.CaptureFixture[str]) -> None:
    alone = line("1×16", "run", {"int8": [0.01] * 8})
    print_latency(report_of(alone, corpus="not asked for", starts={}))
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == "  throughput was not measured: not asked for"
    assert "size and start" in out


def test_nothing_is_printed_but_the_object(
    make_bundle: Callable[..., str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "take_turns", lambda engines, workloads, **_: Turns([{}] * len(workloads), {}, {}))
    code, out, _ = run(make_bundle("encoder"), "--starts", "0", "--json")
    assert (code, json.loads(out)["lines"]) == (0, [])
