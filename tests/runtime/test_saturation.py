"""Processors whose 8-bit products saturate: how they are found out, and what follows."""

import platform
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tfm.runtime import load
from tfm.runtime.doctor import saturation
from tfm.runtime.sessions import options as session_options

EXACT, SATURATED = 4 * 255 * 127, 2 * 32767


@pytest.fixture
def fresh() -> Iterator[None]:
    """Let the processor be looked at anew."""
    saturation.saturates.cache_clear()
    yield
    saturation.saturates.cache_clear()


# ------------------------------------------------ the probe


def test_the_probe_is_what_onnx_makes() -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["rows", 4])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["rows", 16])],
        [helper.make_tensor("w", TensorProto.INT8, [4, 16], np.full((4, 16), 127, np.int8).tobytes(), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    assert model.SerializeToString() == saturation._PROBE


def kernel_without_vnni() -> bool:
    """Whether onnxruntime's kernels of this processor, by its flags, are those for AVX2 or AVX-512 without VNNI."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    assert found
    flags = set(found[1].split())
    vnni = "avx512_vnni" if {"avx512bw", "avx512dq", "avx512vl"} <= flags else "avx_vnni"
    return {"avx2", "fma"} <= flags and vnni not in flags


@pytest.mark.usefixtures("fresh")
def test_it_says_what_the_flags_of_this_processor_say() -> None:
    assert saturation.saturates() is kernel_without_vnni()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("one_row", "many_rows", "answer"),
    [(EXACT, EXACT, False), (SATURATED, SATURATED, True), (EXACT, SATURATED, True), (SATURATED, EXACT, True)],
)
def test_any_wrong_product_tells(monkeypatch: pytest.MonkeyPatch, one_row: int, many_rows: int, answer: bool) -> None:
    opened = []

    def session(model: bytes, options: Any, providers: list[str]) -> Any:
        opened.append(providers)
        return SimpleNamespace(run=multiply)

    def multiply(names: None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        (x,) = feeds.values()
        assert x.dtype == np.uint8
        assert (x == 255).all()
        product = np.full((len(x), 16), EXACT, np.int32)
        product[-1, -1] = one_row if len(x) == 1 else many_rows
        return [product]

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    assert [saturation.saturates() for _ in range(3)] == [answer] * 3
    assert opened == [["CPUExecutionProvider"]]  # once, and never on CUDA


@pytest.mark.usefixtures("fresh")
def test_many_threads_may_ask() -> None:
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: saturation.saturates(), range(32))) == {kernel_without_vnni()}


# ------------------------------------------------ what follows


@pytest.mark.parametrize("answer", [False, True])
def test_exact_kernels_are_asked_for_where_they_are_needed(
    make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, answer: bool
) -> None:
    monkeypatch.setattr(session_options, "saturates", lambda: answer)
    asked: list[tuple[str, str]] = []
    real = onnxruntime.SessionOptions.add_session_config_entry

    def add(options: onnxruntime.SessionOptions, key: str, value: str) -> None:
        asked.append((key, value))
        real(options, key, value)

    monkeypatch.setattr(onnxruntime.SessionOptions, "add_session_config_entry", add)
    load(make_bundle("encoder"), provider="cpu")
    assert (("session.x64quantprecision", "1") in asked) is answer
