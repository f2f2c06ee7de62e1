"""Processes of ours: what they can import, what is told of them when they break down or hang, and how they end."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tfm.errors import VerificationError
from tfm.latency.processes import Child, describe_exit, environment, python_command

ANSWER = "import sys; from tfm.latency.processes import Answers; answer = Answers(sys.argv[1])\n"
PATHS = ANSWER + "answer(sys.path)\n"
PLANTED = ("dataclasses", "tokenizers", "random", "json", "numpy", "threading", "signal", "runpy", "onnxruntime")


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which modules of Python's and of ours lie, all of which tell that they were imported."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in PLANTED:
        (folder / f"{name}.py").write_text(f"print('planted {name}')\nraise SystemExit(3)\n")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def start() -> Iterator[Callable[..., Child]]:
    made: list[Child] = []

    def make(program: str, *arguments: str, **options: Any) -> Child:
        made.append(Child("the engine x", program, arguments, **options))
        return made[-1]

    yield make
    for child in made:
        child.close()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")  # one that has ended and that nobody waits for is not alive
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


def ends(pid: int, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not is_alive(pid)


# ------------------------------------------------ what they import


@pytest.mark.parametrize("as_entry", [["", "."], []], ids=["a parent with the folder on its path", "one without"])
@pytest.mark.parametrize("python_path", [None, ":/nowhere", "/nowhere::/nothing", ""])
def test_the_working_directory_is_not_on_the_path(
    planted: Path,
    start: Callable[..., Child],
    monkeypatch: pytest.MonkeyPatch,
    as_entry: list[str],
    python_path: str | None,
) -> None:
    """However the parent has it: by `python -c` or `-m`, as the script's folder, or by an empty PYTHONPATH entry."""
    monkeypatch.setattr(sys, "path", [*as_entry, *([str(planted)] if as_entry else []), *sys.path])
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    if python_path is not None:
        monkeypatch.setenv("PYTHONPATH", python_path.replace(":", os.pathsep))
    child = start(PATHS)
    found = child.answer(60.0)
    assert [place for place in found if not place or os.path.realpath(place) == os.path.realpath(planted)] == []
    assert child.printed() == "it said nothing"
    done = subprocess.run(
        python_command("import sys, json, random; print(json.dumps(sys.path))"),
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout) == found


def test_what_the_user_put_on_the_path_stays(
    planted: Path, tmp_path: Path, start: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PYTHONPATH keeps its place; what the parent put in front of the standard library comes after it."""
    for name, where in (("by_environment", "a"), ("by_parent", "b")):
        (tmp_path / where).mkdir()
        (tmp_path / where / f"{name}.py").write_text("")
    (tmp_path / "b" / "random.py").write_text("1 / 0")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "a"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "b"), *sys.path])
    child = start(ANSWER + "import by_environment, by_parent; answer(sys.path)\n")
    found = child.answer(60.0)
    library = next(place for place in found if place and (Path(place) / "dataclasses.py").is_file())
    assert found.index(str(tmp_path / "a")) < found.index(library) < found.index(str(tmp_path / "b"))


def test_our_own_package_in_the_working_directory_is_found_last(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where `pip install --target .` put it."""
    monkeypatch.setattr(sys.modules["tfm"], "__file__", str(planted / "tfm" / "__init__.py"))
    monkeypatch.setattr(sys, "path", ["", str(planted), *sys.path])
    done = subprocess.run(python_command("print(sys.path)"), env=environment(), capture_output=True, text=True)
    found = done.stdout.strip()
    assert str(planted) in found
    assert found.index("lib-dynload") < found.index(str(planted))


def test_options_that_restrict_imports_are_handed_on() -> None:
    program = "from tfm.latency.processes import python_command; print(python_command('')[1:-2])"
    for given, expected in (("-I", ["-I", "-E", "-s"]), ("-s", ["-s"]), ("-E", ["-E"])):
        done = subprocess.run([sys.executable, given, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(expected)


@pytest.mark.parametrize("change", [("frozen", True), ("executable", "")])
def test_an_app_without_a_python(monkeypatch: pytest.MonkeyPatch, change: tuple[str, Any]) -> None:
    """Starting a frozen app's own program would start the app again."""
    monkeypatch.setattr(sys, *change, raising=False)
    with pytest.raises(VerificationError, match="there is no Python to start them with"):
        Child("the engine x", "")


# ------------------------------------------------ what is told


def test_both_streams_are_told(start: Callable[..., Child]) -> None:
    child = start("print('on stdout')\nimport os, sys\nprint('on stderr', file=sys.stderr)\nos._exit(7)\n")
    with pytest.raises(VerificationError) as caught:
        child.answer(60.0)
    assert str(caught.value) == (
        "the engine x broke down while it was timed: on stdout\non stderr (exit code 7)"
    )  # fmt: skip


def test_what_a_library_prints_is_no_answer(start: Callable[..., Child]) -> None:
    """Neither by Python nor by the system, before it imports anything of ours or after."""
    noise = "import os; os.write(1, b'true\\n'); print('[]', end='')\n"
    child = start(noise + ANSWER + noise + "answer({'a': 1}); print(5); answer('b')\n")
    assert [child.answer(60.0), child.answer(60.0)] == [{"a": 1}, "b"]
    with pytest.raises(VerificationError, match=r"broke down while it was timed: (.|\n)*5 \(exit code 0\)$"):
        child.answer(60.0)


def test_only_the_end_of_much_is_told(start: Callable[..., Child]) -> None:
    child = start("for index in range(99999): print('line', index)\n")
    with pytest.raises(VerificationError, match="line 99998") as caught:
        child.answer(60.0)
    assert len(str(caught.value)) < 800
    assert ": … line 99" in str(caught.value)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to kill by")
def test_one_that_is_killed(start: Callable[..., Child]) -> None:
    child = start("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(VerificationError) as caught:
        child.answer(60.0)
    assert str(caught.value).endswith(
        "it said nothing (killed by signal 9 (SIGKILL), as a system does where memory runs out)"
    )


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exit code 0"),
        (3, "exit code 3"),
        (0xC0000005, "exit code 0xc0000005"),
        (-11, "killed by signal 11 (SIGSEGV)"),
        (-63, "killed by signal 63"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="Windows does not name these signals")
def test_endings(code: int, words: str) -> None:
    assert describe_exit(code) == words


def test_one_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    with pytest.raises(VerificationError, match="the engine x cannot be started: No such file or directory"):
        Child("the engine x", "", log=tmp_path / "log")


def test_a_log_keeps_all(start: Callable[..., Child], tmp_path: Path) -> None:
    child = start("for index in range(9999): print(index)\n", log=tmp_path / "log")
    assert child.next_answer(60.0) is None
    child.close()
    assert (tmp_path / "log").read_text().split() == [str(index) for index in range(9999)]


# ------------------------------------------------ how they end


@pytest.mark.parametrize("program", ["while True: pass\n", "import time; time.sleep(600)\n"], ids=["busy", "asleep"])
def test_one_that_hangs(start: Callable[..., Child], program: str) -> None:
    child = start("print('on its way', flush=True)\n" + program)
    with pytest.raises(
        VerificationError, match="the engine x hangs: no answer came in 2 s while it was started; on its"
    ):
        child.answer(2.0, "while it was started")
    child.close()
    assert ends(child.process.pid)


def test_waiting_takes_no_time_of_the_processor(start: Callable[..., Child]) -> None:
    """Neither here nor there."""
    child = start(ANSWER + "import time; time.sleep(1.5); answer(time.process_time()); sys.stdin.readline()\n")
    before = time.process_time()
    spent = child.answer(60.0)
    assert time.process_time() - before < 0.3
    assert spent < 1.4  # imports included
    assert math.isfinite(spent)


PARENT = """
import os, sys, time
from tfm.latency.processes import Child
child = Child("x", {program!r})
print(child.process.pid, flush=True)
time.sleep(600)
"""
BUSY = "answer(True)\nwhile True: pass\n"
IDLE = "answer(True)\nsys.stdin.readline()\n"
STARTING = "while True: pass\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals")
@pytest.mark.parametrize("program", [ANSWER + BUSY, ANSWER + IDLE, STARTING], ids=["busy", "idle", "starting"])
def test_they_end_with_their_parent(program: str) -> None:
    """Which is killed, and tells them nothing."""
    code = PARENT.format(program=program)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.5)
        assert is_alive(pid)
        parent.kill()
    assert ends(pid)


@pytest.mark.skipif(os.name == "nt", reason="Windows has another Ctrl-C")
def test_ctrl_c_ends_what_waits_for_them(tmp_path: Path) -> None:
    """A terminal sends it to all of them; the parent alone acts, and its children end with it."""
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from tfm.latency.rounds import Job, take_turns\n"
        "take_turns({'x': Job(worker='hangs', options={})}, [], rounds=1)\n"
    )
    (tmp_path / "hangs.py").write_text(
        f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(f'{{os.getpid()}}\\n')\ntime.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        end = time.monotonic() + 60
        while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n")):
            assert time.monotonic() < end
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    assert "VerificationError" not in err
    assert ends(int((tmp_path / "pid").read_text()))
