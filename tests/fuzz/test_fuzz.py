"""Mutated files of every format: a short run of `make fuzz`, what once failed, and whether the harness sees a fault."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.fuzz.fuzzing.formats import FORMATS, MOST, mutate
from tests.fuzz.fuzzing.watch import FAULTS, KINDS

REPO = Path(__file__).parents[2]
CORPUS = Path(__file__).with_name("corpus")
SEED = "0"
"""The same always, so that a test that passes goes on passing; `make fuzz` takes another one each day."""

CASES = 600

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked and watched by way of /proc")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unharmed files, made once."""
    return tmp_path_factory.mktemp("lab")


def fuzz(lab: Path, *options: str) -> dict[str, Any]:
    """Run the harness in a process of its own, which has forked no threads away."""
    harness = [sys.executable, "-m", "tests.fuzz.fuzzing", "--json"]
    command = [*harness, "--lab", str(lab), "--out", str(lab / "out"), *options]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPO)})
    assert ran.returncode in (0, 1), ran.stderr
    return json.loads(ran.stdout)


def test_a_short_run(lab: Path) -> None:
    """Nothing but a TfmError, in time, in little memory; every format is read, refused and accepted."""
    found = fuzz(lab, "--cases", str(CASES), "--seed", SEED)
    assert found["failed"] == 0, json.dumps(found["faults"], indent=1)
    assert found["cases"] == CASES
    assert found["formats"].keys() == FORMATS.keys()
    for name, count in found["formats"].items():
        assert count["accepted"] > 0, name  # one is not mutated
        assert count["refused"] > 0 or name == "journal", name  # what a journal has of no use is found anew
        assert count["cases"] == sum(count[kind] for kind in KINDS)


def test_what_once_failed(lab: Path) -> None:
    entries = sorted(CORPUS.glob("*.json"))
    assert len(entries) >= 20
    assert sum(entry.stat().st_size for entry in entries) < 200_000
    found = fuzz(lab, "--replay", str(CORPUS))
    assert found["cases"] == len(entries)
    assert found["failed"] == 0, json.dumps(found["faults"], indent=1)


PLANTED = """
    import json, os, signal, sys, time
    from pathlib import Path
    from tests.fuzz.fuzzing.watch import watch_many, watched
    from tfm.errors import BundleError

    def reads(what):
        def work(box):
            (box / "inside").mkdir()
            return ["x"], what() or ""
        return work

    def refuse(): raise BundleError("no")
    def untyped(): raise KeyError("x")
    def eat(): bytearray(1 << 34)
    def leave(): sys.exit(0)
    def code(): Path("canary").mkdir()
    def late(): time.sleep(60)
    def spin():
        while True: pass

    box = Path(sys.argv[1]) / "box"
    works = {
        "refused": refuse, "accepted": lambda: None, "untyped": untyped, "too much memory": eat, "exit": leave,
        "signal": lambda: os.kill(os.getpid(), signal.SIGSEGV), "aborts": os.abort, "ends": lambda: os._exit(3),
        "silent": lambda: "a weight was altered", "ran code": code, "sleeps": late, "spins": spin,
    }
    found = {name: watched(box, reads(what), 1.0) for name, what in works.items()}
    many = watch_many(box, [reads(works[name]) for name in ("refused", "accepted", "signal", "accepted")], 5.0)
    said = {name: [one.kind, one.what] for name, one in found.items()}
    print(json.dumps(said | {"many": [one.kind for one in many]}))
"""


def test_the_harness_sees_faults(tmp_path: Path) -> None:
    script = textwrap.dedent(PLANTED)
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found == {
        "refused": ["refused", "BundleError: no"],
        "accepted": ["accepted", ""],
        "untyped": ["untyped", "builtins.KeyError: 'x'"],
        "too much memory": ["untyped", "builtins.MemoryError: "],
        "exit": ["untyped", "builtins.SystemExit: 0"],
        "signal": ["signal", "SIGSEGV"],
        "aborts": ["signal", "SIGABRT"],
        "ends": ["signal", "it ended itself with 3"],
        "silent": ["silent", "a weight was altered"],
        "ran code": ["ran code", ""],
        "sleeps": ["hang", "still at it after 1 s"],
        "spins": ["hang", "still at it after 1 s"],
        "many": ["refused", "accepted", "signal"],
    }
    assert {kind for kind, _ in list(found.values())[:-1]} == set(KINDS)
    assert set(FAULTS) < set(KINDS)


@pytest.mark.parametrize("name", ["journal", "recipe"])
def test_a_case_is_the_same_each_time(name: str, tmp_path: Path) -> None:
    """A seed and a number are enough to make it again."""

    def content(path: Path) -> object:
        if path.is_symlink() or not path.is_file():
            return os.readlink(path) if path.is_symlink() else path.stat().st_mode
        return path.read_bytes() if path.stat().st_size < MOST else path.stat().st_size

    def made(place: Path, seed: str) -> str:
        FORMATS[name].make(place)
        (folder,) = place.iterdir()
        mutate(Random(seed), FORMATS[name], folder)
        return str([(path.name, content(path)) for path in sorted(folder.rglob("*"))])

    seeds = [f"{name}:{number}" for number in range(40) if number != 1]
    first = [made(tmp_path / f"a{seed}", seed) for seed in seeds]
    assert first == [made(tmp_path / f"b{seed}", seed) for seed in seeds]
    assert len(set(first)) > 20
