"""The example app that chats, where torch is not installed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

import tfm.export.bundle as bundle
from tfm.export import export_checkpoint
from tfm.model import save_checkpoint
from tfm.runtime import load

SCRIPT = Path(__file__).parents[2] / "examples/chat/chat.py"
WITHOUT = """
import runpy, sys
sys.modules['torch'] = sys.modules['onnx'] = None
sys.argv = sys.argv[1:]
{}
runpy.run_path(sys.argv[0], run_name='__main__')
"""
INTERRUPTED = """
from tfm.runtime.generation.conversation import Conversation
reply, times = Conversation.reply, []
def interrupted(*args, **options):
    times.append(None)
    for number, part in enumerate(reply(*args, **options)):
        if len(times) == 1 and number == 3:
            raise KeyboardInterrupt
        yield part
Conversation.reply = interrupted
"""
SPECIAL = ["<|im_start|>", "<|im_end|>"]
END = 1
SYSTEM = "<|im_start|>system\nBe brief.<|im_end|>\n"
TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def model(make_model, tmp_path_factory) -> Path:
    """A decoder with random weights, and a token for each character."""
    folder = tmp_path_factory.mktemp("chat")
    characters = [*SPECIAL, "\n", *map(chr, range(32, 127))]
    options = {"norm_first": True, "tie_embeddings": False, "max_positions": 400, "eos_token_id": END}
    tiny = make_model(seed=4, kind="decoder", vocab_size=len(characters), **options)
    with torch.no_grad():
        for name, parameter in tiny.named_parameters():
            if "self_attn" in name:
                parameter.mul_(2)  # so that what was said before matters
    save_checkpoint(tiny, folder / "model.pt")
    made = Tokenizer(models.WordLevel({text: number for number, text in enumerate(characters)}, unk_token="?"))
    made.add_special_tokens(SPECIAL)
    made.pre_tokenizer, made.decoder = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"), decoders.Fuse()
    made.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": {END}, "max_new_tokens": 20}}')
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(bundle, "measure_latency", lambda *_: [])
        assert export_checkpoint(folder / "model.pt", folder / "x.tfm", precisions=["fp32"]).passed
    return folder / "x.tfm"


def chat(model: Path, typed: str, *options: str, before: str = "") -> str:
    command = [sys.executable, "-c", WITHOUT.format(before), str(SCRIPT), "--model", str(model)]
    command += ["--system", "Be brief.", "--max-new-tokens", "8", *options]
    done = subprocess.run(command, input=typed, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def answers(model: Path, *typed: str, cut: int | None = None) -> list[str]:
    """The transcript read from its beginning at each turn: what the cache must be equal to.

    Of the first answer no more than `cut` characters were said.
    """
    opened, transcript, found = load(model, provider="cpu"), SYSTEM, []
    for text in typed:
        transcript += TURN.format(text)
        [said] = opened.generate([transcript], 8)
        found.append(said if found else said[:cut])
        transcript += found[-1] + "<|im_end|>\n"
    return found


def test_it_keeps_the_conversation(model: Path) -> None:
    first, second, third = answers(model, "Hello", "Why?", "Hello")
    assert (len(first), len(second) < 8) == (8, True), "one answer must be cut off, and one end by itself"
    assert first != third, "an answer must depend on what was said before"
    assert chat(model, "Hello\nWhy?\nHello\n") == f"> {first}\n> {second}\n> {third}\n> "


def test_ctrl_c_ends_the_answer(model: Path) -> None:
    first, second = answers(model, "Hello", "Why?", cut=4)
    assert second != answers(model, "Hello", "Why?")[1], "what was cut off must matter"
    assert chat(model, "Hello\nWhy?\n", before=INTERRUPTED) == f"> {first[:3]}\n> {second}\n> "


def test_sampling(model: Path) -> None:
    assert len({chat(model, "Hello\n", "--temperature", "9") for _ in range(3)}) > 1


def test_what_does_not_fit_begins_anew(model: Path) -> None:
    [said] = answers(model, "Hello")
    lines = chat(model, f"Hello\n{'long ' * 70}\nHello\n").splitlines()
    assert lines[0] == f"> {said}"
    assert lines[1].startswith("> the conversation has ")
    assert lines[2:] == ["The conversation begins anew.", "", f"> {said}", "> "]


def test_it_is_short() -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 40
