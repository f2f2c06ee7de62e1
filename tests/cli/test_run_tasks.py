"""Every task of `tfm run`, of one text and of many, by tabs and by JSON lines."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests.support.task_models import make, quick
from tfm.cli.answers import to_text
from tfm.cli.items import Items
from tfm.cli.run import run
from tfm.errors import InputError
from tfm.runtime import load

pytest.importorskip("torch", reason="what the checkpoints are made with")
pytest.importorskip("transformers", reason="what the checkpoints are made with")

HEADS = {
    "rank": ("ForSequenceClassification", {"num_labels": 1}),
    "classify_zero_shot": ("ForSequenceClassification", {"id2label": {0: "contradiction", 1: "entailment"}}),
    "classify_tokens": ("ForTokenClassification", {"id2label": {0: "O", 1: "B-PLACE", 2: "I-PLACE"}}),
    "answer": ("ForQuestionAnswering", {}),
}
QUESTION, CONTEXT = "who lives in paris?", "the capital of france is paris, and what it does not say"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    made: dict[str, str] = {}

    def of(task: str) -> str:
        if task not in made:
            folder = tmp_path_factory.mktemp("run")
            head, options = HEADS[task]
            make("bert", head, folder / "checkpoint", **options)
            made[task] = str(quick(folder / "checkpoint", folder / "x.tfm"))
        return made[task]

    return of


def invoke(*args: str, text: str = "") -> Result:
    return CliRunner().invoke(run, ["--provider", "cpu", *args], input=text)


def rows_of(result: Result) -> list[Any]:
    assert result.exit_code == 0, result.stderr or result.exception
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_rank(bundle: Callable[[str], str]) -> None:
    folder = bundle("rank")
    expected = load(folder, provider="cpu").rank(QUESTION, [CONTEXT, "walk", "a town"], top_k=2)
    lines = f"{QUESTION}\t{CONTEXT}\twalk\ta town\n"
    [row] = rows_of(invoke(folder, "--task", "rank", "--top-k", "2", "--json", text=lines))
    assert row == {"text": lines[:-1], "documents": expected}
    value = {"query": QUESTION, "documents": [CONTEXT, "walk", "a town"], "id": 7}
    [row] = rows_of(invoke(folder, "--task", "rank", "--top-k", "2", "--json", "--jsonl", text=json.dumps(value)))
    assert row == {"input": value, "documents": expected}
    shown = invoke(folder, "--task", "rank", f"{QUESTION}\t{CONTEXT}\twalk").stdout
    assert [word for word in shown.split()[-4:] if word in "12"] == ["1", "2"] or "2" in shown


def test_pairs_are_labeled(bundle: Callable[[str], str]) -> None:
    folder = bundle("rank")
    expected = load(folder, provider="cpu").classify([(QUESTION, CONTEXT), ("a", "town")])
    text = f"{QUESTION}\t{CONTEXT}\na\ttown\n"
    assert [row["labels"] for row in rows_of(invoke(folder, "--pairs", "--json", text=text))] == expected
    values = [[QUESTION, CONTEXT], {"text": "a", "text_pair": "town"}]
    found = rows_of(invoke(folder, "--jsonl", "--json", text="\n".join(map(json.dumps, values))))
    assert [row["labels"] for row in found] == expected
    assert [row["input"] for row in found] == values


def test_answers(bundle: Callable[[str], str]) -> None:
    folder = bundle("answer")
    [expected] = load(folder, provider="cpu").answer((QUESTION, CONTEXT), 2, max_answer_len=4)
    args = [folder, "--top-k", "2", "--max-answer-len", "4"]
    [row] = rows_of(invoke(*args, "--json", text=f"{QUESTION}\t{CONTEXT}"))
    assert row["answers"] == expected
    value = json.dumps({"question": QUESTION, "context": CONTEXT})
    assert rows_of(invoke(*args, "--jsonl", "--json", text=value))[0]["answers"] == expected
    assert expected[0]["answer"] in invoke(*args, f"{QUESTION}\t{CONTEXT}").stdout


def test_labels_that_the_model_has_never_seen(bundle: Callable[[str], str]) -> None:
    folder = bundle("classify_zero_shot")
    args = [folder, "--task", "classify-zero-shot", "--candidate-labels", "a town, walk", "--multi-label"]
    [expected] = load(folder, provider="cpu").classify_zero_shot(CONTEXT, ["a town", "walk"], multi_label=True)
    result = json.loads(invoke(*args, "--json", CONTEXT).stdout)
    assert result["results"] == [{"text": CONTEXT, "labels": expected}]
    refused = invoke(folder, "--task", "classify-zero-shot", CONTEXT)
    assert refused.exit_code == 2
    assert "classify-zero-shot needs --candidate-labels" in refused.stderr


def test_entities(bundle: Callable[[str], str]) -> None:
    folder = bundle("classify_tokens")
    [expected] = load(folder, provider="cpu").classify_tokens(CONTEXT, aggregation="simple")
    [row] = rows_of(invoke(folder, "--aggregation", "simple", "--json", text=CONTEXT))
    assert row["entities"] == expected
    assert f"={expected[0]['entity_group']} " in invoke(folder, "--aggregation", "simple", CONTEXT).stdout


def test_forms_of_embeddings(make_bundle: Callable[..., str]) -> None:
    folder = make_bundle("encoder")
    model = load(folder, provider="cpu")
    [row] = rows_of(invoke(folder, "--dtype", "binary", "--dimensions", "3", "--json", text="a b"))
    assert row["embedding"] == model.embed("a b", dtype="binary", dimensions=3)[0].tolist()
    [row] = rows_of(invoke(folder, "--normalize", "--json", text="a b"))
    np.testing.assert_allclose(np.linalg.norm(row["embedding"]), 1, rtol=1e-6)
    assert "cosine" not in invoke(folder, "--dtype", "binary", "a", "b").stdout


def test_a_text_that_was_cut_is_named(make_bundle: Callable[..., str]) -> None:
    result = invoke(make_bundle("encoder"), "a " * 30, "b")
    assert "warning: inputs[0] has more tokens than the 8 that are read" in result.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--aggregation", "max"], "--aggregation is for classify-tokens; the task here is embed"),
        (["--candidate-labels", "a"], "--candidate-labels is for classify-zero-shot; the task here is embed"),
    ],
)
def test_usage(make_bundle: Callable[..., str], args: list[str], message: str) -> None:
    result = invoke(make_bundle("encoder"), "a", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_generating_takes_no_pairs(make_bundle: Callable[..., str]) -> None:
    result = invoke(make_bundle("copier"), "a", "--pairs")
    assert "--pairs is for tasks that read two texts together; the task here is generate" in result.stderr
    assert (
        "--normalize is for embed; the task here is generate"
        in invoke(make_bundle("counter"), "a", "--normalize").stderr
    )


@pytest.mark.parametrize(
    ("items", "line", "expected"),
    [
        (Items(task="classify"), "a\tb", "a\tb"),
        (Items(task="classify", pairs=True), "a\tb", ("a", "b")),
        (Items(task="classify", as_json=True), '"a"', "a"),
        (Items(task="classify", as_json=True), '{"text": "a", "id": 3}', "a"),
        (Items(task="classify", as_json=True), '["a", "b"]', ("a", "b")),
        (Items(task="rank"), "a\tb\tc", ("a", ["b", "c"])),
        (Items(task="rank", as_json=True), '{"query": "a", "documents": "b"}', ("a", ["b"])),
        (Items(task="classify_images", as_json=True), '{"image": "a.png"}', "a.png"),
        (Items(task="generate", as_json=True), '"a\\nb"', "a\nb"),
    ],
)
def test_what_a_line_stands_for(items: Items, line: str, expected: Any) -> None:
    assert items.of(line) == expected


@pytest.mark.parametrize(
    ("items", "line", "message"),
    [
        (Items(task="answer"), "a", r"it must be question, a tab and context, but has 1 such parts"),
        (Items(task="answer"), "a\tb\tc", r"it must be question, a tab and context, but has 3 such parts"),
        (Items(task="classify", as_json=True), "a", r"it is not JSON: "),
        (
            Items(task="classify", as_json=True),
            "3",
            r"must be a list of them, or an object with text and text_pair, but",
        ),
        (
            Items(task="answer", as_json=True),
            '"a"',
            r"a list of them, or an object with question and context, but is",
        ),
        (Items(task="answer", as_json=True), '{"question": "a"}', r"but is an object with question"),
        (Items(task="rank", as_json=True), '["a", 3]', r"it must be query, a tab and document, but has 2 such parts"),
    ],
)
def test_what_stands_for_nothing(items: Items, line: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        items.of(line)


def test_a_line_is_named(bundle: Callable[[str], str]) -> None:
    result = invoke(bundle("answer"), text=f"{QUESTION}\t{CONTEXT}\nwho?\n")
    assert str(result.exception).startswith("line 2 of standard input: it must be question, a tab and context")
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("task", "result", "text"),
    [
        (
            "rank",
            [{"index": 1, "score": 0.5, "text": "b"}, {"index": 0, "score": 0.25, "text": "a"}],
            "2 0.500  1 0.250",
        ),
        ("answer", [{"answer": "a\nb", "score": 0.5, "start": 0, "end": 3}], "a\\nb 0.500"),
        ("classify_zero_shot", {"sequence": "x", "labels": ["a", "b"], "scores": [0.75, 0.25]}, "a 0.750  b 0.250"),
        ("classify_tokens", [{"word": "Rome", "entity_group": "LOC", "score": 1.0}], "Rome=LOC 1.000"),
        ("classify_images", [{"label": "cat", "score": 0.5}], "cat 0.500"),
    ],
)
def test_results_as_text(task: str, result: Any, text: str) -> None:
    assert to_text(task, result) == text


def test_images_are_files(tmp_path: Path) -> None:
    assert Items(task="classify_images").of(str(tmp_path / "a b.png")) == str(tmp_path / "a b.png")
