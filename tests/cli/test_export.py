"""`tfm-export` as a user meets it: tables, JSON, exit codes, a clear sentence for bad input, nothing left behind."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch

import tfm.export.bundle as bundle
from tests.support.recorded import record
from tfm.cli import export, main
from tfm.export import export_checkpoint, graphs_of
from tfm.export.verify.samples import cases
from tfm.latency import Latency
from tfm.model import Transformer, save_checkpoint

MakeModel = Callable[..., Transformer]
Run = Callable[..., tuple[int, str, str]]

BOTH = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "activation": "gelu", "norm_first": True}
GELU = "decoder.layers.0.feed_forward.activation"
CROSS = "decoder.layers.0.cross_attn"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run `tfm-export` in an empty folder; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def invoke(*arguments: str, command: Callable[[list[str]], None] = export) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            command([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return invoke


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch, to_onnx_once: Any) -> None:
    """Without what has its own tests: latency, and exporting the same graph again."""
    monkeypatch.setattr(bundle, "measure_latency", lambda *_: [])
    monkeypatch.setattr(bundle, "to_onnx", to_onnx_once)


@pytest.fixture
def checkpoint(make_model: MakeModel, tmp_path: Path) -> Path:
    save_checkpoint(make_model(**BOTH), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def ops_of(model: Transformer) -> list[tuple[str, str]]:
    """Role and path within it of every op."""
    return [
        (graph.role, tap.op.path.removeprefix(f"{graph.role}."))
        for graph in graphs_of(model)
        for tap in record(graph, cases(graph)[0])[1]
    ]


def refused(done: tuple[int, str, str], folder: Path, *words: str) -> None:
    """Exit 2, one sentence on stderr with these words, and nothing left."""
    code, out, err = done
    lines = [line for line in err.splitlines() if line]
    assert (code, out) == (2, "")
    assert lines[-1].startswith("tfm-export: ")
    assert [line for line in lines[:-1] if "read checkpoint" not in line] == []
    assert "Traceback" not in err
    for word in words:
        assert word in lines[-1]
    assert not [path.name for path in folder.rglob("*") if ".tfm" in path.name]


# ------------------------------------------------ what works


def test_a_whole_export(run: Run, checkpoint: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing replaced, latency included; in a terminal wide enough not to fold names."""
    monkeypatch.setenv("COLUMNS", "120")
    code, out, err = run("--ckpt", "model.pt", "--precision", "fp32")
    assert code == 0, out + err
    folder = checkpoint.parent / "model.tfm"  # named after the checkpoint, in the working directory
    names = {"manifest.json", "parity.json", "golden.json", "golden.npz", "report.html", "config.json", "onnx"}
    assert {path.name for path in folder.iterdir()} == names
    assert [path.name for path in sorted((folder / "onnx").iterdir())] == [
        "decoder.onnx",
        "decoder_model_merged.onnx",
        "encoder_model.onnx",
    ]
    titles = [line for line in out.splitlines() if ": each op against eager" in line]
    for role, name in ops_of(make_model(**BOTH)):
        title = next(title for title in titles if title.strip().startswith(role))  # its form for other readers follows
        assert f" {name} " in out.split(title)[1].split("each op against eager")[0]
    assert "verified" in out
    assert "model.tfm" in out
    assert "eager" in out
    assert " ms" in out
    for stage in ("read checkpoint", "export encoder", "verify fp32 decoder", "compare fp32 bundle with eager", "time"):
        assert stage in err
    assert all(" s  " in line for line in err.splitlines())


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("command", [export, lambda arguments: main(["export", *arguments])], ids=["tfm-export", "tfm"])
def test_json(run: Run, checkpoint: Path, command: Any) -> None:
    code, out, _ = run("--ckpt", checkpoint, "-o", "there/x.tfm", "--precision", "fp32", "--json", command=command)
    assert code == 0
    values = json.loads(out)
    assert values.pop("output") == "there/x.tfm"
    assert values.pop("faults") == []
    assert all(gate["passed"] for gate in values.pop("gates"))
    assert values == json.loads((checkpoint.parent / "there" / "x.tfm" / "parity.json").read_text())


@pytest.mark.usefixtures("fast")
def test_int8_is_made_by_default(run: Run, checkpoint: Path) -> None:
    code, out, _ = run("--ckpt", checkpoint, "-o", "x.tfm")
    assert code == 0
    assert {path.name for path in (checkpoint.parent / "x.tfm" / "onnx").iterdir()} == {
        f"{name}{suffix}.onnx"
        for name in ("encoder_model", "decoder", "decoder_model_merged")
        for suffix in ("", "_int8")
    }
    assert "smaller" in out


@pytest.mark.usefixtures("fast")
def test_a_folder_is_a_checkpoint_too(run: Run, make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "bert-small").mkdir()
    save_checkpoint(make_model(**BOTH), tmp_path / "bert-small" / "model.safetensors")
    assert run("--ckpt", "bert-small/", "--precision", "fp32")[0] == 0
    assert (tmp_path / "bert-small.tfm" / "manifest.json").is_file()


@pytest.mark.usefixtures("fast")
def test_overwrite(run: Run, checkpoint: Path) -> None:
    arguments = ("--ckpt", checkpoint, "-o", "x.tfm", "--precision", "fp32")
    assert run(*arguments)[0] == 0
    manifest = checkpoint.parent / "x.tfm" / "manifest.json"
    before = manifest.stat().st_ino
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "exists already" in err
    assert "--overwrite" in err
    assert manifest.stat().st_ino == before
    assert run(*arguments, "--overwrite")[0] == 0
    assert manifest.stat().st_ino != before


@pytest.mark.usefixtures("fast")
def test_opset(run: Run, checkpoint: Path) -> None:
    assert run("--ckpt", checkpoint, "-o", "x.tfm", "--precision", "fp32", "--opset", "25")[0] == 0
    assert json.loads((checkpoint.parent / "x.tfm" / "manifest.json").read_text())["opset"] == 25


@pytest.mark.usefixtures("fast")
def test_tolerances_are_the_user_s(run: Run, checkpoint: Path) -> None:
    code, out, _ = run("--ckpt", checkpoint, "-o", "x.tfm", "--precision", "fp32", "--atol", "0", "--rtol", "0")
    assert code == 1
    assert "refused" in out
    assert "output last_hidden_state (disabled): off by" in " ".join(out.split())
    assert not (checkpoint.parent / "x.tfm").exists()


# ------------------------------------------------ wrong ops, end to end


def tanh_for_erf(node: ir.Node) -> None:
    node.attributes["approximate"] = ir.AttrString("approximate", "tanh")


def mask_dropped(node: ir.Node) -> None:
    node.replace_input_with(3, None)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("as_json", [False, True], ids=["tables", "json"])
@pytest.mark.parametrize(
    ("edit", "op"),
    [(tanh_for_erf, f"activation {GELU}"), (mask_dropped, f"attention {CROSS}")],
    ids=["gelu by tanh", "mask dropped"],
)
def test_a_wrong_op_is_refused_and_named(
    run: Run,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    to_onnx_once: Any,
    edit: Callable[[ir.Node], None],
    op: str,
    as_json: bool,
) -> None:
    def exported(graph: Any, **options: Any) -> ir.Model:
        model = to_onnx_once(graph, **options)
        for node in model.graph:
            if node.metadata_props.get("tfm.op") == op:
                edit(node)
        return model

    monkeypatch.setattr(bundle, "to_onnx", exported)
    before = sorted(checkpoint.parent.iterdir())
    code, out, _ = run("--ckpt", checkpoint, "-o", "x.tfm", *(["--json"] if as_json else []))
    assert code == 1
    if as_json:
        values = json.loads(out)
        assert not values["passed"]
        assert values["faults"][0].startswith(f"fp32 decoder: {op}: off by itself by ")
        (fault,) = [entry for entry in values["graphs"][1]["ops"] if entry["op"] == op]
        assert not fault["passed"]
    else:
        text = " ".join(out.split())
        assert "refused" in text
        assert f"fp32 decoder: {op}: off by itself by" in text
        assert "✓ verified" not in text
    assert sorted(checkpoint.parent.iterdir()) == before


# ------------------------------------------------ bad input


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.marker),))


def corrupt(model: Transformer, path: Path, case: str) -> None:
    """Write a bad checkpoint."""
    config, weights = model.config.to_dict(), dict(model.state_dict())
    good = {"config": config, "state_dict": weights}
    name = "encoder.layers.0.feed_forward.linear1.weight"
    if case == "empty":
        path.write_bytes(b"")
    elif case == "truncated":
        torch.save(good, path)
        path.write_bytes(path.read_bytes()[:-500])
    elif case == "half":
        torch.save(good, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif case == "text":
        path.write_text("not a checkpoint at all\n" * 20)
    elif case == "evil":
        torch.save({"config": config, "state_dict": weights, "x": Evil(path.parent / "marker")}, path)
    elif case == "evil pickle":
        path.write_bytes(pickle.dumps(Evil(path.parent / "marker")))
    elif case == "module":
        torch.save(torch.nn.Linear(2, 2), path)
    elif case == "no config":
        torch.save(weights, path)
    elif case == "missing weight":
        torch.save(good | {"state_dict": {key: value for key, value in weights.items() if key != name}}, path)
    elif case == "extra weight":
        torch.save(good | {"state_dict": weights | {"surplus.weight": torch.zeros(2)}}, path)
    elif case == "other shape":
        torch.save(good | {"state_dict": weights | {name: torch.zeros(3, 3)}}, path)
    elif case == "activation":
        torch.save(good | {"config": config | {"activation": "gleu"}}, path)
    elif case == "heads":
        torch.save(good | {"config": config | {"nhead": 5}}, path)
    elif case == "unknown key":
        torch.save(good | {"config": config | {"n_head": 2}}, path)


BAD = {
    "missing": ["nowhere", "model.pt"],
    "empty": ["is empty"],
    "truncated": ["cut short"],
    "half": ["cut short"],
    "text": ["is not a checkpoint"],
    "evil": ["could run code", "nothing was run"],
    "evil pickle": ["could run code", "nothing was run"],
    "module": ["whole module", "nothing was run"],
    "no config": ["no configuration", "config.json"],
    "missing weight": ["missing: encoder.layers.0.feed_forward.linear1.weight"],
    "extra weight": ["not in the model: surplus.weight"],
    "other shape": ["is (3, 3), not (24, 16)"],
    "activation": ["unknown activation 'gleu'", "the nearest is"],
    "heads": ["d_model must be a multiple of nhead, but 16 % 5 is 1"],
    "unknown key": ["'n_head'", "'nhead'"],
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_checkpoint(run: Run, make_model: MakeModel, tmp_path: Path, case: str) -> None:
    path = tmp_path / ("nowhere" if case == "missing" else "bad") / "model.pt"
    if case != "missing":
        path.parent.mkdir()
        corrupt(make_model(**BOTH), path, case)
    refused(run("--ckpt", path, "-o", "out/x.tfm"), tmp_path, *BAD[case])
    assert not (tmp_path / "bad" / "marker").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--precision", "fp32,fp8"], ["unknown precision 'fp8'", "fp32, int8, int4, fp16"]),
        (["--precision", "FP32"], ["unknown precision 'FP32'"]),
        (["--opset", "7"], ["opset 7 is not supported; choose one of 18 to 25"]),
        (["--opset", "26"], ["opset 26 is not supported"]),
        (["-o", "model.pt"], ["model.pt exists already"]),
        (["-o", "model.pt", "--overwrite"], ["is not a bundle"]),
        (["-o", "folder"], ["exists already"]),
        (["-o", "folder", "--overwrite"], ["is not a bundle", "leaves it alone"]),
        (["-o", "model.pt/x.tfm"], ["no bundle can be written to"]),
        (["-o", "x" * 300], ["no bundle can be written to", "too long"]),
    ],
)
def test_bad_usage(run: Run, checkpoint: Path, arguments: list[str], words: list[str]) -> None:
    (checkpoint.parent / "folder").mkdir()
    (checkpoint.parent / "folder" / "thesis.txt").write_text("precious")
    weights = checkpoint.read_bytes()
    refused(run("--ckpt", checkpoint, *arguments), checkpoint.parent, *words)
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["folder", "model.pt"]
    assert (checkpoint.parent / "folder" / "thesis.txt").read_text() == "precious"
    assert checkpoint.read_bytes() == weights


@pytest.mark.parametrize(
    "arguments", [[], ["--ckpt"], ["--ckpt", "x", "--opset", "many"], ["--ckpt", "x", "--atol", "-1"], ["--what"]]
)
def test_usage_errors_are_click_s(run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Error: " in err
    assert "Traceback" not in err


def test_an_interruption(run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle, "to_onnx", interrupt)
    code, out, err = run("--ckpt", checkpoint, "-o", "x.tfm")
    assert (code, out) == (130, "")
    assert "interrupted; nothing was left behind" in err
    assert [path.name for path in checkpoint.parent.iterdir()] == ["model.pt"]


def test_the_speed_of_fp16_is_not_judged(run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither timed nor refused; and float16's limits do not stand where float32's are looked for."""
    monkeypatch.setenv("COLUMNS", "120")
    times = [Latency(work="encoder 1×16", rounds={"eager": [2.0] * 9, "fp32": [1.0] * 9})]
    monkeypatch.setattr(bundle, "measure_latency", lambda *_: times)
    code, out, err = run("--ckpt", checkpoint, "-o", "x.tfm", "--precision", "fp32,fp16")
    assert code == 0, out + err
    assert "The speed of fp16 was not judged on this machine: it is for CUDA, and only the CPU ran." in out
    assert " in fp32 in fp16" in out
    limits = [float(cells[-4]) for line in out.splitlines() if (cells := line.split()) and cells[-1] == "dB"
              and cells[0] == "✓" and "layers" in line]  # fmt: skip
    assert len(limits) == 5 + 3  # the decoder in two forms
    assert max(limits) < 1e-4
    assert "✓ verified all 5 attention and activation ops, fp32 and fp16" in out
    assert "time eager, fp32\n" in err


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Exit code and streams as a shell sees them; warnings and tracebacks would show here."""
    program = "import tfm.cli; tfm.cli.export()"
    (tmp_path / "model.pt").write_text("not a checkpoint")
    done = subprocess.run(
        [sys.executable, "-c", program, "--ckpt", "model.pt"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tfm-export: ")
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_help_names_every_option(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for option in ("--ckpt", "--output", "--precision", "--opset", "--atol", "--rtol", "--overwrite", "--json"):
        assert option in out


def test_the_library_does_what_the_command_does(checkpoint: Path, run: Run, fast: None) -> None:
    report = export_checkpoint(checkpoint, checkpoint.parent / "a.tfm", precisions=["fp32"])
    assert run("--ckpt", checkpoint, "-o", "b.tfm", "--precision", "fp32")[0] == 0
    assert report.passed
    for name in ("parity.json", "onnx/encoder_model.onnx", "config.json"):
        one, other = ((checkpoint.parent / folder / name).read_bytes() for folder in ("a.tfm", "b.tfm"))
        assert one == other.replace(b'"name": "b.tfm"', b'"name": "a.tfm"')


def test_an_op_without_a_kernel_of_its_own_says_what_to_do(
    run: Run, make_model: Any, checkpoint: Path, fast: None
) -> None:
    save_checkpoint(make_model(kind="encoder", activation="squared_relu"), checkpoint)
    code, out, _ = run("--ckpt", checkpoint, "-o", "x.tfm", "--precision", "fp32")
    assert code == 0
    text = " ".join(out.split())
    assert "layers.0.feed_forward.activation Relu·Mul " in text
    assert "onnxruntime has no kernel for this activation as one; gelu, gelu_tanh, silu" in text
