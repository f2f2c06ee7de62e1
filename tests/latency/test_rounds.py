"""The protocol, with engines that sleep: turns, order, processes, cores, and what breaks them."""

import errno
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tfm.errors import VerificationError
from tfm.latency import processes
from tfm.latency.rounds import Job, start_once, take_turns

MakeJob = Callable[..., Job]
WORKS: list[dict[str, Any]] = [{"work": 0}, {"work": 1}]


def log(folder: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


def test_every_engine_has_every_turn(sleeper: MakeJob, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    engines = {"a": sleeper("a", 0.002), "b": sleeper("b", 0.006)}
    turns = take_turns(
        engines, WORKS, rounds=4, seconds=0.02, warmup=2, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(done, 16) for done in range(1, 17)]
    for times in turns.times:
        assert list(times) == ["a", "b"]
        for name, sleep in (("a", 0.002), ("b", 0.006)):
            assert len(times[name]) == 4
            for turn in times[name]:
                assert all(seconds >= sleep for seconds in turn["run"])
                assert len(turn["half"]) == 2 * len(turn["run"])
                assert sum(turn["run"]) >= 0.02 * 0.5  # a turn lasts, beside what writing the log takes
    runs = log(tmp_path)
    assert len({pid for *_, pid, _ in runs}) == 2
    assert os.getpid() not in {pid for *_, pid, _ in runs}
    assert [entry[:2] for entry in runs[:8]] == [[n, w] for w in (0, 1) for n in "ab" for _ in range(2)]
    times_of = [when for _, _, when, _, _ in runs]
    assert times_of == sorted(times_of)


def test_turns_are_whole_and_their_order_is_drawn_anew(sleeper: MakeJob, tmp_path: Path) -> None:
    """Engines never run at once, or their runs would be mixed in the log; nor is one always the first."""
    engines = {name: sleeper(name, 0.001) for name in "abc"}
    take_turns(engines, WORKS[:1], rounds=8, seconds=0.01, warmup=0)
    order = [name for name, _ in itertools.groupby(log(tmp_path), key=lambda entry: entry[0])]
    blocks = [name for name, _ in itertools.groupby(order)]
    firsts = []
    while blocks:  # two turns of one engine that follow on each other, in two rounds, are one block
        seen: list[str] = []
        while blocks and blocks[0] not in seen:
            seen.append(blocks.pop(0))
        firsts.append(seen[0])
    assert len(set(firsts)) > 1


def test_at_least_one_run(sleeper: MakeJob) -> None:
    turns = take_turns({"a": sleeper("a", 0.03)}, WORKS[:1], rounds=2, seconds=0.001)
    assert [len(turn["run"]) for turn in turns.times[0]["a"][:1]] == [1]


def test_a_short_run_wakes_the_engine_first(sleeper: MakeJob, tmp_path: Path) -> None:
    turns = take_turns({"a": sleeper("a", 0.001)}, WORKS[:1], rounds=3, seconds=0.2, warmup=1)
    counted = sum(len(turn["run"]) for turn in turns.times[0]["a"])
    assert len(log(tmp_path)) == counted + 3 + 1


def test_a_long_run_does_not(sleeper: MakeJob, tmp_path: Path) -> None:
    turns = take_turns({"a": sleeper("a", 0.02)}, WORKS[:1], rounds=3, seconds=0.03, warmup=1)
    counted = sum(len(turn["run"]) for turn in turns.times[0]["a"])
    assert len(log(tmp_path)) == counted + 1


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux pins a process to cores")
def test_engines_are_pinned(sleeper: MakeJob, tmp_path: Path) -> None:
    mine = sorted(os.sched_getaffinity(0))
    take_turns({"a": sleeper("a")}, WORKS[:1], rounds=1, seconds=0.001, cores=mine[-1:])
    assert {tuple(cores) for *_, cores in log(tmp_path)} == {(mine[-1],)}
    assert sorted(os.sched_getaffinity(0)) == mine


def test_what_an_engine_cannot_do(sleeper: MakeJob) -> None:
    workloads = [WORKS[0], {"work": 1, "not": "b"}]
    turns = take_turns({"a": sleeper("a"), "b": sleeper("b")}, workloads, rounds=2, seconds=0.001)
    assert [list(times) for times in turns.times] == [["a", "b"], ["a"]]


def test_an_engine_that_cannot_run_here(sleeper: MakeJob) -> None:
    engines = {"a": sleeper("a", unable="no such compiler"), "b": sleeper("b")}
    turns = take_turns(engines, WORKS[:1], rounds=1, seconds=0.001)
    assert turns.unable == {"a": "no such compiler"}
    assert list(turns.times[0]) == list(turns.peaks) == ["b"]


def test_an_engine_that_breaks_down(sleeper: MakeJob) -> None:
    workloads = [WORKS[0], {"work": 1, "breaks": "b"}]
    with pytest.raises(VerificationError, match=r"the engine b broke down (.|\n)*RuntimeError: the sleeper woke up"):
        take_turns({"a": sleeper("a"), "b": sleeper("b")}, workloads, rounds=1, seconds=0.001)


def test_an_engine_that_says_nothing_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mute.py").write_text("def main():\n    pass\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    message = r"the engine m broke down while it was started: it said nothing \(exit code 0\)"
    with pytest.raises(VerificationError, match=message):
        take_turns({"m": Job(worker="mute", options={})}, WORKS, rounds=1)


def test_an_engine_that_hangs_at_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stuck.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(processes, "START_SECONDS", 2.0)
    message = "the engine s hangs: no answer came in 2 s while it was started; importing"
    with pytest.raises(VerificationError, match=message):
        take_turns({"s": Job(worker="stuck", options={})}, WORKS, rounds=1)


def test_an_engine_that_hangs_amid_its_work(sleeper: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "ANSWER_SECONDS", 5.0)
    with pytest.raises(VerificationError, match="the engine a hangs: no answer came in 5 s while it was timed"):
        take_turns({"a": sleeper("a", 600)}, WORKS, rounds=1)


def test_without_rounds_each_engine_is_only_tried(sleeper: MakeJob, tmp_path: Path) -> None:
    turns = take_turns({"a": sleeper("a"), "b": sleeper("b")}, WORKS[:1], rounds=0, warmup=1)
    assert turns.times == [{"a": [], "b": []}]
    assert [name for name, *_ in log(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize("place", ["make", "job"])
def test_a_full_temporary_folder(sleeper: MakeJob, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((tempfile, "mkdtemp") if place == "make" else (Path, "write_text")), full)
    where = "a temporary folder" if place == "make" else r"the temporary folder \S+"
    message = f"cannot be written to {where}: No space left on device; make room there, or .* TMPDIR"
    with pytest.raises(VerificationError, match=message):
        take_turns({"a": sleeper("a")}, WORKS, rounds=1)
    with pytest.raises(VerificationError, match=message):
        start_once("a", sleeper("a"), WORKS)


def test_an_engine_that_talks_much(sleeper: MakeJob) -> None:
    """More than a pipe holds, which nobody reads."""
    turns = take_turns({"a": sleeper("a", chatter=1 << 20)}, WORKS[:1], rounds=1, seconds=0.001)
    assert turns.times[0]["a"]


def test_no_process_is_left(sleeper: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = subprocess.Popen
    made: list[Any] = []

    def popen(*args: Any, **kwargs: Any) -> Any:
        if len(made) == 2:
            raise OSError("no more processes")
        made.append(real(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(processes.subprocess, "Popen", popen)
    with pytest.raises(VerificationError, match="the engine c cannot be started: no more processes"):
        take_turns({name: sleeper(name) for name in "abc"}, WORKS, rounds=1)
    assert [process.poll() is not None for process in made] == [True, True]


PARENT = """
import json, pathlib, sys
from tfm.latency.rounds import Engine, Job
told = json.loads(sys.argv[1])
engine = Engine("a", Job(worker="sleeper", options=told), [{"work": 0}], pathlib.Path(sys.argv[2]))
engine.ready()
print(engine.process.pid, flush=True)
engine.ask("warm 0 1")
"""


def lives(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait for its parent to be told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="what runs is read from /proc")
def test_a_worker_ends_with_a_parent_that_is_killed(sleeper: MakeJob, tmp_path: Path) -> None:
    """In the middle of a run of minutes."""
    told = json.dumps(dict(sleeper("a", 300).options))
    command = [sys.executable, "-c", PARENT, told, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert lives(worker)
        parent.kill()
    deadline = time.monotonic() + 20
    while lives(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not lives(worker)


def test_the_peak_is_that_of_the_process(sleeper: MakeJob) -> None:
    (peak,) = take_turns({"a": sleeper("a")}, WORKS[:1], rounds=1, seconds=0.001).peaks.values()
    assert peak is not None
    assert 5e6 < peak < 5e8  # a Python with numpy and onnxruntime, in bytes


def test_starting(sleeper: MakeJob, tmp_path: Path) -> None:
    found = start_once("a", sleeper("a", 0.05), WORKS)
    assert set(found) == {"import", "open", "answer", "peak"}
    assert 0 <= found["import"] < 0.5
    assert 0 <= found["open"] < found["open"] + 0.05 <= found["answer"] < 5
    assert len(log(tmp_path)) == 1


def test_starting_what_breaks(sleeper: MakeJob) -> None:
    with pytest.raises(VerificationError, match="the sleeper woke up"):
        start_once("a", sleeper("a"), [{"work": 0, "breaks": "a"}])


def test_peak_memory_counts_what_was_there(tmp_path: Path) -> None:
    """In a process of its own, whose largest resident set is known to within what Python needs itself."""
    code = "from tfm.latency.worker import peak_memory as p; a = p(); b = bytearray(b'x' * 80_000_000); print(a, p())"
    before, after = map(int, subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert 79e6 < after - before < 250e6  # the literal is built beside the array
