"""Work over threads: in full, in any order, and ended at once."""

import asyncio
import itertools
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tfm.errors import ClosedError, InputError, RunCancelledError, RunTimeoutError
from tfm.runtime import CancelToken, load
from tfm.runtime.parallel import parallel_map


@pytest.mark.parametrize("threads", [1, 3, 50])
def test_each_job_is_done_once(threads):
    done, running, most, lock = Counter(), 0, 0, threading.Lock()

    def work(job):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.001)
        with lock:
            running -= 1
            done[job] += 1

    assert sorted(parallel_map(work, range(40), threads)) == list(range(40))
    assert done == Counter(range(40))
    assert 1 <= most <= threads
    assert most > 1 or threads == 1


def test_no_jobs():
    assert list(parallel_map(lambda job: 1 / 0, [], 3)) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_error_ends_it(threads):
    begun, stopped = [], threading.Event()

    def work(job):
        begun.append(job)
        if job == 4:
            raise KeyError(job)
        time.sleep(0.001)

    with pytest.raises(KeyError, match="4"):
        list(parallel_map(work, range(10_000), threads, stopped.set))
    assert len(begun) < 1000  # in three threads all would take more than 3 s
    assert stopped.is_set() == (threads > 1)
    assert all(thread.name != "tfm spread" for thread in threading.enumerate())


def test_running_jobs_are_told_to_stop():
    """One job fails while the others wait for ever, unless they are stopped."""
    stopped = threading.Event()

    def work(job):
        if job == 1:
            raise KeyError(job)
        assert stopped.wait(60)

    with pytest.raises(KeyError):
        list(parallel_map(work, range(3), 3, stopped.set))


def test_a_caller_who_stops_reading_ends_it():
    stopped, done = threading.Event(), []
    jobs = parallel_map(done.append, range(10_000), 2, stopped.set)
    next(jobs)
    jobs.close()
    assert stopped.is_set()
    assert all(thread.name != "tfm spread" for thread in threading.enumerate())


TEXTS = [" ".join("abcdefgh"[: 1 + n % 6]) for n in range(101)]


@pytest.fixture
def wide(make_bundle):
    return load(make_bundle("encoder"), provider="cpu", threads=4)


@pytest.mark.parametrize("batch_tokens", [None, 8, 24])
def test_threads_give_the_same_bits(wide, batch_tokens):
    expected = load(wide.manifest.folder, provider="cpu", threads=1).embed(TEXTS, batch_tokens=batch_tokens)
    np.testing.assert_array_equal(wide.embed(TEXTS, batch_tokens=batch_tokens), expected)
    assert wide._sessions["model on one thread"].threads == 1
    with ThreadPoolExecutor(4) as pool:  # calls from many threads share both graphs
        for found in pool.map(lambda _: wide.embed(TEXTS, batch_tokens=batch_tokens), range(8)):
            np.testing.assert_array_equal(found, expected)


def test_many_texts_run_side_by_side(wide, monkeypatch):
    """Each waits in its run for the others of its four: alone, one would wait in vain."""
    wide.embed(TEXTS)
    session, barrier = wide._sessions["model on one thread"], threading.Barrier(4, timeout=60)
    run = session.run
    monkeypatch.setattr(session, "run", lambda feeds, **options: (barrier.wait(), run(feeds, **options))[1])
    assert wide.embed(TEXTS[:100]).shape == (100, 4)


def test_few_texts_open_no_second_graph(wide):
    wide.embed(TEXTS[:15])
    assert list(wide._sessions) == ["model"]


def test_a_closed_model_opens_no_graph(wide):
    wide.close()
    with pytest.raises(ClosedError):
        wide.embed(TEXTS)
    assert list(wide._sessions) == ["model"]


def test_closing_closes_both(wide):
    wide.embed(TEXTS)
    wide.close()
    for texts in (TEXTS, TEXTS[:1]):
        with pytest.raises(ClosedError):
            wide.embed(texts)


def test_progress(wide):
    seen = []
    wide.embed(TEXTS, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 101) for done in range(1, 102)]


@pytest.mark.parametrize("call", ["embed", "embed_stream"])
def test_cancel_and_timeout(wide, call):
    token = CancelToken()
    run = getattr(wide, call)
    expected = list(run(TEXTS))
    token.cancel()
    with pytest.raises(RunCancelledError):
        list(run(TEXTS, cancel=token))
    with pytest.raises(RunTimeoutError, match="longer than its timeout of 0 s"):
        list(run(TEXTS, timeout=0))
    with pytest.raises(InputError, match="cancel must be a CancelToken or None, but is a str"):
        run(TEXTS, cancel="now")
    with pytest.raises(InputError, match="timeout must be a number of seconds"):
        run(TEXTS, timeout=-1)
    np.testing.assert_array_equal(list(run(TEXTS, cancel=CancelToken(), timeout=600)), expected)


def test_cancelling_on_the_way(wide, monkeypatch):
    """Runs from the twentieth on wait until the token is cancelled, and then none of them may be done."""
    wide.embed(TEXTS)
    session, count, cancelled = wide._sessions["model on one thread"], itertools.count(), threading.Event()
    token, seen, run = CancelToken(), [], session.run

    def held_up(feeds, **options):
        assert next(count) < 20 or cancelled.wait(60)
        return run(feeds, **options)

    def progress(done, total):
        seen.append(done)
        if done == 10:
            token.cancel()
            cancelled.set()

    monkeypatch.setattr(session, "run", held_up)
    with pytest.raises(RunCancelledError):
        wide.embed(TEXTS, progress=progress, cancel=token)
    assert 10 <= len(seen) <= 20
    assert wide.embed(TEXTS).shape == (101, 4)


def test_a_failing_callback_ends_it(wide):
    with pytest.raises(ZeroDivisionError):
        wide.embed(TEXTS, progress=lambda done, total: 1 / 0)
    assert all(thread.name != "tfm spread" for thread in threading.enumerate())


def endless(read):
    for number in range(10**9):
        read.append(number)
        yield TEXTS[number % len(TEXTS)]


@pytest.mark.parametrize("window", [1, 10, 64])
def test_a_stream_reads_no_further_than_its_window(wide, window):
    read = []
    stream = wide.embed_stream(endless(read), window=window)
    assert read == []
    expected = wide.embed(TEXTS)
    for number in range(150):
        np.testing.assert_array_equal(next(stream), expected[number % len(TEXTS)])
        assert len(read) == window * (number // window + 1)


def test_the_graph_on_one_thread_is_shared(wide, monkeypatch):
    """With other models of the bundle: the second opens none of its own."""
    wide.embed(TEXTS)
    first = wide._sessions["model on one thread"]
    other = load(wide.manifest.folder, provider="cpu", precision=wide.precision, threads=4)
    other.embed(TEXTS)
    assert other._sessions["model on one thread"].opened() is first.opened()


def test_streams_of_any_iterable(encoder):
    expected = encoder.embed(TEXTS[:5])
    for inputs in (
        TEXTS[:5],
        tuple(TEXTS[:5]),
        iter(TEXTS[:5]),
        dict.fromkeys(TEXTS[:5]).keys(),
        encoder.tokenize(TEXTS[:5]),
    ):
        np.testing.assert_array_equal(list(encoder.embed_stream(inputs, window=2)), expected)
    assert len(list(encoder.embed_stream("a b"))) == 1
    assert list(encoder.embed_stream([])) == []
    with pytest.raises(InputError, match="inputs must be texts or rows of token ids, but are None"):
        encoder.embed_stream(None)


def test_a_stream_says_where_it_is_wrong(encoder):
    stream = encoder.embed_stream([[1, 4]] * 5 + [[1, 99]], window=2)
    for _ in range(4):
        next(stream)
    with pytest.raises(
        InputError, match=r"from the stream's input 4 on, inputs\[1\]\[1\] is 99; ids must be in \[0, 12\)"
    ):
        next(stream)


def test_a_stream_takes_no_more_memory_the_longer_it_is(encoder):
    stream = encoder.embed_stream((TEXTS[number % 101] + " " * (number % 7) for number in range(10**9)), window=50)
    for _ in range(500):
        next(stream)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(6000):
            next(stream)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 100_000  # 5,292 were measured, and 825,897 where the results are kept


def test_async(wide, monkeypatch):
    """A task that is cancelled while the twentieth run waits leaves nothing running."""
    expected = wide.embed(TEXTS)
    session, count, waiting, ended = (
        wide._sessions["model on one thread"],
        itertools.count(),
        threading.Event(),
        threading.Event(),
    )
    run = session.run

    def held_up(feeds, **options):
        if next(count) >= 101 + 20:
            waiting.set()
            assert ended.wait(60)
        return run(feeds, **options)

    async def main():
        found = await wide.embed_async(TEXTS, timeout=600)
        task = asyncio.create_task(wide.embed_async(TEXTS))
        while not waiting.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ended.set()
        return found

    monkeypatch.setattr(session, "run", held_up)
    np.testing.assert_array_equal(asyncio.run(main()), expected)
    assert next(count) <= 101 + 20 + 4
    np.testing.assert_array_equal(wide.embed(TEXTS), expected)


INTERRUPTED = """
import itertools, sys
import numpy as np
from tfm.runtime import load
model = load(sys.argv[1], provider="cpu", threads=2)
expected = model.embed("a b")
print("ready", flush=True)
try:
    for _ in model.embed_stream(itertools.cycle(["a b", "c d e f"]), window=20_000):
        pass
except KeyboardInterrupt:
    print(np.array_equal(model.embed("a b"), expected))
"""


def test_ctrl_c(make_bundle):
    """A window takes seconds, and is given up at once."""
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(make_bundle("encoder"))], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0] == "True\n"
    assert process.returncode == 0
