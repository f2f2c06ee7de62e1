import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
from click.testing import CliRunner

from tfm.cli.run import run
from tfm.errors import BundleError, InputError, ProviderError

CONFTEST = Path(__file__).parents[1] / "runtime" / "conftest.py"


@pytest.fixture(scope="session")
def toys():
    """The hand-built bundles of tests/runtime."""
    spec = importlib.util.spec_from_file_location("toy_bundles", CONFTEST)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def make_bundle(toys, tmp_path):
    return lambda kind, **changes: str(toys.write_bundle(tmp_path / kind, kind, **changes))


def invoke(*args, text=""):
    return CliRunner().invoke(run, ["--provider", "cpu", *args], input=text)


def test_generation_in_two_columns(make_bundle):
    result = invoke(make_bundle("copier"), "abc", "a", "--threads", "1")
    assert result.exit_code == 0
    assert result.stdout == "abc  a b c\na    a\n"
    assert result.stderr == "cpu · fp32 · 1 thread\n"


def test_words_have_a_line_each(make_bundle):
    bundle = make_bundle("copier")
    assert invoke(bundle, "abc d", "e").stdout == "abc  a b c\nd    d\ne    e\n"
    assert invoke(bundle, text="abc d\n\ne\n").stdout == "abc  a b c\nd    d\ne    e\n"


def test_a_decoder(make_bundle):
    assert invoke(make_bundle("counter"), "f", "--max-new-tokens", "1").stdout == "f  g\n"


def test_generation_as_json(make_bundle):
    result = invoke(make_bundle("copier"), "ab c", "--json")
    assert json.loads(result.stdout) == {
        "provider": "cpu",
        "precision": "fp32",
        "results": [{"text": "ab", "output": "a b"}, {"text": "c", "output": "c"}],
    }


def test_embeddings(make_bundle, toys):
    result = invoke(make_bundle("encoder"), "a b", "b", "--precision", "fp32")
    assert result.exit_code == 0
    first, second, empty, title, numbers, *rows = result.stdout.splitlines()
    values = toys.TABLE_VD[[1, 4, 5, 2]].mean(0)
    assert first == "  1  a b  [4]  " + " ".join(f"{value:+.4f}" for value in values)
    assert second.startswith("  2  b    [4]  ")
    assert (empty, title, numbers.split()) == ("", "cosine similarity", ["1", "2"])
    other = toys.TABLE_VD[[1, 5, 2]].mean(0)
    cosine = f"{values @ other / np.linalg.norm(values) / np.linalg.norm(other):.3f}"
    assert [row.split() for row in rows] == [["1", "1.000", cosine], ["2", cosine, "1.000"]]


def test_one_embedding_is_compared_with_nothing(make_bundle):
    result = invoke(make_bundle("encoder"), "a b")
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr.startswith("cpu · int8 · ")


def test_many_embeddings_make_no_table(make_bundle):
    assert len(invoke(make_bundle("encoder"), text="a\n" * 13).stdout.splitlines()) == 13


def test_embeddings_as_json(make_bundle, toys):
    result = json.loads(invoke(make_bundle("encoder"), "a", "--json").stdout)
    assert (result["provider"], result["precision"]) == ("cpu", "int8")
    assert result["results"][0]["text"] == "a"
    np.testing.assert_allclose(result["results"][0]["embedding"], 2 * toys.TABLE_VD[[1, 4, 2]].mean(0), atol=1e-6)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_no_text(make_bundle, text):
    result = invoke(make_bundle("copier"), text=text)
    assert result.exit_code == 2
    assert "there is no text: give TEXT after BUNDLE, or lines on standard input" in result.stderr


def test_a_terminal_is_not_read(monkeypatch):
    def read():
        raise AssertionError("waits for a person to type")

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True, read=read))
    with pytest.raises(click.UsageError, match="there is no text: give TEXT after BUNDLE"):
        run.main(["bundle"], standalone_mode=False)


def test_blank_texts_are_no_text(make_bundle):
    assert invoke(make_bundle("copier"), " ").exit_code == 2


def test_usage(make_bundle):
    result = invoke(make_bundle("encoder"), "a", "--max-new-tokens", "3")
    assert result.exit_code == 2
    assert "--max-new-tokens is for bundles that generate; this one embeds" in result.stderr
    assert invoke("x", "a", "--provider", "tpu").exit_code == 2
    assert invoke("x", "a", "--threads", "0").exit_code == 2


@pytest.mark.parametrize(
    ("kind", "args", "error", "message"),
    [
        (None, ["a"], BundleError, "nowhere is not there"),
        ("copier", ["a", "--precision", "int8"], BundleError, "has no 'int8' graph; it has: fp32"),
        ("copier", ["a", "--provider", "cuda"], ProviderError, "CUDAExecutionProvider"),
        ("copier", ["aßb"], InputError, "'ß' in the text 'aßb' (at 1) is not in the model's vocabulary"),
        ("encoder without pooling", ["a"], InputError, "has no sentence_embedding"),
    ],
)
def test_errors_are_left_to_the_group(make_bundle, monkeypatch, kind, args, error, message):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    result = invoke(make_bundle(kind) if kind else "nowhere", *args)
    assert type(result.exception) is error
    assert message in str(result.exception)


def test_help_does_not_wait_for_onnxruntime():
    code = "import sys, tfm.cli.run; print({'onnxruntime', 'torch', 'onnx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
