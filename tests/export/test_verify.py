"""The core promise: an ONNX graph that is not the same function is refused; what was not compared is no pass.

Defects of ops, in number, are in test_mutations.py.
"""

import json
import math
import sys
import weakref
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

import tfm.model
from tests.support.defects import DEFECTS, GELU, SELF
from tests.support.graph_edits import attribute, becomes, find, of_type, weight
from tests.support.planting import ENCODER, MODELS, plant
from tfm.errors import VerificationError
from tfm.export import GraphReport, Tolerance, verify
from tfm.export.passes import OP_KEY
from tfm.export.verify.hooks import watch
from tfm.export.verify.optimized import LEVELS
from tfm.export.verify.regions import Region
from tfm.export.verify.reports import Cause, OpReport, OutputReport
from tfm.export.verify.samples import cases
from tfm.export.verify.subgraphs import Run, Subgraphs
from tfm.ops import OpId
from tfm.runtime import ErrorStats

# ------------------------------------------------ the verdicts


@pytest.mark.parametrize("where", MODELS)
@pytest.mark.parametrize("precision", ["fp32", "int8", "fp16"])
def test_what_was_not_edited_passes(export_tiny: Any, tmp_path: Path, where: str, precision: str) -> None:
    report = plant(export_tiny, where, None, tmp_path, precision=precision)
    assert report.passed
    assert report.first_fault == ""
    assert {output.level for output in report.outputs} == set(LEVELS)


def test_nan_fails_in_every_precision_and_at_any_tolerance(export_tiny: Any, tmp_path: Path) -> None:
    exported = export_tiny(**ENCODER)["model"]
    model = ir.load(exported.path)
    weight(of_type("MatMul"), math.nan)(model)
    ir.save(model, tmp_path / "nan.onnx")
    for options in ({"precision": "int8"}, {"tolerance": Tolerance(math.inf, 0.0)}):
        report = verify(exported.graph, tmp_path / "nan.onnx", cases(exported.graph), **options)
        assert not report.passed
        assert all("NaN or infinity" in output.fault for output in report.outputs)


def test_a_defect_that_only_one_optimization_level_has(
    export_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime's optimizer is not ours to break, so the session of one level is given a broken file."""
    import onnxruntime as ort

    exported = export_tiny(**ENCODER)["model"]
    model = ir.load(exported.path)
    DEFECTS["gelu by tanh"].edit(model)
    broken = tmp_path / "broken.onnx"
    ir.save(model, broken)
    real = ort.InferenceSession

    def session(file: Any, options: ort.SessionOptions, **kwargs: Any) -> ort.InferenceSession:
        level = options.graph_optimization_level
        return real(broken if level == LEVELS["extended"] else file, options, **kwargs)

    monkeypatch.setattr(ort, "InferenceSession", session)
    report = verify(exported.graph, exported.path, cases(exported.graph))
    assert not report.passed
    assert report.first_fault.startswith(
        f"{GELU[1]}: off after onnxruntime's optimization (extended) into FastGelu by 4.7e-04"
    )
    assert {output.level for output in report.outputs if not output.passed} == {"extended"}


# ------------------------------------------------ comparisons that could not be made


def test_no_cases_at_all_fail(export_tiny: Any) -> None:
    exported = export_tiny(**ENCODER)["model"]
    report = verify(exported.graph, exported.path, [])
    assert not report.passed
    assert report.first_fault
    assert all(output.fault == "nothing was compared" for output in report.outputs)


def test_a_report_of_nothing_fails() -> None:
    report = GraphReport(role="model", precision="fp32", ops=(), outputs=())
    assert not report.passed
    assert report.first_fault == "nothing was compared in the model graph"


@pytest.mark.parametrize("error", [RuntimeError("boom"), VerificationError("boom"), KeyError("boom"), ValueError()])
@pytest.mark.parametrize(
    ("owner", "method"), [(Region, "feeds"), (Subgraphs, "run_alone"), (Run, "take"), (ErrorStats, "add")]
)
def test_an_error_within_a_comparison_is_a_fault(
    export_tiny: Any, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, error: Exception
) -> None:
    exported = export_tiny(**ENCODER)["model"]

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(owner, method, fail)
    report = verify(exported.graph, exported.path, cases(exported.graph))
    assert not report.passed
    assert not any(op.passed for op in report.ops)
    assert ("boom" if str(error) else "ValueError") in report.first_fault


def test_another_shape_is_a_fault(export_tiny: Any, tmp_path: Path) -> None:
    def edit(model: ir.Model) -> None:
        output = next(value for value in model.graph.outputs if value.name == "sentence_embedding")
        node = output.producer()
        new = ir.node("Squeeze", [node.outputs[0]])
        new.outputs[0].name, new.outputs[0].type = "squeezed", output.type
        model.graph.append(new)
        model.graph.outputs[list(model.graph.outputs).index(output)] = new.outputs[0]
        output.name, new.outputs[0].name = "before", "sentence_embedding"

    report = plant(export_tiny, "encoder", edit, tmp_path)
    assert not report.passed
    assert report.first_fault.startswith("output sentence_embedding (disabled): shapes differ: (16,) was computed")


def test_an_op_that_onnxruntime_cannot_run_is_the_one_named(export_tiny: Any, tmp_path: Path) -> None:
    """As with a [B, 1, 1, T] mask, which its Attention refuses when run."""
    edit = attribute(SELF[1], q_num_heads=3)
    report = plant(export_tiny, "encoder", edit, tmp_path)
    assert not report.passed
    assert report.first_fault.startswith(f"{SELF[1]}: it cannot be run by itself: ")
    ops = [str(op.op) for op in report.ops]
    passed = [str(op.op) for op in report.ops if op.passed]
    assert passed == ops[: ops.index(SELF[1])]  # what runs before it was compared, nothing behind it was
    assert all("the whole graph cannot be run" in output.fault for output in report.outputs)
    assert {output.cause for output in report.outputs} == {Cause.BREAKAGE}


@pytest.mark.parametrize(
    ("causes", "first"),
    [
        ((Cause.BREAKAGE, Cause.OPTIMIZATION, Cause.RESULT), "activation 2"),
        ((Cause.BREAKAGE, Cause.OPTIMIZATION, Cause.WEIGHTS), "activation 2"),
        ((Cause.WEIGHTS, Cause.RESULT), "activation 0"),
        ((Cause.BREAKAGE, Cause.OPTIMIZATION), "output y (disabled)"),
        ((Cause.BREAKAGE,), "output y (disabled)"),
    ],
)
def test_the_first_fault_is_told_by_causes_and_not_by_words(causes: tuple[Cause, ...], first: str) -> None:
    text = "off after onnxruntime's optimization: its weights are not eager's, the whole graph cannot be run"
    ops = [
        OpReport(op=OpId(kind="activation", path=str(index)), fault=text, cause=cause)
        for index, cause in enumerate(causes)
    ]
    output = OutputReport(name="y", level="disabled", figures=ErrorStats(), limit=None, fault=text)
    report = GraphReport(role="model", precision="fp32", ops=tuple(ops), outputs=(output,))
    assert report.first_fault == f"{first}: {text}"
    key = {"op": first} if first.startswith("activation") else {"output": "y", "level": "disabled"}
    assert report.to_dict()["first_failed"] == key


def test_an_operator_that_onnxruntime_does_not_have(export_tiny: Any, tmp_path: Path) -> None:
    report = plant(export_tiny, "encoder", becomes(GELU[1], "Swoosh", domain="com.microsoft"), tmp_path)
    assert not report.passed
    assert report.first_fault.startswith(f"{GELU[1]}: it cannot be run by itself: ")


def test_an_op_spread_over_what_is_not_its_own_is_no_comparison(export_tiny: Any, tmp_path: Path) -> None:
    def edit(model: ir.Model) -> None:
        find(model, GELU[0]).outputs[0].consumers()[0].metadata_props[OP_KEY] = GELU[1]

    with pytest.raises(VerificationError, match="became nodes with 2 arguments and 2 results, not one of each"):
        plant(export_tiny, "encoder", edit, tmp_path)


# ------------------------------------------------ tolerances


def test_the_limit_of_outputs_is_the_caller_s(export_tiny: Any, tmp_path: Path) -> None:
    strict = plant(export_tiny, "encoder", None, tmp_path, tolerance=Tolerance(0.0, 0.0))
    assert strict.first_fault.startswith("output last_hidden_state (disabled): off by")
    edit = DEFECTS["logits' softcap 1 % off"].edit  # behind the last op
    assert not plant(export_tiny, "gemma", edit, tmp_path).passed
    assert plant(export_tiny, "gemma", edit, tmp_path, tolerance=Tolerance(1.0, 0.0)).passed


@pytest.mark.parametrize("name", ["gelu by tanh", "last bit of a linear's weight"])
def test_a_loose_tolerance_of_outputs_does_not_loosen_the_ops(export_tiny: Any, tmp_path: Path, name: str) -> None:
    report = plant(export_tiny, "encoder", DEFECTS[name].edit, tmp_path, tolerance=Tolerance(1e6, 0.0))
    assert not report.passed
    assert report.first_fault.startswith(DEFECTS[name].named)
    assert all(output.passed for output in report.outputs)


def test_an_op_by_itself_has_margin(export_tiny: Any, tmp_path: Path) -> None:
    """Correct ops lie well inside their limits, else another machine's rounding would refuse a good export."""
    for where in MODELS:
        report = plant(export_tiny, where, None, tmp_path, levels=("disabled",))
        assert all(op.own.max_abs <= op.own_limit / 2 for op in report.ops)
        assert all(op.free.max_abs <= op.free_limit / 2 for op in report.ops if op.free_limit is not None)


# ------------------------------------------------ what a report says, and what a verification holds


def test_a_fault_names_the_line_that_calls_the_op(export_tiny: Any, tmp_path: Path) -> None:
    functions = {
        "attention": "attention(",
        "norm": "norm(",
        "activation decoder": "tanh(",
        "decoder.embedding": "F.embedding(",
    }
    for where in ("encoder", "llama", "gpt2", "gemma"):
        report = plant(export_tiny, where, None, tmp_path, levels=("disabled",))
        for op in report.ops:
            file, line = op.source.split(":")
            code = (Path(tfm.model.__file__).parents[1] / file.removeprefix("tfm/")).read_text(encoding="utf-8")
            default = f"{op.op.path.rpartition('.')[2]}("
            call = next((functions[key] for key in (op.op.kind, str(op.op), op.op.path) if key in functions), default)
            assert call in code.splitlines()[int(line) - 1], str(op.op)


@pytest.mark.parametrize(
    "edit", [None, becomes(GELU[1], "Swoosh", domain="com.microsoft"), attribute(SELF[1], q_num_heads=3)]
)
def test_no_report_holds_a_path_of_this_machine(export_tiny: Any, tmp_path: Path, edit: Any) -> None:
    """Nor does that of a graph that cannot be opened or run, whose file onnxruntime's message names."""
    text = json.dumps(plant(export_tiny, "encoder", edit, tmp_path).to_dict())
    assert (edit is None) == ("cannot be run" not in text)
    for folder in (tmp_path, Path.home(), Path.cwd(), Path(tfm.model.__file__).parents[1], sys.prefix):
        assert str(folder) not in text


class Alive:
    """Counts how many of the objects that it was shown are still there."""

    def __init__(self) -> None:
        self.seen: list[weakref.ref[Any]] = []
        self.counts: list[int] = []

    def note(self, values: list[Any]) -> None:
        self.seen += [weakref.ref(value) for value in values if value is not None]
        self.counts.append(len({id(each()) for each in self.seen} - {id(None)}))  # a mask is seen in every layer


def test_nothing_of_earlier_ops_is_kept(export_tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager's tensors live as long as when nobody looks; of the graph's arrays, as many as in a model half as deep."""
    tensors, arrays = Alive(), Alive()

    def watch_noting(graph: Any, case: Any, visit: Any) -> Any:
        def noting(call: Any) -> None:
            visit(call)
            tensors.note([*call.inputs, call.output])

        return watch(graph, case, noting)

    def take_noting(run: Run, cut: str) -> Any:
        found = take(run, cut)
        arrays.note(found)
        return found

    take = Run.take
    monkeypatch.setattr(Run, "take", take_noting)
    monkeypatch.setattr(sys.modules["tfm.export.verify.verify"], "watch", watch_noting)
    peaks = []
    for depth in (2, 4):
        exported = export_tiny(**ENCODER | {"num_encoder_layers": depth})["model"]
        (case,) = cases(exported.graph, count=1)
        tensors, arrays = Alive(), Alive()
        assert verify(exported.graph, exported.path, [case], levels=("disabled",)).passed
        verified = tensors.counts
        tensors = Alive()
        watch_noting(exported.graph, case, lambda call: None)
        assert verified == tensors.counts
        peaks.append(max(arrays.counts))
        assert len(arrays.seen) > 5 * peaks[-1]
    assert peaks[0] == peaks[1]


def test_an_error_on_one_input_is_not_forgotten_on_the_next(export_tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = export_tiny(**ENCODER)["model"]
    real, failed = Region.feeds, set()

    def feeds(self: Region, call: Any) -> Any:
        if self.op not in failed:
            failed.add(self.op)
            raise RuntimeError("boom")
        return real(self, call)

    monkeypatch.setattr(Region, "feeds", feeds)
    report = verify(exported.graph, exported.path, cases(exported.graph), levels=("disabled",))
    assert len(failed) == len(report.ops)
    assert all(op.fault == "it cannot be run by itself: boom" for op in report.ops)
