"""Formulas, forms, kernels, times and the table of them."""

import json
import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from tfm.errors import ConfigError, InputError
from tfm.latency.rounds import Turns
from tfm.ops import ACTIVATIONS, GATED, derivative_of, gate_of
from tfm.study.activations import kernels, speed, table, tabulate
from tfm.study.activations.kernels import export_activation, find_kernels


def logistic(x: Any) -> Any:
    return 1 / (1 + mpmath.exp(-x))


EXACT: dict[str, Callable[[Any], Any]] = {
    "elu": lambda x: x if x > 0 else mpmath.expm1(x),
    "gelu": lambda x: x * mpmath.ncdf(x),
    "gelu_tanh": lambda x: x / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3))),
    "hardswish": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "mish": lambda x: x * mpmath.tanh(mpmath.log1p(mpmath.exp(x))),
    "quick_gelu": lambda x: x * logistic(mpmath.mpf("1.702") * x),
    "relu": lambda x: max(x, mpmath.mpf(0)),
    "sigmoid": logistic,
    "silu": lambda x: x * logistic(x),
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
    "squared_relu": lambda x: max(x, mpmath.mpf(0)) ** 2,
    "tanh": mpmath.tanh,
}


def test_every_activation_has_a_formula() -> None:
    assert all(entry.formula and entry.source for entry in [*ACTIVATIONS.values(), *GATED.values()])


@pytest.mark.parametrize("name", [*ACTIVATIONS, *GATED])
def test_the_derivative_is_that_of_the_formula(name: str) -> None:
    """Here float64 is at most 9e-16 off; gelu's two forms, the likeliest to be mistaken, differ by 4.5e-4."""
    x = [-7.0, -3.25, -2.7, -1.0, -0.1, 0.3, 1.0, 2.9, 3.5, 8.0]
    with mpmath.workdps(40):
        expected = [float(mpmath.diff(EXACT[gate_of(name)], mpmath.mpf(one))) for one in x]
    np.testing.assert_allclose(derivative_of(name)(np.array(x)), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "exported", "ran"),
    [
        ("relu", ("Relu",), ("Relu",)),
        ("silu", ("com.microsoft.QuickGelu",), ("QuickGelu",)),
        ("mish", ("Exp", "Add", "Mul", "Div", "Add", "Div"), ("Exp", "Add", "Mul", "Div", "Add", "Div")),
        ("geglu", ("Split", "Gelu", "Mul"), ("Split", "Gelu", "Mul")),
    ],
)
def test_what_is_timed_is_the_activation_and_nothing_else(
    name: str, exported: tuple[str, ...], ran: tuple[str, ...]
) -> None:
    model = export_activation(name, 5)
    found_kernels = find_kernels(model)
    assert found_kernels.exported == exported
    assert found_kernels.ran == tuple((op, "CPUExecutionProvider") for op in ran)
    assert tuple(op.rpartition(".")[2] for op in found_kernels.optimized) == ran
    x = np.random.default_rng(0).standard_normal((3, 10 if name in GATED else 5)).astype(np.float32) * 3
    content = ir.to_proto(model).SerializeToString()
    (found,) = ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    gate = x[:, 5:] if name in GATED else x
    expected = np.vectorize(lambda one: float(EXACT[gate_of(name)](mpmath.mpf(float(one)))))(gate)
    expected = expected * x[:, :5] if name in GATED else expected
    assert found.shape == (3, 5)
    np.testing.assert_allclose(found, expected, atol=3e-6)  # 7e-7 was seen


def test_kernels_are_those_of_the_options_that_an_app_opens_graphs_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those above are optimized alike at every level, so that their graphs do not show it."""
    asked: list[str] = []
    real = kernels.optimize
    monkeypatch.setattr(kernels, "optimize", lambda file, level, *rest: asked.append(level) or real(file, level, *rest))
    find_kernels(export_activation("relu", 2))
    assert asked == ["runtime"]


def test_a_table_of_one_is_made_without_timing() -> None:
    made = tabulate(["gelu"], timing=False)
    (row,) = made.rows
    assert made.passed
    assert (made.rounds, made.call, row.speed) == (0, None, ())
    assert {sweep.level for sweep in row.errors.values()} == {"runtime"}
    where = np.float32(row.errors["float32"].where.removeprefix("x = "))
    content = ir.to_proto(export_activation("gelu", 16)).SerializeToString()
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.full((1, 16), where, np.float32)})
    off = abs(float(y[0, 0]) - float(EXACT["gelu"](mpmath.mpf(float(where)))))
    assert row.errors["float32"].max_abs == pytest.approx(off, rel=1e-3)
    assert off > 1e-7
    slope = [float(mpmath.diff(EXACT["gelu"], x)) for x in row.curve.x[::40]]
    np.testing.assert_allclose(row.curve.derivative[::40], slope, atol=1e-12)
    values = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    (entry,) = values["activations"]
    assert (entry["activation"], entry["speed"], entry["fault"]) == ("gelu", [], "")
    for scale in ("per_tensor", "per_token"):
        found = entry["sqnr"][scale]
        assert found["low"] <= found["db"] <= found["high"]
        assert found["verdict"] == "below"  # half of relu's outputs are zeros, which are exact


def test_the_order_is_the_registrys(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(table, "export_activation", lambda name, width: seen.append(name))
    monkeypatch.setattr(table, "sweep", lambda names, levels: (_ for _ in ()).throw(RuntimeError))
    with pytest.raises(RuntimeError):
        tabulate(["tanh", "elu", "tanh"])
    assert seen == ["relu", "elu"]  # relu is timed beside them, and elu comes first


def test_bad_arguments_are_refused_before_any_work() -> None:
    with pytest.raises(ConfigError, match="the nearest is 'gelu'"):
        tabulate(["geluu"])
    with pytest.raises(InputError, match="at least 6, as fewer show nothing, but is 5"):
        tabulate(["relu"], rounds=5)


def turns(times: dict[str, list[float]]) -> Callable[..., Turns]:
    """What `take_turns` gives: of each engine one median a round, with a much slower run beside it."""

    def take(jobs: dict[str, Any], workloads: list[Any], **_: Any) -> Turns:
        assert set(jobs) == set(times)
        assert [work["rows"] for work in workloads] == [1, 128]
        found = {name: [{"run": [one, one, 100.0]} for one in rounds] for name, rounds in times.items()}
        return Turns([found, found], dict.fromkeys(jobs), {})

    return take


@pytest.fixture
def no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "export_activation", lambda name, width: None)
    monkeypatch.setattr(speed.ir, "save", lambda model, file: None)


@pytest.mark.usefixtures("no_graphs")
def test_times_are_compared_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine slows down by 14 % over the rounds; within a round gelu takes 4 times as long as relu."""
    relu = [1e-5 * (1 + drift / 100) for drift in range(15)]
    faked = {"relu": relu, "gelu": [4 * one for one in relu], "tanh": relu[::-1], "a call": [2e-6] * 15}
    monkeypatch.setattr(speed, "take_turns", turns(faked))
    found, call = speed.time_activations(dict.fromkeys(["relu", "gelu", "tanh"]), 15, lambda done, total: None)
    assert call == 2e-6
    first, second = (one.to_dict() for one in found["gelu"])
    assert first["microseconds"] == pytest.approx(42.8)
    assert (first["rows"], second["rows"], first["verdict"]) == (1, 128, "slower")
    assert [first[name] for name in ("low", "relative", "high")] == pytest.approx([4, 4, 4])
    assert first["said"] == "slower 4.0× (4.0–4.0)"
    tanh = found["tanh"][0].to_dict()
    assert tanh["verdict"] == "no difference shown"
    assert tanh["low"] < 0.98 < 1.02 < tanh["high"]  # by its rounds; beside each other sorted, they would be equal
    relu_row = found["relu"][0].to_dict()
    assert [relu_row[name] for name in ("relative", "low", "high", "verdict", "said")] == [None] * 5


@pytest.mark.usefixtures("no_graphs")
def test_the_interval_of_a_relative_time_is_turned_around(monkeypatch: pytest.MonkeyPatch) -> None:
    faked = {"relu": [1e-5] * 6, "elu": [2e-5, 2e-5, 2.5e-5, 2.5e-5, 4e-5, 4e-5], "a call": [1e-6] * 6}
    monkeypatch.setattr(speed, "take_turns", turns(faked))
    found, _ = speed.time_activations(dict.fromkeys(["relu", "elu"]), 6, lambda done, total: None)
    values = found["elu"][0].to_dict()
    assert [values["low"], values["relative"], values["high"]] == pytest.approx([2, 2.5, 4])


@pytest.mark.usefixtures("no_graphs")
def test_a_restless_machine_concludes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    relu = [1e-5, 2e-5] * 4
    faked = {"relu": relu, "mish": [9 * one for one in relu], "a call": relu}
    monkeypatch.setattr(speed, "take_turns", turns(faked))
    found, _ = speed.time_activations(dict.fromkeys(["relu", "mish"]), 8, lambda done, total: None)
    assert found["mish"][0].to_dict()["verdict"] == "too noisy"
    (first, second) = table._warnings(None, found["relu"])
    assert first.startswith("1×1536: nothing is concluded of times, as the quartiles of relu's rounds lie")
    assert second.startswith("128×1536: ")


def test_engines_really_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_TURN", 0.002)
    told: list[tuple[int, int]] = []
    models = {name: export_activation(name, speed.WIDTH) for name in ("relu", "reglu")}
    found, call = speed.time_activations(models, 6, lambda done, total: told.append((done, total)))
    assert told[-1] == (36, 36)
    assert 0 < call < 1
    for name in ("relu", "reglu"):
        one, many = found[name]
        assert 0 < one.seconds < many.seconds < 1  # 128 times the work
        assert math.isfinite(one.noise)


def test_a_worker_does_not_load_torch() -> None:
    import subprocess
    import sys

    program = "import sys, tfm.study.activations.worker; print(sorted({'torch', 'onnx', 'onnx_ir'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
