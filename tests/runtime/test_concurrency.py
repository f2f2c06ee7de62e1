import asyncio
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tfm.errors import ClosedError, RunCancelledError
from tfm.runtime import CancelToken, load
from tfm.runtime.control import Control
from tfm.runtime.sessions.binding import Binding

ROWS = 4096  # of the tower: the run takes some 0.2 s


@pytest.fixture
def rows():
    return np.random.default_rng(2).standard_normal((ROWS, 128)).astype(np.float32)


def encoder_inputs(generator):
    ids = generator.integers(0, 12, (generator.integers(1, 9), generator.integers(1, 9)))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def test_16_threads_of_1000_mixed_runs_give_what_one_gives(encoder, tower):
    """Two graphs, many shapes, some outputs or all, with a token, a timeout or neither."""
    generator, token = np.random.default_rng(0), CancelToken()
    session = encoder._sessions["model"]
    controls = [lambda: None, lambda: Control(token), lambda: Control(timeout=60.0), lambda: Control(token, 60.0)]
    cases = []
    for number in range(200):
        if number % 4:
            feeds, run = encoder_inputs(generator), session.run
        else:
            feeds = {"x": generator.standard_normal((generator.integers(1, 9), 128)).astype(np.float32)}
            run = tower._sessions["model"].run
        outputs = ["sentence_embedding"] if number % 4 == 1 else None
        cases.append((run, outputs, feeds, run(outputs=outputs, **feeds)))

    def mismatches(seed):
        found, places = 0, np.random.default_rng(seed).integers(0, len(cases), 1000)
        for place in places:
            run, outputs, feeds, expected = cases[place]
            actual = run(outputs=outputs, control=controls[place % len(controls)](), **feeds)
            same = actual.keys() == expected.keys() and all(np.array_equal(actual[k], expected[k]) for k in expected)
            found += not same
        return len(places), found

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(mismatches, range(16))) == [(1000, 0)] * 16


def test_100_races_of_close_and_run(make_bundle):
    bundle, ended, right = make_bundle("encoder"), 0, 0
    feeds = encoder_inputs(np.random.default_rng(0))
    expected = load(bundle, provider="cpu", threads=1)._sessions["model"].run(**feeds)["last_hidden_state"]
    generator = np.random.default_rng(1)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(100):
            model = load(bundle, provider="cpu", threads=1)

            def run_until_closed(model=model):
                runs = 0
                while True:
                    try:
                        np.testing.assert_array_equal(model.run(**feeds)["last_hidden_state"], expected)
                    except ClosedError:
                        return runs
                    runs += 1

            running = [pool.submit(run_until_closed) for _ in range(3)]
            time.sleep(generator.uniform(0, 0.003))
            model.close()
            ended += sum(1 for future in running if future.result(timeout=60) >= 0)
            right += sum(future.result() for future in running)
    assert ended == 300
    assert right > 300  # most races were won by a run


def test_a_run_that_has_begun_finishes_after_close(tower, rows):
    expected, begun = tower.run(x=rows)["y"], threading.Event()
    inner = weakref.ref(tower._sessions["model"].opened())
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: begun.set() or tower.run(x=rows)["y"])
        begun.wait()
        time.sleep(0.02)
        tower.close()
        with pytest.raises(ClosedError, match=r"model.onnx was closed; load the model again"):
            tower.run(x=rows[:1])
        assert inner() is not None  # held by the run
        np.testing.assert_array_equal(running.result(), expected)
    assert inner() is None


def test_a_model_that_is_dropped_goes_at_once(make_bundle):
    model = load(make_bundle("encoder"), provider="cpu", threads=1)
    model.embed("a")
    inner = weakref.ref(model._sessions["model"].opened())
    del model
    assert inner() is None


def test_close_twice_and_use_after(encoder):
    encoder.close()
    encoder.close()
    with pytest.raises(ClosedError, match=r"model_int8.onnx was closed; load the model again"):
        encoder.embed("a")
    with pytest.raises(ClosedError):
        Binding(encoder._sessions["model"], {}, {})
    assert encoder.tokenize(["a"]) == [[1, 4, 2]]  # what needs no graph still works


def test_context_manager(make_bundle):
    with load(make_bundle("encoder"), provider="cpu", threads=1) as model:
        assert model.embed("a").shape == (1, 4)
    with pytest.raises(ClosedError):
        model.embed("a")


def test_async_runs_do_not_hold_up_the_loop(tower, rows):
    expected, ticks = tower.run(x=rows)["y"], 0

    async def main():
        nonlocal ticks
        tasks = [asyncio.create_task(tower.run_async(x=rows)) for _ in range(3)]
        while not all(task.done() for task in tasks):
            ticks += 1
            await asyncio.sleep(0.005)
        return [(await task)["y"] for task in tasks]

    for result in asyncio.run(main()):
        np.testing.assert_array_equal(result, expected)
    assert ticks >= 5


def test_cancelling_a_task_ends_its_run_and_nothing_else(tower, rows):
    expected = tower.run(x=rows)["y"]
    token, ended = CancelToken(), threading.Event()

    def run(x, cancel):
        try:
            return tower.run(x=x, cancel=cancel)
        except RunCancelledError:
            ended.set()
            raise

    async def main():
        task = asyncio.create_task(tower._async(run, np.tile(rows, (8, 1)), cancel=token))
        other = asyncio.create_task(tower.run_async(x=rows, cancel=token))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return (await other)["y"]

    np.testing.assert_array_equal(asyncio.run(main()), expected)
    assert ended.is_set()
    assert not token.cancelled


def test_a_token_ends_async_runs(tower, rows):
    token = CancelToken()

    async def main():
        task = asyncio.create_task(tower.run_async(x=np.tile(rows, (8, 1)), cancel=token))
        await asyncio.sleep(0.05)
        token.cancel()
        with pytest.raises(RunCancelledError):
            await task

    asyncio.run(main())


FORKS = """
import os, sys, warnings
from tfm.errors import ForkError
from tfm.runtime import load
warnings.simplefilter("ignore")  # newer Pythons warn of forks in a process with threads
ids = [[4, 5]]
feeds = dict(input_ids=ids, attention_mask=[[1, 1]], token_type_ids=[[0, 0]])
before = load(sys.argv[1], provider="cpu", threads=2)
before.run(**feeds)

def child():
    for use in (lambda: before.run(**feeds), lambda: before.embed("a")):
        try:
            use()
        except ForkError as error:
            print(error, flush=True)
    after = load(sys.argv[1], provider="cpu", threads=2)
    print((after.run(**feeds)["last_hidden_state"] == expected).all(), flush=True)

expected = before.run(**feeds)["last_hidden_state"]
pid = os.fork()
if not pid:
    try:
        child()
    finally:
        os._exit(0)
print(os.waitpid(pid, 0)[1], before.run(**feeds).keys() == {"last_hidden_state", "sentence_embedding"})
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_use_after_fork(make_bundle):
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(make_bundle("encoder"))], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    *errors, child, parent = done.stdout.splitlines()
    assert len(errors) == 2
    for error in errors:
        assert error.endswith(
            "model_int8.onnx was opened before this process was forked, and its threads stayed in the parent; "
            'load the model in the child, or start the process with multiprocessing.get_context("spawn")'
        )
    assert (child, parent) == ("True", "0 True")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_timeouts_and_ctrl_c_work_in_a_forked_child(make_bundle):
    code = """
import os, signal, sys, threading, time, warnings
import numpy as np
from tfm.errors import RunTimeoutError
from tfm.runtime import control, load
warnings.simplefilter("ignore")
x = np.ones((32768, 128), np.float32)
model = load(sys.argv[1], provider="cpu", threads=1)
model.run(x=x[:9])
start = time.monotonic()
model.run(x=x, timeout=1e9)  # starts the parent's watchdog
whole = time.monotonic() - start

def child():
    model = load(sys.argv[1], provider="cpu", threads=1)
    try:
        model.run(x=x, timeout=whole / 8)
    except RunTimeoutError:
        print("timeout", flush=True)
    start = time.monotonic()
    threading.Timer(whole / 8, os.kill, [os.getpid(), signal.SIGINT]).start()
    try:
        model.run(x=x)
    except KeyboardInterrupt:
        print("interrupt", time.monotonic() - start < whole / 2, flush=True)

def fork():
    pid = os.fork()
    if not pid:
        try:
            child()
        finally:
            os._exit(0)
    print(os.waitpid(pid, 0)[1], flush=True)

fork()
forking = threading.Thread(target=fork)  # in the child this thread is the main one
forking.start()
forking.join()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(make_bundle("tower"))], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == (2 * "timeout\ninterrupt True\n0\n", "")
