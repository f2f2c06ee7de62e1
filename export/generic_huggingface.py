"""A Hugging Face folder of a family that is not native, by the package transformers."""

import inspect
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tfm.errors import CheckpointError, ConfigError, ExportError

from .generic import GenericConfig, GenericGraph

_LONGEST = 512
"""Longest text to verify, and so to allow, where the model would take more or does not say."""


def from_huggingface(folder: Path) -> GenericGraph:
    """Make the module that a folder's config.json names, filled with the folder's weights.

    The class is the one named by `architectures`, else transformers' AutoModel for the model_type. No code of the
    folder's is run. A decoder keeps no cache: its graph runs over the whole sequence.

    Args:
        folder: Holds config.json and the weights.

    Raises:
        ExportError: transformers is not installed, or its class takes inputs that are not known here.
        ConfigError: The configuration asks for code of its own.
        CheckpointError: transformers cannot read the folder.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ExportError(
            f"{folder} is of a family that is not native, and needs the package transformers: pip install transformers"
        ) from error
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "auto_map" in values:
        raise ConfigError(
            f"{folder / 'config.json'}: auto_map asks for code that comes with the checkpoint, which is never run"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity(logging.ERROR)
        try:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            cls = _class(transformers, folder, values)
            options: dict[str, Any] = {"config": config, "local_files_only": True, "dtype": torch.float32}
            options |= {"attn_implementation": "sdpa"} if getattr(cls, "_supports_sdpa", True) else {}
            module, report = cls.from_pretrained(folder, output_loading_info=True, **options)
        except ConfigError:
            raise
        except Exception as error:  # whatever transformers raises on a folder that it cannot read
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise CheckpointError(f"transformers {transformers.__version__} cannot read {folder}: {reason}") from error
        finally:
            transformers.logging.set_verbosity(verbosity)
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(f"{folder} lacks weights of {type(module).__name__}: {', '.join(missing[:3])}")
    examples, dynamic_axes = _examples(module)
    about = GenericConfig(
        family=f"transformers:{config.model_type}", values=json.loads(config.to_json_string(use_diff=False))
    )
    return GenericGraph(_Outputs(module), examples, dynamic_axes, config=about)


class _Outputs(nn.Module):
    """Gives the tensors of a ModelOutput, and leaves out its caches and its layers' states."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, **inputs: Any) -> dict[str, Tensor]:
        outputs: Mapping[str, Any] = self.module(**inputs, return_dict=True)
        return {name: value for name, value in outputs.items() if isinstance(value, Tensor)}


def _class(transformers: Any, folder: Path, values: Mapping[str, Any]) -> Any:
    names = values.get("architectures") or []
    if not names:
        return transformers.AutoModel
    cls = getattr(transformers, str(names[0]), None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise ConfigError(
            f"{folder / 'config.json'}: architectures names {names[0]!r}, which transformers "
            f"{transformers.__version__} does not have"
        )
    return cls


def _examples(module: Any) -> tuple[dict[str, Any], dict[str, dict[int, str]]]:
    """Example inputs as long as the model takes, and their dynamic axes."""
    config, generator = module.config, torch.Generator().manual_seed(0)
    parameters = inspect.signature(module.forward).parameters
    text = config.get_text_config(decoder=False) if module.main_input_name == "input_ids" else config
    examples: dict[str, Any] = {}
    axes: dict[str, dict[int, str]] = {}
    length = _longest(text)
    if module.main_input_name == "input_ids":
        examples["input_ids"] = torch.randint(3, text.vocab_size, (2, length), generator=generator)
        examples["attention_mask"] = torch.ones(2, length, dtype=torch.int64)
        if "token_type_ids" in parameters and getattr(text, "type_vocab_size", 0) > 1:
            kinds = torch.randint(text.type_vocab_size, (2, length), generator=generator)
            examples["token_type_ids"] = kinds
        axes = {name: {0: "batch", 1: "sequence"} for name in examples}
    elif module.main_input_name == "pixel_values":
        size = config.image_size if isinstance(config.image_size, list | tuple) else [config.image_size] * 2
        examples["pixel_values"] = torch.randn(2, config.num_channels, *size, generator=generator)
        axes["pixel_values"] = {0: "batch"}
    elif module.main_input_name == "input_features" and hasattr(config, "max_source_positions"):
        shape = (2, config.num_mel_bins, 2 * config.max_source_positions)
        examples["input_features"] = torch.randn(shape, generator=generator)
        axes["input_features"] = {0: "batch"}
    else:
        raise ExportError(
            f"{type(module).__name__} takes {module.main_input_name!r}, for which no example inputs are known here; "
            "write a factory for it and use --model"
        )
    if config.is_encoder_decoder and "decoder_input_ids" in parameters:
        longest = _longest(config, "max_target_positions")
        examples["decoder_input_ids"] = torch.randint(3, text.vocab_size, (2, longest), generator=generator)
        axes["decoder_input_ids"] = {0: "batch", 1: "decoder_sequence"}
    if "use_cache" in parameters:
        examples["use_cache"] = False
    return _shorten(module, examples, axes), axes


@torch.no_grad()
def _shorten(module: Any, examples: dict[str, Any], axes: dict[str, dict[int, str]]) -> dict[str, Any]:
    """Cut the lengths to what the tables of positions hold: some families keep their first rows for other ends."""
    for less in range(5):
        cut = {n: x[:, : x.size(1) - less] if 1 in axes.get(n, ()) else x for n, x in examples.items()}
        try:
            module(**cut)
        except IndexError:
            continue
        return cut
    return examples


def _longest(config: Any, name: str = "max_position_embeddings") -> int:
    names = (name, "max_position_embeddings", "max_sequence_length", "seq_length", "n_positions")
    found = [getattr(config, each, None) for each in names]
    longest = next((value for value in found if isinstance(value, int) and value > 0), _LONGEST)
    return min(longest, _LONGEST)
