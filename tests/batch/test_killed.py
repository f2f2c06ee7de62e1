"""Killed at any moment and started again: the output is to the byte that of a run that nobody disturbed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

PATIENCE = 300  # seconds, for what takes 10 on an idle machine
COMMAND = [sys.executable, "-c", "import sys; from tfm.cli import main; main(sys.argv[1:])"]


def command(*arguments: Any, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    """`tfm map` to its end; `code` is what it ends with, None: anything."""
    done = subprocess.run(
        [*COMMAND, "map", *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert code is None or done.returncode == code, done.stderr
    return done


def start(*arguments: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, "map", *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows of which some are refused."""
    for place in range(0, len(rows), 97):
        rows[place]["text"] = None
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def state(target: Path) -> tuple[int, bool, bool]:
    """How far it is: parts that are finished, whether the output is there, whether the parts' folder is."""
    folder = target.with_name(f"{target.name}.parts")
    try:
        return len(list(folder.glob("part-*.arrow"))), target.exists(), folder.exists()
    except FileNotFoundError:
        return 0, target.exists(), False


def wait_for(process: subprocess.Popen[bytes], target: Path, moment: Callable[[tuple[int, bool, bool]], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while process.poll() is None and not moment(state(target)):
        assert time.monotonic() < end
        time.sleep(0.0005)


def kill_again_and_again(moments: list[Any], target: Path, *arguments: Any) -> int:
    """Start the command again and again, each killed at its moment, then let it end; give how often it was killed."""
    killed = 0
    for moment in moments:
        process = start(*arguments)
        wait_for(process, target, moment)
        process.send_signal(signal.SIGKILL)
        killed += process.wait(PATIENCE) == -signal.SIGKILL
    if state(target)[1:] != (True, False):
        command(*arguments)
    return killed


def files_of(target: Path) -> list[bytes]:
    return [target.read_bytes(), target.with_name(f"{target.name}.rejected.jsonl").read_bytes()]


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_several_moments_the_output_is_the_same(workers: int, bundle, make_rows, tmp_path) -> None:
    source = write_rows(tmp_path / "in.parquet", make_rows(4000))
    options = ["--column", "text", "--chunk-rows", 100, "--workers", workers]
    command(bundle, source, tmp_path / "right.parquet", *options)
    target = tmp_path / "out.parquet"
    moments = [
        lambda now: now[2],  # as soon as anything is there
        lambda now: now[0] >= 3,
        lambda now: now[0] >= 17,
        lambda now: now[0] >= 38,
        lambda now: now[1],  # when the output is in place, and parts are not removed yet
    ]
    assert kill_again_and_again(moments, target, bundle, source, target, *options) >= 4
    assert files_of(target) == files_of(tmp_path / "right.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("in.parquet", "out.parquet", "out.parquet.rejected.jsonl"),
        *("right.parquet", "right.parquet.rejected.jsonl"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_killed_at_twenty_moments_the_output_is_the_same(ending: str, bundle, make_rows, tmp_path) -> None:
    source = write_rows(tmp_path / "in.parquet", make_rows(20_000))
    options = ["--column", "text", "--chunk-rows", 100]
    command(bundle, source, tmp_path / f"right.{ending}", *options)
    target, draw = tmp_path / f"out.{ending}", random.Random(1)
    # 15 on the way, and 5 by the clock alone, wherever that is: at the start, between two files, at the end.
    parts = sorted(draw.sample(range(1, 198), 15))
    moments: list[Any] = [lambda now, part=part: now[0] >= part for part in parts]
    for _ in range(5):
        until = draw.uniform(0.5, 3.0)
        moments.insert(draw.randrange(len(moments)), lambda now, since=[], until=until: _later(since, until))
    assert kill_again_and_again(moments, target, bundle, source, target, *options) >= 15
    assert files_of(target) == files_of(tmp_path / f"right.{ending}")


def _later(since: list[float], seconds: float) -> bool:
    """Whether so much time has gone since it was first asked."""
    since.append(time.monotonic())
    return since[-1] - since[0] >= seconds


def test_workers_end_when_the_process_that_started_them_is_killed(bundle, make_rows, tmp_path) -> None:
    source, target = write_rows(tmp_path / "in.parquet", make_rows(20_000)), tmp_path / "out.parquet"
    process = start(bundle, source, target, "--column", "text", "--chunk-rows", 50, "--workers", 2)
    wait_for(process, target, lambda now: now[0] >= 2)
    children = _children(process.pid)
    process.kill()
    process.wait(PATIENCE)
    assert len(children) >= 2
    end = time.monotonic() + PATIENCE
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_worker_that_dies_ends_the_job_and_what_is_finished_stays(bundle, make_rows, tmp_path) -> None:
    source, target = write_rows(tmp_path / "in.parquet", make_rows(4000)), tmp_path / "out.parquet"
    options = ["--column", "text", "--chunk-rows", 50, "--workers", 2]
    process = subprocess.Popen(
        [*COMMAND, "map", *map(str, [bundle, source, target, *options])], stderr=subprocess.PIPE, text=True
    )
    wait_for(process, target, lambda now: now[0] >= 2)
    # The last that was started is a worker; multiprocessing's own helper is the first.
    os.kill(_children(process.pid)[-1], signal.SIGKILL)
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 2
    assert "died (exit code -9)" in said
    assert "what is finished is kept" in said
    assert json.loads(command(bundle, source, target, *options, "--json").stdout)["kept"] >= 100


def _children(process: int) -> list[int]:
    return sorted(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))


def test_ctrl_c_says_where_the_parts_are(bundle, make_rows, tmp_path) -> None:
    source, target = write_rows(tmp_path / "in.parquet", make_rows(20_000)), tmp_path / "out.parquet"
    process = subprocess.Popen(
        [*COMMAND, "map", str(bundle), str(source), str(target), "--column", "text", "--chunk-rows", "50"],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(process, target, lambda now: now[0] >= 2)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 130
    assert "out.parquet.parts, and the same command goes on" in said


@pytest.mark.slow
def test_memory_is_flat_over_200_000_rows(bundle, make_rows, tmp_path) -> None:
    rows = make_rows(200_000)
    for place, row in enumerate(rows):
        row["filling"] = f"{place:0200}"  # 40 MB in all, so that whoever holds the input is seen
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet", row_group_size=10_000)
    del rows
    target = tmp_path / "out.parquet"
    process = start(bundle, tmp_path / "in.parquet", target, "--column", "text", "--chunk-rows", 1000)
    held: dict[int, int] = {}
    while process.poll() is None:
        held[state(target)[0]] = _memory(process.pid)
        time.sleep(0.02)
    assert process.returncode == 0
    early = max(size for part, size in held.items() if 10 <= part <= 40)
    late = max(size for part, size in held.items() if part > 150)
    assert late < early + (48 << 20)
    assert pq.ParquetFile(target).metadata.num_rows == 200_000


def _memory(process: int) -> int:
    """Bytes that a process holds; 0 when it has just ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS")), 0)
