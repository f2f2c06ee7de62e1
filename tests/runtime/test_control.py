import json
import math
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest

from tfm.errors import InputError, RunCancelledError, RunTimeoutError
from tfm.runtime import CancelToken, control
from tfm.runtime.control import Control

ROWS = 4096  # of the tower: the run takes some 0.2 s, a node a few ms


@pytest.fixture
def rows():
    return np.random.default_rng(2).standard_normal((ROWS, 128)).astype(np.float32)


@pytest.fixture
def whole(tower, rows):
    """Seconds that the run takes when nothing ends it."""
    tower.run(x=rows[:1])
    start = time.monotonic()
    tower.run(x=rows)
    return time.monotonic() - start


def longest_node(bundle, rows, tmp_path):
    """Seconds of the longest node of three runs, as onnxruntime's profile says."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = 1, True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(bundle / "onnx/model.onnx", options, providers=["CPUExecutionProvider"])
    for _ in range(3):
        session.run(None, {"x": rows})
    with open(session.end_profiling()) as file:
        events = json.load(file)
    return max(event["dur"] for event in events if event["cat"] == "Node") / 1e6


def cancel_at_random(tower, rows, whole, count):
    """Cancel so many runs at random times; return the seconds from each cancel to the run's end."""
    expected, generator, delays = tower.run(x=rows)["y"], np.random.default_rng(3), []
    for _ in range(10 * count):
        token, cancelled_at = CancelToken(), []

        def cancel(token=token, cancelled_at=cancelled_at):
            cancelled_at.append(time.monotonic())
            token.cancel()

        timer = threading.Timer(generator.uniform(0, 0.8 * whole), cancel)
        timer.start()
        try:
            tower.run(x=rows, cancel=token)
        except RunCancelledError:
            delays.append(time.monotonic() - cancelled_at[0])
            np.testing.assert_array_equal(tower.run(x=rows)["y"], expected)
        finally:
            timer.join()
        if len(delays) == count:
            return delays
    raise AssertionError(f"only {len(delays)} of {10 * count} runs were ended by their token")


@pytest.mark.slow
def test_100_cancellations_end_within_the_longest_node(tower, rows, whole, tmp_path):
    delays = cancel_at_random(tower, rows, whole, 100)
    # 5 ms: a thread of Python may wait that long for its turn (sys.getswitchinterval)
    assert np.quantile(delays, 0.99) <= longest_node(tower.manifest.folder, rows, tmp_path) + 0.005


def test_a_cancelled_run_ends_early_and_the_next_is_bit_equal(tower, rows, whole):
    # A node is 1/64 of the run, or less; a busy machine may make that tenfold.
    assert np.median(cancel_at_random(tower, rows, whole, 5)) < whole * 10 / 64


def test_a_token_that_is_cancelled_ends_runs_before_they_start(tower, rows):
    token = CancelToken()
    assert not token.cancelled
    token.cancel()
    token.cancel()
    assert token.cancelled
    with pytest.raises(RunCancelledError, match=r"^the run was cancelled by its CancelToken; the model stays usable$"):
        tower.run(x=rows[:1], cancel=token)


def test_a_token_ends_all_its_runs_and_no_other(tower, rows, whole):
    token, other = CancelToken(), CancelToken()
    expected = tower.run(x=rows)["y"]
    with ThreadPoolExecutor(4) as pool:
        ending = [pool.submit(tower.run, x=rows, cancel=token) for _ in range(3)]
        staying = pool.submit(tower.run, x=rows, cancel=other)
        time.sleep(whole / 4)
        token.cancel()
        for run in ending:
            assert isinstance(run.exception(), RunCancelledError)
        np.testing.assert_array_equal(staying.result()["y"], expected)
    assert not token._running
    assert not other._running


def test_a_child_is_cancelled_with_its_parent_but_not_the_reverse(tower, rows, whole):
    parent = CancelToken()
    child, sibling = CancelToken(parent), CancelToken(parent)
    sibling.cancel()
    assert (parent.cancelled, child.cancelled) == (False, False)
    threading.Timer(whole / 4, parent.cancel).start()
    with pytest.raises(RunCancelledError):
        tower.run(x=rows, cancel=child)
    assert child.cancelled


def test_timeout(tower, rows, whole):
    expected = tower.run(x=rows, timeout=100 * whole)["y"]
    start = time.monotonic()
    with pytest.raises(
        RunTimeoutError, match=r"^the run took longer than its timeout of .* s; the model stays us"
    ) as e:
        tower.run(x=rows, timeout=whole / 4)
    assert whole / 4 <= time.monotonic() - start < whole * 0.75
    assert e.value.__context__ is None  # nothing of onnxruntime's text in the traceback
    assert isinstance(e.value, TimeoutError)
    np.testing.assert_array_equal(tower.run(x=rows)["y"], expected)
    assert not control.watchdog()._deadlines


def test_a_timeout_that_is_over_ends_the_run_before_it_starts(tower, rows):
    with pytest.raises(RunTimeoutError, match="timeout of 0 s"):
        tower.run(x=rows[:1], timeout=0)


def test_a_timeout_covers_all_graphs_of_one_call():
    whole_call = Control(timeout=0.05)
    whole_call.check()
    time.sleep(0.06)
    with pytest.raises(RunTimeoutError):
        whole_call.check()


def test_many_timeouts_share_one_thread(tower, rows, whole):
    def seconds_until_it_ends(timeout):
        start = time.monotonic()
        with pytest.raises(RunTimeoutError):
            tower.run(x=np.tile(rows, (8, 1)), timeout=timeout)
        return time.monotonic() - start - timeout

    # The longest first: the watchdog sleeps towards its deadline when the others come.
    timeouts = [whole, whole / 2, whole / 4, whole / 8]
    with ThreadPoolExecutor(4) as pool:
        late = list(pool.map(seconds_until_it_ends, timeouts))
        assert [thread.name for thread in threading.enumerate()].count("tfm watchdog") == 1
    # a node of eight times the rows takes 8/64 of `whole`, and four runs share the cores
    assert max(late) < 4 * whole


def test_an_endless_timeout_needs_no_watchdog(tower, rows):
    np.testing.assert_array_equal(tower.run(x=rows[:2], timeout=math.inf)["y"], tower.run(x=rows[:2])["y"])


@pytest.mark.parametrize("timeout", [-1, math.nan, "1", True, [1]])
def test_malformed_timeouts(tower, rows, timeout):
    with pytest.raises(InputError, match="timeout must be a number of seconds, at least 0, or None, but is "):
        tower.run(x=rows[:1], timeout=timeout)


def test_malformed_tokens(tower, rows):
    with pytest.raises(InputError, match="cancel must be a CancelToken or None, but is an Event"):
        tower.run(x=rows[:1], cancel=threading.Event())
    with pytest.raises(InputError, match="parent must be a CancelToken or None, but is an int"):
        CancelToken(1)


def test_other_failures_pass_unchanged():
    def fail(options):
        raise OSError("of its own")

    with pytest.raises(OSError, match="of its own"):
        control.run(fail, Control(CancelToken(), 10.0))


def test_a_run_that_a_signal_ended_for_nothing_is_made_again():
    runs = []

    def ended_once(options):
        runs.append(options)
        if len(runs) == 1:
            options.terminate = True
            raise RuntimeError("Exiting due to terminate flag being set to true.")
        return len(runs)

    assert control.run(ended_once) == 2
    assert not runs[1].terminate


def test_a_main_thread_that_is_none_runs_all_the_same(tower, rows, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("set_wakeup_fd only works in main thread of the main interpreter")

    monkeypatch.setattr(signal, "set_wakeup_fd", refuse)
    assert tower.run(x=rows[:1])["y"].shape == (1, 128)


PRELUDE = """
import os, signal, sys, threading, time
import numpy as np
from tfm.runtime import CancelToken, load
from tfm.errors import RunCancelledError
model = load(sys.argv[1], provider="cpu", threads=1)
x = np.random.default_rng(2).standard_normal((16384, 128)).astype(np.float32)  # some 0.8 s
expected = model.run(x=x)["y"]
start = time.monotonic()
model.run(x=x)
whole = time.monotonic() - start

def send(number):
    os.kill(os.getpid(), number)
def later(number):
    threading.Timer(whole / 5, send, [number]).start()
"""


def run_python(code, *arguments):
    done = subprocess.run([sys.executable, "-c", PRELUDE + code, *map(str, arguments)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send to one process alone")
class TestSignals:
    def test_ctrl_c_from_outside(self, make_bundle):
        code = """
print(whole, flush=True)
try:
    model.run(x=x)
except KeyboardInterrupt as error:
    print(time.monotonic(), repr(error.__context__))
    print(np.array_equal(model.run(x=x)["y"], expected), signal.set_wakeup_fd(-1))
"""
        command = [sys.executable, "-c", PRELUDE + code, str(make_bundle("tower"))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            whole = float(process.stdout.readline())
            time.sleep(whole / 5)
            sent = time.monotonic()  # of one clock for all processes
            process.send_signal(signal.SIGINT)
            ended, context = process.stdout.readline().split()
            assert context == "None"
            assert float(ended) - sent < whole / 4  # else it ended with the run, four fifths later
            assert process.stdout.read() == "True -1\n"
        assert process.returncode == 0

    def test_ctrl_c_under_asyncio(self, make_bundle):
        code = """
import asyncio
later(signal.SIGINT)
start = time.monotonic()
try:
    asyncio.run(model.run_async(x=x))  # returns when the executor's threads have ended
except KeyboardInterrupt:
    print(time.monotonic() - start < whole / 2)
print(np.array_equal(model.run(x=x)["y"], expected))
"""
        assert run_python(code, make_bundle("tower")) == "True\nTrue\n"

    def test_a_handler_that_returns_costs_one_run_more(self, make_bundle):
        code = """
calls = []
signal.signal(signal.SIGINT, lambda *_: calls.append(1))
later(signal.SIGINT)
print(np.array_equal(model.run(x=x)["y"], expected), calls)
"""
        assert run_python(code, make_bundle("tower")) == "True [1]\n"

    def test_a_handler_may_cancel_a_token(self, make_bundle):
        code = """
token = CancelToken()
signal.signal(signal.SIGTERM, lambda *_: token.cancel())
later(signal.SIGTERM)
start = time.monotonic()
try:
    model.run(x=x, cancel=token)
except RunCancelledError:
    print(time.monotonic() - start < whole / 2)
print(np.array_equal(model.run(x=x)["y"], expected))
"""
        assert run_python(code, make_bundle("tower")) == "True\nTrue\n"

    def test_signals_that_another_waits_for_stay_with_it(self, make_bundle):
        code = """
import socket
mine, theirs = socket.socketpair()
theirs.setblocking(False)
signal.set_wakeup_fd(theirs.fileno())
signal.signal(signal.SIGTERM, lambda *_: None)
later(signal.SIGTERM)
model.run(x=x)
print(mine.recv(9) == bytes([signal.SIGTERM]), signal.set_wakeup_fd(-1) == theirs.fileno())
"""
        assert run_python(code, make_bundle("tower")) == "True True\n"

    def test_signals_that_do_not_ask_to_stop_end_nothing(self, make_bundle):
        code = """
from tfm.runtime import control
attempts, make = [], control.RunOptions
control.RunOptions = lambda: attempts.append(make()) or attempts[-1]
signal.signal(signal.SIGUSR1, lambda *_: None)
later(signal.SIGUSR1)
model.run(x=x)
print(len(attempts))
"""
        assert run_python(code, make_bundle("tower")) == "1\n"
