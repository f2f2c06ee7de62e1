"""Any nn.Module: factories and exported programs; every op is found, and verified as a native model's is."""

import functools
import io
import json
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import nn

from tests.support.recorded import record
from tests.support.right_models import plain
from tfm.errors import CheckpointError, ExportError, InputError
from tfm.export import export_checkpoint, to_onnx, verify
from tfm.export.fast_path import no_fast_path
from tfm.export.generic.graph import GenericGraph
from tfm.export.generic.open import is_generic, open_generic
from tfm.export.generic.program import _is_arithmetic
from tfm.export.verify.samples import cases
from tfm.export.verify.verify import GraphReport
from tfm.runtime import Module, load

MADE = "tests.support.generic_models"
FACTORIES = ("encoder", "attends", "by_hand", "unbatched")

OPS = {
    "encoder": [
        f"{op}"
        for i in range(2)
        for op in (f"attention encoder.layers.{i}.self_attn", f"activation encoder.layers.{i}")
    ],
    "attends": ["attention first", "activation act", "softmax second", "activation act 1"],
    "by_hand": [
        "softmax ",
        "activation ",
        "activation  1",
        "activation  2",
        "activation act",
        "activation act 1",
        "softmax  1",
        "activation  3",
        "activation  4",
        "activation  5",
        "activation  6",
        "softmax  2",
    ],
    "unbatched": ["attention ", "attention  1"],
}


def graph_of(factory: str) -> GenericGraph:
    return open_generic(None, f"{MADE}:{factory}")


def prove(graph: GenericGraph, folder: Path) -> GraphReport:
    ir.save(to_onnx(graph), folder / "model.onnx")
    return verify(graph, folder / "model.onnx", cases(graph))


Proved = Callable[[str], tuple[Path, GraphReport]]


@pytest.fixture(scope="module")
def proved(tmp_path_factory: pytest.TempPathFactory) -> Proved:
    """The ONNX file of a factory's module, and the verdict on it; each is made once."""

    @functools.cache
    def once(factory: str) -> tuple[Path, GraphReport]:
        folder = tmp_path_factory.mktemp(factory)
        report = prove(graph_of(factory), folder)
        return folder / "model.onnx", report

    return once


def program_of(factory: str, file: Path) -> Path:
    graph = graph_of(factory)
    dims = {name: torch.export.Dim(name, min=2, max=64) for name in ("batch", "sequence")}
    shapes = {
        value.name: {axis: dims[dim] for axis, dim in enumerate(value.shape) if isinstance(dim, str)}
        for value in graph.inputs
    }
    values = {**graph._examples, **graph._fixed}
    with warnings.catch_warnings(), no_fast_path(), torch.no_grad():
        warnings.simplefilter("ignore")
        dynamic = {**shapes, **dict.fromkeys(graph._fixed)}
        program = torch.export.export(graph.model, (), values, dynamic_shapes=dynamic)
        torch.export.save(program, file)
    return file


@pytest.mark.parametrize("factory", FACTORIES)
def test_every_op_of_a_module_is_verified(proved: Proved, factory: str) -> None:
    _, report = proved(factory)
    assert report.first_fault == ""
    assert report.passed
    assert [str(op.op) for op in report.promised] == OPS[factory]


def test_the_fast_path_is_compared_too(proved: Proved) -> None:
    _, report = proved("encoder")
    fast, plain = ({o.level: o for o in report.outputs}[level] for level in ("runtime, eager's fast path", "runtime"))
    assert 0 < fast.figures.count < plain.figures.count  # it gives zeros for padding
    assert fast.passed
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_wrong_graph_fails_against_the_fast_path(proved: Proved) -> None:
    file, _ = proved("encoder")
    graph = graph_of("encoder")
    with torch.no_grad():
        graph.model.encoder.layers[1].norm2.bias += 0.01
    faults = [out.fault for out in verify(graph, file, cases(graph)).outputs]
    assert len(faults) == 6
    assert all(fault.startswith("off by 1.0e-02") for fault in faults)


@pytest.mark.parametrize(
    "factory",
    ["encoder", "by_hand", *(pytest.param(name, marks=pytest.mark.slow) for name in ("attends", "unbatched"))],
)
def test_an_exported_program_is_verified(factory: str, tmp_path: Path) -> None:
    file = program_of(factory, tmp_path / "program.bin")  # told by content, not by name
    assert is_generic(file)
    graph = open_generic(file)
    report = prove(graph, tmp_path)
    assert report.first_fault == ""
    assert len(report.promised) == len(OPS[factory])
    original = graph_of(factory)
    assert [(v.name, v.shape, v.below) for v in graph.inputs] == [(v.name, v.shape, v.below) for v in original.inputs]
    inputs = original.sample(torch.Generator().manual_seed(3), 3, 6)
    with torch.no_grad(), no_fast_path():
        for mine, theirs in zip(graph(*inputs), original(*inputs), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def test_in_place_functions_do_not_change_what_was_recorded() -> None:
    graph = graph_of("by_hand")
    _, calls = record(graph, graph.sample(torch.Generator().manual_seed(0), 2, 5))
    relu = next(call for call in calls if str(call.op) == "activation  1")
    assert relu.inputs[0] is not None
    assert (relu.inputs[0] < 0).any()
    assert torch.equal(relu.inputs[0].relu(), relu.output)  # not what += made of it


def test_inputs_are_like_the_examples() -> None:
    graph = graph_of("encoder")
    ids, mask = graph.sample(torch.Generator().manual_seed(0), 4, 50)
    assert ids.shape == mask.shape == (4, 50)
    assert graph.inputs[0].below == 31
    assert mask.dtype == torch.bool
    assert not mask[0].any()  # True is padding here, as in the example
    assert mask.any()
    assert not mask[:, 0].any()


def test_a_bundle_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # for the processes that are timed
    stages: list[str] = []

    def stage(name: str) -> Any:
        stages.append(name)
        return warnings.catch_warnings()

    report = export_checkpoint(None, tmp_path / "b.tfm", model=f"{MADE}:by_hand", precisions=["fp32"], stage=stage)
    assert report.faults() == []
    assert stages[0] == f"make {MADE}:by_hand"
    assert [part.data for part in report.fidelity] == [f"rows of {n} on random inputs" for n in ("hidden", "score")]
    assert set(report.latency[0].milliseconds) == {"eager", "fp32"}
    bundle = load(tmp_path / "b.tfm")
    assert isinstance(bundle, Module)
    assert (bundle.manifest.kind, bundle.manifest.family) == ("module", "module")
    graph = graph_of("by_hand")
    (ids,) = graph.sample(torch.Generator().manual_seed(1), 3, 7)
    with torch.no_grad():
        expected = graph(ids)
    outputs = bundle.run(ids=ids.numpy())
    for value, tensor in zip(graph.outputs, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(outputs[value.name]), tensor, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match=r"ids\[0, 0\] is 31; ids must be in \[0, 31\)"):
        bundle.run(ids=[[31]])
    with pytest.raises(InputError, match="sequence is 513, but this model takes at most 512"):
        bundle.run(ids=ids.repeat(1, 74)[:, :513].numpy())


def test_the_command_line_takes_a_factory_or_a_checkpoint() -> None:
    from click.testing import CliRunner

    from tfm.cli.export import export

    result = CliRunner().invoke(export, [])
    assert result.exit_code == 2
    assert "give --ckpt, or --model for a module of your own" in result.output


def test_a_state_dict_is_loaded_into_the_module(tmp_path: Path) -> None:
    weights = {name: torch.full_like(w, 0.5) for name, w in graph_of("encoder").model.state_dict().items()}
    torch.save(weights, tmp_path / "w.pt")
    graph = open_generic(tmp_path / "w.pt", f"{MADE}:encoder")
    assert all((w == 0.5).all() for w in graph.model.state_dict().values())
    torch.save({"other": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"w\.pt does not fit the module: .*Missing key"):
        open_generic(tmp_path / "w.pt", f"{MADE}:encoder")


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (exec, ("import sys; sys.boom = True",))


def test_no_pickle_is_run_for_a_module_s_weights(tmp_path: Path) -> None:
    torch.save({"w": Bomb()}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="cannot be read as a state_dict: Weights only load failed"):
        open_generic(tmp_path / "w.pt", f"{MADE}:encoder")
    assert not hasattr(sys, "boom")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (MADE, f"'{MADE}' names no factory; write package.module:factory"),
        ("no.such:thing", "there is no module 'no', in the current folder or on sys.path"),
        (f"{MADE}:nothing", f"the module '{MADE}' has no attribute 'nothing'"),
        (f"{MADE}:IDS", f"{MADE}:IDS is a dict, not a function to call"),
        (f"{MADE}:fails", f"{MADE}:fails() fails: ValueError no weights today"),
        (
            f"{MADE}:not_a_triple",
            f"{MADE}:not_a_triple must return (nn.Module, example inputs, dynamic axes), but returned a Encoder",
        ),
        (
            f"{MADE}:not_a_module",
            f"{MADE}:not_a_module must return (nn.Module, example inputs, dynamic axes), but returned a tuple "
            "whose first part is a int",
        ),
    ],
)
def test_what_is_no_factory(name: str, message: str) -> None:
    with pytest.raises(ExportError, match=f"^{re.escape(message)}$"):
        open_generic(None, name)


class Gives(nn.Module):
    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def forward(self, x: torch.Tensor) -> Any:
        return self.result(x)


X = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("module", "examples", "axes", "message"),
    [
        (Gives(lambda x: x), 3, {}, "example inputs must be a dict or a tuple, but are a int"),
        (Gives(lambda x: x), ([X],), {}, "the example input 'x' is a list; each must be a tensor"),
        (Gives(lambda x: x), (1,), {}, "the example inputs hold no tensor"),
        (Gives(lambda x: x), (X,), {"y": {0: "b"}}, "dynamic_axes name an input 'y'; the examples' tensors are x"),
        (Gives(lambda x: x), (X,), {"x": {2: "b"}}, r"'x' has no axis 2; its example is float32 \[2, 3\]"),
        (Gives(lambda x: x), (X,), {"x": {0: "b", 1: "b"}}, "'b' is 2 in one example input and 3 in 'x'"),
        (Gives(lambda x: x), (X[:, :1],), {"x": {1: "b"}}, "the dimension 'b' is 1 in .* needs at least 2"),
        (Gives(lambda x: x), (X,), [], "dynamic_axes must be {input name: {axis: dimension name}}, but are a list"),
        (Gives(lambda x: "a"), (X,), {}, "the module returns a str; it must return tensors"),
        (Gives(lambda x: (x, [x])), (X,), {}, "the module returns a list as 'output_1'; every output must be a tensor"),
        (Gives(lambda x: x @ x), (X,), {}, "the module fails on its own example inputs: RuntimeError mat1"),
        (
            Gives(lambda x: x + X),
            (X,),
            {"x": {0: "b"}},
            r"fails on inputs of other sizes than its examples \(x \[3, 3\]",
        ),
    ],
)
def test_what_a_factory_may_not_return(module: nn.Module, examples: Any, axes: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        GenericGraph(module, examples, axes)


def test_what_torch_cannot_export_is_said() -> None:
    graph = GenericGraph(Gives(lambda x: x * 2 if x.sum() > 0 else x), (torch.ones(2, 3),), {"x": {0: "batch"}})
    with pytest.raises(ExportError, match=r"the model graph cannot be exported: .*data-dependent"):
        to_onnx(graph)


def rewrite(source: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    with zipfile.ZipFile(source) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return target


def in_json(entry: str, old: str, new: str) -> Callable[[dict[str, bytes]], None]:
    def change(entries: dict[str, bytes]) -> None:
        (name,) = [name for name in entries if name.endswith(entry)]
        assert old.encode() in entries[name]
        entries[name] = entries[name].replace(old.encode(), new.encode(), 1)

    return change


def add(entry: str, content: bytes) -> Callable[[dict[str, bytes]], None]:
    def change(entries: dict[str, bytes]) -> None:
        top = next(iter(entries)).partition("/")[0]
        entries[f"{top}/{entry}"] = content

    return change


def pickled_bomb() -> bytes:
    stream = io.BytesIO()
    torch.save((Bomb(),), stream)
    return stream.getvalue()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return program_of("unbatched", tmp_path_factory.mktemp("pt2") / "u.pt2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add("data/sample_inputs/model.pt", pickled_bomb()), "its example inputs are more than tensors"),
        (add("data/constants/opaque_obj_0", pickle.dumps(Bomb())), "holds data/constants/opaque_obj_0, which could be"),
        (add("data/aotinductor/model/x.so", b"\x7fELF"), r"holds data/aotinductor/model/x\.so, which could be code"),
        (in_json("model.json", "torch.ops.aten.select.int", "torch.os.system"), "calls 'torch.os.system', which is no"),
        (in_json("model.json", "torch.ops.aten.select.int", "torch.hub.load"), "calls 'torch.hub.load', which is no"),
        (in_json("model.json", "Symbol('", "exec('"), "is no arithmetic of sizes; nothing was run"),
        (in_json("model.json", '"builtins.tuple', '"os.path'), r"takes or gives a os\.path; export a module that"),
        (in_json("model.json", '"graph_module"', '"module"'), "cannot be read by torch.export.load: TypeError"),
    ],
)
def test_what_could_run_code_in_a_program_is_refused(
    change: Callable[[dict[str, bytes]], None], message: str, program: Path, tmp_path: Path
) -> None:
    file = rewrite(program, tmp_path / "bad.pt2", change)
    with pytest.raises(CheckpointError, match=message):
        open_generic(file)
    assert not hasattr(sys, "boom")


def put_in_json(entry: str, change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, bytes]], None]:
    def edit(entries: dict[str, bytes]) -> None:
        (name,) = [name for name in entries if name.endswith(entry)]
        content = json.loads(entries[name])
        change(content)
        entries[name] = json.dumps(content).encode()

    return edit


def saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put_in_json("weights_config.json", lambda c: c.update(config=1)), "does not say where its weights are"),
        (put_in_json("weights_config.json", lambda c: c.update(config={"a": 1})), "does not say where its weights are"),
        (put_in_json("model.json", lambda c: c.update(range_constraints=[])), "does not say how sizes may vary"),
        (put_in_json("model.json", lambda c: c.update(in_spec=1)), "is no tree"),
        (put_in_json("model.json", lambda c: c.update(in_spec="[1]")), "is no tree"),
        (put_in_json("model.json", lambda c: c.update(target=["torch.ops.aten.add.Tensor"])), "is no operator of ATen"),
        (add("models/model.json", b"[" * 100_000), "model.json is missing or not JSON"),
        (add("models/model.json", b"[]"), "model.json holds no object"),
        (add("models/model.json", b'{"a":' * 900 + b"1" + b"}" * 900), "nested too deeply|how sizes may vary"),
        (add("data/sample_inputs/model.pt", saved(1)), "cannot be read by torch.export.load: "),
        (add("data/sample_inputs/model.pt", saved(((), {}, {}))), "no tuple of arguments and dict of named ones"),
    ],
)
def test_a_damaged_program_is_refused_in_a_sentence(
    change: Callable[[dict[str, bytes]], None], message: str, program: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_generic(rewrite(program, tmp_path / "bad.pt2", change))


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("Symbol('s0', positive=True, integer=True)", True),
        ("Max(1, FloorDiv(s0, 2)) + 3*s1", True),
        ("s0**2", True),
        ("Pow(Symbol('s0'), Integer(2))", True),
        ("9**9**9**9", False),
        ("Pow(9, Pow(9, 9))", False),
        ("s0**1000000000", False),
        ("s0**s1", False),
        ("(((s0**64)**64)**64)**64", False),
        ("LShift(1, 10000000000)", False),
        ("1 << 10000000000", False),
        ("9" * 5000, False),
        ("1 + " * 100_000 + "1", False),
        ("__import__('os')", False),
    ],
)
def test_sizes_are_small_arithmetic(expression: str, allowed: bool) -> None:
    """sympy evaluates them: a tower of powers would take all memory, and all time."""
    assert _is_arithmetic(expression) is allowed


def test_the_guards_of_a_program_are_not_compiled(program: Path, tmp_path: Path) -> None:
    def change(entries: dict[str, bytes]) -> None:
        (name,) = [name for name in entries if name.endswith("model.json")]
        content = json.loads(entries[name])
        content["guards_code"].append("exec('import sys; sys.boom = True') is None")
        entries[name] = json.dumps(content).encode()

    open_generic(rewrite(program, tmp_path / "g.pt2", change))
    assert not hasattr(sys, "boom")


def test_pickled_weights_in_a_program_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = program_of("encoder", tmp_path / "e.pt2")
    bad = rewrite(
        file, tmp_path / "bad.pt2", in_json("weights_config.json", '"use_pickle": false', '"use_pickle": true')
    )
    with pytest.raises(CheckpointError, match="is pickled, which could run code on loading; nothing was run"):
        open_generic(bad)


def test_which_checkpoints_are_generic(tmp_path: Path) -> None:
    assert is_generic(None, "a:b")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "megatron-bert"}))
    assert is_generic(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert not is_generic(tmp_path)
    torch.save({"w": X}, tmp_path / "w.pt")
    assert not is_generic(tmp_path / "w.pt")
    assert not is_generic(tmp_path / "missing")


def test_another_way_at_one_length_is_refused() -> None:
    """No case of the verification need be of that length: it is torch's guard alone that tells."""
    made = plain(lambda m, x: torch.relu(m.layer(x)) if x.size(1) == 4 else m.layer(x), {"layer": nn.Linear(16, 16)})
    with pytest.raises(ExportError, match=r"the model graph cannot be exported: .*!= 4"):
        to_onnx(GenericGraph(*made))
