"""Labels and masked tokens, against Hugging Face's pipelines on tiny random checkpoints."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

import tfm.export.bundle as bundle
from tfm.bundle.json_files import describe_file
from tfm.errors import BundleError, InputError, TextWarning
from tfm.export import export_checkpoint
from tfm.runtime import load
from tfm.runtime.tasks.base import best, scores_of

torch = pytest.importorskip("torch", reason="what the checkpoints are made with")
transformers = pytest.importorskip("transformers", reason="the oracle: pip install transformers")

WORDS = [
    "the",
    "capital",
    "of",
    "france",
    "is",
    "paris",
    "a",
    "small",
    "town",
    "##s",
    "##ing",
    "walk",
    "in",
    "new",
    "york",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [
    "Paris is the capital of France",
    "towns",
    "a small TOWN is walking in new york, and not playing",
    "the zebra walks",
]
# The graph's float32 logits, and so those scores that are logits, differ from eager's by up to 1.6e-6.
CLOSE = {"rtol": 0, "atol": 5e-6}
LABELS: dict[str, dict[str, Any]] = {
    "SequenceClassification": {"num_labels": 3},
    "TokenClassification": {"id2label": ((0, "O"), (1, "PLACE"), (2, "DEED"))},
}
Load = Callable[..., tuple[Any, Any]]


def tokenizer() -> Any:
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, ",", ".", *WORDS])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.BertTokenizerFast(tokenizer_object=made, model_max_length=24)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Save a tiny random BERT with a head; give it as we open it and as a pipeline does."""
    made: dict[Any, tuple[Any, Any]] = {}

    def open_both(head: str, **options: Any) -> tuple[Any, Any]:
        key = (head, *sorted(options.items()))
        if key in made:
            return made[key]
        folder = tmp_path_factory.mktemp("head")
        torch.manual_seed(0)
        words = tokenizer()
        config = transformers.BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=24,
            initializer_range=0.6,  # so that labels and tokens differ
            **{name: dict(value) if isinstance(value, tuple) else value for name, value in options.items()},
        )
        checkpoint = getattr(transformers, f"BertFor{head}")(config).eval()
        checkpoint.save_pretrained(folder / "checkpoint")
        words.save_pretrained(folder / "checkpoint")
        with pytest.MonkeyPatch.context() as monkeypatch:
            # These have their own tests, and take longest.
            monkeypatch.setattr(bundle, "measure_latency", lambda *_: [])
            monkeypatch.setattr(bundle, "ask_library", lambda *_: None)
            export_checkpoint(folder / "checkpoint", folder / "x.tfm", precisions=["fp32"])
        task = {"MaskedLM": "fill-mask", "SequenceClassification": "text-classification"}.get(head)
        theirs = transformers.pipeline(task or "token-classification", model=checkpoint, tokenizer=words)
        made[key] = load(folder / "x.tfm", provider="cpu", threads=1), theirs
        return made[key]

    return open_both


def edit(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file of a bundle, and its digest in the manifest."""
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))
    if name != "manifest.json":
        edit(folder, "manifest.json", lambda manifest: manifest["files"].update({name: describe_file(folder / name)}))


def same(found: list[list[dict[str, Any]]], expected: list[list[dict[str, Any]]]) -> int:
    """Compare results, scores apart from the rest; give how many there are."""
    for ours, theirs in zip(found, expected, strict=True):
        assert [{k: v for k, v in one.items() if k != "score"} for one in ours] == [
            {k: v for k, v in one.items() if k != "score"} for one in theirs
        ]
        np.testing.assert_allclose([one["score"] for one in ours], [float(one["score"]) for one in theirs], **CLOSE)
    return sum(map(len, found))


@pytest.mark.parametrize(
    "problem_type", [None, "single_label_classification", "multi_label_classification", "regression"]
)
@pytest.mark.parametrize("num_labels", [1, 3])
def test_classify(
    opened: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem_type: str | None, num_labels: int
) -> None:
    ours, theirs = opened("SequenceClassification", num_labels=num_labels)
    assert ours.tasks == (("classify", "rank") if num_labels == 1 else ("classify",))
    folder = shutil.copytree(ours.manifest.folder, tmp_path / "x.tfm")
    edit(folder, "config.json", lambda values: values.update(problem_type=problem_type))
    ours = load(folder, provider="cpu", threads=1)
    monkeypatch.setattr(theirs.model.config, "problem_type", problem_type)
    for top_k in (1, 2, None):
        found = same(ours.classify(TEXTS, top_k), theirs(TEXTS, top_k=top_k))
        assert found == min(top_k or 9, num_labels) * len(TEXTS)


def test_fill_mask(opened: Load) -> None:
    ours, theirs = opened("MaskedLM")
    assert ours.tasks == ("fill_mask",)
    texts = ["Paris is the [MASK] of France.", "[MASK]", "a [MASK] zebra, walks"]
    found = ours.fill_mask(texts)
    assert [fill.pop("index") for fills in found for fill in fills] == [4] * 5 + [1] * 5 + [2] * 5
    assert same(found, theirs(texts)) == 15
    assert [len(fills) for fills in ours.fill_mask(texts, top_k=None)] == [len(tokenizer())] * 3


def test_several_masks(opened: Load) -> None:
    """Theirs is then a list for each mask."""
    ours, theirs = opened("MaskedLM")
    text = "Paris is [MASK] [MASK] of France."
    (found,) = ours.fill_mask(text, top_k=3)
    assert [fill.pop("index") for fill in found] == [3] * 3 + [4] * 3
    assert same([found[:3], found[3:]], theirs(text, top_k=3)) == 6


def test_classify_tokens(opened: Load) -> None:
    ours, theirs = opened("TokenClassification", **LABELS["TokenClassification"])
    assert ours.tasks == ("classify_tokens",)
    found = ours.classify_tokens(TEXTS)
    assert 0 < same(found, theirs(TEXTS)) < same(ours.classify_tokens(TEXTS, ()), theirs(TEXTS, ignore_labels=[""]))
    assert any(entity["word"] == "zebra" for entity in ours.classify_tokens(TEXTS, ())[3])  # not [UNK]


def test_a_text_is_cut_to_the_greatest_length(opened: Load) -> None:
    ours, theirs = opened("SequenceClassification", num_labels=3)
    long = "new york " * 30
    with pytest.warns(TextWarning, match=r"inputs\[0\] has more tokens than the 24 that are read") as caught:
        found = ours.classify(long)
    assert [warning.filename for warning in caught] == [__file__]
    assert same(found, theirs([long], top_k=1, truncation=True)) == 1
    assert ours.classify(long, long_texts="cut") == found
    with pytest.raises(InputError, match=r'inputs\[0\] has more .* shorten it, or pass long_texts="cut"'):
        ours.classify(long, long_texts="refuse")
    with pytest.raises(InputError, match=r"long_texts must be one of warn, cut, refuse, but is 'no'"):
        ours.classify(long, long_texts="no")


def test_a_stream_says_which_text_was_cut(opened: Load) -> None:
    ours, _ = opened("SequenceClassification", num_labels=3)
    texts = ["a town"] * 5 + ["new york " * 30, "a town", "walk " * 40]
    with pytest.warns(TextWarning) as caught:
        assert len(list(ours.classify_stream(iter(texts), window=4))) == len(texts)
    assert [str(warning.message).partition(":")[0] for warning in caught] == [
        "inputs[5] has more tokens than the 24 that are read, and so have 1 others"
    ]


def test_streams_are_as_lists(opened: Load) -> None:
    for head, task, texts in (
        ("SequenceClassification", "classify", TEXTS),
        ("TokenClassification", "classify_tokens", TEXTS),
        ("MaskedLM", "fill_mask", [f"{text} [MASK]" for text in TEXTS]),
    ):
        ours, _ = opened(head, **LABELS.get(head, {}))
        stream = getattr(ours, f"{task}_stream")(iter(texts), window=len(texts))
        assert list(stream) == getattr(ours, task)(texts)


def test_ids_in_place_of_texts(opened: Load) -> None:
    ours, _ = opened("MaskedLM")
    texts = ["Paris is [MASK]", "[MASK]"]
    assert ours.fill_mask(ours.tokenize(texts)) == ours.fill_mask(texts)
    tokens, _ = opened("TokenClassification", **LABELS["TokenClassification"])
    with pytest.raises(InputError, match=r"classify_tokens takes texts, not rows of token ids: run\(\) does"):
        tokens.classify_tokens([[2, 7, 3]])


@pytest.mark.parametrize(
    ("head", "call", "message"),
    [
        (
            "MaskedLM",
            lambda m: m.classify("a"),
            r"no task 'classify': it has no labels for texts; it has fill_mask, and",
        ),
        (
            "MaskedLM",
            lambda m: m.embed("a"),
            r"no task 'embed': it has no sentence_embedding, .* how to pool; it has fill_mask",
        ),
        ("MaskedLM", lambda m: m.classify_tokens("a"), "no task 'classify_tokens': it has no labels for tokens"),
        ("SequenceClassification", lambda m: m.fill_mask("a"), "no task 'fill_mask': it predicts no masked tokens"),
        ("MaskedLM", lambda m: m.fill_mask(["[MASK]", "a town"]), r"inputs\[1\] has no \[MASK\] among its 4 tokens"),
        ("MaskedLM", lambda m: m.fill_mask("a " * 30 + "[MASK]"), r"inputs\[0\] has no \[MASK\] among its 24 tokens"),
        ("MaskedLM", lambda m: m.fill_mask("[MASK]", top_k=0), "top_k must be an integer of at least 1, but is 0"),
        (
            "TokenClassification",
            lambda m: m.classify_tokens("a", "O"),
            "ignore_labels must be a list of labels, but is",
        ),
    ],
)
def test_refusals(opened: Load, head: str, call: Callable[[Any], Any], message: str) -> None:
    ours, _ = opened(head, **LABELS.get(head, {}))
    with pytest.raises(InputError, match=message):
        call(ours)


def test_an_altered_configuration(opened: Load, tmp_path: Path) -> None:
    """Before the bundle is opened it is refused; after that it makes no difference."""
    ours, _ = opened("SequenceClassification", num_labels=3)
    folder = shutil.copytree(ours.manifest.folder, tmp_path / "x.tfm")
    model = load(folder, provider="cpu", threads=1)
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"bert"', '"brrt"'))
    assert model.classify("a") == ours.classify("a")
    with pytest.raises(BundleError, match=r"config.json was altered"):
        load(folder, provider="cpu", threads=1)


@pytest.mark.parametrize(
    ("head", "labels", "call", "name"),
    [
        ("SequenceClassification", {"num_labels": 3}, lambda model: model.classify("a"), "config.json"),
        ("MaskedLM", {}, lambda model: model.fill_mask("a [MASK]"), "tokenizer_config.json"),
    ],
)
def test_companions_are_read_once(
    opened: Load, tmp_path: Path, head: str, labels: dict[str, Any], call: Callable[[Any], Any], name: str
) -> None:
    ours, _ = opened(head, **labels)
    folder = shutil.copytree(ours.manifest.folder, tmp_path / "x.tfm")
    model = load(folder, provider="cpu", threads=1)
    found = call(model)
    (folder / name).unlink()
    assert call(model) == found == call(ours)


def test_labels_that_do_not_fit(opened: Load, tmp_path: Path) -> None:
    ours, _ = opened("SequenceClassification", num_labels=3)
    folder = shutil.copytree(ours.manifest.folder, tmp_path / "x.tfm")
    for labels, expected in ((None, "LABEL_2"), (["a", "b", "c"], "c")):
        edit(folder, "manifest.json", lambda values, labels=labels: values["config"].update(labels=labels))
        found = load(folder, provider="cpu", threads=1).classify("a", top_k=None)
        assert expected in [label["label"] for label in found[0]]
    edit(folder, "manifest.json", lambda values: values["config"].update(labels=["a", "b"]))
    with pytest.raises(BundleError, match=r"config.labels must be a list of 3 labels, as many as there are logits"):
        load(folder, provider="cpu", threads=1).classify("a")


@pytest.mark.parametrize(
    ("change", "mask"),
    [
        (lambda values: values.pop("mask_token"), "[MASK]"),
        (lambda values: values.update(mask_token={"content": "zebra"}), "zebra"),
        (lambda values: values.update(mask_token="town"), None),
    ],
)
def test_which_token_is_the_mask(
    opened: Load, tmp_path: Path, change: Callable[[dict[str, Any]], object], mask: str | None
) -> None:
    ours, _ = opened("MaskedLM")
    folder = shutil.copytree(ours.manifest.folder, tmp_path / "x.tfm")
    edit(folder, "tokenizer_config.json", change)
    model = load(folder, provider="cpu", threads=1)
    if mask == "zebra":
        with pytest.raises(InputError, match="its tokenizer has no mask, which was looked for as zebra"):
            model.fill_mask("a zebra")
    else:
        assert len(model.fill_mask(f"a {mask or 'town'}")[0]) == 5


@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 9, None])
def test_best(top_k: int | None) -> None:
    scores = np.array([0.1, 0.3, 0.3, 0.0, 0.3])
    assert best(scores, top_k) == [1, 2, 4, 0, 3][:top_k]


def test_best_with_nan() -> None:
    assert best(np.array([np.nan, 0.2, 0.5]), None) == [2, 1, 0]
    assert len(best(np.full(3, np.nan), 2)) == 2


def test_scores_do_not_overflow() -> None:
    logits = np.array([-2000.0, 0.0, 2000.0], np.float32)
    np.testing.assert_array_equal(scores_of(logits, "softmax"), [0.0, 0.0, 1.0])
    np.testing.assert_array_equal(scores_of(logits, "sigmoid"), [0.0, 0.5, 1.0])
    np.testing.assert_array_equal(scores_of(logits, "none"), logits)
