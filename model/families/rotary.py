"""How Hugging Face configurations name rotary positions and their scalings, old and new."""

import math
from typing import Any

from tfm.errors import ConfigError

from ..config import RotaryScaling, Scaling
from ..fields import Fields, shown

_SCALINGS: dict[str, Scaling] = {"linear": "linear", "dynamic": "dynamic", "yarn": "yarn", "llama3": "llama3"}

_MOST_FACTOR = 1e6
"""Of a scaling: how many times longer, or any other of its factors."""


def read_rotary(values: Fields) -> dict[str, Any]:
    """Read rotary positions from `rope_parameters`, or from the older `rope_theta` and `rope_scaling`.

    Where a dynamic or yarn scaling stretches the trained length, the stretched one is the longest sequence, unless
    max_position_embeddings is longer still; elsewhere it is max_position_embeddings.

    Args:
        values: The fields of config.json, max_position_embeddings among them.

    Returns:
        Fields of `TransformerConfig`: positions, max_positions, rotary_base and rotary_scaling.
    """
    parameters = _parameters(values)
    for key in ("partial_rotary_factor", "mrope_section"):
        (parameters if parameters.has(key) else values).supports(key, (1, 1.0))
    longest = values.size("max_position_embeddings")
    # Newer configurations have it in `rope_parameters`, older ones beside `rope_scaling`.
    given, older = (each.optional_number("rope_theta") for each in (parameters, values))
    base = older if given is None else given
    fields = {"positions": "rotary", "max_positions": longest, "rotary_base": 10000.0 if base is None else base}
    key = "rope_type" if "rope_type" in parameters.values else "type"
    kind = parameters.text(key, "default")
    if kind == "default":
        return fields
    if kind not in _SCALINGS:
        raise ConfigError(
            f"{values.source}: rotary scaling {shown(kind)} is not supported; known: default, {', '.join(_SCALINGS)} "
            "(rope_type of rope_parameters, or type of rope_scaling)"
        )
    scaling = _read_scaling(_SCALINGS[kind], parameters.of(f"rotary scaling {kind!r} of a {values.form}"), values)
    if kind in ("dynamic", "yarn"):
        fields["max_positions"] = max(longest, round(scaling.factor * scaling.original_max_positions))
    return fields | {"rotary_scaling": scaling}


def _parameters(values: Fields) -> Fields:
    """Give what says how positions turn; none where nothing does."""
    key = "rope_parameters" if values.values.get("rope_scaling") in (None, {}) else "rope_scaling"
    found = values.values.get(key)
    if found is not None and (not isinstance(found, dict) or any(isinstance(value, dict) for value in found.values())):
        raise ConfigError(
            f"{values.source}: {values.form} with rotary positions that differ between layers is not supported: "
            f"{shown(found)}"
        )
    return values.inner(key)


def _read_scaling(kind: Scaling, parameters: Fields, values: Fields) -> RotaryScaling:
    longest, trained = values.size("max_position_embeddings"), None
    for fields in (values, parameters):
        trained = trained or fields.optional_size("original_max_position_embeddings")
    # As Hugging Face does: these two go by max_position_embeddings alone.
    trained = longest if kind in ("linear", "dynamic") or trained is None else trained
    if kind == "yarn":
        return _read_yarn(parameters, longest, trained)
    factor = parameters.number("factor", least=1.0, most=_MOST_FACTOR)
    if kind == "llama3":
        return RotaryScaling(
            kind=kind,
            factor=factor,
            original_max_positions=trained,
            low_frequency_factor=parameters.number("low_freq_factor", most=_MOST_FACTOR),
            high_frequency_factor=parameters.number("high_freq_factor", most=_MOST_FACTOR),
        )
    return RotaryScaling(kind=kind, factor=factor, original_max_positions=trained)


def _read_yarn(parameters: Fields, longest: int, trained: int) -> RotaryScaling:
    if not parameters.flag("truncate", True):
        raise ConfigError(f"{parameters.source}: rotary scaling 'yarn' with truncate = False is not supported")
    given = parameters.any("factor") is not None
    factor = parameters.number("factor", least=1.0, most=_MOST_FACTOR) if given else longest / trained
    magnitude = parameters.optional_number("attention_factor", most=_MOST_FACTOR)
    up, down = (parameters.optional_number(key, least=0.0, most=_MOST_FACTOR) for key in ("mscale", "mscale_all_dim"))
    # DeepSeek's two numbers, as Hugging Face reads them: the ratio of two temperatures.
    if magnitude is None and up and down:
        growth = 0.1 * math.log(max(factor, 1.0))
        magnitude = (up * growth + 1.0) / (down * growth + 1.0)
    return RotaryScaling(
        kind="yarn",
        factor=factor,
        original_max_positions=trained,
        beta_fast=parameters.optional_number("beta_fast", most=_MOST_FACTOR) or 32.0,
        beta_slow=parameters.optional_number("beta_slow", most=_MOST_FACTOR) or 1.0,
        attention_factor=magnitude,
    )
