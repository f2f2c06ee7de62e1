"""Importance against derivatives that are taken otherwise, one example and one gate at a time."""

from collections.abc import Callable

import pytest
import torch

from tfm.errors import VerificationError
from tfm.model import Transformer
from tfm.study.prune import gated, measure_importance, next_token_loss, output_loss

MakeModel = Callable[..., Transformer]
IDS = torch.randint(19, (4, 6), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(6) < torch.tensor([[6], [4], [6], [2]])).long()


def slope(model: Transformer, name: str, index: int, widths: dict[str, int], row: int) -> float:
    """∂L/∂g of one example alone, by the difference of two gates."""
    values = []
    for step in (1e-4, -1e-4):
        gates = {key: torch.ones(width, dtype=torch.float64) for key, width in widths.items()}
        gates[name][index] += step
        with gated(model, gates), torch.no_grad():
            values.append(next_token_loss(IDS[row : row + 1], MASK[row : row + 1])(model).item())
    return (values[0] - values[1]) / 2e-4


def test_it_is_the_root_mean_square_of_the_slopes_of_single_examples(make_model: MakeModel) -> None:
    model = make_model(kind="decoder", num_decoder_layers=2).double()
    found = measure_importance(model, [next_token_loss(IDS[:3], MASK[:3]), next_token_loss(IDS[3:], MASK[3:])])
    assert found.examples == 4
    everything = {**found.heads, **found.units}
    widths = {name: len(values) for name, values in everything.items()}
    assert widths == {
        f"decoder.layers.{layer}.{part}": size
        for layer in (0, 1)
        for part, size in (("self_attn", 2), ("feed_forward", 24))
    }
    for name, index in (("decoder.layers.0.self_attn", 1), ("decoder.layers.1.feed_forward", 7)):
        slopes = torch.tensor([slope(model, name, index, widths, row) for row in range(4)])
        # central differences of steps of 1e-4: measured relative error at most 2.4e-9
        assert everything[name][index].item() == pytest.approx(slopes.square().mean().sqrt().item(), rel=1e-6)


def test_a_unit_without_effect_counts_nothing(make_model: MakeModel) -> None:
    model = make_model(kind="encoder-decoder", activation="gelu")
    block = model.decoder.layers[0].feed_forward
    with torch.no_grad():
        block.linear2.weight[:, 3] = 0.0
        model.decoder.layers[0].cross_attn.out_proj.weight[:, :8] = 0.0
    found = measure_importance(model, [lambda m: m(IDS, IDS, src_mask=MASK).square().sum((1, 2))])
    assert found.units["decoder.layers.0.feed_forward"][3] == 0.0
    assert found.heads["decoder.layers.0.cross_attn"][0] == 0.0
    assert sum((values == 0).sum() for values in [*found.heads.values(), *found.units.values()]) == 2


@pytest.mark.parametrize("options", [{}, {"pooling": "mean", "normalize": True}], ids=["states", "embeddings"])
def test_random_directions_measure_the_output(make_model: MakeModel, options: dict[str, object]) -> None:
    """Their mean square is the squared length of the output's derivative, here by differences."""
    model = make_model(kind="encoder", dim_feedforward=4, **options).double()
    generator = torch.Generator().manual_seed(0)
    found = measure_importance(model, [output_loss(IDS, MASK, generator) for _ in range(800)])
    outputs = []
    for step in (1e-4, -1e-4):
        gates = {"encoder.layers.0.self_attn": torch.ones(2), "encoder.layers.0.feed_forward": torch.ones(4)}
        gates = {name: gate.double() for name, gate in gates.items()}
        gates["encoder.layers.0.self_attn"][0] += step
        with gated(model, gates), torch.no_grad():
            hidden = model(IDS, src_mask=MASK)
            outputs.append(model.pool(hidden, MASK) if options else hidden * MASK[:, :, None])
    change = ((outputs[0] - outputs[1]) / 2e-4).flatten(1).square().sum(1).mean().sqrt()
    # measured over 8 seeds: a standard deviation of 1.5 % (states) and 0.9 % (embeddings)
    assert found.heads["encoder.layers.0.self_attn"][0].item() == pytest.approx(change.item(), rel=0.05)


def test_nothing_is_left_behind(make_model: MakeModel) -> None:
    model = make_model(kind="decoder")
    before = model(IDS)
    measure_importance(model, [next_token_loss(IDS, MASK)])
    assert torch.equal(model(IDS), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_is_refused_without_data_or_with_a_loss_that_is_none(make_model: MakeModel) -> None:
    model = make_model(kind="decoder")
    with pytest.raises(VerificationError, match="importance is measured on data, but there is no batch"):
        measure_importance(model, [])
    with pytest.raises(VerificationError, match=r"one finite loss per example, \(B,\), but a batch gave \(\)"):
        measure_importance(model, [lambda m: m(IDS).sum()])
    with pytest.raises(VerificationError, match=r"but a batch gave \(4,\): \[nan"):
        measure_importance(model, [lambda m: m(IDS).sum((1, 2)) * float("nan")])
