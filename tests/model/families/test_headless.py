"""Decoders whose last state is wanted: classes without a head, and folders that sentence-transformers pools."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.decoder_configs import DECODERS, GROUPED
from tfm.errors import ConfigError
from tfm.export import graphs_of
from tfm.model import Transformer, TransformerConfig, load_checkpoint
from tfm.model.pooling import POOLINGS

CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen2Model": GROUPED
    | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 3}
    | {"max_window_layers": 1},
    "Qwen3Model": GROUPED | {"model_type": "qwen3", "head_dim": 10, "tie_word_embeddings": True},
    "LlamaModel": GROUPED | {"model_type": "llama"},
    "Gemma3TextModel": DECODERS["gemma3"],
    "GPTNeoXModel": DECODERS["gpt_neox"],
    "OPTModel": DECODERS["opt"],
    "GPT2Model": {"model_type": "gpt2", "vocab_size": 41, "n_embd": 18, "n_head": 3, "n_layer": 2, "n_positions": 24},
}


def save(values: dict[str, Any], folder: Path, head: bool = False) -> nn.Module:
    import transformers

    values = json.loads(json.dumps(values))
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    kind = transformers.AutoModelForCausalLM if head else transformers.AutoModel
    torch.manual_seed(0)
    module: nn.Module = kind.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    module.save_pretrained(folder)
    return module


def states(model: Transformer, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids_BT = torch.randint(41, (3, 13), generator=torch.Generator().manual_seed(1))
    place_T, lengths_B1 = torch.arange(13), torch.tensor([[13], [6], [1]])
    mask_BT = place_T < lengths_B1 if side == "right" else place_T >= 13 - lengths_B1
    return ids_BT, mask_BT.to(torch.int64)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_class_without_a_head_gives_its_last_state(name: str, tmp_path: Path) -> None:
    module = save(CONFIGS[name], tmp_path)
    model = load_checkpoint(tmp_path)
    assert (model.config.kind, model.config.causal) == ("encoder", True)
    (graph,) = graphs_of(model)
    ids_BT, mask_BT = states(model, "right")
    got = graph(ids_BT, mask_BT)[0]
    want = module(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
    assert want.std() > 0.01
    torch.testing.assert_close(got[mask_BT.bool()], want[mask_BT.bool()], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["lasttoken", "mean"])
@torch.no_grad()
def test_an_embedder_pools_the_last_state(mode: str, tmp_path: Path) -> None:
    """As Qwen3-Embedding is: a class with a head, in a folder of sentence-transformers."""
    module = save(CONFIGS["Qwen3Model"], tmp_path, head=True)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [{"idx": i, "path": path, "type": f"x.models.{kind}"} for i, (path, kind) in enumerate(kinds.items())]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": mode}))
    model = load_checkpoint(tmp_path)
    (graph,) = graphs_of(model)
    assert [value.name for value in graph.outputs] == ["last_hidden_state", "sentence_embedding"]
    ids_BT, mask_BT = states(model, "right")
    hidden_BTD = module.model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
    want = nn.functional.normalize(POOLINGS[mode](hidden_BTD, mask_BT), dim=-1)
    torch.testing.assert_close(graph(ids_BT, mask_BT)[1], want, rtol=0, atol=1e-5)


def test_a_decoder_with_a_head_is_left_alone(tmp_path: Path) -> None:
    save(CONFIGS["Qwen3Model"], tmp_path, head=True)
    assert load_checkpoint(tmp_path).config.kind == "decoder"


SMALL = {"vocab_size": 7, "d_model": 8, "nhead": 2, "num_encoder_layers": 2, "num_decoder_layers": 2}
ROTARY: dict[str, Any] = SMALL | {"kind": "decoder", "positions": "rotary"}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (SMALL | {"causal": True}, "causal is for an encoder"),
        (SMALL | {"input_norm": False}, "needs sandwich_norm, which is false"),
        (SMALL | {"first_norm": False}, "first_norm can be left out with norm_first"),
        (SMALL | {"parallel_norms": True}, "parallel_norms goes with parallel_blocks"),
        (SMALL | {"position_table": True}, "position_table goes with relative positions"),
        (SMALL | {"rotary_layers": (0,)}, "rotary_layers is for rotary positions"),
        (SMALL | {"residual_scale": 0.0}, "residual_scale must be positive"),
        (SMALL | {"qk_norm_span": "all", "decoder_heads": (1, 2)}, "needs all of them in each layer"),
        (ROTARY | {"rotary_layers": (2,)}, r"rotary_layers must be in [0, 2), but has 2"),
        (ROTARY | {"local_rotary_base": 10.0}, "sliding_window is None: none does"),
        (ROTARY | {"local_rotary_base": 1.0, "sliding_window": 2}, "local_rotary_base must be above 1"),
        (ROTARY | {"shared_layers": True, "rotary_layers": (0,)}, "shared_layers makes all layers one, but rotary_lay"),
        (SMALL | {"kind": "encoder", "head_norm": True}, "head_norm is for a head of labels with two layers"),
        (SMALL | {"kind": "encoder", "head_pooling": "mean"}, "head_pooling 'mean' is for a 'sequence' head"),
        (
            ROTARY | {"rotary_scaling": {"kind": "longrope", "factor": 2.0, "original_max_positions": 8}},
            "'longrope', and no other, has short_factors",
        ),
        (
            ROTARY
            | {
                "rotary_scaling": {"kind": "longrope", "factor": 2.0, "original_max_positions": 8}
                | {"short_factors": [1.0], "long_factors": [2.0]}
            },
            "needs a factor for each of 2 pairs, but has 1",
        ),
    ],
    ids=str,
)
def test_options_that_contradict_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TransformerConfig.from_dict(values)
    assert told in str(caught.value)
