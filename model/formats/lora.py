"""A LoRA adapter of the package peft (Hu et al. 2021, arXiv:2106.09685): read, and merged into the weights of its base.

Each weight W that it adapts becomes W + s · B A, with s = alpha / r, or alpha / √r where it is rank-stabilized
(Kalajdzievski 2023, arXiv:2312.03732). Nothing of peft is imported.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tfm.errors import CheckpointError

from ..fields import Fields, shown
from ..json_file import read_object
from .files import ADAPTERS, find_file, read_file

CONFIG = "adapter_config.json"

_KNOWN = """
    peft_type r lora_alpha target_modules task_type base_model_name_or_path use_rslora fan_in_fan_out rank_pattern
    alpha_pattern modules_to_save bias revision inference_mode peft_version auto_mapping exclude_modules lora_dropout
    layers_to_transform layers_pattern megatron_config megatron_core init_lora_weights loftq_config eva_config
    corda_config lora_ga_config runtime_config qalora_group_size ensure_weight_tying
"""
"""Fields that are read here, or say how an adapter was made or found its layers, which its weights show as well."""

_WITHOUT_TRACE = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin with that leave the base as it is; others, such as PiSSA, change it, and a merge has to know how."""

_PARTS = re.compile(r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B)(?:\.weight)?")


@dataclass(frozen=True)
class Adapter:
    """An adapter and its base.

    Attributes:
        folder: Where it is.
        base: The folder that holds the weights it is for; the same folder where they are beside it.
    """

    folder: Path
    base: Path

    def merged_into(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Merge it.

        Args:
            weights: The base's, by name.

        Returns:
            All weights, those that it changes in float32.

        Raises:
            CheckpointError: It does more than LoRA does, or does not fit these weights.
        """
        source = self.folder / CONFIG
        config = _checked(Fields(source, "LoRA adapter", read_object(source)))
        merged, parts = dict(weights), _parts_of(self.folder)
        found = False
        for key in sorted(parts):
            module, part = _place_of(key)
            # Saved whole: a new head, or a bias.
            if part is None:
                merged[_find(merged, module, self.folder, new=True)] = parts[key].float()
            elif part.endswith("_A"):
                other = parts.get(key.replace("_A", "_B"))
                if other is None:
                    raise CheckpointError(f"{self.folder}: the adapter has {key}, but not the B that belongs to it")
                name = _find(merged, f"{module}.weight", self.folder)
                turned = config.flag("fan_in_fan_out") or part.startswith("lora_embedding")
                scale = _scale(config, module, parts[key].shape[0])
                merged[name] = _merge(self.folder, name, merged[name], (parts[key], other), scale, turned)
                found = True
        if not found:
            raise CheckpointError(f"{self.folder}: the adapter holds no weights of LoRA")
        return merged


def find_adapter(path: Path) -> Adapter | None:
    """Find the adapter in a checkpoint's folder, and the base that it is for; None: there is none.

    Raises:
        CheckpointError: There is an adapter, and its base is neither beside it nor where it says.
    """
    if not path.is_dir() or not (path / CONFIG).is_file():
        return None
    if (path / "config.json").is_file() and _has_weights(path):
        return Adapter(path, path)
    named = read_object(path / CONFIG).get("base_model_name_or_path")
    base = _named_base(path, named) if isinstance(named, str) and named else None
    if base is not None:
        return Adapter(path, base)
    raise CheckpointError(
        f"{path} holds an adapter (adapter_config.json) for the model {shown(named)}, which is not on this machine "
        "under that name: download that model and put its config.json and weights into the adapter's folder, or its "
        "folder's path into base_model_name_or_path of adapter_config.json"
    )


def _named_base(path: Path, named: str) -> Path | None:
    # As it was given when the adapter was trained, or beside the adapter.
    for base in (Path(named), path / named, path.parent / named):
        if base.is_dir() and base.resolve() != path.resolve() and (base / "config.json").is_file():
            return base
    return None


def _has_weights(folder: Path) -> bool:
    try:
        find_file(folder)
    except CheckpointError:
        return False
    return True


def _checked(config: Fields) -> Fields:
    """Refuse what is not LoRA, and what LoRA has become in papers that followed."""
    kind = config.text("peft_type", "LORA")
    if kind != "LORA":
        raise CheckpointError(f"{config.source}: adapters of the kind {shown(kind)} are not supported; known: LORA")
    if config.flag("use_dora"):
        raise CheckpointError(
            f"{config.source}: use_dora (DoRA) is not supported; merge it with peft (merge_and_unload) and save that"
        )
    begins = config.values.get("init_lora_weights", True)
    # What was subtracted from the base then is not in its files.
    if begins is not None and begins not in _WITHOUT_TRACE:
        raise CheckpointError(
            f"{config.source}: init_lora_weights = {shown(begins)} changes the base's weights and is not supported; "
            "merge it with peft (merge_and_unload) and save that"
        )
    config.refuse_unknown(_KNOWN)
    return config


def _parts_of(folder: Path) -> dict[str, Tensor]:
    """The adapter's weights, without the names of the wrapper that they were trained in."""
    file = next((folder / name for name in ADAPTERS if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{folder} holds {CONFIG}, but neither {' nor '.join(ADAPTERS)}")
    parts = {}
    for key, value in read_file(file).items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{file}: its entry {shown(key)} is a {type(value).__name__}, not a tensor")
        parts[str(key).removeprefix("base_model.model.")] = value
    return parts


def _place_of(key: str) -> tuple[str, str | None]:
    """The module that a weight of the adapter is for, and which part it is; None: the weight is saved whole."""
    found = _PARTS.fullmatch(key)
    if found is not None:
        return found[1], found[2]
    if "lora_" in key:
        raise CheckpointError(f"the adapter's weight {shown(key)} is of a kind that is not supported")
    return key.replace(".base_layer.", "."), None


def _find(weights: Mapping[str, Tensor], name: str, folder: Path, *, new: bool = False) -> str:
    """Find a weight of the base: models with and without a head have names that begin otherwise."""
    if name in weights:
        return name
    found = [known for known in weights if known.endswith(f".{name}") or name.endswith(f".{known}")]
    if len(found) == 1:
        return found[0]
    if new and not found:
        return name
    what = "several weights" if found else "no weight"
    raise CheckpointError(f"{folder}: the adapter is for {shown(name)}, and its base has {what} of that name")


def _merge(folder: Path, name: str, weight: Tensor, parts: tuple[Tensor, Tensor], scale: float, turned: bool) -> Tensor:
    """W + s · B A; turned: W is (in, out), as GPT-2's layers are, and embeddings (tokens, size)."""
    a_RI, b_OR = (part.float() for part in parts)
    if not (a_RI.ndim == b_OR.ndim == weight.ndim == 2 and a_RI.shape[0] == b_OR.shape[1]):
        shapes = [tuple(part.shape) for part in (weight, *parts)]
        raise CheckpointError(f"{folder}: {name} of shape {shapes[0]} is no weight that A and B {shapes[1:]} adapt")
    delta = scale * (b_OR @ a_RI)
    delta = delta.T if turned else delta
    if delta.shape != weight.shape:
        raise CheckpointError(
            f"{folder}: {name} has shape {tuple(weight.shape)}, but the adapter is for {tuple(delta.shape)}"
        )
    return weight.float() + delta


def _scale(config: Fields, module: str, rank: int) -> float:
    alpha = _of_pattern(config, "alpha_pattern", module) or config.number("lora_alpha", 8.0)
    return alpha / (math.sqrt(rank) if config.flag("use_rslora") else rank)


def _of_pattern(config: Fields, key: str, module: str) -> float | None:
    """What a pattern of names says of a module, as peft reads it: the first that its name ends with."""
    patterns = config.inner(key)
    for pattern in patterns.values:
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return patterns.number(pattern)
        except re.error as error:
            raise CheckpointError(f"{config.source}: {key} has the pattern {shown(pattern)}: {error}") from error
    return None
