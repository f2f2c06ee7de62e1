"""What a long-running app's memory does. Each figure is of a process of its own: RSS is the process's."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")

PRELUDE = """
import gc, os, sys
import numpy as np
from tfm.runtime import CancelToken, load
from tfm.runtime.sessions import session as sessions
from tfm.runtime.sessions.binding import Binding
from tfm.runtime.control import Control

def rss():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

def inputs(batch, length):
    ids = np.full((batch, length), 5)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}

model = load(sys.argv[1], provider="cpu", threads=1)
session = model._sessions["model"]
"""


def figures(code, *arguments):
    done = subprocess.run([sys.executable, "-c", PRELUDE + code, *map(str, arguments)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return [float(figure) for figure in done.stdout.split()]


LARGE = """
small, large = np.ones((1, 128), np.float32), np.ones((32768, 128), np.float32)
def run(x):
    if sys.argv[2] == "bound":
        y = np.empty((len(x), *session.signature.outputs[0].shape[1:]), np.float32)
        Binding(session, {"x": x}, {"y": y}).run()
    else:
        session.run(x=x)
run(small)
before = rss()
run(large)
after_large = rss()
for _ in range(3):
    run(small)
print(before, after_large, rss())
"""


@pytest.mark.parametrize("how", ["plain", "bound"])
def test_memory_returns_after_a_large_batch(make_bundle, how):
    before, after_large, after_small = figures(LARGE, make_bundle("tower"), how)
    assert after_large > before + 16  # the large batch keeps 33 MiB
    assert after_small < before + 8  # 1 MiB above, twice


STEADY = """
token = CancelToken()
feeds = inputs(2, 8)
def some(count):
    for number in range(count):
        session.run(control=(None, Control(token), Control(timeout=60.0))[number % 3], **feeds)
some(2000)
before = rss()
some(100_000)
print(rss() - before)
"""


def test_100_000_runs_of_one_shape_do_not_grow(make_bundle):
    (growth,) = figures(STEADY, make_bundle("encoder"))
    assert growth <= 2  # MiB; 0.0 was seen


RANDOM = """
generator = np.random.default_rng(0)
def highest(count):
    most = 0
    for number in range(count):
        model.run(**inputs(int(generator.integers(1, 2001)), int(generator.integers(1, 9))))
        if number % 50 == 0:
            most = max(most, rss())
    return most
print(*(highest(1000) for _ in range(4)))
"""


def test_random_shapes_reach_a_plateau(make_bundle):
    peaks = figures(RANDOM, make_bundle("encoder"))
    assert peaks[-1] <= peaks[1] + 1  # 66.3, 66.6, 66.6 and 66.7 MiB
