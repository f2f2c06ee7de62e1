import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from tfm.cli.answers import to_text
from tfm.cli.run import run
from tfm.errors import BundleError, InputError, ProviderError, RunTimeoutError
from tfm.runtime import load


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
    assert invoke(bundle, text="abc d\n\ne\n").stdout == "abc\ta b c\nd\td\n\ne\te\n"


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


def test_blank_texts_are_no_text(make_bundle):
    assert invoke(make_bundle("copier"), " ").exit_code == 2


def test_usage(make_bundle):
    result = invoke(make_bundle("encoder"), "a", "--max-new-tokens", "3")
    assert result.exit_code == 2
    assert "--max-new-tokens is for bundles that generate; the task here is embed" in result.stderr
    assert invoke("x", "a", "--provider", "tpu").exit_code == 2
    assert invoke("x", "a", "--threads", "0").exit_code == 2


@pytest.mark.parametrize(
    ("kind", "args", "error", "message"),
    [
        (None, ["a"], BundleError, "nowhere is not there"),
        ("copier", ["a", "--precision", "int8"], BundleError, "has no 'int8' graph; it has: fp32"),
        ("copier", ["a", "--provider", "cuda"], ProviderError, "CUDAExecutionProvider"),
        ("copier", ["aßb"], InputError, "'ß' in the text 'aßb' (at 1) is not in the model's vocabulary"),
        ("copier", ["a", "--temperature", "2"], InputError, "temperature=2.0 has no effect without do_sample=True"),
    ],
)
def test_errors_are_left_to_the_group(make_bundle, monkeypatch, kind, args, error, message):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    result = invoke(make_bundle(kind) if kind else "nowhere", *args)
    assert type(result.exception) is error
    assert message in str(result.exception)


@pytest.mark.parametrize(
    ("kind", "args", "message"),
    [
        ("encoder without pooling", ["a"], "has no task for texts: open it with tfm.runtime.load and call run()"),
        ("tower", ["a"], "this bundle takes arrays, not texts"),
        ("encoder", ["a", "--task", "fill-mask"], "has no task fill-mask; it has: embed"),
        ("copier", ["a", "--task", "embed"], "has no task embed; it has: generate, translate"),
        ("encoder", ["a", "--stream"], "--stream is for bundles that generate; the task here is embed"),
        ("encoder", ["a", "--top-k", "2"], "--top-k is for bundles that generate; the task here is embed"),
        ("copier", ["a", "--stream", "--json"], "--stream and --json exclude each other"),
        ("copier", ["a", "--file", "-"], "TEXT and --file exclude each other"),
    ],
)
def test_more_usage(make_bundle, kind, args, message):
    result = invoke(make_bundle(kind), *args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_a_blank_text_among_others_has_an_empty_result(make_bundle):
    assert invoke(make_bundle("encoder"), "a", " ").stdout.splitlines()[1] == "  2"
    result = json.loads(invoke(make_bundle("copier"), "a", "", "--json").stdout)
    assert result["results"] == [{"text": "a", "output": "a"}, {"text": "", "output": None}]


def test_each_line_gives_a_line(make_bundle, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_bytes(b"a\x0bb\r\n\nc\td\n \ne")  # a vertical tab ends no line
    bundle = make_bundle("encoder")
    rows = invoke(bundle, "--file", str(lines)).stdout.split("\n")
    assert [row.split("\t")[0] for row in rows] == ["a\x0bb", "", "c\\td", "", "e", ""]
    assert [row.count("\t") for row in rows] == [1, 0, 1, 0, 1, 0]
    objects = [json.loads(line) for line in invoke(bundle, "--file", str(lines), "--json").stdout.splitlines()]
    assert [one["text"] for one in objects] == ["a\x0bb", "", "c\td", " ", "e"]
    assert [one["embedding"] and len(one["embedding"]) for one in objects] == [4, None, 4, None, 4]


def test_what_comes_before_a_line_that_is_refused_is_printed(make_bundle):
    result = invoke(make_bundle("copier"), text="ab c\n\nd\nx\ne\n")
    assert result.stdout == "ab\ta b\nc\tc\n\nd\td\n"
    assert type(result.exception) is InputError
    assert str(result.exception).startswith("line 4 of standard input: 'x' in the text 'x' (at 0) is not in the model")
    streamed = invoke(make_bundle("counter"), "--stream", text="h\n\nx\ne\n")
    assert streamed.stdout == "\n\n"  # after h, the last id, is the end
    assert str(streamed.exception).startswith("line 3 of standard input: 'x'")


def test_lines_that_are_not_utf8(make_bundle):
    result = invoke(make_bundle("copier"), text=b"a\nb\nc\xff\n")
    assert result.stdout == "a\ta\nb\tb\n"
    assert "line 3 of standard input is not UTF-8 (invalid start byte at its byte 1)" in str(result.exception)


def test_no_lines(make_bundle):
    bundle = make_bundle("copier")
    assert invoke(bundle, "--file", "-", text="b").stdout == "b\tb\n"
    result = invoke(bundle)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.endswith("standard input has no lines\n")


def test_many_lines_keep_their_order(make_bundle):
    letters = ["abcdefgh"[number % 8] * (number % 5) for number in range(1000)]
    rows = invoke(make_bundle("copier"), text="\n".join(letters) + "\n").stdout.split("\n")[:-1]
    assert rows == [f"{text}\t{' '.join(text)}" if text else "" for text in letters]


def test_long_texts_are_cut_but_not_in_json(make_bundle):
    bundle, text = make_bundle("encoder"), "a " * 30
    row = invoke(bundle, text).stdout
    assert row.startswith("  1  " + text[:39] + "…  [4]  ")
    assert invoke(bundle, text=text).stdout.startswith(text[:39] + "…\t[4]  ")
    assert json.loads(invoke(bundle, text, "--json").stdout)["results"][0]["text"] == text


def test_streams_are_what_is_generated(make_bundle):
    assert invoke(make_bundle("copier"), "abc", "d", "--stream").stdout == "a b c\nd\n"
    assert invoke(make_bundle("counter"), "--stream", "--stop", "f", text="b\ng\n").stdout == "c d e \nh\n"


def test_beams_and_translate(make_bundle):
    result = invoke(make_bundle("copier"), "ab", "--num-beams", "2", "--task", "translate")
    assert result.stdout == "ab  a b\n"


def test_chats(chatty, make_bundle):
    bundle = chatty()
    assert invoke(bundle, "ab", "c", "--chat", "--max-new-tokens", "1").stdout == "ab  c\nc   d\n"
    assert invoke(bundle, "b", "--system", "a", "--max-new-tokens", "2", "--stream").stdout == "c d\n"
    lines = '{"messages": [{"role": "user", "content": "c"}, {"role": "user", "content": "d"}], "id": 3}\n"a"\n'
    result = invoke(bundle, "--jsonl", "--max-new-tokens", "1", "--json", "--chat", text=lines)
    assert result.exception is None, result.exception
    first, second = map(json.loads, result.stdout.splitlines())
    assert (first["output"], first["input"]["id"], second["output"]) == ("e", 3, "b")
    assert "the bundle's chat template refuses the messages: no" in str(invoke(bundle, "b", "--system", "c").exception)
    assert "has no chat_template.jinja" in str(invoke(make_bundle("copier"), "b", "--chat").exception)
    result = invoke(make_bundle("encoder"), "b", "--chat")
    assert "--chat is for bundles that generate; the task here is embed" in result.stderr


def test_a_form_that_is_asked_for(make_bundle, tmp_path):
    bundle, schema = make_bundle("copier"), tmp_path / "schema.json"
    for options, words in {
        ("--regex", "(a"): "regex: at 1(8): invalid regex",
        ("--json-schema", '{"type": "objct"}'): "json_schema: Invalid type: objct",
        ("--json-schema", f"@{schema}"): f"--json-schema: {schema} cannot be read: ",
    }.items():
        result = invoke(bundle, "ab", *options)
        assert str(result.exception).startswith(words), result.exception
    schema.write_text('{"type": "strng"}')
    assert str(invoke(bundle, "ab", "--json-schema", f"@{schema}").exception) == "json_schema: Invalid type: strng"


def test_a_timeout(make_bundle):
    result = invoke(make_bundle("copier"), "ab", "--timeout", "0")
    assert type(result.exception) is RunTimeoutError


def test_a_seed_does_not_depend_on_what_is_drawn_together(make_bundle):
    bundle, sampling = make_bundle("counter"), ["--do-sample", "--temperature", "9"]
    texts = list("abcdeabcde")
    expected = []
    for number, text in enumerate(texts):
        model = load(bundle, provider="cpu")
        expected += model.generate([text], do_sample=True, temperature=9.0, seed=5 + number)
    assert len(set(expected)) == 10  # so that another seed, or the same for all, would show
    lines = invoke(bundle, *sampling, "--seed", "5", text="\n".join(texts)).stdout.splitlines()
    assert [line.split("\t", 1)[1] for line in lines] == expected
    together = json.loads(invoke(bundle, *texts, *sampling, "--seed", "5", "--json").stdout)
    assert [one["output"] for one in together["results"]] == expected
    streamed = invoke(bundle, *sampling, "--seed", "5", "--stream", text="\n".join(texts)).stdout
    assert streamed.splitlines() == expected


@pytest.mark.parametrize(
    ("task", "result", "text"),
    [
        ("classify", [{"label": "good", "score": 0.98765}, {"label": "bad", "score": 0.01}], "good 0.988  bad 0.010"),
        ("fill_mask", [{"token_str": " cat", "score": 0.5}], "cat 0.500"),
        ("classify_tokens", [{"word": "Rome", "entity": "LOC", "score": 1.0}], "Rome=LOC 1.000"),
        ("generate", "a\nb\tc\rd", "a\\nb\\tc\\rd"),
    ],
)
def test_results_as_text(task, result, text):
    assert to_text(task, result) == text


def test_help_does_not_wait_for_onnxruntime():
    code = "import sys, tfm.cli.run; print({'onnxruntime', 'torch', 'onnx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
