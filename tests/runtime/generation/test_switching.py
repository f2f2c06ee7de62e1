"""A text that grows past what LongRoPE calls short is read anew: the tokens are those of transformers on both sides."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.decoder_configs import DECODERS
from tfm.errors import TfmError
from tfm.export import export_checkpoint
from tfm.runtime import CancelToken, Decoder, DecoderState, load

transformers = pytest.importorskip("transformers", reason="the oracle: pip install transformers")

SHORT, COUNT = 7, 8
"""Tokens of a text that is short, and how many are generated."""


@pytest.fixture(scope="module")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Decoder]:
    """A model of random weights whose texts are short up to seven tokens, and its bundle."""
    folder = tmp_path_factory.mktemp("phi3")
    options = dict(DECODERS["phi3, longrope, long, dynamic"]) | {"eos_token_id": 40}
    assert options["original_max_position_embeddings"] == SHORT
    config = transformers.AutoConfig.for_model(options.pop("model_type"), **options)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder / "m")
    assert export_checkpoint(folder / "m", folder / "m.tfm", precisions=["fp32"]).faults() == []
    bundle = load(folder / "m.tfm", provider="cpu")
    assert isinstance(bundle, Decoder)
    return model, bundle


def generated(model: Any, rows: list[list[int]], **options: Any) -> list[list[int]]:
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    settings = {"max_new_tokens": COUNT, "do_sample": False, "pad_token_id": 0} | options
    with torch.no_grad():
        found = model.generate(input_ids=ids, attention_mask=mask, **settings)[:, longest:].tolist()
    return [row[: row.index(40)] if 40 in row else row for row in found]


PROMPTS = [[5, 6, 9, 11], [8, 12, 3, 9, 22, 30, 31], [4, 5, 6, 7, 8, 9, 10, 11, 12]]


@pytest.mark.parametrize("prompt", PROMPTS, ids=["crosses", "at the end of short", "long from the start"])
def test_one_text(prompt: list[int], phi3: tuple[Any, Decoder]) -> None:
    model, bundle = phi3
    assert bundle.generate([prompt], max_new_tokens=COUNT) == generated(model, [prompt])
    assert list(bundle.stream(prompt, max_new_tokens=COUNT)) == generated(model, [prompt])[0]
    ahead = bundle.generate([prompt], max_new_tokens=COUNT, prompt_lookup_num_tokens=4)
    assert ahead == generated(model, [prompt])


def test_the_two_ways_differ_here(phi3: tuple[Any, Decoder]) -> None:
    """Else nothing above could fail: what is read in one way and goes on in the other has other logits."""
    _, bundle = phi3

    plain, switching = DecoderState(bundle._decoder, 1), bundle._new_state(1)
    for state in (plain, switching):
        state.read([PROMPTS[0]])
    for token in (1, 2, 3):
        step = switching.step(np.array([token])).copy()
        assert np.abs(plain.step(np.array([token])) - step).max() < 1e-5
    different = switching.step(np.array([4])).copy()
    assert np.abs(plain.step(np.array([4])) - different).max() > 1e-2
    whole = bundle._new_state(1).read([[*PROMPTS[0], 1, 2, 3, 4]])
    np.testing.assert_allclose(different, whole, atol=1e-4)


def test_rows_of_several_lengths_and_beams(phi3: tuple[Any, Decoder]) -> None:
    model, bundle = phi3
    alone = [generated(model, [prompt])[0] for prompt in PROMPTS]
    assert bundle.generate(PROMPTS, max_new_tokens=COUNT, batch_size=4) == alone
    for prompt in PROMPTS:
        beams = bundle.generate([prompt], max_new_tokens=COUNT, num_beams=3)
        assert beams == generated(model, [prompt], num_beams=3)


def test_a_conversation_goes_on_and_back(phi3: tuple[Any, Decoder]) -> None:
    model, bundle = phi3
    talk = bundle.conversation()
    first = list(talk.reply(PROMPTS[0], max_new_tokens=2))
    second = list(talk.reply([9, 10], max_new_tokens=4))
    assert [second] == generated(model, [[*PROMPTS[0], *first, 9, 10]], max_new_tokens=4)
    talk.rewind(4)
    assert [list(talk.reply([7], max_new_tokens=2))] == generated(model, [[*PROMPTS[0], 7]], max_new_tokens=2)


def test_who_stops_while_all_is_read_anew_begins_at_the_beginning(phi3: tuple[Any, Decoder]) -> None:
    model, bundle = phi3
    talk = bundle.conversation()
    first = list(talk.reply(PROMPTS[0], max_new_tokens=2))
    stopped = CancelToken()
    stopped.cancel()
    with pytest.raises(TfmError):
        list(talk.reply([9, 10], max_new_tokens=4, cancel=stopped))
    again = list(talk.reply([9, 10], max_new_tokens=4))
    assert [again] == generated(model, [[*PROMPTS[0], *first, 9, 10]], max_new_tokens=4)


def test_the_manifest_says_it(phi3: tuple[Any, Decoder], tmp_path: Path) -> None:
    generation = phi3[1].manifest.generation
    assert generation is not None
    assert generation.short_length == SHORT
