"""Sessions that several models have in common."""

import gc
import os
import subprocess
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest

from tfm.errors import BundleError
from tfm.runtime.sessions import shared as shared_sessions
from tfm.runtime.sessions.providers import open_session
from tfm.runtime.sessions.shared import OpenGraph, share


@pytest.fixture(autouse=True)
def _nothing_shared(monkeypatch):
    monkeypatch.setattr(shared_sessions, "_shared", weakref.WeakValueDictionary())


@pytest.fixture
def opened(make_bundle):
    """Open the toy encoder's graph."""
    path = make_bundle("encoder") / "onnx/model.onnx"
    return lambda: OpenGraph(open_session(path, "cpu", 1))


def test_one_key_is_one_session(opened):
    first = share("a", opened)
    assert share("a", lambda: pytest.fail("opened again")) is first
    assert share("b", opened) is not first


def test_a_session_lives_as_long_as_one_refers_to_it(opened):
    first, second = share("a", opened), share("a", opened)
    del first
    gc.collect()
    assert len(shared_sessions._shared) == 1
    assert second.session.get_inputs()
    del second
    gc.collect()
    assert len(shared_sessions._shared) == 0


def test_threads_that_open_at_once_get_one_session(opened):
    calls = []

    def open_slowly():
        time.sleep(0.05)
        calls.append(True)
        return opened()

    with ThreadPoolExecutor(8) as pool:
        graphs = list(pool.map(lambda _: share("a", open_slowly), range(16)))
    assert len(calls) == 1
    assert len({id(graph) for graph in graphs}) == 1


def test_what_is_refused_is_not_kept(opened):
    """Though it was opened, and the error holds on to it."""
    kept = []

    def open_and_refuse():
        kept.append(opened())
        raise BundleError("it was altered")

    for _ in range(2):
        with pytest.raises(BundleError, match="it was altered"):
            share("a", open_and_refuse)
    assert len(shared_sessions._shared) == 0
    assert share("a", opened) not in kept


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="this system has no /proc to read memory from")
@pytest.mark.parametrize("shared", [True, False])
def test_two_sessions_hold_weights_once(tmp_path, shared):
    """64 MiB of weights: a second session that is shared takes next to nothing, one that is not takes them again."""
    weight = onnx.numpy_helper.from_array(np.ones((4096, 4096), np.float32), "w")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "large",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4096])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4096])],
        [weight],
    )
    path = tmp_path / "large.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10), path)
    code = f"""
from pathlib import Path
from tfm.runtime.sessions.providers import open_session
from tfm.runtime.sessions.shared import OpenGraph, share
import numpy as np

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1024

path, kept, sizes = Path({str(path)!r}), [], []
for number in range(2):
    graph = share({"0" if shared else "number"}, lambda: OpenGraph(open_session(path, "cpu", 1)))
    graph.session.run(None, {{"x": np.ones((1, 4096), np.float32)}})
    kept.append(graph)
    sizes.append(resident())
print(sizes[1] - sizes[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    more = float(done.stdout)
    assert more < 8 if shared else more > 48, more  # 0.0 and 68.0 were measured


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_opens_sessions_of_its_own(make_bundle):
    """Even where another thread held the lock at that moment, which no thread of the child would ever release."""
    code = f"""
import os, signal
from pathlib import Path
from tfm.runtime.sessions import shared
from tfm.runtime.sessions.providers import open_session
from tfm.runtime.sessions.shared import OpenGraph, share
opened = lambda: OpenGraph(open_session(Path({str(make_bundle("encoder") / "onnx/model.onnx")!r}), "cpu", 1))
graph = share("a", opened)
shared._sharing.acquire()
child = os.fork()
if child == 0:
    signal.alarm(20)
    os._exit(int(share("a", opened) is graph))
print(os.waitpid(child, 0)[1])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
