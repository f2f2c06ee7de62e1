"""`tfm prune` as a user meets it: a smaller checkpoint that exports and runs, a report, a sentence for bad input."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from tfm.cli import main
from tfm.export import graphs_of, to_onnx
from tfm.export.manifest import write_manifest
from tfm.model import Transformer, load_checkpoint, save_checkpoint
from tfm.quantize.storage import save_onnx
from tfm.runtime import load

MakeModel = Callable[..., Transformer]
Run = Callable[..., tuple[int, str, str]]

WORDS = ["<pad>", "<unk>", *"abcdefghijklmnopq"]
ENCODER = {"kind": "encoder", "pooling": "mean", "normalize": True, "nhead": 4, "dim_feedforward": 32}
SCRIPT = """
import torch
def losses(model):
    ids = torch.arange(12).reshape(2, 6)
    return [lambda model: model(ids, ids).logsumexp(-1).sum(1)]
def fine_tune(model, original, say):
    with torch.no_grad():
        model.decoder.head.bias.fill_(7.0)
    say(1, 2, "half")
    {end}
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def invoke(*arguments: Any) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["prune", *(str(argument) for argument in arguments)])
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return invoke


@pytest.fixture
def encoder(make_model: MakeModel, tmp_path: Path) -> Path:
    """A checkpoint with a tokenizer of letters, and a text."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    save_checkpoint(make_model(**ENCODER), folder / "model.safetensors")
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS[2:], rng.integers(1, 9))) for _ in range(200)]
    (tmp_path / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def translator(make_model: MakeModel, tmp_path: Path) -> Path:
    options = {"bos_token_id": 1, "eos_token_id": 2, "nhead": 4, "dim_feedforward": 32, "num_decoder_layers": 2}
    save_checkpoint(make_model(**options), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_an_encoder_is_cut_and_distilled(run: Run, encoder: Path, tmp_path: Path) -> None:
    arguments = ("--ckpt", encoder, "--keep", "0.5", "--multiple", "4", "--text", "lines.txt", "--lr", "0.01")
    code, out, err = run(*arguments, "--steps", "60", "-o", "small")
    assert code == 0
    assert "encoder.layers.0.self_attn" in out
    assert re.search(r"measure importance\n.*distil\n", err)
    report = json.loads((tmp_path / "small" / "pruning.json").read_text())
    assert report["held_out"] == 20
    assert 0 < report["cosine"]["pruned"] < report["cosine"]["fine-tuned"] < 1
    assert [(block["what"], block["count"]) for block in report["blocks"]] == [("heads", [4, 2]), ("units", [32, 16])]
    original, smaller = load_checkpoint(encoder), load_checkpoint(tmp_path / "small")
    assert [sum(p.numel() for p in one.parameters()) for one in (original, smaller)] == report["parameters"]
    assert (smaller.config.encoder_heads, smaller.config.encoder_feedforward) == ((2,), (16,))
    assert (tmp_path / "small" / "tokenizer.json").read_bytes() == (encoder / "tokenizer.json").read_bytes()
    cuts = torch.tensor(report["blocks"][1]["importance"]).argsort(descending=True)[:16]
    assert sorted(cuts.tolist()) == report["blocks"][1]["kept"]


def test_counts_and_json_and_no_training(run: Run, encoder: Path, tmp_path: Path) -> None:
    code, out, _ = run("--ckpt", encoder, "--heads", "1", "--text", "lines.txt", "--steps", "0", "-o", "s", "--json")
    assert code == 0
    report = json.loads(out)
    assert report["fine_tuned"] == "not at all"
    assert report["cosine"]["pruned"] == report["cosine"]["fine-tuned"]
    config = load_checkpoint(tmp_path / "s").config
    assert (config.encoder_heads, config.encoder_feedforward) == ((1,), None)


def test_an_encoder_decoder_is_tuned_by_a_script_and_generates_alike(
    run: Run, translator: Path, tmp_path: Path
) -> None:
    """Its caches are of as many heads as each layer has: in eager, in the graphs and in the runtime."""
    (tmp_path / "tune.py").write_text(SCRIPT.format(end="pass"), encoding="utf-8")
    arguments = ("--ckpt", translator, "--keep", "0.6", "--multiple", "4", "--fine-tune", "tune.py")
    assert run(*arguments, "-o", "small")[0] == 0
    model = load_checkpoint(tmp_path / "small")
    assert model.decoder.head is not None
    assert (model.decoder.head.bias == 7.0).all()
    heads = [model.config.layer_heads(part) for part in ("encoder", "decoder", "cross")]  # type: ignore[arg-type]
    assert sum(map(sum, heads)) == 12  # of 20
    assert len({*heads[1], *heads[2]}) > 1, "the layers should differ, or nothing is shown"
    bundle = tmp_path / "x.tfm"
    (bundle / "onnx").mkdir(parents=True)
    files, graphs = {}, graphs_of(model)
    for graph in graphs:
        files[graph.role] = bundle / "onnx" / f"{graph.file}.onnx"
        save_onnx(to_onnx(graph), files[graph.role])
    write_manifest(bundle, model.config, "transformer", graphs, {"fp32": files}, 24, gates=[])
    rows = [[3, 4, 5, 6, 7], [8, 9], [10, 11, 12]]
    found = load(bundle, provider="cpu", precision="fp32").generate(rows, 10, min_new_tokens=10)
    assert [len(row) for row in found] == [10] * 3
    for source, row in zip(rows, found, strict=True):  # each token is the likeliest after those before it
        with torch.no_grad():
            logits = model(torch.tensor([source]), torch.tensor([[1, *row[:-1]]]))[0]
        logits[:, 2] = -torch.inf  # the end may not come before
        assert logits.argmax(-1).tolist() == row


def test_ctrl_c_keeps_what_was_learned(run: Run, translator: Path, tmp_path: Path) -> None:
    (tmp_path / "tune.py").write_text(SCRIPT.format(end="raise KeyboardInterrupt"), encoding="utf-8")
    code, out, _ = run("--ckpt", translator, "--keep", "0.5", "--fine-tune", "tune.py", "-o", "small")
    assert code == 130
    assert "interrupted: fine-tuning ended early" in out
    head = load_checkpoint(tmp_path / "small").decoder.head
    assert head is not None
    assert (head.bias == 7.0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say how much is to be left, in one way: --keep, --parameters, or --heads and --units"),
        (("--keep", "0.5", "--heads", "1"), "say how much is to be left, in one way"),
        (("--keep", "0.5", "--parameters", "1_000_000"), "say how much is to be left, in one way"),
        (("--parameters", "99", "--text", "lines.txt"), "at most 99 parameters were asked for, but"),
        (("--keep", "1.5", "--text", "lines.txt"), "the share of heads to keep must be in (0, 1], but is 1.5"),
        (("--heads", "9", "--text", "lines.txt"), "the number of heads to keep must be in [1, 4], but is 9"),
        (("--keep", "0.5", "--text", "nothing.txt"), "nothing.txt is not a text file of UTF-8"),
        (("--keep", "0.5", "--text", "few.txt"), "few.txt has 3 lines of text; at least 20 are needed"),
        (("--keep", "0.5", "--fine-tune", "nothing.py"), "nothing.py is no Python file"),
        (("--keep", "0.5", "--fine-tune", "broken.py"), "broken.py cannot be imported: ZeroDivisionError"),
        (("--keep", "0.5", "--fine-tune", "empty.py"), "empty.py defines neither fine_tune(model, original, say) nor"),
        (("--keep", "0.5", "-o", "tiny"), "tiny exists already; choose another folder with -o"),
    ],
)
def test_what_makes_no_sense_is_refused(
    run: Run, encoder: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "few.txt").write_text("a\nb\nc\n", encoding="utf-8")
    (tmp_path / "empty.py").write_text("", encoding="utf-8")
    (tmp_path / "broken.py").write_text("1 / 0", encoding="utf-8")
    before = sorted(tmp_path.iterdir())
    code, out, err = run("--ckpt", encoder, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert sorted(tmp_path.iterdir()) == before


def test_an_encoder_decoder_needs_losses(run: Run, translator: Path) -> None:
    code, _, err = run("--ckpt", translator, "--keep", "0.5")
    assert code == 2
    assert "cannot be measured on text alone: give --fine-tune SCRIPT.py" in err
