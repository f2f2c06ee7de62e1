"""Every contradiction of a configuration is refused, in words."""

import dataclasses
import json
import re
from typing import Any

import pytest

from tfm.errors import ConfigError
from tfm.model import TransformerConfig

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"kind": "decode"}, "kind must be one of 'encoder', 'decoder', 'encoder-decoder', but is 'decode'"),
    ({"kind": []}, "kind must be one of 'encoder', 'decoder', 'encoder-decoder', but is []"),
    ({"vocab_size": "10"}, "vocab_size must be int, but is '10'"),
    ({"vocab_size": True}, "vocab_size must be int, but is True"),
    ({"vocab_size": None}, "vocab_size must be int, but is None"),
    ({"vocab_size": 0}, "vocab_size must be at least 1, but is 0"),
    ({"d_model": 0}, "d_model must be at least 1, but is 0"),
    ({"d_model": 8.0}, "d_model must be int, but is 8.0"),
    ({"nhead": 0}, "nhead must be at least 1, but is 0"),
    ({"nhead": -2}, "nhead must be at least 1, but is -2"),
    ({"nhead": 3}, "d_model must be a multiple of nhead, but 8 % 3 is 2"),
    ({"dim_feedforward": 0}, "dim_feedforward must be at least 1, but is 0"),
    ({"max_positions": 0}, "max_positions must be at least 1, but is 0"),
    ({"num_encoder_layers": 0}, "num_encoder_layers must be at least 1, but is 0"),
    ({"num_decoder_layers": 0}, "num_decoder_layers must be at least 1, but is 0"),
    ({"d_model": 7, "nhead": 1}, "sinusoidal positions pair sines with cosines: d_model must be even, but is 7"),
    (
        {"positions": "rotating"},
        "positions must be one of 'sinusoidal', 'learned', 'rotary', 'relative', 'alibi', 'none', but is 'rotating'",
    ),
    ({"dropout": 1.0}, "dropout must be in [0, 1), but is 1.0"),
    ({"dropout": -0.1}, "dropout must be in [0, 1), but is -0.1"),
    ({"dropout": float("nan")}, "dropout must be in [0, 1), but is nan"),
    ({"dropout": True}, "dropout must be float, but is True"),
    ({"layer_norm_eps": 0.0}, "layer_norm_eps must be positive, but is 0.0"),
    ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be positive, but is nan"),
    ({"activation": "gelo"}, "unknown activation 'gelo'; the nearest is 'gelu'"),
    ({"activation": None}, "activation must be str, but is None"),
    ({"norm_first": 1}, "norm_first must be bool, but is 1"),
    ({"residual": "dense"}, "residual must be one of 'identity', 'projected', but is 'dense'"),
    ({"residual_activation": "relu"}, "residual_activation is for residual 'projected', but residual is 'identity'"),
    ({"residual": "projected", "residual_activation": "relu6"}, "unknown activation 'relu6'; the nearest is 'relu'"),
    (
        {"residual": "projected", "residual_activation": "swiglu"},
        "residual_activation must be plain, but 'swiglu' is gated: it halves what it reads",
    ),
    (
        {"kind": "encoder", "head": "masked-lm", "head_activation": "geglu"},
        "head_activation must be plain, but 'geglu' is gated: it halves what it reads",
    ),
    ({"position_noise": -0.1}, "position_noise must be at least 0 and finite, but is -0.1"),
    ({"position_noise": float("nan")}, "position_noise must be at least 0 and finite, but is nan"),
    ({"position_noise": float("inf")}, "position_noise must be at least 0 and finite, but is inf"),
    (
        {"position_noise": 0.1, "positions": "learned"},
        "position_noise is for sinusoidal positions, but positions are 'learned'",
    ),
    ({"tgt_vocab_size": 0}, "tgt_vocab_size must be at least 1, but is 0"),
    ({"type_vocab_size": -1}, "type_vocab_size must not be negative, but is -1"),
    ({"kind": "encoder", "tgt_vocab_size": 9}, "tgt_vocab_size is for an encoder-decoder, but kind is 'encoder'"),
    ({"kind": "decoder", "tgt_vocab_size": 9}, "tgt_vocab_size is for an encoder-decoder, but kind is 'decoder'"),
    ({"type_vocab_size": 2}, "type_vocab_size is for an encoder, but kind is 'encoder-decoder'"),
    ({"kind": "decoder", "pooler": True}, "pooler is for an encoder, but kind is 'decoder'"),
    ({"kind": "decoder", "pooling": "mean"}, "pooling is for an encoder, but kind is 'decoder'"),
    ({"kind": "encoder", "pooling": "median"}, "pooling must be one of 'mean', 'cls', 'max', "),
    ({"kind": "encoder", "normalize": True}, "normalize scales the sentence embedding, but pooling is None"),
    (
        {"kind": "encoder", "pooling": ("mean", "most")},
        "pooling must be of mean, cls, max, mean_sqrt_len, weightedmean, lasttoken, but has 'most'",
    ),
    ({"kind": "encoder", "dense_sizes": (4,)}, "dense_sizes are for the sentence embedding, but pooling is None"),
    ({"kind": "encoder", "pooling": "mean", "dense_sizes": (0,)}, "dense_sizes must be from 1 to 16777216, but have 0"),
    ({"kind": "encoder", "count_tokens": True}, "count_tokens is for an encoder with learned positions and a pad"),
    ({"pad_token_id": 10}, "pad_token_id must be in [0, 10), but is 10"),
    ({"bos_token_id": -1}, "bos_token_id must be in [0, 10), but is -1"),
    ({"eos_token_id": 4, "tgt_vocab_size": 4}, "eos_token_id must be in [0, 4), but is 4"),
    ({"encoder_heads": [2]}, "encoder_heads needs one number for each of 6 layers, but has 1"),
    ({"encoder_heads": [2, 2, 2, 2, 2, 3]}, "encoder_heads must be in [1, 2], up to nhead, but has 3"),
    ({"cross_heads": [2, 2, 2, 2, 2, 0]}, "cross_heads must be in [1, 2], up to nhead, but has 0"),
    ({"decoder_heads": [1] * 6, "num_kv_heads": 1}, "decoder_heads must be multiples of the 2 heads that share a key"),
    ({"decoder_heads": [1.0] * 6}, "decoder_heads must be a list of int or null, but is (1.0,"),
    ({"decoder_feedforward": [2049] * 6}, "decoder_feedforward must be in [1, 2048], up to dim_feedforward, but has"),
    ({"encoder_heads": [1] * 6, "positions": "alibi"}, "encoder_heads does not go with alibi positions"),
    ({"kind": "encoder", "cross_heads": [1] * 6}, "cross_heads is for a model with what it counts, but kind is"),
    ({"kind": "encoder", "decoder_feedforward": [1] * 6}, "decoder_feedforward is for a model with what it counts"),
    ({"kind": "decoder", "encoder_heads": [1] * 6}, "encoder_heads is for a model with what it counts"),
    ({"eos_token_id": "2"}, "eos_token_id must be int or null, but is '2'"),
]

SIZES: dict[str, Any] = {"vocab_size": 10, "d_model": 8, "nhead": 2}


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[str(change) for change, _ in REFUSED])
def test_contradiction_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        TransformerConfig.from_dict(SIZES | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fine",
    [
        {},
        {"kind": "encoder", "num_decoder_layers": 0},
        {"kind": "decoder", "num_encoder_layers": 0},
        {"kind": "encoder", "pooling": "cls", "normalize": True, "type_vocab_size": 2, "pooler": True},
        {"d_model": 7, "nhead": 1, "positions": "learned"},
        {"dropout": 0},
        {"tgt_vocab_size": 12, "pad_token_id": 9},
        {"residual": "projected", "residual_activation": "gelu", "position_noise": 0.1},
        {"num_encoder_layers": 2, "encoder_heads": [2, 1], "encoder_feedforward": [7, 9], "cross_heads": [1] * 6},
        {"positions": "alibi", "cross_heads": [1] * 6, "decoder_feedforward": [5] * 6},
    ],
    ids=str,
)
def test_round_trip_through_json(fine: dict[str, Any]) -> None:
    config = TransformerConfig.from_dict(SIZES | fine)
    assert TransformerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert set(config.to_dict()) == {field.name for field in dataclasses.fields(config)}


@pytest.mark.parametrize(
    ("typo", "near"), [("n_head", "nhead"), ("d_modle", "d_model"), ("max_position", "max_positions"), ("???", None)]
)
def test_unknown_key_is_told_the_nearest(typo: str, near: str | None) -> None:
    with pytest.raises(ConfigError, match=rf"unknown configuration key '{re.escape(typo)}'; the nearest known one is"):
        TransformerConfig.from_dict(SIZES | {typo: 1})
    if near is not None:
        with pytest.raises(ConfigError, match=f"'{near}'$"):
            TransformerConfig.from_dict(SIZES | {typo: 1})


def test_key_that_is_no_string_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown configuration key 5"):
        TransformerConfig.from_dict({**SIZES, 5: 1})  # type: ignore[dict-item]


def test_vocab_size_must_be_given() -> None:
    with pytest.raises(ConfigError, match="the configuration has no vocab_size, the one key without a default"):
        TransformerConfig.from_dict({"d_model": 8})


def test_defaults_are_the_papers_base_model() -> None:
    config = TransformerConfig(vocab_size=37000)
    assert (config.d_model, config.nhead, config.dim_feedforward, config.dropout) == (512, 8, 2048, 0.1)
    assert (config.num_encoder_layers, config.num_decoder_layers, config.activation) == (6, 6, "relu")
    assert (config.positions, config.norm_first, config.scale_embeddings) == ("sinusoidal", False, True)


def test_halves_and_vocabularies() -> None:
    sides = {kind: TransformerConfig(vocab_size=10, kind=kind) for kind in ("encoder", "decoder", "encoder-decoder")}
    assert [c.has_encoder for c in sides.values()] == [True, False, True]
    assert [c.has_decoder for c in sides.values()] == [False, True, True]
    assert TransformerConfig(vocab_size=10, tgt_vocab_size=12).target_vocab_size == 12
    assert sides["decoder"].target_vocab_size == 10


def test_layers_may_differ() -> None:
    config = TransformerConfig(
        vocab_size=10, nhead=8, num_kv_heads=4, num_encoder_layers=2, num_decoder_layers=3, cross_heads=(2, 4, 8),
        encoder_feedforward=(16, 32),
    )  # fmt: skip
    assert config.layer_heads("encoder") == (8, 8)
    assert config.layer_heads("decoder") == (8, 8, 8)
    assert config.layer_heads("cross") == (2, 4, 8)
    assert [config.kv_heads_of(heads) for heads in config.layer_heads("cross")] == [1, 2, 4]
    assert config.layer_feedforward("encoder") == (16, 32)
    assert config.layer_feedforward("decoder") == (2048,) * 3


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TransformerConfig(vocab_size=10).d_model = 4  # type: ignore[misc]
