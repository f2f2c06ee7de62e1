import json
import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def make_bundle(toys, tmp_path):
    return lambda kind, **changes: str(toys.write_bundle(tmp_path / kind, kind, **changes))


@pytest.fixture
def respell(toys):
    """Give a toy bundle another token in the place of one of the letters a … h, digests and all."""

    def change(folder, letter, token):
        file = Path(folder) / "tokenizer.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"]
        vocabulary[token] = vocabulary.pop(letter)
        file.write_text(json.dumps(content), encoding="utf-8")
        toys.write_manifest(Path(folder), json.loads((Path(folder) / "manifest.json").read_text()))
        return folder

    return change


@pytest.fixture
def piped():
    """Run a command between pipes."""
    return run_piped


@pytest.fixture
def on_terminal():
    """Run a command on a terminal."""
    return run_on_terminal


@pytest.fixture
def chatty(make_bundle, toys):
    """Make a toy that counts letters, whose chats are their messages one behind the other."""

    def make(**changes):
        folder = Path(make_bundle("counter", **changes))
        (folder / "chat_template.jinja").write_text(
            "{% for m in messages %}{{ m.content }}"
            "{% if m.role == 'system' and m.content != 'a' %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
        )
        toys.write_manifest(folder, json.loads((folder / "manifest.json").read_text()))
        return str(folder)

    return make


COMMAND = """
import sys
from tfm.cli import export, main
(export if sys.argv[1] == "tfm-export" else main)(sys.argv[2:])
"""
PATIENCE = 300  # seconds, for what takes 10 on an idle machine


def command(arguments: Sequence[object], before: str = "") -> list[str]:
    """`tfm` or `tfm-export` with its arguments, in the tests' Python; `before` is run first."""
    return [sys.executable, "-c", f"{before}\n{COMMAND}", *map(str, arguments)]


def run_piped(
    *arguments: object, before: str = "", env: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run a command between pipes."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    streams |= {} if "input" in streams or "stdin" in streams else {"stdin": subprocess.DEVNULL}
    return subprocess.run(
        command(arguments, before), env=os.environ | (env or {}), timeout=PATIENCE, check=False, **streams
    )


def run_on_terminal(*arguments: object, env: dict[str, str] | None = None, before: str = "") -> tuple[int, bytes]:
    """Run a command whose output and errors are a terminal; gives its exit code and all that the terminal got."""
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "200"} | (env or {})
    process = subprocess.Popen(
        command(arguments, before), stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, env=environment
    )
    os.close(slave)
    got = b""
    while True:
        try:
            part = os.read(master, 1 << 16)
        except OSError:  # Linux: the other end is closed
            break
        if not part:
            break
        got += part
    os.close(master)
    return process.wait(PATIENCE), got
