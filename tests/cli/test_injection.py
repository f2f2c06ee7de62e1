"""Nothing that a bundle, a text or a path holds is obeyed by a terminal, nor is anything altered in a pipe."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tfm.cli.streams import Output, printable

EVIL = "\x1b]0;owned\x07\x1b[8m\x9b2J\u202eX\r\x7f"
"""A title, hidden text, a screen cleared by a C1 control, a direction that turns, and a line that is rewritten."""
SHOWN = r"\x1b]0;owned\x07\x1b[8m\x9b2J\u202eX\r\x7f"
OWN = re.compile(r"\x1b\[\??[\d;]*[mhlKAGJ]|\r\n")
"""What rich and click write: colors, the cursor, and the terminal's own ends of lines."""


def assert_harmless(got: bytes, shown: str = SHOWN) -> None:
    text = got.decode()
    assert shown in text
    assert "\x1b[8m" not in text
    rest = OWN.sub("", text).replace("\r", "") if "\x1b[?25l" in text else OWN.sub("", text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", rest), repr(rest)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (EVIL, SHOWN),
        ("a\tb\nc", "a\tb\nc"),
        ("naïve 你好 👩‍👩‍👧 नमस्ते می‌خواهم \u3000\xa0", "naïve 你好 👩‍👩‍👧 नमस्ते می‌خواهم \u3000\xa0"),
        ("\u2066\u2069\u200f\u061c\u2028\ud800\U000e0041", r"\u2066\u2069\u200f\u061c\u2028\ud800\U000e0041"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


@pytest.mark.parametrize("option", [[], ["--stream"]])
def test_generated_text(make_bundle: Any, respell: Any, on_terminal: Any, piped: Any, option: list[str]) -> None:
    bundle = respell(make_bundle("counter"), "b", EVIL + "[red]:smile:\n\t.")
    arguments = ["tfm", "run", bundle, "a", "--max-new-tokens", 1, *option]
    code, got = on_terminal(*arguments)
    assert code == 0
    end = "[red]:smile:\r\n\t." if option else r"[red]:smile:\n\t."
    assert_harmless(got, (SHOWN if option else SHOWN.replace(r"\r", r"\r")) + end)
    done = piped(*arguments)
    raw = (EVIL + "[red]:smile:\n\t." if option else EVIL.replace("\r", r"\r") + r"[red]:smile:\n\t.").encode()
    assert raw in done.stdout


def test_labels(toys: Any, tmp_path: Path, on_terminal: Any, piped: Any) -> None:
    parts, manifest = toys.encoder_parts()
    for name, model in parts.items():
        for value in (*model.graph.output, *model.graph.node):
            rename(value)
        parts[name] = model
    manifest["signature"]["model"]["outputs"][1]["name"] = "logits"
    manifest["config"] = {"labels": [f"{EVIL}{number}" for number in range(toys.D)]}
    toys.KINDS["labeled"] = lambda: (parts, manifest)
    try:
        bundle = toys.write_bundle(tmp_path / "x.tfm", "labeled")
    finally:
        del toys.KINDS["labeled"]
    code, got = on_terminal("tfm", "run", bundle, "a b")
    assert code == 0
    assert_harmless(got)
    assert EVIL.replace("\r", r"\r").encode() in piped("tfm", "run", bundle, "a b").stdout
    label = json.loads(piped("tfm", "run", bundle, "a b", "--json").stdout)["results"][0]["labels"][0]["label"]
    assert label[:-1] == EVIL


def rename(value: Any) -> None:
    """Call the sentence embedding logits."""
    if hasattr(value, "op_type"):
        value.output[:] = ["logits" if name == "sentence_embedding" else name for name in value.output]
    elif value.name == "sentence_embedding":
        value.name = "logits"


def test_names_of_outputs(toys: Any, make_bundle: Any, on_terminal: Any, piped: Any) -> None:
    """As a certificate's and a golden's; found wrong too, so that the faults name them."""
    bundle = Path(make_bundle("encoder"))
    toys.add_golden(bundle)
    before = f"""
import dataclasses, tfm.runtime
check = tfm.runtime.check_golden
def planted(*args, **options):
    report = check(*args, **options)
    graph = report.graphs[0]
    outputs = tuple(dataclasses.replace(output, name={EVIL!r}, fault="is off") for output in graph.outputs)
    return dataclasses.replace(report, graphs=(dataclasses.replace(graph, outputs=outputs),))
tfm.runtime.check_golden = planted
"""
    code, got = on_terminal("tfm", "parity", bundle, before=before)
    assert code == 1
    assert_harmless(got)
    assert EVIL.encode() in piped("tfm", "parity", bundle, before=before).stdout


def test_what_was_typed_and_errors(make_bundle: Any, on_terminal: Any, piped: Any) -> None:
    bundle = make_bundle("copier")
    for arguments in (
        ["run", f"{EVIL}.tfm", "a"],
        ["run", bundle, EVIL],
        ["run", bundle, "a", "--task", EVIL],
        ["run", bundle, "a", "--precision", EVIL],
        ["doctor", f"{EVIL}.tfm"],
        ["inspect", f"{EVIL}.tfm", "a"],
        ["prune", "--ckpt", f"{EVIL}.pt", "--keep", "0.5"],
        [f"--{EVIL}"],
        [EVIL],
    ):
        code, got = on_terminal("tfm", *arguments)
        assert code == (1 if arguments[0] == "doctor" else 2), arguments
        assert_harmless(got, r"\x1b]0;owned\x07")
    said = piped("tfm", "run", f"{EVIL}.tfm", "a").stderr.decode()
    assert EVIL in said


def test_a_look_inside(tmp_path: Path, export_tiny: Any, toys: Any, on_terminal: Any) -> None:
    from tfm.export.manifest import write_manifest

    kind = {"kind": "encoder", "activation": "gelu", "type_vocab_size": 2, "embedding_norm": True}
    one = export_tiny(**kind, positions="learned")["model"]
    folder = tmp_path / f"[red]{EVIL}.tfm"
    (folder / "onnx").mkdir(parents=True)
    path = folder / "onnx" / "model.onnx"
    path.write_bytes(one.path.read_bytes())
    toys.tokenizer(by_character=False).save(str(folder / "tokenizer.json"))
    write_manifest(folder, one.graph.model.config, "own", [one.graph], {"fp32": {"model": path}}, 24, [])
    code, got = on_terminal("tfm", "inspect", folder, f"a {EVIL}[/red] [bold]b:smile:", "-o", folder / "[i]x.html")
    assert code == 0
    assert_harmless(got, r"\x1b]0;owned\x07")
    text = OWN.sub("", got.decode())
    for literal in ("[red]", "[/red] [bold]b:smile:", "[i]x.html"):
        assert literal in text


def test_stages_and_what_prints_by_itself(on_terminal: Any) -> None:
    """A stage with its step, a bar, a warning, and print(): none of them knows of terminals."""
    before = f"""
import click, tfm.cli, warnings
@click.command()
def planted():
    from tfm.cli.screen import Screen
    from tfm.cli.stage_progress import show_stage
    from rich.table import Table
    evil = {EVIL!r}
    with show_stage(Screen(err=True), "[red]" + evil) as step:
        step(1, 3, "[bold]" + evil)
        import time; time.sleep(0.3)
    table = Table("[i]" + evil)
    table.add_row("[b]" + evil)
    Screen().print(table)
    print(evil)
    warnings.warn(evil)
    raise ValueError(evil)
tfm.cli.tfm.add_command(planted)
"""
    code, got = on_terminal("tfm", "planted", before=before)
    assert code == 3
    text = got.decode()
    assert text.count(r"\x1b]0;owned") >= 8
    assert all(f"[{tag}]" in text for tag in ("red", "bold", "i", "b"))
    assert "\x1b]" not in text
    assert "\x1b[8m" not in text
    assert "\x9b" not in text
    assert "\u202e" not in text


def test_a_terminal_s_line_of_progress_is_still_rewritten(on_terminal: Any) -> None:
    before = """
import click, tfm.cli
@click.command()
def planted():
    from tfm.runtime.progress import reporter
    with reporter(True, 1) as tell:
        tell(1)
tfm.cli.tfm.add_command(planted)
"""
    code, got = on_terminal("tfm", "planted", before=before)
    assert (code, got) == (0, b"\r1/1 (100%), 0:00\r\n")


def test_bytes_do_not_pass_by() -> None:
    import sys

    assert not hasattr(Output(sys.stdout), "buffer")
