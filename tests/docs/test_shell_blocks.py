"""Every command that a page shows is one that there is; of `tfm…`, click's own parser takes options and arguments."""

import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = importlib.import_module("tfm.cli").tfm
LANGUAGES = {"python", "js", "sh", "console", "text"}
SYSTEM = {"printf", "echo", "tail", "cat", "cd", "git", "openssl", "curl", "npm", "node", "cmake", "build/c/embed"}
"""Programs that every system has, of which no more is checked."""


def command_lines(block: Any) -> Iterator[str]:
    """What a reader types: every line of a script, and of a session those behind a prompt."""
    source = block.source.replace("\\\n", " ")
    for line in source.splitlines():
        if block.language == "sh":
            yield line
        elif block.language == "console" and line.startswith("$ "):
            yield line.removeprefix("$ ")


def programs(line: str) -> Iterator[list[str]]:
    """The words of each program of a command line, without its comment."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if set(word) <= set("|;&"):
            yield words
            words = []
        else:
            words.append(word)
    if words:
        yield words


def check_line(line: str) -> None:
    """Fail unless a command line is one that runs."""
    for words in programs(line):
        check(words)


def check(words: list[str]) -> None:
    """Fail unless there is such a program with such arguments."""
    name, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
    if name == "tfm-export":
        parse(COMMANDS.get_command(click.Context(COMMANDS), "export"), arguments)
    elif name == "tfm":
        command = COMMANDS.get_command(click.Context(COMMANDS), arguments[0])
        assert command is not None, f"tfm has no command {arguments[0]!r}"
        parse(command, arguments[1:])
    elif name == "make":
        check_make(arguments)
    elif name == "pip":
        check_pip(arguments)
    elif name == "python":
        check_python(arguments)
    elif name in ("pytest", "ruff", "mypy", "pre-commit"):
        paths = [word for word in arguments if "/" in word]
        assert all((ROOT / path.partition("::")[0]).exists() for path in paths), paths
    else:
        assert name in SYSTEM, f"nobody knows the program {name!r}"


def parse(command: click.Command, arguments: list[str]) -> None:
    """Let click read the arguments, and run nothing."""
    command.make_context(command.name, list(arguments)).close()


def check_make(arguments: list[str]) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    wanted = {word for word in arguments if "=" not in word}
    assert wanted <= targets, f"the Makefile has no {wanted - targets}"


def check_pip(arguments: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert arguments[0] == "install"
    for extra in re.findall(r"\[(.*?)\]", " ".join(arguments)):
        assert set(extra.split(",")) <= set(project["optional-dependencies"]), f"there is no extra {extra}"


def check_python(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        # Of a checkout, and no part of the package.
        ours = (ROOT / arguments[1].replace(".", "/") / "__main__.py").is_file()
        assert ours or importlib.util.find_spec(arguments[1]) is not None, f"there is no module {arguments[1]}"
    else:
        assert (ROOT / arguments[0]).is_file(), f"there is no {arguments[0]}"


def test_every_block_is_of_a_language_that_is_checked(blocks: list[Any]) -> None:
    for block in blocks:
        assert block.language in LANGUAGES, f"{block.place}: {block.language!r}, not one of {', '.join(LANGUAGES)}"


def test_every_command_line_of_a_block_parses(blocks: list[Any]) -> None:
    for block in blocks:
        lines = list(command_lines(block))
        assert lines or block.language not in ("sh", "console"), f"{block.place} shows no command"
        for line in lines:
            try:
                check_line(line)
            except (click.ClickException, AssertionError) as error:
                message = error.format_message() if isinstance(error, click.ClickException) else str(error)
                pytest.fail(f"{block.place}: {line}: {message}")


def inline(page: str) -> list[str]:
    """The code within the sentences and tables of a page."""
    text = re.sub(r"^(```|~~~).*?^\1", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def test_every_command_within_a_sentence_parses(page: str) -> None:
    for code in inline(page):
        words = code.split()
        if words[0] not in ("tfm", "tfm-export", "make") or "…" in code or len(words) == 1:
            continue
        if words[0] == "tfm" and len(words) == 2:
            assert COMMANDS.get_command(click.Context(COMMANDS), words[1]) is not None, code
            continue
        try:
            check_line(code)
        except (click.ClickException, AssertionError) as error:
            pytest.fail(f"{page}: {code}: {error}")


def test_every_option_within_a_sentence_is_one_of_a_command(page: str) -> None:
    known = {
        name
        for command in COMMANDS.commands.values()
        for parameter in command.params
        for name in [*parameter.opts, *parameter.secondary_opts]
    }
    named = {code.split()[0] for code in inline(page) if code.startswith("--")} - {"--help"}
    assert named <= known, f"{page} names {named - known}"


@pytest.mark.parametrize(
    "line",
    [
        "tfm-export --chpt model.pt",
        "tfm paritty model.tfm",
        "tfm parity",
        "tfm quantize model.tfm --precision int3",
        "cat x | tfm run model.tfm --task embedd",
        "make demos",
        "pip install 'tfm-export[texts]'",
        "python examples/nothing.py",
        "optimum-cli export onnx",
    ],
)
def test_a_command_line_that_is_wrong_is_found(line: str) -> None:
    with pytest.raises((click.ClickException, AssertionError)):
        check_line(line)
