"""The smaller model against the original with gates of zero: two ways to the same function."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tfm.errors import ConfigError
from tfm.model import Transformer, load_checkpoint, save_checkpoint
from tfm.study.prune import Importance, choose_by_count, choose_by_share, gated, remove, share_within

MakeModel = Callable[..., Transformer]

DEEP: dict[str, Any] = {"nhead": 4, "dim_feedforward": 24, "num_encoder_layers": 2, "num_decoder_layers": 2}

MODELS: dict[str, dict[str, Any]] = {
    "encoder": {"kind": "encoder"},
    "decoder": {"kind": "decoder"},
    "encoder-decoder": {"kind": "encoder-decoder", "norm_first": True},
    "gated, grouped, rotary": {
        "kind": "decoder", "activation": "swiglu", "num_kv_heads": 2, "positions": "rotary", "qk_norm": True,
        "qkv_bias": False, "out_bias": False, "feed_forward_bias": False,
    },
    "grouped, encoder-decoder": {"kind": "encoder-decoder", "num_kv_heads": 2, "activation": "geglu", "head_dim": 6},
    "parallel, soft cap": {"kind": "decoder", "norm_first": True, "parallel_blocks": True, "attention_softcap": 5.0},
    "tied": {"kind": "encoder-decoder", "tie_embeddings": True},
}  # fmt: skip


def random_importance(model: Transformer, seed: int = 0) -> Importance:
    generator = torch.Generator().manual_seed(seed)
    heads, units = {}, {}
    for name, module in model.named_modules():
        if name.endswith("_attn"):
            heads[name] = torch.rand(module.nhead, generator=generator, dtype=torch.float64)
        elif name.endswith("feed_forward"):
            units[name] = torch.rand(module.linear2.in_features, generator=generator, dtype=torch.float64)
    return Importance(heads=heads, units=units, examples=1)


def run(model: Transformer) -> torch.Tensor:
    ids = torch.randint(19, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(7) < torch.tensor([[7], [5], [1]])
    with torch.no_grad():
        return (
            model(ids, ids[:, 2:], src_mask=mask) if model.config.kind == "encoder-decoder" else model(ids, None, mask)
        )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("uniform", [False, True], ids=["share", "count"])
def test_it_computes_what_gates_of_zero_leave(make_model: MakeModel, name: str, uniform: bool) -> None:
    model = make_model(**(DEEP | MODELS[name])).double()
    importance = random_importance(model)
    if uniform:
        kept = choose_by_count(model, importance, heads=2, units=8, multiple=4)
    else:
        kept = choose_by_share(model, importance, heads=0.6, units=0.5, multiple=4)
    widths = {**importance.heads, **importance.units}
    gates = {key: torch.zeros(len(widths[key])).index_fill(0, torch.tensor(kept[key]), 1.0) for key in widths}
    assert all(0.0 in gate for gate in gates.values()) or not uniform
    smaller = remove(model, kept)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    before = run(model)
    with gated(model, gates):
        expected = run(model)
    found = run(smaller)
    assert (before - expected).abs().max() > 0.1  # something was cut; measured: at least 2.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)  # float64; measured: at most 5.2e-15
    assert torch.equal(run(model), before), "the original was changed"


def test_all_that_is_kept_is_the_same_model(make_model: MakeModel) -> None:
    model = make_model(**DEEP)
    same = remove(model, choose_by_share(model, random_importance(model), heads=1.0, units=1.0))
    assert same.config == model.config
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_most_important_stay_wherever_they_are(make_model: MakeModel) -> None:
    model = make_model(**(DEEP | {"kind": "encoder", "dim_feedforward": 6}))
    first, second = "encoder.layers.0", "encoder.layers.1"
    importance = Importance(
        heads={
            f"{first}.self_attn": torch.tensor([0.1, 0.2, 0.3, 0.4]),
            f"{second}.self_attn": torch.tensor([5.0, 8.0, 6.0, 7.0]),
        },
        units={
            f"{first}.feed_forward": torch.tensor([9.0, 0.1, 0.2, 8.0, 0.3, 0.4]),
            f"{second}.feed_forward": torch.tensor([0.5, 0.6, 7.0, 0.7, 0.8, 6.0]),
        },
        examples=1,
    )
    kept = choose_by_share(model, importance, heads=0.5, units=0.5, multiple=2)
    assert kept == {
        f"{first}.self_attn": [3],  # one stays, though four elsewhere matter more
        f"{second}.self_attn": [1, 2, 3],
        f"{first}.feed_forward": [0, 3],
        f"{second}.feed_forward": [2, 3, 4, 5],
    }
    counted = choose_by_count(model, importance, heads=2, units=4, multiple=2)
    assert counted[f"{first}.self_attn"] == [2, 3]
    assert counted[f"{second}.feed_forward"] == [2, 3, 4, 5]
    assert choose_by_count(model, importance, heads=1)[f"{first}.feed_forward"] == list(range(6))


def test_it_can_be_cut_again_and_saved(make_model: MakeModel, tmp_path: Any) -> None:
    model = make_model(**DEEP)
    once = remove(model, choose_by_share(model, random_importance(model), heads=0.75, units=0.75, multiple=4))
    twice = remove(once, choose_by_share(once, random_importance(once, 1), heads=0.7, units=0.7, multiple=4))
    assert sum(twice.config.layer_heads("cross")) < sum(once.config.layer_heads("cross")) <= 8
    for name in ("model.pt", "model.safetensors"):
        save_checkpoint(twice, tmp_path / name)
        read = load_checkpoint(tmp_path / name)
        assert read.config == twice.config
        assert torch.equal(run(read), run(twice))


def test_a_budget_of_parameters_is_filled_and_kept(make_model: MakeModel) -> None:
    model = make_model(**(DEEP | {"nhead": 8, "dim_feedforward": 64}))
    importance = random_importance(model)

    def left(share: float) -> int:
        smaller = remove(model, choose_by_share(model, importance, heads=share, units=share, multiple=4))
        return sum(parameter.numel() for parameter in smaller.parameters())

    for wanted in (0.2, 0.456, 0.999):
        share = share_within(model, importance, left(wanted), multiple=4)
        assert share >= wanted
        assert left(share) == left(wanted)
        assert share_within(model, importance, left(wanted) - 1, multiple=4) < wanted
    assert share_within(model, importance, 10**9) == 1.0
    with pytest.raises(ConfigError, match=re.escape(f"but {left(0.001):,} are left by one head and 4 units a layer")):
        share_within(model, importance, left(0.001) - 1, multiple=4)


@pytest.mark.parametrize("positions", ["relative", "alibi"])
def test_heads_with_a_shared_bias_are_refused_and_units_are_not(make_model: MakeModel, positions: str) -> None:
    model = make_model(**(DEEP | {"kind": "decoder", "positions": positions}))
    importance = random_importance(model)
    with pytest.raises(ConfigError, match=f"heads cannot be removed from a model with {positions} positions"):
        choose_by_share(model, importance, heads=0.5, units=0.5)
    with pytest.raises(ConfigError, match="heads cannot be removed"):
        choose_by_count(model, importance, heads=2)
    kept = choose_by_share(model, importance, heads=1.0, units=0.5, multiple=4)
    assert remove(model, kept).config.layer_feedforward("decoder") != (24, 24)
    with pytest.raises(ConfigError, match=re.escape(f"decoder_heads does not go with {positions} positions")):
        dataclasses.replace(model.config, decoder_heads=(2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 0.0, "units": 0.5}, "the share of heads to keep must be in (0, 1], but is 0.0"),
        ({"heads": 0.5, "units": float("nan")}, "the share of units to keep must be in (0, 1], but is nan"),
        ({"heads": 0.5, "units": 0.5, "multiple": 0}, "groups of at least 1, but the multiple is 0"),
    ],
)
def test_a_wrong_share_is_refused(make_model: MakeModel, options: dict[str, Any], message: str) -> None:
    model = make_model()
    with pytest.raises(ConfigError, match=re.escape(message)):
        choose_by_share(model, random_importance(model), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "the number of heads to keep must be in [1, 4], but is 5"),
        ({"heads": 1}, "heads are kept in multiples of 2, but 1 were asked for"),
        ({"units": 0}, "the number of units to keep must be in [1, 24], but is 0"),
        ({"units": 10}, "units are kept in multiples of 16, but 10 were asked for"),
    ],
)
def test_a_wrong_count_is_refused(make_model: MakeModel, options: dict[str, Any], message: str) -> None:
    model = make_model(**(DEEP | {"kind": "decoder", "num_kv_heads": 2}))
    with pytest.raises(ConfigError, match=re.escape(message)):
        choose_by_count(model, random_importance(model), **options)
