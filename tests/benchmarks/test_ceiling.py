"""What operators cost, by hand."""

from pathlib import Path

import ceiling
import numpy as np
import onnx
import pytest
from ceiling import draw_ops, weight_bytes
from ceiling_worker import Profile, multiply_adds
from onnx import TensorProto, helper, numpy_helper

from tfm.runtime.sessions.providers import open_session

pytestmark = pytest.mark.timed

PEAKS = {name: (rate, "") for name, rate in (("int8", 400.0), ("float32", 100.0), ("L2", 80.0), ("L3", 40.0))}
PEAKS["memory"] = (10.0, "")


@pytest.fixture(autouse=True)
def _caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes of one known machine: what is read from where must not depend on the one that the tests run on."""
    monkeypatch.setattr(ceiling, "cache_sizes", lambda: {"L2": 1 << 20, "L3": 32 << 20})


@pytest.mark.parametrize(
    ("op", "inputs", "output", "expected"),
    [
        ("MatMul", [[2, 5, 3], [3, 7]], [2, 5, 7], 2 * 5 * 3 * 7),
        ("DynamicQuantizeMatMul", [[5, 3], [7]], [5, 7], 5 * 3 * 7),  # its weights were repacked
        ("Attention", [[2, 5, 12], [2, 9, 12], [2, 9, 12]], [2, 5, 12], 2 * 2 * 5 * 9 * 12),
        ("Attention", [[2, 4, 5, 3], [2, 2, 9, 3], [2, 2, 9, 3]], [2, 4, 5, 3], 2 * 2 * 4 * 5 * 9 * 3),
        (
            "GroupQueryAttention",
            [[2, 1, 12], [2, 1, 6], [2, 1, 6], [2, 2, 16, 3], [2, 2, 16, 3], [2], [], [2, 1, 1, 9]],
            [2, 1, 12],
            2 * 2 * 12 * 9,
        ),
        ("Add", [[5, 3], [5, 3]], [5, 3], 0),
    ],
)
def test_multiply_adds(op: str, inputs: list[list[int]], output: list[int], expected: int) -> None:
    assert multiply_adds(op, inputs, [output]) == expected


def test_constants_that_are_read_whole_count_once(tmp_path: Path) -> None:
    constants = {
        "table": np.ones((100, 4), np.int8),
        "weights": np.ones((4, 8), np.float32),
        "packed": np.ones((16,), np.float16),
        "shape": np.array([4, 4]),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Cast", ["rows"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["packed"], ["flat"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["flat", "shape"], ["square"]),
        helper.make_node("MatMul", ["x", "square"], ["y"]),
        helper.make_node("MatMul", ["y", "weights"], ["z"]),
        helper.make_node("MatMul", ["x", "weights"], ["w"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 8]) for name in "zw"],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph), tmp_path / "g.onnx")
    assert weight_bytes(tmp_path / "g.onnx") == {"MatMul": 4 * 8 * 4 + 16 * 2}


def test_operators_are_held_against_their_own_ceiling() -> None:
    ops = {
        "DynamicQuantizeMatMul": {"seconds": 0.005, "macs": 1e9, "bytes": 10.0, "largest": 10.0},
        "Attention": {"seconds": 0.004, "macs": 1e8, "bytes": 10.0, "largest": 10.0},
        "Gelu": {"seconds": 0.0009, "macs": 0.0, "bytes": 36e6, "largest": 1000.0},
        "Reshape": {"seconds": 0.0005, "macs": 0.0, "bytes": 36e6, "largest": 1000.0},
        "Shape": {"seconds": 0.00005, "macs": 0.0, "bytes": 8.0, "largest": 8.0},
    }
    lines = draw_ops({"ops": ops, "seconds": 0.011}, {"DynamicQuantizeMatMul": 10}, 128, PEAKS, "t").splitlines()
    assert lines[2:] == [
        "| DynamicQuantizeMatMul | 5.000 | 47.8% | 200.0 GMAC/s | 50% of int8 |",
        "| Attention | 4.000 | 38.3% | 25.0 GMAC/s | 25% of float32 |",
        "| Gelu | 0.900 | 8.6% | 40.0 GB/s | 50% of L2 |",
        "| Reshape | 0.500 | 4.8% | in place |  |",
        "| others | 0.050 | 0.5% |  |  |",
        "| all operators | 10.450 | run without profile: 11 ms |  |  |",
    ]


def test_a_product_of_one_row_is_held_against_what_its_weights_are_read_from() -> None:
    ops = {"MatMulNBits": {"seconds": 0.02, "macs": 1e8, "bytes": 0.0, "largest": 1000.0}}
    lines = draw_ops({"ops": ops, "seconds": 0.02}, {"MatMulNBits": 10**8}, 1, PEAKS, "t").splitlines()
    assert lines[2] == "| MatMulNBits | 20.000 | 100.0% | 5.0 GB/s | 50% of memory |"


def test_a_profile_is_of_sessions_opened_as_ever(tmp_path: Path) -> None:
    """Whatever else `open_session` hands on to the options that it asks for."""
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    with Profile() as profile:
        session = open_session(content, "cpu", 1)
        for _ in range(3):
            session.run(None, {"x": np.ones(2, np.float32)})
        assert "Neg" in profile.ops(session, 3)
