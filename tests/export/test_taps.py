"""The recorder sees every attention and activation once, in the order of the calls, and leaves no trace."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.support.recorded import record
from tfm.export import graphs_of
from tfm.model import Transformer
from tfm.model.attention import cached_attention
from tfm.ops import ACTIVATIONS, GATED

MakeModel = Callable[..., Transformer]


def taps_of(graph: Any, past: int = 2) -> tuple[list[torch.Tensor], list[Any], list[torch.Tensor]]:
    inputs = graph.sample(torch.Generator().manual_seed(0), 2, 3, past)
    outputs, calls = record(graph, inputs)
    return outputs, calls, inputs


def names(kind: str, path: str) -> list[str]:
    return [f"attention {kind}.layers.{i}.{path}" for i in range(2)]


def test_encoder_decoder_ops_in_call_order(make_model: MakeModel) -> None:
    model = make_model(num_encoder_layers=2, num_decoder_layers=2)
    source, decoder = graphs_of(model)
    assert [str(call.op) for call in taps_of(source)[1]] == [
        f"{op} encoder.layers.{layer}.{path}"
        for layer in range(2)
        for op, path in (("attention", "self_attn"), ("activation", "feed_forward.activation"))
    ]
    assert [str(call.op) for call in taps_of(decoder)[1]] == [
        f"{op} decoder.layers.{layer}.{path}"
        for layer in range(2)
        for op, path in (
            ("attention", "self_attn"),
            ("attention", "cross_attn"),
            ("activation", "feed_forward.activation"),
        )
    ]


@pytest.mark.parametrize("activation", [*ACTIVATIONS, *GATED])
def test_every_activation_is_one_op(make_model: MakeModel, activation: str) -> None:
    model = make_model(kind="encoder", activation=activation)
    (graph,) = graphs_of(model)
    _, calls, _ = taps_of(graph)
    assert [str(call.op) for call in calls] == [
        "attention encoder.layers.0.self_attn",
        "activation encoder.layers.0.feed_forward.activation",
    ]
    call = calls[1]
    assert len(call.inputs) == 1
    torch.testing.assert_close(
        model.encoder.layers[0].feed_forward.activation(call.inputs[0]), call.output, rtol=0, atol=0
    )


def test_the_pooler_s_tanh_is_an_op(make_model: MakeModel) -> None:
    (graph,) = graphs_of(make_model(kind="encoder", pooler=True))
    assert str(taps_of(graph)[1][-1].op) == "activation pooler_activation"


def test_attention_is_recorded_with_all_it_takes(make_model: MakeModel) -> None:
    _, decoder = graphs_of(make_model())
    _, (cached, cross, *_), inputs = taps_of(decoder, past=4)
    query, key, value, mask, past_key, past_value = cached.inputs
    assert query.shape == key.shape == value.shape == (2, 3, 16)  # by tokens, as the op takes them
    assert past_key.shape == past_value.shape == (2, 2, 8, 8)  # the cache, with room for one more
    y, *presents = cached_attention(query, key, value, past_key, past_value, mask, scale=8**-0.5, softcap=0.0)
    torch.testing.assert_close(y, cached.output, rtol=0, atol=0)
    for again, present in zip(presents, cached.presents, strict=True):
        assert present.shape == (2, 2, 8, 8)
        torch.testing.assert_close(again, present, rtol=0, atol=0)
    past = dict(zip((value.name for value in decoder.inputs), inputs, strict=True))["past_key_values.0.decoder.key"]
    torch.testing.assert_close(past_key, past, rtol=0, atol=0)  # the past it was given
    query, key, value, mask = cross.inputs
    assert query.shape == (2, 2, 3, 8)
    assert key.shape == value.shape == (2, 2, 3, 8)  # the source
    assert mask.dtype == torch.bool
    again = F.scaled_dot_product_attention(query, key, value, mask)
    torch.testing.assert_close(again, cross.output, rtol=0, atol=0)


def test_outputs_are_the_module_s_own(make_model: MakeModel) -> None:
    for graph in graphs_of(make_model()):
        outputs, _, inputs = taps_of(graph)
        with torch.no_grad():
            expected = graph(*inputs)
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


def test_hooks_are_gone_afterwards(make_model: MakeModel) -> None:
    (graph,) = graphs_of(make_model(kind="encoder"))
    first = taps_of(graph)[1]
    assert not [m for m in graph.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert len(taps_of(graph)[1]) == len(first)


def test_hooks_are_gone_after_an_error(make_model: MakeModel) -> None:
    (graph,) = graphs_of(make_model(kind="encoder"))
    with pytest.raises(IndexError):
        record(graph, [torch.full((1, 3), 99), torch.ones(1, 3, dtype=torch.int64)])
    assert not [m for m in graph.modules() if m._forward_hooks or m._forward_pre_hooks]


class Twice(nn.Module):
    """Calls one activation twice, and functions in no module of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.GELU()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (torch.tanh(self.act(self.act(x))),)


class Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Twice()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.model(x)


def test_calls_of_one_module_are_numbered() -> None:
    _, calls = record(Wrapper(), [torch.ones(2)])  # type: ignore[arg-type]
    assert [str(call.op) for call in calls] == ["activation act", "activation act 1", "activation "]
    assert torch.equal(calls[0].output, calls[1].inputs[0])
