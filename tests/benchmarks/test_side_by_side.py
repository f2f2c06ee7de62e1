"""The frame of the comparisons with peers: its statistics, its tables, its processes."""

import math
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from side_by_side import Engine, Ratio, Worker, Workload, column, duration, ratio, ratio_table, started, take_turns

ROOT = Path(__file__).resolve().parents[2]


def engine(folder: Path, name: str, body: str) -> Engine:
    """A worker whose answers are what `body`, a function's, returns for `line`."""
    script = folder / f"{name}.py"
    peers = ROOT / "benchmarks" / "peers"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(peers)!r})\nimport json, os\nfrom serving import serve\n"
        f"def answer(line):\n{textwrap.indent(body, '    ')}\nprint('not an answer')\nserve(answer)\n"
    )
    return Engine(name=name, python=Path(sys.executable), worker=script, job={"of": name})


def state(pid: int) -> str:
    """What Linux says that a process does: "T" is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_the_ratio_is_taken_within_each_round() -> None:
    ours = [1.0, 10.0, 2.0, 4.0, 3.0]
    assert ratio([2 * seconds for seconds in ours], ours) == Ratio(2.0, 2.0, 2.0)


def test_no_conclusion_where_the_interval_straddles_1() -> None:
    noisy = ratio([1.2, 0.9, 1.1, 0.8, 1.0], [1.0] * 5)
    assert noisy.median == 1.0
    assert (noisy.low, noisy.high) == (0.8, 1.2)
    assert not noisy.shown
    assert str(noisy) == "no difference shown (0.80–1.20)"
    assert str(ratio([0.5, 0.5], [1.0, 1.0])) == "0.50 (0.50–0.50)"
    assert not Ratio(1.1, 1.0, 1.2).shown
    assert not ratio([9.0], [1.0]).shown  # one round shows nothing


def test_the_interval_holds_the_true_median_as_often_as_it_says() -> None:
    rng, rounds, trials = np.random.default_rng(0), 15, 300
    held = 0
    for _ in range(trials):
        ours = rng.lognormal(0, 0.3, rounds)
        found = ratio((1.5 * ours * rng.lognormal(0, 0.1, rounds)).tolist(), ours.tolist())
        held += found.low <= 1.5 <= found.high
    assert 0.91 <= held / trials <= 0.99  # 0.95 ± 3 standard errors of such a count


@pytest.mark.parametrize(
    ("others", "ours", "message"),
    [
        ([1.0, 2.0], [1.0], "the same rounds"),
        ([], [], "at least one"),
        ([math.nan], [1.0], "positive"),
        ([1.0], [0.0], "positive"),
        ([-1.0], [1.0], "positive"),
    ],
)
def test_times_that_cannot_be_compared_are_refused(others: list[float], ours: list[float], message: str) -> None:
    with np.errstate(divide="ignore"), pytest.raises(ValueError, match=message):
        ratio(others, ours)


def test_the_table_names_the_fastest_peer() -> None:
    seconds = {
        "short": {"ours": [0.001, 0.001], "a": [0.002, 0.002], "b": [0.0015, 0.0015], "ours too": [0.0005, 0.0005]},
        "long": {"ours": [2.0, 2.0], "a": [1.0, 1.0], "ours too": [2.0, 2.0]},
    }
    assert ratio_table(seconds, "ours", ["a", "b"], "Time").splitlines() == [
        "| Time | short | long |",
        "| --- | --- | --- |",
        "| ours | 1 (1 ms) | 1 (2 s) |",
        "| a | 2.00 (2.00–2.00) | 0.50 (0.50–0.50) |",
        "| b | 1.50 (1.50–1.50) | – |",
        "| ours too | 0.50 (0.50–0.50) | no difference shown (1.00–1.00) |",
        "| **Fastest peer** | b: 1.50 (1.50–1.50) | a: 0.50 (0.50–0.50) |",
    ]


def test_durations_have_three_digits() -> None:
    assert [duration([seconds]) for seconds in (0.00012345, 0.98765, 12.345)] == ["0.123 ms", "988 ms", "12.3 s"]
    assert duration([1.0, 9.0, 2.0]) == "2 s"


def test_all_have_a_turn_in_each_round_in_changing_order(tmp_path: Path) -> None:
    log = tmp_path / "log"
    body = f"open({str(log)!r}, 'a').write(json.loads(sys.argv[1])['of'])\nreturn {{'seconds': float(line)}}"
    engines = [engine(tmp_path, name, body) for name in "abc"]
    with started(engines, 1) as workers:
        answers = take_turns(workers, [Workload(name="w", line="0.5"), Workload(name="v", line="2")], 8, 1)
    turns = [log.read_text()[start : start + 3] for start in range(0, 48, 3)]
    assert [sorted(turn) for turn in turns] == [["a", "b", "c"]] * 16
    assert len(set(turns)) > 2
    assert column(answers) == {"w": dict.fromkeys("abc", [0.5] * 8), "v": dict.fromkeys("abc", [2.0] * 8)}


def test_a_worker_is_pinned_and_told_its_threads_and_stopped_between_turns(tmp_path: Path) -> None:
    body = "job = json.loads(sys.argv[1])\nreturn {'pid': os.getpid(), 'cores': len(os.sched_getaffinity(0)), **job}"
    with Worker(engine(tmp_path, "a", body), 1) as worker:
        answer = worker.ask("anything")
        assert (answer["cores"], answer["threads"], answer["of"]) == (1, 1, "a")
        deadline = time.monotonic() + 10
        while state(answer["pid"]) != "T" and time.monotonic() < deadline:
            time.sleep(0.001)
        assert state(answer["pid"]) == "T"
        assert worker.ask("again")["pid"] == answer["pid"]
        assert worker.peak() > 1e6
    assert not Path(f"/proc/{answer['pid']}").exists()


def test_a_fresh_turn_has_a_process_of_its_own(tmp_path: Path) -> None:
    one = engine(tmp_path, "a", "return {'seconds': 1.0, 'pid': os.getpid()}")
    with started([one], 1) as workers:
        answers = take_turns(workers, [Workload(name="w", line="x", fresh=True)], 2, 1)["w"]["a"]
        assert len({*(answer["pid"] for answer in answers), workers[0].ask("x")["pid"]}) == 3
    assert all(answer["peak"] > 1e6 for answer in answers)


def test_a_worker_that_breaks_down_says_why(tmp_path: Path) -> None:
    with (
        Worker(engine(tmp_path, "a", "raise ValueError('no such shape')"), 1) as worker,
        pytest.raises(SystemExit, match=r"(?s)a broke down at 'shape 0'.*no such shape"),
    ):
        worker.ask("shape 0")


def test_more_threads_than_cores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="ask for fewer"):
        Worker(engine(tmp_path, "a", "return {}"), len(os.sched_getaffinity(0)) + 1)


def test_a_stopped_worker_dies_with_its_parent(tmp_path: Path) -> None:
    script = engine(tmp_path, "a", "return {'pid': os.getpid()}").worker
    source = (
        "import os, sys; from pathlib import Path; from side_by_side import Engine, Worker\n"
        f"one = Engine(name='a', python=Path(sys.executable), worker=Path({str(script)!r}), job={{}})\n"
        "with Worker(one, 1) as worker: print(worker.ask('x')['pid'], flush=True); os._exit(0)"
    )
    found = subprocess.run(
        [sys.executable, "-c", source], check=True, capture_output=True, text=True, cwd=ROOT / "benchmarks"
    )
    deadline = time.monotonic() + 10
    while Path(f"/proc/{int(found.stdout)}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{int(found.stdout)}").exists()
