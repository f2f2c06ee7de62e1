"""Measures for `ceiling.py`, in a process pinned to so many cores; `peers/serving.py` says how it is asked.

- "product KIND M K N SECONDS": one of `PRODUCTS`, (M, K) by (K, N): "seconds" of the fastest run;
- "read KIND BYTES SECONDS": one of `READS` of so many bytes: the same;
- "encoder FOLDER PRECISION B S" and "decoder FOLDER PRECISION C": one run of a bundle on B rows of S tokens, or on one
  token after C: median "seconds"; on one thread also "ops", by onnxruntime's profile: for each kind of operator
  {"seconds", "macs", "bytes", "largest"}, the median over the runs of the sum over its nodes, the largest one's bytes.

Shapes: B batch, S sequence, C context.
"""

import gc
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from peers.serving import fastest, serve

from tfm.runtime import load
from tfm.runtime.generation.state import DecoderState
from tfm.runtime.sessions import providers

RUNS = 15
THREADS = len(os.sched_getaffinity(0))


def _session(op: str, inputs: dict[str, Any], constants: dict[str, Any], output: int, **attributes: Any) -> Any:
    """A graph of one node, whose weights are constant, as they are in a model."""
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.uint8): TensorProto.UINT8}
    domain = attributes.pop("domain", "")
    graph = helper.make_graph(
        [helper.make_node(op, [*inputs, *constants], ["y"], domain=domain, **attributes)],
        op,
        [helper.make_tensor_value_info(name, kinds[a.dtype], a.shape) for name, a in inputs.items()],
        [helper.make_tensor_value_info("y", output, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _onnx(op: str, inputs: dict[str, Any], constants: dict[str, Any], output: int, **attributes: Any) -> Callable:
    session = _session(op, inputs, constants, output, **attributes)
    return lambda: session.run(None, inputs)


def matmul_integer(m: int, k: int, n: int, rng: np.random.Generator) -> Callable[[], object]:
    """u8 by s8, to s32."""
    a, b = rng.integers(0, 256, (m, k)).astype(np.uint8), rng.integers(-127, 128, (k, n)).astype(np.int8)
    return _onnx("MatMulInteger", {"a": a}, {"b": b}, TensorProto.INT32)


def dynamic_quantize_matmul(m: int, k: int, n: int, rng: np.random.Generator) -> Callable[[], object]:
    """Float32, quantized on the way, by s8, to float32."""
    a, b = rng.standard_normal((m, k), np.float32), rng.integers(-127, 128, (k, n)).astype(np.int8)
    constants = {"b": b, "scale": np.full(n, 0.01, np.float32)}
    return _onnx("DynamicQuantizeMatMul", {"a": a}, constants, TensorProto.FLOAT, domain="com.microsoft")


def int_mm(m: int, k: int, n: int, rng: np.random.Generator) -> Callable[[], object]:
    """s8 by s8, to s32."""
    a, b = (torch.from_numpy(rng.integers(-127, 128, shape).astype(np.int8)) for shape in ((m, k), (k, n)))
    return lambda: torch._int_mm(a, b)


def matmul(m: int, k: int, n: int, rng: np.random.Generator) -> Callable[[], object]:
    """Float32 by onnxruntime."""
    a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
    return _onnx("MatMul", {"a": a}, {"b": b}, TensorProto.FLOAT)


def mm(m: int, k: int, n: int, rng: np.random.Generator) -> Callable[[], object]:
    """Float32 by PyTorch."""
    a, b = (torch.from_numpy(rng.standard_normal(shape, np.float32)) for shape in ((m, k), (k, n)))
    return lambda: torch.mm(a, b)


PRODUCTS = {
    "MatMulInteger": matmul_integer,
    "DynamicQuantizeMatMul": dynamic_quantize_matmul,
    "torch._int_mm": int_mm,
    "MatMul": matmul,
    "torch.mm": mm,
}


def _numpy(reduce: Callable[[Any], object]) -> Callable[[Any], Callable[[], object]]:
    pool = ThreadPoolExecutor(THREADS)

    def read(array: Any) -> Callable[[], object]:
        parts = np.array_split(array, THREADS)
        return (lambda: list(pool.map(reduce, parts))) if len(parts) > 1 else lambda: reduce(array)

    return read


def _torch(array: Any) -> Callable[[], object]:
    tensor = torch.from_numpy(array)
    return lambda: tensor.sum()


def _reduce_max(array: Any) -> Callable[[], object]:
    return _onnx("ReduceMax", {"a": array}, {}, TensorProto.FLOAT, keepdims=0)


READS = {
    "numpy max": _numpy(np.max),
    "numpy dot": _numpy(lambda part: np.dot(part, part)),
    "torch sum": _torch,
    "ReduceMax": _reduce_max,
}


class Profile:
    """onnxruntime's profile of the runs between its beginning and `ops`."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self._plain = providers.session_options

    def __enter__(self) -> "Profile":
        def options(provider: str, threads: int, *tuning: Any) -> Any:
            made = self._plain(provider, threads, *tuning)
            made.enable_profiling = True
            made.profile_file_prefix = f"{self.folder.name}/profile"
            return made

        providers.session_options = options
        return self

    def __exit__(self, *_: object) -> None:
        providers.session_options = self._plain
        self.folder.cleanup()

    def ops(self, session: Any, runs: int) -> dict[str, dict[str, float]]:
        """Operator → figures of the last so many runs, each the median over them."""
        events = json.loads(Path(session.end_profiling()).read_text())
        windows = [(event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == "model_run"]
        found: dict[str, list[dict[str, float]]] = defaultdict(list)
        for begin, end in windows[-runs:]:
            of: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
            for event in events:
                if event["name"].endswith("_kernel_time") and begin <= event["ts"] < end:
                    add(of[event["args"]["op_name"]], event)
            for op, figures in of.items():
                found[op].append(figures)
        return {
            op: {name: statistics.median(figures[name] for figures in turns) for name in turns[0]}
            for op, turns in found.items()
        }


def add(figures: dict[str, float], event: dict[str, Any]) -> None:
    """Add a node's time, multiply-adds, and bytes read and written beside its weights, to those of its kind."""
    given = event["args"]
    size = int(given["activation_size"]) + int(given["output_size"])
    figures["seconds"] += event["dur"] / 1e6
    figures["macs"] += multiply_adds(
        given["op_name"], *(shapes(given[f"{of}_type_shape"]) for of in ("input", "output"))
    )
    figures["bytes"] += size
    figures["largest"] = max(figures["largest"], size)


def shapes(listed: list[dict[str, list[int]]]) -> list[list[int]]:
    """Only the shapes of what a profile says of inputs or outputs."""
    return [shape for of in listed for shape in of.values()]


def multiply_adds(op: str, inputs: list[list[int]], outputs: list[list[int]]) -> int:
    """Of a product or an attention by its shapes; 0 of any other.

    A profile leaves out weights that were repacked, so those of a product follow from what it gives.
    """
    if op == "Attention":  # (B, S, N·H), or (B, N, S, H); each query by all keys, then each weight by all values
        queries, keys = inputs[0], inputs[1]
        return 2 * int(np.prod(queries)) * keys[-2]
    if op == "GroupQueryAttention":  # over a cache, which may have room: of its tokens the bias tells, (…, S, T)
        return 2 * int(np.prod(inputs[0])) * inputs[-1][-1]
    if "MatMul" in op or "Gemm" in op:
        return int(np.prod(outputs[0])) * inputs[0][-1]
    return 0


def encoder(folder: str, precision: str, batch: int, length: int) -> Iterator[Any]:
    """A session, then nothing after each run."""
    model: Any = load(folder, provider="cpu", precision=precision, threads=THREADS)
    yield model._sessions["model"].opened()
    ids_BS = np.random.default_rng(0).integers(1000, 20_000, (batch, length))
    feeds = {"input_ids": ids_BS, "attention_mask": np.ones_like(ids_BS), "token_type_ids": np.zeros_like(ids_BS)}
    while True:
        yield model.run(feeds, outputs="sentence_embedding")


def decoder(folder: str, precision: str, context: int) -> Iterator[Any]:
    """The same; each run reads a token at the same place."""
    model: Any = load(folder, provider="cpu", precision=precision, threads=THREADS)
    yield model._decoder.opened()
    state = DecoderState(model._decoder, 1)
    state.read([np.random.default_rng(0).integers(100, 20_000, context).tolist()])
    while True:
        yield state.step(np.array([100]))
        state.rewind(context)


def timed(made: Iterator[Any]) -> tuple[Any, float]:
    """The session, and the median seconds of `RUNS` runs after a few."""
    session = next(made)
    for _ in range(3):
        next(made)
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        next(made)
        seconds.append(time.perf_counter() - start)
    return session, statistics.median(seconds)


def answer(line: str) -> dict[str, Any]:
    """Measure what the line asks for."""
    what, kind, *rest = line.split()
    rng = np.random.default_rng(0)
    if what == "product":
        m, k, n = map(int, rest[:3])
        return {"seconds": fastest(PRODUCTS[kind](m, k, n, rng), float(rest[3]))}
    if what == "read":
        array = rng.standard_normal(int(rest[0]) // 4, np.float32)
        return {"seconds": fastest(READS[kind.replace("_", " ")](array), float(rest[1]))}
    make = {"encoder": encoder, "decoder": decoder}[what]
    precision, *sizes = rest
    seconds = timed(make(kind, precision, *map(int, sizes)))[1]
    gc.collect()  # a model that is still open would share its session, which has no profile
    if THREADS > 1:
        return {"seconds": seconds}
    with Profile() as profile:
        session, _ = timed(make(kind, precision, *map(int, sizes)))
        return {"seconds": seconds, "ops": profile.ops(session, RUNS)}


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    serve(answer)
