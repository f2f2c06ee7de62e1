"""Encoders of Hugging Face against transformers' own modules: tiny, with random weights, read back from the disk."""

import json
import warnings
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import safetensors.torch
import torch
from torch import Tensor

from tfm.errors import CheckpointError, ConfigError, TfmError
from tfm.export import graphs_of, to_onnx, verify
from tfm.export.verify.samples import cases
from tfm.model import Transformer, TransformerConfig, load_checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

# float32 taken two ways: sums of some ten terms of order 1, each rounded at 6e-8, through a few layers
SINGLE = 1e-5

SIZES: dict[str, Any] = {
    "vocab_size": 23,
    "hidden_size": 12,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
}
ODD = SIZES | {"hidden_size": 15, "intermediate_size": 7, "num_hidden_layers": 1, "hidden_act": "gelu_new"}
DISTIL: dict[str, Any] = {
    "vocab_size": 23,
    "dim": 12,
    "n_heads": 3,
    "n_layers": 2,
    "hidden_dim": 20,
    "max_position_embeddings": 16,
}
IMAGE: dict[str, Any] = {
    "hidden_size": 12,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 20,
    "image_size": 8,
    "patch_size": 4,
}
MODERN: dict[str, Any] = SIZES | {
    "num_hidden_layers": 4,
    "local_attention": 6,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
FULL = {"layer_types": ["full_attention"] * 4, "norm_bias": True, "attention_bias": True, "mlp_bias": True}
NOMIC: dict[str, Any] = SIZES | {"num_attention_heads": 2}
THREE = {"id2label": {0: "no", 1: "perhaps", 2: "yes"}, "label2id": {"no": 0, "perhaps": 1, "yes": 2}}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("BertModel", SIZES),
    ("BertModel", ODD | {"type_vocab_size": 3, "pad_token_id": None}),
    ("BertModel", SIZES | {"num_attention_heads": 1, "layer_norm_eps": 1e-3, "hidden_act": "relu"}),
    ("BertForMaskedLM", SIZES),
    ("BertForMaskedLM", ODD | {"tie_word_embeddings": False}),
    ("BertForPreTraining", SIZES | {"hidden_act": "silu"}),
    ("BertForSequenceClassification", SIZES),
    ("BertForSequenceClassification", ODD | THREE),
    ("BertForSequenceClassification", SIZES | {"num_labels": 1}),
    ("BertForTokenClassification", SIZES | {"num_labels": 5}),
    ("RobertaModel", SIZES),
    ("RobertaModel", ODD | {"type_vocab_size": 1, "pad_token_id": 0}),
    ("RobertaForMaskedLM", SIZES | {"type_vocab_size": 1, "hidden_act": "relu"}),
    ("RobertaForMaskedLM", ODD | {"tie_word_embeddings": False}),
    ("RobertaForSequenceClassification", SIZES | {"type_vocab_size": 1} | THREE),
    ("RobertaForTokenClassification", ODD | THREE),
    ("XLMRobertaModel", SIZES | {"type_vocab_size": 1, "pad_token_id": 3}),
    ("XLMRobertaForMaskedLM", SIZES | {"type_vocab_size": 1}),
    ("XLMRobertaForSequenceClassification", ODD | {"type_vocab_size": 1}),
    ("XLMRobertaForTokenClassification", SIZES | {"num_labels": 4}),
    ("DistilBertModel", DISTIL),
    ("DistilBertModel", DISTIL | {"dim": 15, "activation": "relu", "sinusoidal_pos_embds": False}),
    ("DistilBertForMaskedLM", DISTIL),
    ("DistilBertForMaskedLM", DISTIL | {"dim": 15, "n_layers": 1, "activation": "relu", "tie_word_embeddings": False}),
    ("DistilBertForSequenceClassification", DISTIL | THREE),
    ("DistilBertForTokenClassification", DISTIL | {"n_heads": 1, "num_labels": 5}),
    ("ElectraModel", SIZES | {"embedding_size": 8}),
    ("ElectraModel", ODD | {"embedding_size": 15}),
    ("ElectraForMaskedLM", SIZES | {"embedding_size": 8, "hidden_act": "relu"}),
    ("ElectraForMaskedLM", ODD | {"embedding_size": 20, "tie_word_embeddings": False}),
    ("ElectraForPreTraining", SIZES | {"embedding_size": 8, "hidden_act": "relu"}),
    ("ElectraForSequenceClassification", SIZES | {"embedding_size": 8, "hidden_act": "relu"} | THREE),
    ("ElectraForTokenClassification", ODD | {"embedding_size": 8}),
    ("ViTModel", IMAGE),
    (
        "ViTModel",
        IMAGE | {"hidden_size": 15, "qkv_bias": False, "patch_size": 2, "num_channels": 1, "layer_norm_eps": 0.1},
    ),
    ("ViTForImageClassification", IMAGE | THREE),
    ("ViTForImageClassification", IMAGE | {"hidden_act": "gelu_new", "image_size": [12, 12], "patch_size": [3, 3]}),
    ("BertForQuestionAnswering", SIZES),
    ("RobertaForQuestionAnswering", ODD | {"type_vocab_size": 1}),
    ("XLMRobertaForQuestionAnswering", SIZES | {"type_vocab_size": 1}),
    ("DistilBertForQuestionAnswering", DISTIL),
    ("ElectraForQuestionAnswering", ODD | {"embedding_size": 8}),
    ("CamembertModel", SIZES | {"type_vocab_size": 1}),
    ("CamembertForMaskedLM", ODD | {"type_vocab_size": 1}),
    ("CamembertForSequenceClassification", SIZES | {"type_vocab_size": 1} | THREE),
    ("CamembertForTokenClassification", SIZES | {"num_labels": 4}),
    ("Data2VecTextModel", SIZES | {"type_vocab_size": 1}),
    ("Data2VecTextForMaskedLM", SIZES | {"type_vocab_size": 1}),
    ("Data2VecTextForSequenceClassification", SIZES | {"type_vocab_size": 1} | THREE),
    ("MPNetModel", SIZES),
    ("MPNetModel", ODD),
    ("MPNetForMaskedLM", SIZES | {"hidden_act": "relu"}),
    ("MPNetForMaskedLM", ODD | {"tie_word_embeddings": False}),
    ("MPNetForSequenceClassification", SIZES | THREE),
    ("MPNetForTokenClassification", SIZES | {"num_labels": 4}),
    ("AlbertModel", SIZES | {"embedding_size": 8}),
    ("AlbertModel", ODD | {"embedding_size": 20, "num_hidden_layers": 3, "pad_token_id": None}),
    ("AlbertForMaskedLM", SIZES | {"embedding_size": 8, "hidden_act": "relu"}),
    ("AlbertForPreTraining", SIZES | {"embedding_size": 8, "tie_word_embeddings": False}),
    ("AlbertForSequenceClassification", SIZES | {"embedding_size": 8} | THREE),
    ("AlbertForTokenClassification", SIZES | {"embedding_size": 8, "num_labels": 4}),
    ("ModernBertModel", MODERN),
    ("ModernBertModel", MODERN | FULL | {"hidden_activation": "silu"}),
    ("ModernBertForMaskedLM", MODERN | {"classifier_bias": True, "classifier_activation": "relu"}),
    ("ModernBertForMaskedLM", MODERN | {"tie_word_embeddings": False, "decoder_bias": False, "local_attention": 2}),
    ("ModernBertForSequenceClassification", MODERN | {"classifier_pooling": "mean"} | THREE),
    ("ModernBertForSequenceClassification", MODERN | {"norm_bias": True, "num_labels": 1}),
    ("ModernBertForTokenClassification", MODERN | {"num_labels": 4}),
    ("NomicBertModel", NOMIC),
    ("NomicBertModel", NOMIC | {"hidden_act": "gelu", "head_dim": 10, "rope_parameters": {"rope_theta": 90.0}}),
    ("NomicBertForMaskedLM", NOMIC),
    ("NomicBertForSequenceClassification", NOMIC | THREE),
    ("NomicBertForTokenClassification", NOMIC | {"num_labels": 4}),
]


def name_of(case: object) -> str:
    """A test's name of a case: its class, and nothing of the sizes."""
    return case if isinstance(case, str) else ""


def make(name: str, options: dict[str, Any], seed: int = 0) -> transformers.PreTrainedModel:
    """One of transformers' models, its every weight random and of order 1, norms and biases too."""
    kind = getattr(transformers, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = kind._from_config(kind.config_class(**options), attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            scale = torch.ones(()) if weight.ndim == 1 else torch.tensor(weight[0].numel()).rsqrt()
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.8 * scale)
            if weight.ndim == 1 and "norm" in path.lower() and path.endswith("weight"):
                weight += 1.0
    return model


def save(model: transformers.PreTrainedModel, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return folder


def run_theirs(model: transformers.PreTrainedModel, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
    """What transformers computes, under the names that our graphs have."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = model.base_model(**feeds)
        outputs = {"last_hidden_state": base.last_hidden_state}
        if model is model.base_model:
            if base.get("pooler_output") is not None:
                outputs["pooler_output"] = base.pooler_output
            return outputs
        head = model(**feeds)
    if "start_logits" in head:
        return outputs | {"start_logits": head.start_logits, "end_logits": head.end_logits}
    logits = head.prediction_logits if "prediction_logits" in head else head.logits
    if type(model).__name__ == "ElectraForPreTraining":
        logits = logits[:, :, None]  # one label; transformers has no dimension for it
    return outputs | {"logits": logits}


def run_ours(model: Transformer, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
    (graph,) = graphs_of(model)
    with torch.no_grad():
        outputs = graph(*(feeds[value.name] for value in graph.inputs))
    return {value.name: tensor for value, tensor in zip(graph.outputs, outputs, strict=True)}


def make_feeds(model: transformers.PreTrainedModel) -> tuple[dict[str, Tensor], list[int]]:
    """A ragged batch padded on the right, or images; and each row's length in the outputs."""
    generator, config = torch.Generator().manual_seed(1), model.config
    if config.model_type == "vit":
        side = config.image_size[0] if isinstance(config.image_size, list) else config.image_size
        pixels = torch.randn(3, config.num_channels, side, side, generator=generator)
        return {"pixel_values": pixels}, [10**6] * 3
    lengths = [9, 4, 1, 12]
    real_BT = torch.arange(12) < torch.tensor(lengths)[:, None]
    pad = 0 if config.pad_token_id is None else config.pad_token_id
    ids_BT = (torch.randint(0, config.vocab_size - 1, (4, 12), generator=generator) + pad + 1) % config.vocab_size
    feeds = {"input_ids": ids_BT.where(real_BT, pad), "attention_mask": real_BT.long()}
    if getattr(config, "type_vocab_size", 0):
        feeds["token_type_ids"] = torch.randint(0, config.type_vocab_size, (4, 12), generator=generator)
    return feeds, lengths


Pair = tuple[Tensor, Tensor]


def check(theirs: transformers.PreTrainedModel, ours: Transformer, *, more: tuple[str, ...] = ()) -> list[Pair]:
    """Compare every output on real tokens, and give ours and theirs; `more` are outputs of ours that theirs lacks."""
    feeds, lengths = make_feeds(theirs)
    wanted, got = run_theirs(theirs, feeds), run_ours(ours, feeds)
    assert sorted(got) == sorted([*wanted, *more])
    pairs: list[Pair] = []
    for name, want in wanted.items():
        assert got[name].shape == want.shape
        assert want.std() > 1000 * SINGLE  # so that a mistake shows
        for row, length in enumerate(lengths):
            # of each token, or of a row
            each = slice(length if want.ndim == 3 or name in ("start_logits", "end_logits") else None)
            torch.testing.assert_close(got[name][row][each], want[row][each], rtol=0, atol=SINGLE)
            pairs.append((got[name][row][each], want[row][each]))
    return pairs


@pytest.mark.parametrize(("name", "options"), CASES, ids=name_of)
def test_encoder_is_transformers(tmp_path: Path, name: str, options: dict[str, Any], families: Any) -> None:
    theirs = make(name, options)
    ours = load_checkpoint(save(theirs, tmp_path))
    assert not ours.training
    for got, want in check(theirs, ours):
        families.compare(theirs, options, got, want)


@pytest.mark.parametrize(("name", "options"), [CASES[index] for index in (3, 7, 10, 16, 23, 30, 33, 35)], ids=name_of)
def test_state_dict_is_enough(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    """What torch.save(model.state_dict()) writes: tied weights twice, and transformers' names of today."""
    theirs = make(name, options)
    save(theirs, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    check(theirs, load_checkpoint(tmp_path))


def edit(folder: Path, **change: Any) -> Path:
    """Change values of config.json; ... takes one out."""
    values = json.loads((folder / "config.json").read_text()) | change
    values = {key: value for key, value in values.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def edit_weights(folder: Path, **change: Tensor | str | None) -> Path:
    """Add weights, take them out (None), or save them under another name."""
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    for name, new in change.items():
        if isinstance(new, Tensor):
            weights[name] = new
        else:
            old = weights.pop(name)
            weights |= {} if new is None else {new: old}
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


LABELS = [
    ({}, ("LABEL_0", "LABEL_1")),
    ({"num_labels": 2}, ("LABEL_0", "LABEL_1")),
    ({"id2label": {"1": "good", "0": "bad"}}, ("bad", "good")),
    ({"id2label": {"0": "bad", "1": "good"}, "num_labels": 2}, ("bad", "good")),
    ({"id2label": {"0": 0, "1": 1}}, ("0", "1")),
]


@pytest.mark.parametrize(("change", "labels"), LABELS, ids=str)
def test_labels(tmp_path: Path, change: dict[str, Any], labels: tuple[str, ...]) -> None:
    save(make("BertForSequenceClassification", SIZES), tmp_path)
    config = load_checkpoint(edit(tmp_path, **change)).config
    assert (config.labels, config.num_labels, config.head) == (labels, len(labels), "sequence")
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"id2label": {"0": "a", "2": "b"}},
            "id2label must be the names of labels 0, 1, 2 and so on, but is {'0': ",
        ),
        ({"id2label": {}}, "id2label must be the names of labels 0, 1, 2 and so on, but is {}"),
        ({"id2label": ["a", "b"]}, "id2label must be the names of labels 0, 1, 2 and so on, but is ['a', 'b']"),
        ({"id2label": {"0": "a", "1": "b"}, "num_labels": 3}, "num_labels is 3, but id2label names 2 labels"),
        ({"num_labels": "3"}, "num_labels must be an integer from 0 to 1048576, but is '3'"),
        ({"num_labels": 0}, "a 'sequence' head needs labels"),
        ({"num_labels": 3}, "head.output.weight is (2, 12), not (3, 12)"),
    ],
    ids=str,
)
def test_contradictory_labels_are_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    save(make("BertForSequenceClassification", SIZES), tmp_path)
    with pytest.raises(TfmError) as caught:
        load_checkpoint(edit(tmp_path, **change))
    assert told in str(caught.value)


def test_gamma_and_beta(tmp_path: Path) -> None:
    theirs = make("BertForMaskedLM", SIZES)
    names = list(safetensors.torch.load_file(save(theirs, tmp_path) / "model.safetensors"))
    old = {
        n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta") for n in names
    }
    edit_weights(tmp_path, **{name: new for name, new in old.items() if name != new})
    check(theirs, load_checkpoint(tmp_path))


def test_old_berts_hold_more_than_they_use(tmp_path: Path) -> None:
    """As bert-base-uncased does, which says BertForMaskedLM: pooler, next-sentence head, constants, tied copies."""
    theirs = make("BertForPreTraining", SIZES)
    edit(save(theirs, tmp_path), architectures=["BertForMaskedLM"])
    position_ids = {"bert.embeddings.position_ids": torch.arange(16)[None]}
    decoder = {
        f"cls.predictions.decoder.{part}": getattr(theirs.cls.predictions.decoder, part) for part in ("weight", "bias")
    }
    edit_weights(tmp_path, **position_ids, **{name: weight.detach().clone() for name, weight in decoder.items()})
    check(theirs, load_checkpoint(tmp_path))


PRETRAINED = [
    ("BertForPreTraining", "BertModel", SIZES),
    ("RobertaForMaskedLM", "RobertaModel", SIZES),
    ("XLMRobertaForMaskedLM", "XLMRobertaModel", SIZES),
    ("DistilBertForMaskedLM", "DistilBertModel", DISTIL),
    ("ElectraForMaskedLM", "ElectraModel", SIZES),
    ("ElectraForPreTraining", "ElectraModel", SIZES),
]


@pytest.mark.parametrize(("name", "plain", "options"), PRETRAINED, ids=name_of)
def test_pretraining_head_is_dropped_where_architectures_says_so(
    tmp_path: Path, name: str, plain: str, options: dict[str, Any]
) -> None:
    theirs = make(name, options)
    ours = load_checkpoint(edit(save(theirs, tmp_path), architectures=[plain]))
    assert ours.config.head is None
    check(theirs.base_model, ours)
    with pytest.raises(CheckpointError, match="not in the model: "):
        load_checkpoint(edit(tmp_path, architectures=...))


@pytest.mark.parametrize("name", ["BertModel", "RobertaModel", "ElectraModel", "ViTModel"])
def test_architectures_may_be_absent_of_a_plain_model(tmp_path: Path, name: str) -> None:
    theirs = make(name, IMAGE if name == "ViTModel" else SIZES)
    check(theirs, load_checkpoint(edit(save(theirs, tmp_path), architectures=...)))


SENTENCES = [
    ("BertModel", SIZES),
    ("BertForPreTraining", SIZES),
    ("RobertaForMaskedLM", SIZES | {"type_vocab_size": 1}),
    ("XLMRobertaModel", SIZES | {"type_vocab_size": 1}),
    ("XLMRobertaForSequenceClassification", SIZES),
    ("DistilBertForMaskedLM", DISTIL),
    ("ElectraForPreTraining", SIZES | {"embedding_size": 8}),
]


def write_modules(folder: Path, mode: str) -> None:
    types = ["Transformer", "Pooling", "Normalize"]
    modules = [
        {"path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(types)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": mode}))


@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize(("name", "options"), SENTENCES, ids=name_of)
def test_sentence_embeddings(tmp_path: Path, name: str, options: dict[str, Any], mode: str) -> None:
    theirs = make(name, options)
    write_modules(save(theirs, tmp_path), mode)
    ours = load_checkpoint(tmp_path)
    feeds, lengths = make_feeds(theirs)
    got, hidden_BTD = run_ours(ours, feeds), run_theirs(theirs, feeds)["last_hidden_state"]
    assert sorted(got) == ["last_hidden_state", "sentence_embedding"]
    for row, length in enumerate(lengths):
        real = hidden_BTD[row, :length]
        want = {"cls": real[0], "lasttoken": real[-1], "mean": real.double().mean(0).float()}[mode]
        torch.testing.assert_close(got["sentence_embedding"][row], want / want.norm(), rtol=0, atol=SINGLE)


def test_one_segment_is_no_input(tmp_path: Path) -> None:
    one = load_checkpoint(save(make("RobertaModel", SIZES | {"type_vocab_size": 1}), tmp_path / "one"))
    two = load_checkpoint(save(make("RobertaModel", SIZES), tmp_path / "two"))
    assert [value.name for value in graphs_of(one)[0].inputs] == ["input_ids", "attention_mask"]
    assert [value.name for value in graphs_of(two)[0].inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert one.config.max_positions == two.config.max_positions == 14


REFUSED = [
    (
        "RobertaModel",
        SIZES,
        {"pad_token_id": None},
        "RoBERTa counts 16 positions from pad_token_id + 1, but pad_token_id is None",
    ),
    (
        "RobertaModel",
        SIZES,
        {"pad_token_id": 15},
        "RoBERTa counts 16 positions from pad_token_id + 1, but pad_token_id is 15",
    ),
    (
        "RobertaModel",
        SIZES,
        {"max_position_embeddings": 17},
        "RoBERTa has 16 positions, but max_position_embeddings is 17",
    ),
    ("RobertaModel", SIZES, {"is_decoder": True}, "RoBERTa with is_decoder = True is not supported"),
    (
        "RobertaModel",
        SIZES,
        {"architectures": ["RobertaForCausalLM"]},
        "known: one of RobertaModel, RobertaForMaskedLM, ",
    ),
    ("XLMRobertaModel", SIZES, {"architectures": ["RobertaModel"]}, "known: one of XLMRobertaModel, "),
    ("XLMRobertaModel", SIZES, {"vocab_size": ...}, "a XLM-RoBERTa configuration needs 'vocab_size'"),
    (
        "DistilBertModel",
        DISTIL,
        {"n_heads": ...},
        "a DistilBERT configuration needs 'n_heads', which this one lacks",
    ),
    ("DistilBertModel", DISTIL, {"pruned_heads": {"0": [1]}}, "DistilBERT with pruned_heads = {'0': [1]} is not"),
    ("DistilBertModel", DISTIL, {"auto_map": {"AutoModel": "x.Y"}}, "auto_map asks for Python code"),
    ("DistilBertModel", DISTIL, {"n_layers": 3}, "the weights lack transformer.layer.2.attention.q_lin.weight"),
    ("ElectraModel", SIZES, {"embedding_size": ...}, "a ELECTRA configuration needs 'embedding_size'"),
    ("ElectraModel", SIZES, {"embedding_size": 9}, "of another shape: "),
    ("ElectraModel", SIZES, {"position_embedding_type": "relative_key"}, "ELECTRA with position_embedding_type = "),
    ("ElectraModel", SIZES, {"architectures": ["ElectraForMultipleChoice"]}, "known: one of ElectraModel, "),
    (
        "ViTModel",
        IMAGE,
        {"image_size": [8, 12]},
        "ViT with image_size = [8, 12] is not supported; expected the side of a",
    ),
    ("ViTModel", IMAGE, {"patch_size": 0}, "ViT with patch_size = 0 is not supported"),
    ("ViTModel", IMAGE, {"patch_size": 3}, "image_size must be a multiple of patch_size, but they are 8 and 3"),
    ("ViTModel", IMAGE, {"pooler_act": "relu"}, "ViT with pooler_act = 'relu' is not supported; expected 'tanh'"),
    ("ViTModel", IMAGE, {"pooler_output_size": 4}, "ViT with pooler_output_size = 4 is not supported; expected 12"),
    ("ViTModel", IMAGE, {"architectures": ["ViTForMaskedImageModeling"]}, "known: one of ViTModel, "),
    ("ViTModel", IMAGE, {"num_hidden_layers": ...}, "a ViT configuration needs 'num_hidden_layers'"),
    ("ViTModel", IMAGE, {"qkv_bias": False}, "encoder.layer.0.attention.attention.query.bias"),
]


@pytest.mark.parametrize(("name", "options", "change", "told"), REFUSED, ids=name_of)
def test_unsupported_is_refused(
    tmp_path: Path, name: str, options: dict[str, Any], change: dict[str, Any], told: str
) -> None:
    save(make(name, options), tmp_path)
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        load_checkpoint(edit(tmp_path, **change))
    assert told in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"head": "token"}, "a 'token' head needs labels, the names of what it predicts"),
        ({"head": "sequence", "labels": ()}, "a 'sequence' head needs labels"),
        ({"head": "sequence", "labels": ["a"]}, "labels must be a list of str or null, but is ['a']"),
        ({"image_size": 4, "patch_size": 2, "pooling": "cls"}, "are for text, but image_size says images"),
        ({"image_size": 4, "patch_size": 2, "head": "token", "labels": ("a",)}, "are for text, but image_size says"),
        ({"image_size": 4, "patch_size": 2, "type_vocab_size": 2}, "are for text, but image_size says images"),
    ],
    ids=str,
)
def test_contradictory_head_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TransformerConfig(kind="encoder", vocab_size=5, positions="learned", **options)
    assert told in str(caught.value)


def test_contradictory_output_bias_is_refused(tmp_path: Path) -> None:
    save(make("BertForMaskedLM", SIZES), tmp_path)
    edit_weights(tmp_path, **{"cls.predictions.decoder.bias": torch.ones(23)})
    with pytest.raises(
        CheckpointError, match=r"cls\.predictions\.bias and cls\.predictions\.decoder\.bias are one bias"
    ):
        load_checkpoint(tmp_path)


EXPORTED = {
    3: False,
    8: True,
    9: False,
    14: True,
    17: True,
    22: True,
    25: True,
    28: False,
    30: True,
    33: True,
    35: False,
    42: True,
    46: True,
    51: True,
    57: False,
    65: False,
    69: True,
}
"""Numbers of cases → whether their export is for the slow tests."""


@pytest.mark.parametrize(
    ("name", "options"),
    [pytest.param(*CASES[i], marks=[pytest.mark.slow] if slow else [], id=CASES[i][0]) for i, slow in EXPORTED.items()],
)
def test_export_is_verified(tmp_path: Path, name: str, options: dict[str, Any], families: Any) -> None:
    theirs = make(name, options)
    ours = load_checkpoint(save(theirs, tmp_path))
    (graph,) = graphs_of(ours)
    ir.save(to_onnx(graph), tmp_path / "model.onnx")
    report = verify(graph, tmp_path / "model.onnx", cases(graph))
    assert report.passed, report.first_fault
    layers = ours.config.num_encoder_layers
    kinds = [op.op.kind for op in report.promised]
    heads = bool(ours.config.head_activation or ours.config.head == "masked-lm") + bool(ours.config.pooler)
    assert (kinds.count("attention"), kinds.count("activation")) == (layers, layers + heads)
    families.note_verified(theirs, options)


@pytest.mark.parametrize("cls", ["RobertaModel", "XLMRobertaModel"])
def test_positions_count_tokens_wherever_padding_stands(tmp_path: Path, cls: str) -> None:
    """On the left, or in the middle: RoBERTa counts what is not its padding id."""
    torch.manual_seed(0)
    config = getattr(transformers, cls).config_class(**SIZES, pad_token_id=1, type_vocab_size=1, initializer_range=1.0)
    theirs = getattr(transformers, cls)(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_checkpoint(tmp_path).float()
    ids_BT = torch.tensor([[1, 1, 1, 5, 6, 7], [5, 1, 6, 7, 1, 1], [5, 6, 7, 8, 9, 10]])
    mask_BT = (ids_BT != 1).long()
    with torch.no_grad():
        expected_BTD = theirs(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        found_BTD = ours(ids_BT, src_mask=mask_BT)
    real_BT = mask_BT.bool()
    torch.testing.assert_close(found_BTD[real_BT], expected_BTD[real_BT], rtol=0, atol=SINGLE)
    assert (ours(ids_BT[:, 3:])[0] - found_BTD[0, 3:]).abs().max() < SINGLE  # as the same row without padding
