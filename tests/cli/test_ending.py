"""Exit code 1 is for gates alone; whatever else goes wrong has a code of its own, a sentence, and no traceback."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

PLANTED = """
import click, tfm.cli
@click.command()
def planted():
{body}
tfm.cli.tfm.add_command(planted)
"""
LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"
"""Stands for a disk that is full after so many bytes of a file."""


def planted(*lines: str) -> str:
    return PLANTED.format(body="\n".join(f"    {line}" for line in lines))


def sentence(done: subprocess.CompletedProcess[bytes]) -> str:
    """What is on standard error: one line, and no traceback."""
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("raise KeyError('x')", "something went wrong that tfm did not foresee: KeyError: 'x'"),
        (r"raise RuntimeError('a\nb' + 400 * 'c')", "RuntimeError: a bccc"),
        ("planted.callback()", "RecursionError: maximum recursion depth exceeded"),
        ("raise SystemExit(1)", "Python code that was imported ended the command, with exit code 1"),
        ("raise SystemExit('bye')", "ended the command, with exit code bye"),
        ("raise BaseExceptionGroup('x', [ValueError('y')])", "NameError|BaseExceptionGroup|ExceptionGroup"),
    ],
)
def test_the_unforeseen(piped: Any, tmp_path: Path, line: str, said: str) -> None:
    done = piped("tfm", "planted", before=planted(line), env={"TMPDIR": str(tmp_path)})
    assert (done.returncode, done.stdout) == (3, b"")
    found = sentence(done)
    assert re.search(said, found)
    assert len(found) < 600
    (log,) = tmp_path.iterdir()
    assert found.endswith(f"the details are in {log}")
    text = log.read_text(encoding="utf-8")
    assert "Traceback (most recent call last)" in text
    assert "Python 3." in text
    done = piped("tfm", "planted", before=planted(line), env={"TMPDIR": str(tmp_path), "TFM_DEBUG": "1"})
    assert done.returncode == 3
    assert b"Traceback (most recent call last)" in done.stderr
    assert done.stderr.rstrip().endswith(b"the details are above")
    assert list(tmp_path.iterdir()) == [log]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("raise MemoryError", "tfm: there is not enough memory for this; TFM_DEBUG=1 shows the details"),
        ("raise RuntimeError('std::bad_alloc')", "there is not enough memory for this (std::bad_alloc); TFM_DEBUG=1"),
        ("bytearray(1 << 60)", "there is not enough memory for this"),
        ("open('nowhere/x')", "the system refused something: No such file or directory (nowhere/x); TFM_DEBUG=1 shows"),
        ("import os; os.write(os.open('/dev/full', 1), b'x')", "No space left on device (temporary files are in "),
        ("import os; raise BrokenPipeError(32, os.strerror(32))", "the system refused something: Broken pipe"),
    ],
)
def test_what_the_machine_lacks(piped: Any, tmp_path: Path, line: str, said: str) -> None:
    done = piped("tfm", "planted", before=planted(line), env={"TMPDIR": str(tmp_path)})
    assert done.returncode == 3
    assert said in sentence(done)
    assert not list(tmp_path.iterdir())


def test_details_go_to_standard_error_where_no_file_takes_them(piped: Any) -> None:
    done = piped("tfm", "planted", before=planted(LIMITED.format(0), "raise KeyError('x')"))
    assert done.returncode == 3
    assert b"Traceback (most recent call last)" in done.stderr
    assert done.stderr.endswith(b"KeyError: 'x'; the details are above\n")


def test_a_gate_and_a_signal_keep_their_codes(piped: Any) -> None:
    for code in (0, 1, 130, 143):
        lines = ("context = click.get_current_context()", f"context.exit({code})")
        assert piped("tfm", "planted", before=planted(*lines)).returncode == code
    assert piped("tfm", "planted", before=planted("import sys; sys.exit(143)")).returncode == 143


def test_a_file_that_click_cannot_open_is_bad_input(piped: Any) -> None:
    line = "raise click.FileError('x', 'gone')"
    assert piped("tfm", "planted", before=planted(line)).returncode == 2


@pytest.fixture
def commands(toys: Any, make_bundle: Any) -> list[list[str]]:
    """Commands that print by click and by rich, little and much, text and JSON."""
    bundle = make_bundle("encoder")
    toys.add_golden(Path(bundle))
    return [
        ["--help"],
        ["--version"],
        ["latency", "--help"],
        ["parity", bundle],
        ["parity", bundle, "--json"],
        ["doctor"],
        ["run", bundle, "a"],
        ["run", bundle, *["a b c"] * 2000, "--json"],
        ["planted"],
    ]


RICH = planted("from tfm.cli.screen import Screen", "Screen().print('x\\n' * 9000)")


def test_a_full_disk_under_standard_output(commands: list[list[str]], piped: Any) -> None:
    for arguments in commands:
        with open("/dev/full", "wb") as full:
            done = piped("tfm", *arguments, stdout=full, before=RICH)
        assert done.returncode == 3, arguments
        last = done.stderr.decode().splitlines()
        assert last[-1] == "tfm: standard output cannot be written to: No space left on device", arguments
        assert len(last) == 1 + (arguments[0] == "run"), last


def test_a_pipe_that_nobody_reads(commands: list[list[str]], piped: Any) -> None:
    for arguments in commands:
        reader, writer = os.pipe()
        os.close(reader)
        done = piped("tfm", *arguments, stdout=writer, before=RICH)
        os.close(writer)
        assert done.returncode == 141, arguments
        assert len(done.stderr.splitlines()) == (arguments[0] == "run"), done.stderr


def test_standard_error_that_cannot_be_written_changes_nothing(commands: list[list[str]], piped: Any) -> None:
    for arguments in commands[3:7]:
        with open("/dev/full", "wb") as full:
            done = piped("tfm", *arguments, stderr=full)
        assert done.returncode == 0
        assert done.stdout
    with open("/dev/full", "wb") as full:
        assert piped("tfm", "run", "nowhere", "a", stderr=full).returncode == 2


def test_no_streams_at_all(commands: list[list[str]], piped: Any) -> None:
    before = "import sys; sys.stdin = sys.stdout = sys.stderr = None"  # as pythonw does
    for arguments in commands[3:7]:
        assert piped("tfm", *arguments, before=before).returncode == 0
    assert piped("tfm", "run", commands[3][1], before=before).returncode == 2


def test_a_full_disk_leaves_the_old_file(export_tiny: Any, toys: Any, tmp_path: Path, piped: Any) -> None:
    from tfm.export.manifest import write_manifest

    kind = {"kind": "encoder", "activation": "gelu", "type_vocab_size": 2, "embedding_norm": True}
    one = export_tiny(**kind, positions="learned")["model"]
    folder = tmp_path / "x.tfm"
    (folder / "onnx").mkdir(parents=True)
    path = folder / "onnx" / "model.onnx"
    path.write_bytes(one.path.read_bytes())
    toys.tokenizer(by_character=False).save(str(folder / "tokenizer.json"))
    write_manifest(folder, one.graph.model.config, "own", [one.graph], {"fp32": {"model": path}}, 24, [])
    page = tmp_path / "pages" / "x.html"
    page.parent.mkdir()
    page.write_text("mine")
    fast = ["--rounds", "6", "--seconds", "0.002", "--batch-size", "1", "--seq", "3", "--starts", "0", "--no-corpus"]
    for arguments in (["inspect", folder, "a", "-o", page], ["latency", folder, *fast, "--html", page]):
        done = piped("tfm", *arguments, before=LIMITED.format(4000))
        assert done.returncode == 2, done.stderr
        assert done.stderr.decode().splitlines()[-1] == f"tfm: {page} could not be written: File too large"
        assert b"Traceback" not in done.stderr
        assert os.listdir(page.parent) == ["x.html"]
        assert page.read_text() == "mine"
        assert piped("tfm", *arguments).returncode == 0
        assert page.read_text().rstrip().endswith("</html>")
        page.write_text("mine")


def test_a_full_temporary_folder(make_bundle: Any, piped: Any) -> None:
    fast = ["--rounds", "6", "--seconds", "0.002", "--batch-size", "1", "--seq", "3"]
    done = piped("tfm", "latency", make_bundle("encoder"), *fast, before=LIMITED.format(0))
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"make room there, or name another folder by the environment variable TMPDIR" in done.stderr


def test_little_memory(make_bundle: Any, piped: Any) -> None:
    before = (
        "import numpy, tfm.cli, tfm.runtime, resource, re; "
        "used = int(re.search(r'VmSize:\\s+(\\d+)', open('/proc/self/status').read())[1]) << 10; "
        "resource.setrlimit(resource.RLIMIT_AS, (used + {0}, used + {0}))"
    )
    bundle = make_bundle("encoder")
    codes = set()
    for more in (1 << 20, 1 << 23, 1 << 26):
        done = piped("tfm", "run", bundle, "a", "--threads", 1, before=before.format(more))
        codes.add(done.returncode)
        assert b"Traceback" not in done.stderr, done.stderr
        assert done.returncode in (0, 2, 3), done.stderr
    assert codes - {0}, "it was enough for all"


def test_brackets_in_paths_and_texts(make_model: Any, tmp_path: Path, piped: Any) -> None:
    from tfm.model import save_checkpoint

    folder = tmp_path / "[red]a :smile: [b"
    folder.mkdir()
    save_checkpoint(make_model(kind="decoder"), folder / "model.pt")
    script = folder / "[i]losses.py"
    script.write_text(
        "import torch\ndef losses(model):\n    ids = torch.arange(12).reshape(2, 6)\n"
        "    return [lambda m: m(ids).logsumexp(-1).sum(1)]\n"
        "def fine_tune(model, original, say):\n    say(1, 2, '[u]x')\n"
    )
    out = folder / "x.tfm"
    done = piped("tfm-export", "--ckpt", folder / "model.pt", "-o", out, "--precision", "fp32")
    assert done.returncode == 0
    assert f"→ {out}" in done.stdout.decode()
    done = piped(
        "tfm", "prune", "--ckpt", folder / "model.pt", "--keep", 0.5, "--fine-tune", script, "-o", folder / "p"
    )
    assert done.returncode == 0, done.stderr
    assert f"fine-tuned: {script}" in done.stdout.decode().replace("\n", "")
    assert f"→ {folder / 'p'}" in done.stdout.decode()
    assert "fine-tune by " in done.stderr.decode()
    assert str(script) in done.stderr.decode().replace("\n", "")


def test_code_of_the_user_s_that_ends_python_is_no_verdict(make_model: Any, tmp_path: Path, piped: Any) -> None:
    from tfm.model import save_checkpoint

    save_checkpoint(make_model(kind="decoder"), tmp_path / "model.pt")
    (tmp_path / "bye.py").write_text("raise SystemExit(1)\n")
    arguments = [
        "--ckpt",
        tmp_path / "model.pt",
        "--keep",
        0.5,
        "--fine-tune",
        tmp_path / "bye.py",
        "-o",
        tmp_path / "p",
    ]
    done = piped("tfm", "prune", *arguments)
    assert done.returncode == 3
    assert b"Python code that was imported ended the command, with exit code 1" in done.stderr


def test_the_certificate_is_json_on_a_full_disk_too(make_bundle: Any, toys: Any, tmp_path: Path, piped: Any) -> None:
    bundle = make_bundle("encoder")
    toys.add_golden(Path(bundle))
    with open(tmp_path / "out.json", "wb") as file:
        done = piped("tfm", "parity", bundle, "--json", stdout=file, before=LIMITED.format(100))
    assert done.returncode == 3
    assert b"standard output cannot be written to: File too large" in done.stderr
    with open(tmp_path / "out.json", "wb") as file:
        assert piped("tfm", "parity", bundle, "--json", stdout=file).returncode == 0
    assert json.loads((tmp_path / "out.json").read_text())["faults"] == []
