import contextlib
import io
import sys

import pytest

from tfm.errors import InputError
from tfm.runtime import progress
from tfm.runtime.progress import describe, reporter


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when told."""
    now = [100.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return now


def test_a_callable_is_told_of_each_step():
    seen = []
    with reporter(lambda done, total: seen.append((done, total)), 5) as advance:
        advance(2)
        advance(3)
    assert seen == [(2, 5), (5, 5)]


def test_false_says_nothing(capsys):
    with reporter(False, 2) as advance:
        advance(2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_wrong_progress(value):
    with (
        pytest.raises(InputError, match=f"progress must be True, False or a callable .*, but is {value!r}"),
        reporter(value, 1),
    ):
        pass


def test_a_terminal_s_line_is_rewritten(monkeypatch, clock):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with reporter(True, 100) as advance:
        for count, seconds in ((10, 9.0), (10, 0.05), (80, 10.95)):
            clock[0] += seconds
            advance(count)
    # 10 took 9 s, so 90 take 81; the second step comes too soon after the first; the third erases what was longer
    first, last = "10/100 (10%), 1:21 left", "100/100 (100%), 0:20"
    assert stream.getvalue() == f"\r{first}\r{last:<{len(first)}}\n"


def test_a_file_gets_few_lines(capsys, clock):
    with reporter(True, 50) as advance:
        for _ in range(50):
            clock[0] += 0.5
            advance(1)
    shown = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in shown] == ["20/50", "40/50", "50/50"]


def test_a_line_ends_when_the_call_fails(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with contextlib.suppress(ZeroDivisionError), reporter(True, 2) as advance:
        advance(2)
        raise ZeroDivisionError
    assert stream.getvalue().endswith("\n")


def test_no_console(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with reporter(True, 2) as advance:
        advance(2)


@pytest.mark.parametrize(
    ("done", "total", "elapsed", "text"),
    [
        (0, 7, 3.0, "0/7 (0%)"),
        (1, 3, 1800.0, "1/3 (33%), 1:00:00 left"),
        (3, 3, 3725.4, "3/3 (100%), 1:02:05"),
        (199, 200, 59.7, "199/200 (99%), 0:00 left"),
        (0, 0, 0.0, "0/0 (100%), 0:00"),
    ],
)
def test_describe(done, total, elapsed, text):
    assert describe(done, total, elapsed) == text
