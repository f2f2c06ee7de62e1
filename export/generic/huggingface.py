"""A Hugging Face folder of a family that is not native, by the package transformers."""

import contextlib
import copy
import dataclasses
import functools
import inspect
import json
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tfm.errors import CheckpointError, ConfigError, ExportError, TfmError
from tfm.model import find_adapter, load_pooling, read_json, read_weights

from ..reasons import one_line
from . import plain_attention
from .cached import CachedConfig, CachedGraph, are_same
from .cached_pair import CachedTarget, PairConfig
from .cached_perceived import Perceived, PerceivedTarget
from .graph import GenericConfig, GenericGraph
from .sizes import check_counts, check_parts, left_out
from .waves import reads_waves, wave_graph

_LONGEST = 512
"""Longest text to verify, and so to allow, where the model would take more or does not say."""

_FIRST = 3
"""Example tokens begin here: the ids before are often those of padding and of ends."""

_PROVED = 9
"""Tokens of the row on which a decoder over its cache is held against the one that was loaded."""

_LARGEST = 1 << 26
"""Numbers of an example input: 256 MiB."""


def from_huggingface(folder: Path) -> GenericGraph:
    """Make the module that a folder's config.json names, filled with the folder's weights.

    The class is the one named by `architectures`, else transformers' AutoModel for the model_type. No code of the
    folder's is run. What generates becomes graphs over a cache; where that is more than keys and values, one over the
    whole input.

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
    adapter = find_adapter(folder)
    source = (folder if adapter is None else adapter.base) / "config.json"
    values = read_json(source)
    if not isinstance(values, dict):
        raise ConfigError(f"{source} holds a {type(values).__name__}, not a dict")
    # Refused before transformers sees it, whatever its own defaults are.
    if "auto_map" in values:
        raise ConfigError(f"{source}: auto_map asks for code that comes with the checkpoint, which is never run")
    # Read by our own reader first: sizes are held against the weights before a module is made of
    # them.
    weights = read_weights(folder)
    check_counts(source, values, weights)
    with _quiet(transformers):
        module, config = _load(transformers, source.parent, values, weights, merged=adapter is not None)
        about = GenericConfig(family=f"transformers:{config.model_type}", values=_describe(source, config))
        _refuse_mixed(source, module)
        perceived = _perceived(source, module)
        generates = perceived is not None or _generates(transformers, module)
        if generates and not (source.parent / "modules.json").is_file():
            try:
                return cached_graph(transformers, source, module, about, perceived)
            except ExportError as error:
                about = dataclasses.replace(about, notes=(f"It does not generate: {error}.",))
        if reads_waves(module):
            return wave_graph(source, module, _Outputs(module), about)
        examples, dynamic_axes = _examples_or_why_not(source, module, about.notes)
        pooling = _pooling(source.parent, module, examples)
    return GenericGraph(_Outputs(module, pooling), examples, dynamic_axes, config=about)


def _examples_or_why_not(source: Path, module: Any, notes: Sequence[str]) -> tuple[Any, Any]:
    """Make example inputs; where there are none, say that and what was said before."""
    try:
        return _examples(source, module)
    except TfmError as error:
        if not notes:
            raise
        raise type(error)(f"{notes[0]} Nor is it one graph: {error}") from error
    # A configuration may lack anything, or have it in another form.
    except Exception as error:
        raise ExportError(
            f"{source}: no example inputs can be made for a {type(module).__name__}: {one_line(error)}; write a "
            "factory for it and use --model"
        ) from error


def _generates(transformers: Any, module: Any) -> bool:
    """Whether a module continues a sequence of tokens, by what it keeps of those before."""
    name = "SEQ_TO_SEQ_CAUSAL_LM" if module.config.is_encoder_decoder else "CAUSAL_LM"
    known = getattr(transformers, f"MODEL_FOR_{name}_MAPPING").values()
    return module.main_input_name == "input_ids" and type(module) in known


def _refuse_mixed(source: Path, module: Any) -> None:
    """Refuse what continues texts with images or sounds in them: as many places of a text as an image has patches."""
    kinds = {"vision_config": "images", "audio_config": "sounds"}
    found = [what for name, what in kinds.items() if getattr(module.config, name, None) is not None]
    writes = getattr(module, "get_output_embeddings", bool)() is not None
    if module.main_input_name == "input_ids" and found and writes:
        raise ExportError(
            f"{source}: {type(module).__name__} continues texts with {' and '.join(found)} in them, which is not "
            "exported as a whole: save its language model by itself (module.language_model.save_pretrained), or write "
            "a factory for a part of it and use --model"
        )


def _perceived(source: Path, module: Any) -> Perceived | None:
    """Tell what the encoder of an encoder-decoder reads, if that is images or features of sound."""
    config, name = module.config, module.main_input_name
    if not config.is_encoder_decoder or getattr(module, "get_output_embeddings", bool)() is None:
        return None
    if name == "pixel_values" and hasattr(config, "encoder"):
        return Perceived(name=name, shape=_image(source, config.encoder)[1:])
    if name == "input_features" and hasattr(config, "input_feat_per_channel"):
        bins = _count(source, config, "input_feat_per_channel") * _count(source, config, "input_channels")
        # Each convolution halves the frames, and torch takes one that is left for a constant.
        least = 2 ** _count(source, config, "num_conv_layers") + 1
        longest = _count(source, config, "max_source_positions")
        return Perceived(name=name, shape=("frames", bins), least=least, longest=max(least, longest))
    if name == "input_features" and hasattr(config, "max_source_positions") and hasattr(config, "num_mel_bins"):
        # The encoder's second convolution halves the frames, so it takes twice as many as positions.
        frames, bins = (_count(source, config, name) for name in ("max_source_positions", "num_mel_bins"))
        return Perceived(name=name, shape=_bounded(source, (bins, 2 * frames)))
    return None


def cached_graph(
    transformers: Any, source: Path, module: Any, about: GenericConfig, perceived: Perceived | None = None
) -> CachedGraph:
    """Make the graphs of what generates over its cache: a causal language model, or an encoder-decoder.

    Raises:
        ExportError: Its cache is more than keys and values, or it cannot be run over one.
    """
    text = module.config.get_text_config(decoder=True)
    tokens: dict[str, Any] = {
        f"{name}_token_id": getattr(text, f"{name}_token_id", None) for name in ("pad", "bos", "eos")
    }
    table = "max_position_embeddings" if perceived is None else "max_target_positions"
    known = {"vocab_size": _vocabulary(source, text), "max_positions": _longest(text, table, most=None)}
    described = {"family": about.family, "values": about.values} | known | tokens
    ids_BS = torch.arange(min(_PROVED, known["max_positions"]))[None] % known["vocab_size"]
    inputs: dict[str, Tensor] = {"input_ids": ids_BS}
    if perceived is not None:
        # As `PerceivedTarget.check` takes it.
        inputs = {perceived.name: perceived.sample(torch.Generator().manual_seed(0), 1, 24)}
        # Where positions are counted by what is no padding, its id within a text would make of it another one.
        ids_BS = (ids_BS + _FIRST) % known["vocab_size"]
    if module.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids_BS
    try:
        expected_BSV = _attend_plainly(transformers, module, inputs)
        graph = _over_cache(transformers, module, described, perceived)
        graph.check(ids_BS, expected_BSV)
        return graph
    except TfmError:
        raise
    except Exception as error:  # whatever a module raises that does not know such a cache
        raise ExportError(
            f"{type(module).__name__} does not run over keys and values alone: {one_line(error)}"
        ) from error


@torch.no_grad()
def _attend_plainly(transformers: Any, module: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Have a module attend in one way, whatever it is given, if that is the same; give its logits as it was loaded."""
    expected_BSV: Tensor = module(**inputs, use_cache=False).logits
    if module.config._attn_implementation == "sdpa":
        plain_attention.register(transformers)
        try:
            module.set_attn_implementation(plain_attention.NAME)
            plain_BSV = module(**inputs, use_cache=False).logits
        except ExportError:  # what it asks of its attention is not done there
            plain_BSV = torch.full_like(expected_BSV, torch.nan)
        if not are_same(plain_BSV, expected_BSV):
            module.set_attn_implementation("sdpa")
    return expected_BSV


def _over_cache(transformers: Any, module: Any, described: dict[str, Any], perceived: Perceived | None) -> CachedGraph:
    if not module.config.is_encoder_decoder:
        return CachedGraph(module, transformers.DynamicCache, CachedConfig(**described))
    # Targets begin with a token of their own, which is not Hugging Face's bos_token_id.
    start = {"bos_token_id": getattr(module.config, "decoder_start_token_id", None)}
    caches = transformers.DynamicCache, transformers.EncoderDecoderCache
    if perceived is not None:
        config = PairConfig(**described | start, source_positions=perceived.longest)
        return PerceivedTarget(module, caches, config, perceived)
    config = PairConfig(**described | start, source_positions=described["max_positions"])
    return CachedTarget(module, caches, config)


@torch.no_grad()
def _pooling(folder: Path, module: Any, examples: Mapping[str, Any]) -> nn.Module | None:
    """What pools the module's states as sentence-transformers does; None: the folder does not say."""
    if not (folder / "modules.json").is_file():
        return None
    # A head's logits are no states, and pixels no tokens.
    states = getattr(module(**examples, return_dict=True), "last_hidden_state", None)
    if states is None or "attention_mask" not in examples:
        raise CheckpointError(
            f"{folder}: its modules.json pools the states of tokens, which {type(module).__name__} does not give"
        )
    return load_pooling(folder, states.size(-1))


def _load(
    transformers: Any, folder: Path, values: Mapping[str, Any], weights: Mapping[str, Tensor], *, merged: bool
) -> Any:
    """Give the module, filled with the folder's weights, or with those that an adapter made of them; and its config."""
    with _reading(transformers, folder):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    cls = _class(transformers, folder, values)
    if cls is transformers.AutoModel:
        # The class itself knows which kinds of attention it has.
        found = transformers.MODEL_MAPPING.get(type(config), cls)
        cls = found if isinstance(found, type) else cls
    with _reading(transformers, folder):
        # AutoModel is no class to make; it finds one by the configuration.
        make = cls.from_config if cls is transformers.AutoModel else cls
        # A copy, as making a module may write into its configuration.
        check_parts(folder, functools.partial(make, copy.deepcopy(config)), weights)
        options: dict[str, Any] = {"config": config, "local_files_only": True, "dtype": torch.float32}
        # So that they are told by name, below.
        options["ignore_mismatched_sizes"] = True
        if getattr(cls, "_can_set_experts_implementation", bool)():
            # All experts of a token as one product, where a loop over experts would depend on who is chosen.
            options["experts_implementation"] = "batched_mm"
        # Transformers would look for peft where an adapter is beside the weights.
        options |= {"state_dict": dict(weights)} if merged else {}
        module, report = _with_attention(cls, None if merged else folder, options)
    kind = type(module).__name__
    # transformers only warns of all three, and fills what is missing with random numbers.
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"{folder} lacks weights of {kind}: {', '.join(missing[:3])}")
    shapes = sorted((name, tuple(got), tuple(want)) for name, got, want in report["mismatched_keys"])
    if misshapen := [f"{name} is {got}, not {want}" for name, got, want in shapes]:
        raise CheckpointError(f"{folder}: weights of {kind} are of another shape: {', '.join(misshapen[:3])}")
    # Weights that are left over are fine where they are another head's; a layer that is left out
    # makes another model.
    if beyond := left_out(sorted(report["unexpected_keys"]), module):
        raise CheckpointError(f"{folder} holds more layers than the configuration says: {', '.join(beyond[:3])}")
    return module, config


def _with_attention(cls: Any, folder: Path | None, options: Mapping[str, Any]) -> Any:
    """Load by torch's own function of attention, or step by step where the class refuses that."""
    # By the function each attention is one call, and becomes one Attention; written by hand it is
    # two products and a Softmax.
    if getattr(cls, "_supports_sdpa", True):
        try:
            return cls.from_pretrained(folder, output_loading_info=True, attn_implementation="sdpa", **options)
        except (ValueError, ImportError) as error:
            if not re.search(r"scaled_dot_product_attention|attn_implementation|sdpa", str(error)):
                raise
    return cls.from_pretrained(folder, output_loading_info=True, attn_implementation="eager", **options)


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verbosity = transformers.logging.get_verbosity()
        bars = transformers.logging.is_progress_bar_enabled()
        transformers.logging.set_verbosity(logging.ERROR)
        transformers.logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers.logging.set_verbosity(verbosity)
            if bars:
                transformers.logging.enable_progress_bar()


@contextlib.contextmanager
def _reading(transformers: Any, folder: Path) -> Iterator[None]:
    """Say in one sentence whatever transformers raises on a folder that it cannot read."""
    try:
        yield
    except TfmError:
        raise
    except Exception as error:  # there is no narrower base
        reason = one_line(error)[:300] if not str(error) else next(iter(str(error).splitlines()))[:300]
        raise CheckpointError(f"transformers {transformers.__version__} cannot read {folder}: {reason}") from error


def _describe(source: Path, config: Any) -> Mapping[str, Any]:
    try:
        described: Mapping[str, Any] = json.loads(config.to_json_string(use_diff=False))
    except Exception as error:  # transformers writes values of any kind
        raise ConfigError(f"{source}: the configuration cannot be written as JSON: {error}") from error
    return described


class _Outputs(nn.Module):
    """Gives the tensors of a ModelOutput without its caches and its layers' states, and what the last are pooled to."""

    def __init__(self, module: Any, pooling: nn.Module | None = None) -> None:
        super().__init__()
        self.module, self.pooling = module, pooling

    def forward(self, **inputs: Any) -> dict[str, Tensor]:
        # return_dict: names of outputs in place of positions, which differ between families.
        outputs: Mapping[str, Any] = self.module(**inputs, return_dict=True)
        tensors = {name: value for name, value in outputs.items() if isinstance(value, Tensor)}
        if self.pooling is not None:
            tensors["sentence_embedding"] = self.pooling(tensors["last_hidden_state"], inputs["attention_mask"])
        return tensors


def _class(transformers: Any, folder: Path, values: Mapping[str, Any]) -> Any:
    names, source = values.get("architectures"), folder / "config.json"
    if (folder / "modules.json").is_file():
        # As sentence-transformers does: the model without a head, of T5 the encoder alone.
        t5 = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel"}
        return getattr(transformers, t5.get(str(values.get("model_type")), "AutoModel"))
    if names is None or names == []:
        return transformers.AutoModel
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{source}: architectures must be a list of names, but is a {type(names).__name__} of others")
    # Not every name of the package is a model: a configuration could name any function of it.
    cls = getattr(transformers, names[0], None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise ConfigError(
            f"{source}: architectures names {names[0][:80]!r}, which transformers {transformers.__version__} does not "
            "have"
        )
    return cls


def _examples(source: Path, module: Any) -> tuple[dict[str, Any], dict[str, dict[int, str]]]:
    """Example inputs as long as the model takes, and their dynamic axes."""
    config, generator = module.config, torch.Generator().manual_seed(0)
    parameters = inspect.signature(module.forward).parameters
    # Where text and images go together, the vocabulary is the text part's.
    text = config.get_text_config(decoder=False) if module.main_input_name == "input_ids" else config
    if text is config and hasattr(config, "vision_config"):
        text = config.get_text_config()
    examples: dict[str, Any] = {}
    axes: dict[str, dict[int, str]] = {}
    length = _longest(text)
    if module.main_input_name == "input_ids":
        examples["input_ids"] = torch.randint(_FIRST, _vocabulary(source, text), (2, length), generator=generator)
        # Nothing is padded in the example; samples of the graph have ragged rows.
        examples["attention_mask"] = torch.ones(2, length, dtype=torch.int64)
        if "token_type_ids" in parameters and _count(source, text, "type_vocab_size", default=0) > 1:
            kinds = torch.randint(text.type_vocab_size, (2, length), generator=generator)
            examples["token_type_ids"] = kinds
        axes = {name: {0: "batch", 1: "sequence"} for name in examples}
        # Two towers: as many texts and images as one likes, each against each.
        if "pixel_values" in parameters and hasattr(config, "vision_config"):
            examples["pixel_values"] = torch.randn(_image(source, config.vision_config), generator=generator)
            axes["pixel_values"] = {0: "image_batch"}
    elif module.main_input_name == "pixel_values":
        examples["pixel_values"] = torch.randn(_image(source, config), generator=generator)
        axes["pixel_values"] = {0: "batch"}
    elif module.main_input_name == "input_values" and hasattr(config, "num_mel_bins"):
        # A spectrogram, cut or filled to as many frames as there are positions.
        frames, bins = (_count(source, config, name) for name in ("max_length", "num_mel_bins"))
        examples["input_values"] = torch.randn(_bounded(source, (2, frames, bins)), generator=generator)
        axes["input_values"] = {0: "batch"}
    elif module.main_input_name == "input_features" and hasattr(config, "max_source_positions"):
        # The encoder's second convolution halves the frames, so it takes twice as many as
        # positions.
        frames, bins = (_count(source, config, name) for name in ("max_source_positions", "num_mel_bins"))
        examples["input_features"] = torch.randn(_bounded(source, (2, bins, 2 * frames)), generator=generator)
        axes["input_features"] = {0: "batch"}
    else:
        raise ExportError(
            f"{type(module).__name__} takes {module.main_input_name!r}, for which no example inputs are known here; "
            "write a factory for it and use --model"
        )
    # Without it some families would shift input_ids to make one, inside the graph.
    if config.is_encoder_decoder and "decoder_input_ids" in parameters:
        shape = (2, _longest(config, "max_target_positions"))
        examples["decoder_input_ids"] = torch.randint(_FIRST, _vocabulary(source, text), shape, generator=generator)
        axes["decoder_input_ids"] = {0: "batch", 1: "decoder_sequence"}
    if "use_cache" in parameters:
        # A cache would be an output more for each layer, and no input takes it.
        examples["use_cache"] = False
    return _shorten(module, examples, axes), axes


def _count(source: Path, config: Any, name: str, *, default: int | None = None) -> int:
    """Read a size that example inputs are made of."""
    # type(), not isinstance: True is no size.
    value = getattr(config, name, default)
    if type(value) is not int or value < (1 if default is None else default):
        raise ConfigError(f"{source}: {name} must be an integer of at least 1, but is {str(value)[:80]}")
    return value


def _vocabulary(source: Path, text: Any) -> int:
    size = _count(source, text, "vocab_size")
    if size <= _FIRST:
        raise ConfigError(f"{source}: vocab_size is {size}, but the first {_FIRST} tokens mark ends and padding")
    return size


def _image(source: Path, config: Any) -> tuple[int, ...]:
    """Give the shape of two images."""
    size = getattr(config, "image_size", None)
    # What has no table of positions, as segmentation and detection, is told by what prepares its images.
    size = _prepared_size(source.parent) if size is None else size
    sides: list[Any] = list(size) if isinstance(size, list | tuple) else [size, size]
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise ConfigError(
            f"{source}: image_size must be one side or two, but is {str(size)[:80]}; nor does a "
            "preprocessor_config.json beside it say how large images are made"
        )
    return _bounded(source, (2, _count(source, config, "num_channels"), *sides))


def _prepared_size(folder: Path) -> Any:
    """Tell how large images are made, as the checkpoint's processor says; a square where only its side is known."""
    path = folder / "preprocessor_config.json"
    values = read_json(path) if path.is_file() else {}
    size = values.get("size") if isinstance(values, dict) else None
    if not isinstance(size, dict):
        return size
    if "height" in size and "width" in size:
        return [size["height"], size["width"]]
    return size.get("shortest_edge")


def _bounded(source: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    if math.prod(shape) > _LARGEST:
        raise ConfigError(f"{source}: the model's inputs would have shape {shape}, more than {_LARGEST} numbers")
    return shape


@torch.no_grad()
def _shorten(module: Any, examples: dict[str, Any], axes: dict[str, dict[int, str]]) -> dict[str, Any]:
    """Cut the lengths to what the tables of positions hold: some families keep their first rows for other ends."""
    # RoBERTa's positions begin behind the padding id: of 514 rows a text may take 512. What a
    # family keeps is not written anywhere, so it is tried. An index beyond a table is an IndexError
    # on the CPU.
    for less in range(5):
        cut = {n: x[:, : x.size(1) - less] if 1 in axes.get(n, ()) else x for n, x in examples.items()}
        try:
            module(**cut)
        except (IndexError, RuntimeError):  # of an embedding, and of a gather from a table of types
            continue
        except Exception:  # whatever a module raises is told where its graph is made
            break
        return cut
    return examples


def _longest(config: Any, name: str = "max_position_embeddings", most: int | None = _LONGEST) -> int:
    """Read how many tokens there may be; where nothing says it, or more than `most`, that many."""
    names = (name, "max_position_embeddings", "max_sequence_length", "seq_length", "n_positions")
    # Families call it by these names; the first that is a number holds.
    found = [getattr(config, each, None) for each in names]
    longest = next((value for value in found if type(value) is int and value > 0), _LONGEST)
    return longest if most is None else min(longest, most)
