"""The graphs a model becomes: their signature, and the inputs they are verified with."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tfm.export import graphs_of
from tfm.export.graphs import Graph
from tfm.export.verify.samples import cases
from tfm.model import Transformer

MakeModel = Callable[..., Transformer]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def values(graph: Graph) -> tuple[list[str], list[str]]:
    return [value.name for value in graph.inputs], [value.name for value in graph.outputs]


def test_an_encoder_is_one_graph(make_model: MakeModel) -> None:
    (graph,) = graphs_of(make_model(kind="encoder", pooling="cls", pooler=True, type_vocab_size=2))
    assert (graph.role, graph.file, graph.max_length) == ("model", "model", {"sequence": 16})
    assert values(graph) == (
        ["input_ids", "attention_mask", "token_type_ids"],
        ["last_hidden_state", "sentence_embedding", "pooler_output"],
    )
    assert [value.below for value in graph.inputs] == [19, 2, 2]


def test_a_plain_encoder_has_no_more_than_it_needs(make_model: MakeModel) -> None:
    (graph,) = graphs_of(make_model(kind="encoder"))
    assert values(graph) == (["input_ids", "attention_mask"], ["last_hidden_state"])


def test_a_decoder_is_one_graph_with_a_cache(make_model: MakeModel) -> None:
    (graph,) = graphs_of(make_model(kind="decoder", num_decoder_layers=2))
    assert (graph.role, graph.file, graph.max_length) == ("model", "model", {"sequence": 16})
    past = [f"past_key_values.{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    inputs = ["input_ids", "attention_mask", "position_ids", *past, "num_logits_to_keep"]
    assert values(graph) == (inputs, ["logits", *(name.replace("past_key_values", "present") for name in past)])
    assert (graph.inputs[1].shape, graph.inputs[1].below) == (("batch", "total_sequence"), 2)
    assert (graph.inputs[2].shape, graph.inputs[2].below) == (("batch", "sequence"), 16)
    assert graph.outputs[0].shape == ("batch", "logits_length", 19)
    assert graph.inputs[3].shape == ("batch", 2, "past_sequence", 8)
    assert graph.outputs[1].shape == ("batch", 2, "present_sequence", 8)
    assert [value.default for value in graph.inputs] == [None] * (len(inputs) - 1) + [0]


@pytest.mark.parametrize("positions", ["relative", "alibi", "none"])
def test_a_decoder_without_positions_takes_none(make_model: MakeModel, positions: str) -> None:
    (graph,) = graphs_of(make_model(kind="decoder", positions=positions))
    assert "position_ids" not in values(graph)[0]


def test_an_encoder_decoder_is_two_graphs_that_fit(make_model: MakeModel) -> None:
    source, decoder = graphs_of(make_model(tgt_vocab_size=7))
    assert (source.role, source.file, decoder.role, decoder.file) == (
        "encoder",
        "encoder_model",
        "decoder",
        "decoder",
    )
    given = {value.name.replace("present.", "past_key_values."): value for value in source.outputs}
    taken = {value.name: value for value in decoder.inputs}
    shared = [name for name in taken if ".encoder." in name]
    assert shared == ["past_key_values.0.encoder.key", "past_key_values.0.encoder.value"]
    for name in shared:
        assert given[name].shape == tuple("sequence" if d == "encoder_sequence" else d for d in taken[name].shape)
    assert taken["input_ids"].below == 7
    assert source.inputs[0].below == 19


@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder-decoder"])
def test_samples_fit_the_signature(make_model: MakeModel, kind: str) -> None:
    segments = {"type_vocab_size": 2} if kind == "encoder" else {}
    for graph in graphs_of(make_model(kind=kind, **segments)):
        for batch, length, past in [(3, 5, 0), (1, 1, 4), (2, 16, 0)]:
            inputs = graph.sample(generator(), batch, length, past)
            sizes: dict[str, int] = {}
            for value, tensor in zip(graph.inputs, inputs, strict=True):
                assert str(tensor.dtype) == f"torch.{value.dtype}"
                assert tensor.dim() == len(value.shape)
                for dim, size in zip(value.shape, tensor.shape, strict=True):
                    assert size == (dim if isinstance(dim, int) else sizes.setdefault(dim, size))
                if value.below is not None:
                    assert tensor.min() >= 0
                    assert tensor.max() < value.below
            assert (sizes["batch"], sizes["sequence"]) == (batch, length)
            if "past_sequence" in sizes:  # and where there are several rows, room for the new tokens and one more
                assert sizes["past_sequence"] == past + (length + 1 if batch > 1 else 0)
                assert sizes["total_sequence"] == past + length
            with torch.no_grad():
                outputs = graph(*inputs)
            assert len(outputs) == len(graph.outputs)
            if "past_sequence" in sizes:
                assert outputs[0].size(1) == (length // 2 if batch > 2 else length)


def test_samples_are_ragged_and_right_padded(make_model: MakeModel) -> None:
    (graph,) = graphs_of(make_model(kind="encoder"))
    _, mask = graph.sample(generator(), 8, 12)
    lengths = mask.sum(1)
    assert lengths[0] == 12
    assert 1 <= lengths.min() < 12
    assert torch.equal(mask, (torch.arange(12) < lengths[:, None]).long())


@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder-decoder"])
def test_cases_have_the_corners(make_model: MakeModel, kind: str) -> None:
    for graph in graphs_of(make_model(kind=kind)):
        made = cases(graph)
        lengths = {tensors[0].shape for tensors in made}
        assert {1, 16} <= {length for _, length in lengths}  # one token, and the greatest length
        assert {1} < {batch for batch, _ in lengths}
        names = [value.name for value in graph.inputs]
        masks = [tensors[index] for tensors in made for index, name in enumerate(names) if "mask" in name]
        assert any((mask == 0).any() for mask in masks)
        if graph.role == "model" and kind == "decoder":
            pasts = {tensors[1].size(1) - tensors[0].size(1) for tensors in made}
            assert {0, 3, 4} <= pasts
            first = [mask.argmax(1).tolist() for mask in masks]
            assert any(len(set(row)) > 1 for row in first)  # rows that are padded unequally much


@pytest.mark.parametrize("longest", [1, 2, 3, 5])
def test_cases_of_short_models_stay_within_the_limit(make_model: MakeModel, longest: int) -> None:
    for graph in graphs_of(make_model(kind="decoder", max_positions=longest)):
        for ids, mask, places, *_ in cases(graph):
            assert 1 <= ids.size(1) <= mask.size(1) <= longest
            assert int(places.max()) < longest


def test_cases_are_the_same_on_each_call(make_model: MakeModel) -> None:
    (graph,) = graphs_of(make_model(kind="encoder"))
    assert all(torch.equal(a, b) for a, b in zip(cases(graph)[0], cases(graph)[0], strict=True))
    assert not torch.equal(cases(graph)[0][0], cases(graph, seed=1)[0][0])


def test_signature_is_json(make_model: MakeModel) -> None:
    _, decoder = graphs_of(make_model())
    signature: dict[str, Any] = decoder.signature()
    assert signature["inputs"][0] == {
        "name": "input_ids",
        "dtype": "int64",
        "shape": ("batch", "sequence"),
        "below": 19,
    }
    assert "below" not in signature["outputs"][0]
    assert signature["inputs"][-1] == {"name": "num_logits_to_keep", "dtype": "int64", "shape": (), "default": 0}
    assert signature["max_length"] == {"sequence": 16}
