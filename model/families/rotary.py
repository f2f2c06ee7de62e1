"""How Hugging Face configurations name rotary positions and their scalings, old and new."""

import math
from collections.abc import Mapping
from typing import Any

from tfm.errors import ConfigError

from ..config import RotaryScaling

_SCALINGS = ("linear", "dynamic", "yarn", "llama3")


def read_rotary(family: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Read rotary positions from `rope_parameters`, or from the older `rope_theta` and `rope_scaling`.

    Where a dynamic or yarn scaling stretches the trained length, the stretched one is the longest sequence, unless
    max_position_embeddings is longer still; elsewhere it is max_position_embeddings.

    Args:
        family: Its name in messages.
        values: The values of config.json, max_position_embeddings among them.

    Returns:
        Fields of `TransformerConfig`: positions, max_positions, rotary_base and rotary_scaling.

    Raises:
        ConfigError: The scaling is unknown or incomplete.
    """
    parameters = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(parameters, dict) or any(isinstance(value, dict) for value in parameters.values()):
        raise ConfigError(f"{family} with rotary positions that differ between layers is not supported: {parameters!r}")
    for key in ("partial_rotary_factor", "mrope_section"):
        if parameters.get(key, values.get(key)) not in (None, 1, 1.0):
            raise ConfigError(f"{family} with {key} = {parameters.get(key, values.get(key))!r} is not supported")
    longest = values["max_position_embeddings"]
    base = parameters.get("rope_theta", values.get("rope_theta"))
    fields = {"positions": "rotary", "max_positions": longest, "rotary_base": 10000.0 if base is None else base}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return fields
    if kind not in _SCALINGS:
        raise ConfigError(
            f"rotary scaling {kind!r} is not supported; known: default, {', '.join(_SCALINGS)} (rope_type of "
            "rope_parameters, or type of rope_scaling)"
        )
    try:
        scaling = _read_scaling(kind, parameters, values)
    except KeyError as error:
        raise ConfigError(f"rotary scaling {kind!r} needs {error.args[0]!r}, which rope_parameters lacks") from error
    if kind in ("dynamic", "yarn"):
        fields["max_positions"] = max(longest, round(scaling.factor * scaling.original_max_positions))
    return fields | {"rotary_scaling": scaling}


def _read_scaling(kind: Any, parameters: Mapping[str, Any], values: Mapping[str, Any]) -> RotaryScaling:
    longest = values["max_position_embeddings"]
    trained = values.get("original_max_position_embeddings") or parameters.get("original_max_position_embeddings")
    trained = longest if kind in ("linear", "dynamic") or trained is None else trained
    factor = parameters["factor"]
    if kind == "llama3":
        return RotaryScaling(
            kind=kind,
            factor=factor,
            original_max_positions=trained,
            low_frequency_factor=parameters["low_freq_factor"],
            high_frequency_factor=parameters["high_freq_factor"],
        )
    if kind != "yarn":
        return RotaryScaling(kind=kind, factor=factor, original_max_positions=trained)
    if parameters.get("truncate") is False:
        raise ConfigError("rotary scaling 'yarn' with truncate = False is not supported")
    factor = longest / trained if factor is None else factor
    magnitude, up, down = (parameters.get(key) for key in ("attention_factor", "mscale", "mscale_all_dim"))
    if magnitude is None and up and down:
        growth = 0.1 * math.log(max(factor, 1.0))
        magnitude = (up * growth + 1.0) / (down * growth + 1.0)
    return RotaryScaling(
        kind=kind,
        factor=factor,
        original_max_positions=trained,
        beta_fast=parameters.get("beta_fast") or 32.0,
        beta_slow=parameters.get("beta_slow") or 1.0,
        attention_factor=magnitude,
    )
