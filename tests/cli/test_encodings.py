"""Every command in every encoding of a pipe: something readable, and the exit code that it should have."""

import ast
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tfm.cli import tfm
from tfm.cli.streams import FALLBACKS, outputs
from tfm.export.manifest import write_manifest
from tfm.model import save_checkpoint

REPO = Path(__file__).resolve().parents[2]
ENCODINGS = ["cp1252", "cp437", "latin-1", "shift_jis", "ascii", "utf-8"]
ENCODER = {
    "kind": "encoder",
    "activation": "gelu",
    "type_vocab_size": 2,
    "embedding_norm": True,
    "positions": "learned",
}
MANY = """
import json, os, sys
from tfm.cli import export, main
for arguments in json.loads(sys.argv[1]):
    sys.stderr.write("BEGIN " + json.dumps(arguments) + "\\n")
    command = export if arguments[0] == "tfm-export" else main
    arguments = [os.fsdecode(one.encode()) for one in arguments]  # as Python reads them off the command line
    try:
        command(arguments[1:])
    except SystemExit as end:
        sys.stderr.write(f"CODE {end.code}\\n")
"""


def codes(arguments: list[list[str]], encoding: dict[str, str]) -> tuple[list[str], str, str]:
    """Run commands one after the other in one process; gives exit codes, and what it printed, in its encoding."""
    done = subprocess.run(
        [sys.executable, "-c", MANY, json.dumps(arguments)],
        env={k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONUTF8"))} | encoding,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    name = encoding.get("PYTHONIOENCODING", "ascii")
    out, err = done.stdout.decode(name), done.stderr.decode(name)
    assert done.returncode == 0, err
    return re.findall(r"^CODE (\w+)$", err, re.MULTILINE), out, err


@pytest.fixture
def bundle(export_tiny: Any, toys: Any, tmp_path: Path) -> str:
    folder = tmp_path / "x.tfm"
    (folder / "onnx").mkdir(parents=True)
    one = export_tiny(**ENCODER)["model"]
    path = folder / "onnx" / "model.onnx"
    path.write_bytes(one.path.read_bytes())
    toys.tokenizer(by_character=False).save(str(folder / "tokenizer.json"))
    write_manifest(folder, one.graph.model.config, "own", [one.graph], {"fp32": {"model": path}}, 24, [])
    return str(folder)


@pytest.mark.parametrize("encoding", [*ENCODINGS, "LC_ALL=C"])
def test_light_commands(toys: Any, make_bundle: Any, bundle: str, encoding: str) -> None:
    golden = make_bundle("encoder")
    toys.add_golden(Path(golden))
    helps = [["tfm", name, "--help"] for name in sorted(tfm.commands)]
    fast = ["--rounds", "6", "--seconds", "0.002", "--batch-size", "1", "--seq", "3", "--starts", "1"]
    arguments = [
        ["tfm", "--help"],
        ["tfm-export", "--help"],
        *helps,
        ["tfm", "parity", golden],
        ["tfm", "doctor", golden],
        ["tfm", "run", golden, "a b c d e f g h", "b"],
        ["tfm", "latency", golden, *fast],
        ["tfm", "inspect", bundle, "a b"],
        ["tfm", "inspect", bundle, "✓ → a"],  # 2
        ["tfm", "run", "nowhere…", "a"],
    ]
    env = {"LC_ALL": "C", "PYTHONUTF8": "0"} if encoding == "LC_ALL=C" else {"PYTHONIOENCODING": encoding}
    found, out, err = codes(arguments, env)
    assert found == ["0"] * (len(arguments) - 1) + ["2"]
    assert "Traceback" not in err
    own = out.replace("\\u2713", "").replace("\\u2192", "")
    assert "\\u" not in own  # everything of ours has something readable that stands for it
    mark = "✓" if encoding == "utf-8" else "+"
    assert f"{mark} same as when it was exported" in out
    assert f"{mark} works here" in out
    assert "beside fp32" in out


def test_commands_that_need_torch(make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the encoding that has least: every character that is none of ASCII's has to be stood for."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint(make_model(kind="decoder"), tmp_path / "model.pt")
    out_ = str(tmp_path / "x.tfm")
    arguments = [
        ["tfm-export", "--ckpt", "model.pt", "-o", out_, "--precision", "fp32"],
        ["tfm", "parity", out_, "--ckpt", "model.pt", "--cases", "2"],
        ["tfm", "verify-ops", "relu", "--dtype", "fp32", "--level", "disabled"],
        ["tfm", "activations", "--activation", "relu", "--no-timing"],
        ["tfm", "quantize", out_, "--force"],
        ["tfm", "prune", "--ckpt", "model.pt", "--keep", "0.5"],  # 2: it has no tokenizer
    ]
    found, out, err = codes(arguments, {"PYTHONIOENCODING": "ascii"})
    assert "+ quantized" in out or "x forced" in out
    # Whether it is faster is the machine's to say, and 1 is said where it is not.
    assert found == ["0"] * 4 + ["01"["x forced" in out], "2"], err
    assert "+ verified" in out
    assert "+ the same" in out
    assert "Traceback" not in err
    assert "\\u" not in out + err


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_an_encoding_has_is_written_and_what_it_lacks_is_stood_for(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every character of our own messages, on the streams that every command writes to."""
    written = [io.BytesIO(), io.BytesIO()]
    for name, raw in zip(("stdout", "stderr"), written, strict=True):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding=encoding, write_through=True))
    with outputs():
        for letter in FALLBACKS:
            print(f"{letter}|")
            print(f"{letter}|", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    expected = [letter if has(encoding, letter) else stands for letter, stands in FALLBACKS.items()]
    for raw in written:
        assert raw.getvalue().decode(encoding).split("|\n")[:-1] == expected


def has(encoding: str, letter: str) -> bool:
    try:
        letter.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def test_a_terminal_of_an_old_encoding(bundle: str, on_terminal: Any) -> None:
    code, got = on_terminal("tfm", "inspect", bundle, "a b", env={"PYTHONIOENCODING": "cp437"})
    assert code == 0
    assert "attention" in got.decode("cp437")


def test_json_is_ascii(bundle: str, piped: Any) -> None:
    """In UTF-8, in which what is not escaped would be written as it is."""
    done = piped("tfm", "inspect", bundle, "a ✓ é", "--json", env={"PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1"})
    assert done.returncode == 0
    assert json.loads(done.stdout.decode("ascii"))["text"] == "a ✓ é"


def test_nothing_in_json_that_json_lacks(piped: Any) -> None:
    code = "from tfm.cli.streams import say_json; say_json({'a': [float('inf'), (1.5, float('nan'))], 'b': 'é'})"
    done = piped("tfm", "--version", before=f"{code}; raise SystemExit(0)")
    assert json.loads(done.stdout, parse_constant=pytest.fail) == {"a": [None, [1.5, None]], "b": "é"}


@pytest.mark.parametrize("option", [[], ["--stream"]])
def test_results_in_a_pipe_are_utf_8(make_bundle: Any, respell: Any, piped: Any, option: list[str]) -> None:
    bundle = respell(make_bundle("counter"), "b", "✓")
    env = {"PYTHONUTF8": "0", "LC_ALL": "C"}
    done = piped("tfm", "run", bundle, "--max-new-tokens", 1, *option, input=b"a\n", env=env)
    assert (done.returncode, done.stdout.decode("utf-8")) == (0, "✓\n" if option else "a\t✓\n")


@pytest.mark.parametrize("option", [[], ["--stream"]])
def test_a_result_that_the_encoding_asked_for_lacks_is_refused(
    make_bundle: Any, respell: Any, piped: Any, option: list[str]
) -> None:
    bundle = respell(make_bundle("counter"), "b", "✓")
    env = {"PYTHONIOENCODING": "cp1252"}
    done = piped("tfm", "run", bundle, "--max-new-tokens", 1, *option, input=b"c\na\n", env=env)
    assert done.returncode == 2
    assert b"U+2713" in done.stderr
    assert b"cp1252, lacks; set PYTHONIOENCODING=utf-8, or print --json" in done.stderr
    assert b"line 2 of standard input" in done.stderr
    assert done.stdout.startswith(b"d" if option else b"c\td")
    done = piped("tfm", "run", bundle, "--max-new-tokens", 1, "--json", input=b"a\n", env=env)
    assert (done.returncode, json.loads(done.stdout)["output"]) == (0, "✓")


def test_texts_are_read_as_they_are_written(make_bundle: Any, piped: Any) -> None:
    bundle = make_bundle("encoder")
    for env, data in (
        ({}, "é\n".encode()),
        ({"PYTHONIOENCODING": "cp1252"}, b"\xe9\n"),
        ({}, b"\xef\xbb\xbf\xc3\xa9\n"),
    ):
        done = piped("tfm", "run", bundle, "--json", input=data, env=env)
        assert (done.returncode, json.loads(done.stdout)["text"]) == (0, "é")
    done = piped("tfm", "run", bundle, input=b"a\n\xe9\n")
    assert done.returncode == 2
    assert b"line 2 of standard input is not UTF-8" in done.stderr
    assert b"or name its encoding: PYTHONIOENCODING=cp1252" in done.stderr
    done = piped("tfm", "run", bundle, input=b"a\n", env={"PYTHONIOENCODING": "utf-16"})
    assert done.returncode == 2


def test_a_text_that_is_an_argument(make_bundle: Any, piped: Any) -> None:
    bundle = make_bundle("encoder")
    done = piped("tfm", "run", bundle, "é", "--json", env={"PYTHONUTF8": "0", "LC_ALL": "C"})
    assert json.loads(done.stdout)["results"][0]["text"] == "é"
    done = piped("tfm", "run", bundle, "a\udcff")  # bytes that are no UTF-8
    assert done.returncode == 2
    assert b"is not UTF-8; convert it" in done.stderr


def test_a_path_that_no_encoding_has(tmp_path: Path, piped: Any) -> None:
    done = piped("tfm", "doctor", str(tmp_path / "x\udcff.tfm"))
    assert done.returncode == 1
    assert b"x\\udcff.tfm" in done.stdout
    assert b"Traceback" not in done.stderr


def is_given_to_tokenizers(part: ast.stmt) -> bool:
    """Whether it names texts that are read, in every script that there is, and never printed."""
    targets = part.targets if isinstance(part, ast.Assign) else [part.target] if isinstance(part, ast.AnnAssign) else []
    return any(isinstance(target, ast.Name) and target.id in ("TEXTS", "_UNUSUAL") for target in targets)


def test_everything_that_is_ours_has_a_fallback() -> None:
    rooms = sorted(file.parent.name for file in REPO.glob("*/__init__.py"))
    assert {"bundle", "cli", "runtime", "study", "tfm"} <= set(rooms)
    letters: dict[str, str] = {}
    for file in (file for room in rooms for file in (REPO / room).rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        given = {id(node) for part in tree.body if is_given_to_tokenizers(part) for node in ast.walk(part)}
        for node in ast.walk(tree):
            if id(node) in given:
                continue
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                letters |= {letter: str(file) for letter in node.value if letter > "\x7f" and letter.isprintable()}
    assert len(letters) > 40
    assert {letter: file for letter, file in letters.items() if letter not in FALLBACKS} == {}
    assert all(text.isascii() for text in FALLBACKS.values())
