"""A LoRA adapter and its base are one model: what transformers' class computes with s · B A x added to each W x."""

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from tfm.errors import CheckpointError, ConfigError
from tfm.export.source import open_source
from tfm.model import load_checkpoint

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
RANK = 3

Parts = dict[str, tuple[Tensor, Tensor]]


def bert(cls: str = "BertModel", **options: Any) -> Any:
    config = transformers.BertConfig(
        vocab_size=40, max_position_embeddings=32, initializer_range=0.3, **SIZES, **options
    )
    return getattr(transformers, cls)(config).eval()


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config).eval()


def mpnet() -> Any:
    config = transformers.MPNetConfig(vocab_size=40, max_position_embeddings=32, initializer_range=0.3, **SIZES)
    return transformers.MPNetModel(config).eval()


def parts_of(module: nn.Module, targets: list[str]) -> Parts:
    """A and B of every layer whose name ends with one of these, by its name."""
    generator = torch.Generator().manual_seed(1)
    found: Parts = {}
    for name, layer in module.named_modules():
        if name.split(".")[-1] in targets and getattr(layer, "weight", None) is not None and layer.weight.ndim == 2:
            outside, inside = layer.weight.shape if isinstance(layer, nn.Linear) else reversed(layer.weight.shape)
            found[name] = (
                torch.randn(RANK, inside, generator=generator),
                torch.randn(outside, RANK, generator=generator) / 8,
            )
    assert found
    return found


def save(
    module: Any,
    folder: Path,
    parts: Parts,
    *,
    beside: bool = True,
    whole: dict[str, Tensor] | None = None,
    **options: Any,
) -> Path:
    """Save a base, and an adapter beside it or pointing to it."""
    module.save_pretrained(folder / "base")
    adapter = folder / "base" if beside else folder / "adapter"
    adapter.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "base_model_name_or_path": str(folder / "base")}
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"inference_mode": True} | options))
    weights = {}
    for name, (a, b) in parts.items():
        weights[f"base_model.model.{name}.lora_A.weight"], weights[f"base_model.model.{name}.lora_B.weight"] = a, b
    save_file({**weights, **(whole or {})}, adapter / "adapter_model.safetensors")
    return adapter


@contextlib.contextmanager
def adapted(module: nn.Module, parts: Parts, scale: float) -> Iterator[None]:
    """Add s · B A x to the results of layers, as a model with an unmerged adapter does."""
    hooks = []
    for name, (a, b) in parts.items():

        def add(_: Any, inputs: Any, output: Tensor, a: Tensor = a, b: Tensor = b) -> Tensor:
            return output + scale * (inputs[0] @ a.T @ b.T)

        hooks.append(module.get_submodule(name).register_forward_hook(add))
    yield
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def off(module: Any, checkpoint: Path, parts: Parts, scale: float) -> float:
    """How far what we read is from transformers' module with the adapter beside each layer."""
    ids_BS = torch.randint(3, 40, (2, 7), generator=torch.Generator().manual_seed(2))
    with adapted(module, parts, scale):
        expected = module(input_ids=ids_BS, attention_mask=torch.ones_like(ids_BS))[0]
    graph = open_source(checkpoint).graphs[0]
    if module.config.model_type == "gpt2":
        actual = load_checkpoint(checkpoint).float().decoder(ids_BS)[0]
    else:
        known = {"input_ids": ids_BS, "attention_mask": torch.ones_like(ids_BS), "token_type_ids": 0 * ids_BS}
        outputs = graph(*[known[value.name] for value in graph.inputs])
        actual = next(output for output in outputs if output.shape == expected.shape)
    assert (module(input_ids=ids_BS)[0] - expected).abs().max() > 0.01  # the adapter does something
    return float((actual - expected).abs().max())


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("rslora", [True, False])
def test_bert(tmp_path: Path, beside: bool, rslora: bool) -> None:
    module = bert()
    parts = parts_of(module, ["query", "value", "dense"])
    checkpoint = save(module, tmp_path, parts, beside=beside, use_rslora=rslora)
    assert off(module, checkpoint, parts, 6 / (math.sqrt(RANK) if rslora else RANK)) < 1e-5


def test_layers_that_are_stored_the_other_way(tmp_path: Path) -> None:
    module = gpt2()
    parts = parts_of(module, ["c_attn", "c_proj"])
    assert off(module, save(module, tmp_path, parts, fan_in_fan_out=True), parts, 6 / RANK) < 1e-5


def test_the_generic_way(tmp_path: Path) -> None:
    module = mpnet()
    parts = parts_of(module, ["q", "v"])
    for beside in (True, False):
        assert off(module, save(module, tmp_path / str(beside), parts, beside=beside), parts, 6 / RANK) < 1e-5


def test_a_pattern_of_alpha_and_weights_that_are_saved_whole(tmp_path: Path) -> None:
    module = bert("BertForSequenceClassification", num_labels=3)
    parts = parts_of(module, ["query"])
    head = torch.randn(3, 16)
    checkpoint = save(
        module,
        tmp_path,
        parts,
        lora_alpha=1,
        alpha_pattern={"attention.self.query": 9},
        modules_to_save=["classifier"],
        whole={"base_model.model.classifier.weight": head},
    )
    module.classifier.weight.data.copy_(head)
    assert off(module, checkpoint, parts, 9 / RANK) < 1e-5


def test_the_base_may_have_a_head_that_the_adapters_model_had_not(tmp_path: Path) -> None:
    """Names of weights begin with `bert.` then, those of the adapter do not."""
    module = bert("BertForMaskedLM")
    parts = parts_of(module, ["query"])
    checkpoint = save(module, tmp_path, {name.removeprefix("bert."): part for name, part in parts.items()})
    assert off(module, checkpoint, parts, 6 / RANK) < 1e-5


def test_the_export_says_so(tmp_path: Path) -> None:
    module, said = bert(), []

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[Any]:
        said.append(name)
        yield lambda *_: None

    checkpoint = save(module, tmp_path, parts_of(module, ["query"]), beside=False)
    source = open_source(checkpoint, stage=stage)
    assert said == [f"read checkpoint and merge the LoRA adapter of {checkpoint} into {tmp_path / 'base'}"]
    assert (source.family, source.folders) == ("bert", [checkpoint, tmp_path / "base"])


def test_alone(tmp_path: Path) -> None:
    module = bert()
    adapter = save(module, tmp_path, parts_of(module, ["query"]), beside=False, base_model_name_or_path="org/name")
    with pytest.raises(CheckpointError, match=r"for the model 'org/name', which is not .* download that"):
        open_source(adapter)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, r"use_dora \(DoRA\) is not supported; merge it with peft"),
        ({"peft_type": "IA3"}, "adapters of the kind 'IA3' are not supported; known: LORA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa' changes the base's weights"),
        ({"trainable_token_indices": [3]}, r"LoRA adapter with trainable_token_indices = \[3\] is not supported"),
        ({"fan_in_fan_out": True}, r"has shape \(24, 16\), but the adapter is for \(16, 24\)"),
    ],
)
def test_what_is_no_plain_lora_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    module = bert()
    checkpoint = save(module, tmp_path, parts_of(module, ["query", "dense"]), **options)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        load_checkpoint(checkpoint)


def test_weights_that_fit_nothing_are_refused(tmp_path: Path) -> None:
    module = bert()
    parts = parts_of(module, ["query"])
    for name, message in (
        ("encoder.layer.9.query", "its base has no weight of that name"),
        ("dense", "several weights"),
    ):
        checkpoint = save(module, tmp_path, {name: next(iter(parts.values()))})
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(checkpoint)
    save_file({"base_model.model.a.lora_magnitude_vector": torch.ones(2)}, checkpoint / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="is of a kind that is not supported"):
        load_checkpoint(checkpoint)
