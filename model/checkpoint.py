"""Checkpoints on disk, read into a `Transformer`, and ours written. What each format is like stands in `formats`.

What a file is, is read from its content. Nothing is ever unpickled beyond tensors and plain containers.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from tfm.errors import CheckpointError, ConfigError

from .config import TransformerConfig
from .families import FAMILIES
from .families.headless import without_head
from .families.pooling import dense_weights
from .fields import Fields, shown
from .formats.files import find_file, read_file, sniff
from .formats.hub import locate_checkpoint
from .formats.litgpt import convert_litgpt, is_litgpt, read_yaml
from .formats.llama import convert_llama, is_llama, merge, shards_of
from .formats.lora import Adapter, find_adapter
from .formats.mapped import GivingBack
from .formats.nanogpt import convert_nanogpt
from .formats.nested import find_weights, trained_module
from .formats.prefixes import strip_wrappers
from .formats.quantized import refuse_quantized
from .formats.torch_nn import convert_torch_nn, is_torch_nn
from .json_file import read_json
from .transformer import Transformer

if TYPE_CHECKING:
    import tokenizers

    from .formats.gguf import ChatTemplateText

Weights = dict[str, Tensor]

_STATE_DICTS = ("state_dict", "model_state_dict", "model")
"""Under which of its keys a training checkpoint holds the weights."""


def load_checkpoint(
    path: str | os.PathLike[str], config: str | os.PathLike[str] | None = None, nhead: int | None = None
) -> Transformer:
    """Read a checkpoint into a model.

    Args:
        path: One of these, told apart by content; a folder stands for the weights in it, and what it has beside them:

            - ours: a `.pt` of `save_checkpoint`, or safetensors with its config.json
            - a Hugging Face folder of a family in `tfm.model.FAMILIES`, its weights in one file or several, with
              sentence-transformers' pooling where modules.json asks for it; or the id of one on the hub
            - a LoRA adapter of peft beside such a model, or with the folder of one as its base_model_name_or_path
            - a state_dict of either, alone or within a training checkpoint, with its configuration in `config`
            - nanoGPT's and llama2.c's checkpoints; Meta's consolidated.*.pth with params.json; litgpt's lit_model.pth
              with model_config.yaml
            - a folder of torch.distributed.checkpoint, with a config.json in it or in `config`
            - GGUF of a Llama or Qwen 2
            - a state_dict of torch.nn.TransformerEncoder or torch.nn.Transformer, of which `nhead` must be told
        config: Configuration of weights that come without one: ours or a Hugging Face config.json, params.json or
            model_config.yaml; of torch.nn's modules, those `TransformerConfig` fields that no weight shows.
        nhead: Number of heads, where neither the weights nor a configuration tell it.

    Returns:
        The model, in eval mode, its weights as they are on disk (mapped, not copied, where the form allows).

    Raises:
        CheckpointError: It is missing, unreadable, would run code, or its weights do not fit its configuration.
        ConfigError: Its configuration contradicts itself.
    """
    path = locate_checkpoint(path)
    adapter = find_adapter(path)
    file = _file_of(path, adapter)
    if not file.is_file():
        raise CheckpointError(f"{file} is neither a folder nor a plain file, and so no checkpoint")
    with GivingBack(file.parent) as mode:
        made, weights = _read(file, None if config is None else Path(config), nhead, adapter)
        model = _fill(file, made, weights)
        mode.give_back()
    return model


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """Read the weights of a checkpoint that is no GGUF, under the names that they have there; an adapter is merged.

    Raises:
        CheckpointError: There are none, or they cannot be read.
    """
    path = locate_checkpoint(path)
    adapter = find_adapter(path)
    file = _file_of(path, adapter)
    weights = _split(file, read_file(file))[1]
    return weights if adapter is None else adapter.merged_into(weights)


def _file_of(path: Path, adapter: Adapter | None) -> Path:
    """The file of weights, of an adapter those of its base."""
    if adapter is not None:
        return find_file(adapter.base)
    return find_file(path) if path.is_dir() else path


def load_tokenizer(path: str | os.PathLike[str]) -> "tokenizers.Tokenizer | None":
    """Read the tokenizer that a checkpoint's own file describes, as GGUF does; None: what there is stands beside it.

    Raises:
        CheckpointError: There is no checkpoint, or its tokenizer is of an unknown kind.
    """
    path = locate_checkpoint(path)
    file = find_file(path) if path.is_dir() else path
    if sniff(file) != "gguf":
        return None
    from .formats.gguf import read_gguf_tokenizer

    return read_gguf_tokenizer(file)


def load_chat_template(path: str | os.PathLike[str]) -> "ChatTemplateText | None":
    """Read the chat template in a checkpoint's own file, as GGUF has it; None: what there is stands beside it.

    Raises:
        CheckpointError: There is no checkpoint, or it is damaged.
    """
    path = locate_checkpoint(path)
    file = find_file(path) if path.is_dir() else path
    if sniff(file) != "gguf":
        return None
    from .formats.gguf import read_gguf_chat_template

    return read_gguf_chat_template(file)


def save_checkpoint(model: Transformer, path: str | os.PathLike[str]) -> None:
    """Write a model: `.safetensors` beside a config.json, any other name as `{"config", "state_dict"}` by torch.save.

    Tied weights are stored once. An earlier file stays whole until the new one is complete. Whoever is killed meanwhile
    may leave weights without their config.json, which are refused, but never beside that of another model.

    Raises:
        CheckpointError: The file cannot be written.
    """
    path = Path(path)
    weights: Weights = {}
    stored = set()
    # `keep_vars` gives the parameters themselves: tied ones are one object.
    for name, parameter in model.state_dict(keep_vars=True).items():
        if id(parameter) not in stored:
            stored.add(id(parameter))
            weights[name] = parameter.detach().contiguous()
    try:
        # Beside the target, since a rename is whole within one file system only.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            file = Path(folder) / path.name
            if path.suffix == ".safetensors":
                text = json.dumps(model.config.to_dict(), indent=2) + "\n"
                file.with_name("config.json").write_text(text, encoding="utf-8")
                safetensors.torch.save_file(weights, file)
                _put_both(file, path)
            else:
                torch.save({"config": model.config.to_dict(), "state_dict": weights}, file)
                os.replace(file, path)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} could not be written: {error}") from error


def _put_both(file: Path, path: Path) -> None:
    """Put weights in place, and the config.json beside them: the old one goes first, the new one comes last."""
    config, place = file.with_name("config.json"), path.with_name("config.json")
    if place.is_file() and place.read_bytes() == config.read_bytes():
        # One file is all that changes, in one step.
        os.replace(file, path)
        return
    # Two files cannot be renamed at once. Sizes that happen to fit would be read by the other's settings.
    earlier = file.with_name("earlier.json")
    if place.exists():
        os.replace(place, earlier)
    try:
        os.replace(file, path)
    except OSError:
        if earlier.exists():
            os.replace(earlier, place)
        raise
    os.replace(config, place)


def _read(
    file: Path, config: Path | None, nhead: int | None, adapter: Adapter | None = None
) -> tuple[TransformerConfig, Weights]:
    """Recognize the form, and map it to our configuration and weights."""
    if config is not None and not os.path.isfile(config):
        raise CheckpointError(f"{file}: there is no configuration at {config}")
    if sniff(file) == "gguf":
        if adapter is not None:
            raise CheckpointError(f"{adapter.folder} holds an adapter, and its base is GGUF, which none is merged into")
        from .formats.gguf import read_gguf

        return _of_family(file, file, *read_gguf(file))
    content = read_file(file)
    # nanoGPT and llama2.c save the same containers; the names of the weights tell them apart.
    arguments = content.get("model_args")
    if isinstance(arguments, dict) and "model" in content:
        weights = strip_wrappers(_check_weights(file, content["model"]))
        with _naming(file):
            return (convert_llama if is_llama(weights) else convert_nanogpt)(file, arguments, weights)
    # Names of weights tell the form, and the form where its configuration is: within the
    # checkpoint, named by `config`, or beside it under the form's own name.
    values, given = _split(file, content)
    given = given if adapter is None else adapter.merged_into(given)
    weights = strip_wrappers(given)
    if is_llama(weights):
        source, values = _settings(file, values, config, "params.json")
        # Sorted, as they are joined in the order of their numbers.
        parts = [file, *(shard for shard in shards_of(file) if shard != file)]
        shards = [strip_wrappers(_split(shard, read_file(shard))[1]) for shard in sorted(parts)]
        with _naming(source):
            return convert_llama(file, values, merge(file, values, shards), source)
    if is_litgpt(weights):
        source, values = _settings(file, values, config, "model_config.yaml")
        with _naming(source):
            return convert_litgpt(file, values, weights, source)
    if is_torch_nn(weights):
        source, values = (file, values or {}) if config is None else (config, _plain(config, read_json(config)))
        with _naming(source):
            return convert_torch_nn(file, values, weights, nhead)
    # All that is left has a configuration with the number of heads in it.
    if nhead is not None:
        raise ConfigError("nhead (--nhead) is for a state_dict of torch.nn's modules; here the configuration tells it")
    return _read_ours(file, config, values, given)


def _settings(file: Path, values: dict[str, Any] | None, config: Path | None, name: str) -> tuple[Path, dict[str, Any]]:
    """Find a form's configuration: within the checkpoint, where it is told, or beside it."""
    if values:
        return file, values
    source = config or file.with_name(name)
    return source, read_yaml(source) if name.endswith(".yaml") else _plain(file, read_json(source))


def _read_ours(
    file: Path, config: Path | None, values: dict[str, Any] | None, given: Weights
) -> tuple[TransformerConfig, Weights]:
    """Read what goes by a config.json, ours or Hugging Face's."""
    source = config or file
    if config is not None:
        values = _plain(config, read_json(config))
    if values is None:
        source = file.with_name("config.json")
        if not source.is_file():
            raise CheckpointError(
                f"{file} holds weights but no configuration: put its config.json beside it, name one with --config, or "
                "save it with tfm.model.save_checkpoint(model, path)"
            )
        values = _plain(file, read_json(source))
    # Only Hugging Face's config.json has this field, ours has `kind`. From the names as given:
    # Hugging Face's may begin with `model.`, which is no wrapper's there.
    if "model_type" in values:
        return _of_family(file, source, values, strip_wrappers(given, huggingface=True))
    with _naming(source):
        return TransformerConfig.from_dict(values), strip_wrappers(given)


@contextlib.contextmanager
def _naming(source: Path) -> Iterator[None]:
    """Make every ConfigError name the file of the configuration."""
    try:
        yield
    except ConfigError as error:
        # Most name it already, or the other file that they are about.
        if str(error).startswith((f"{source}: ", str(source.with_name("generation_config.json")))):
            raise
        raise type(error)(f"{source}: {error}") from error


def _split(file: Path, content: dict[Any, Any]) -> tuple[dict[str, Any] | None, Weights]:
    """Take the weights out of a checkpoint, and its configuration where it has one."""
    if "config" in content and "state_dict" in content:
        return _plain(file, content["config"]), _check_weights(file, content["state_dict"])
    # A training checkpoint has the weights under one of these keys; else wherever weights alone are.
    inner = [content[key] for key in _STATE_DICTS if isinstance(content.get(key), dict)]
    if inner and "pytorch-lightning_version" in content:
        return None, trained_module(file, _check_weights(file, inner[0]))
    return None, _check_weights(file, find_weights(file, inner[0] if inner else content))


def _plain(file: Path, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{file}: its config is a {type(values).__name__}, not a dict of the TransformerConfig fields"
        )
    return values


def _check_weights(file: Path, weights: Any) -> Weights:
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f"{file}: its state_dict holds no weights")
    refuse_quantized(file, weights)
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{file}: its state_dict entry {shown(name)} is a {type(value).__name__}, not a tensor"
            )
    return weights


def _of_family(file: Path, source: Path, values: dict[str, Any], weights: Weights) -> tuple[TransformerConfig, Weights]:
    family = values["model_type"]
    if not isinstance(family, str) or family not in FAMILIES:
        raise CheckpointError(
            f"{source}: model_type {shown(family)} is not supported; known: {', '.join(sorted(FAMILIES))}"
        )
    with _naming(source):
        fields = Fields(source, family, values)
        made, mapped = without_head(file.parent, fields, *FAMILIES[family](file.parent, fields, weights))
    return made, mapped if made.dense_sizes is None else {**mapped, **dense_weights(file.parent)}


def _fill(file: Path, config: TransformerConfig, weights: Weights) -> Transformer:
    depth = config.num_encoder_layers * config.has_encoder + config.num_decoder_layers * config.has_decoder
    # Before so many are made.
    if depth > len(weights):
        raise CheckpointError(
            f"{file}: the weights do not fit the configuration: it has {depth} layers, but there are {len(weights)} "
            "weights"
        )
    _check_width(file, config, weights)
    # Without memory, and without random numbers that the weights would only replace.
    with torch.device("meta"):
        skeleton = Transformer(config)
    expected = skeleton.state_dict(keep_vars=True)
    # Tied names share one parameter.
    groups: dict[int, list[str]] = {}
    for name, parameter in expected.items():
        groups.setdefault(id(parameter), []).append(name)
    known = {name: weight for name, weight in weights.items() if name in expected}
    kinds = _misfits(expected, groups.values(), weights, known)
    if faults := [f"{what}: {_first_three(names)}" for what, names in kinds.items() if names]:
        raise CheckpointError(f"{file}: the weights do not fit the configuration: {'; '.join(faults)}")
    for names in groups.values():
        # Put in place of the skeleton's, not copied into it: mapped weights stay mapped.
        parameter = nn.Parameter(_one_of(file, names, weights))
        for name in names:
            owner, _, leaf = name.rpartition(".")
            setattr(skeleton.get_submodule(owner), leaf, parameter)
    return skeleton.eval()


def _one_of(file: Path, tied: list[str], weights: Weights) -> Tensor:
    present = [name for name in tied if name in weights]
    if not all(_same(weights[present[0]], weights[other]) for other in present[1:]):
        raise CheckpointError(f"{file}: the configuration ties {' and '.join(present)}, but the weights differ")
    return weights[present[0]]


def _misfits(expected: Weights, tied: Collection[list[str]], weights: Weights, known: Weights) -> dict[str, list[str]]:
    """List what is wrong with weights, of which `known` have a place in the model, by its kind."""
    shapes = {name: (tuple(weight.shape), tuple(expected[name].shape)) for name, weight in known.items()}
    return {
        # Of tied names one is enough: formats differ in which they store.
        "missing": [names[0] for names in tied if known.keys().isdisjoint(names)],
        "not in the model": [name for name in weights if name not in known],
        "of another shape": [f"{name} is {got}, not {want}" for name, (got, want) in shapes.items() if got != want],
        "not plain floating point": [f"{name} is {w.dtype}" for name, w in known.items() if not _is_plain(w)],
    }


def _first_three(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _check_width(file: Path, config: TransformerConfig, weights: Weights) -> None:
    """Refuse a size that is not that of the embeddings before a table of positions of it is computed."""
    width = config.d_model if config.embedding_size is None else config.embedding_size
    for name in ("encoder.embedding.token.weight", "decoder.embedding.token.weight"):
        if name in weights and weights[name].ndim == 2 and weights[name].size(1) != width:
            found, wanted = tuple(weights[name].shape), (len(weights[name]), width)
            raise CheckpointError(
                f"{file}: the weights do not fit the configuration: of another shape: {name} is {found}, not {wanted}"
            )


def _same(one: Tensor, other: Tensor) -> bool:
    # The same memory need not be read to be compared.
    if one.data_ptr() == other.data_ptr() and one.stride() == other.stride():
        return True
    return torch.equal(one, other) if one.dtype == other.dtype else torch.equal(one.float(), other.float())


def _is_plain(weight: Tensor) -> bool:
    return weight.is_floating_point() and weight.layout == torch.strided and not weight.is_meta
