"""How Hugging Face configurations name rotary positions and their scalings, old and new."""

import math
from typing import Any

from tfm.errors import NotNativeError

from ..config import RotaryScaling, Scaling
from ..fields import Fields, shown

_SCALINGS: dict[str, Scaling] = {
    "linear": "linear",
    "dynamic": "dynamic",
    "yarn": "yarn",
    "llama3": "llama3",
    "longrope": "longrope",
    "su": "longrope",  # as Phi 3 called it first
}

_MOST_FACTOR = 1e6
"""Of a scaling: how many times longer, or any other of its factors."""


def read_rotary(
    values: Fields, *, head_size: int | None = None, share: float = 1.0, base: float = 10000.0
) -> dict[str, Any]:
    """Read rotary positions from `rope_parameters`, or from the older `rope_theta` and `rope_scaling`.

    Where a dynamic or yarn scaling stretches the trained length, the stretched one is the longest sequence, unless
    max_position_embeddings is longer still; elsewhere it is max_position_embeddings.

    Args:
        values: The fields of config.json, max_position_embeddings among them.
        head_size: Size of a head of which a part may turn; None: all of it does.
        share: That part, where config.json does not tell it.
        base: Base of the angles, where config.json does not tell it.

    Returns:
        Fields of `TransformerConfig`: positions, max_positions, rotary_base, rotary_dim and rotary_scaling.
    """
    parameters = _parameters(values)
    for key in ("partial_rotary_factor", "mrope_section") if head_size is None else ("mrope_section",):
        (parameters if parameters.has(key) else values).supports(key, (1, 1.0))
    longest = values.size("max_position_embeddings")
    # Newer configurations have it in `rope_parameters`, older ones beside `rope_scaling`.
    given, older = (each.optional_number("rope_theta") for each in (parameters, values))
    told = older if given is None else given
    fields = {"positions": "rotary", "max_positions": longest, "rotary_base": base if told is None else told}
    if head_size is not None:
        fields["rotary_dim"] = int(head_size * _share(parameters, values, share))
    key = "rope_type" if "rope_type" in parameters.values else "type"
    kind = parameters.text(key, "default")
    if kind == "default":
        return fields
    if kind not in _SCALINGS:
        raise NotNativeError(
            f"{values.source}: rotary scaling {shown(kind)} is not supported; known: default, {', '.join(_SCALINGS)} "
            "(rope_type of rope_parameters, or type of rope_scaling)"
        )
    scaling = _read_scaling(_SCALINGS[kind], parameters.of(f"rotary scaling {kind!r} of a {values.form}"), values)
    if kind in ("dynamic", "yarn"):
        fields["max_positions"] = max(longest, round(scaling.factor * scaling.original_max_positions))
    return fields | {"rotary_scaling": scaling}


def read_local_rotary(
    values: Fields, *, whole: tuple[str, float], local: tuple[str, float], scales_local: bool = False
) -> dict[str, Any]:
    """Read the rotary positions of a model some of whose layers slide, and turn by a base of their own.

    Args:
        values: The fields of config.json.
        whole: Older configurations' key of the base in layers that see all, and what it is where none is told.
        local: The same of layers that slide.
        scales_local: Whether the older `rope_scaling` stretches those, too.

    Returns:
        What `read_rotary` gives for the layers that see all, and local_rotary_base.
    """
    told = values.inner("rope_parameters")
    full, sliding = told.inner("full_attention"), told.inner("sliding_attention")
    scaling = {} if told.values else values.inner("rope_scaling").values
    if told.values and not full.values and not sliding.values:
        raise values.error("rope_parameters", "an object with those of full_attention and of sliding_attention")
    # Newer configurations have both bases in `rope_parameters`, under the kind of layer.
    bases = [values.number(key, default) for key, default in (whole, local)]
    if sliding.text("rope_type", "default") != "default" or (scaling and scales_local):
        raise NotNativeError(
            f"{values.source}: {values.form} with positions scaled in layers that slide is not supported"
        )
    parameters = {"rope_theta": bases[0], **scaling, **full.values}
    fields = read_rotary(values.replaced(rope_scaling=None, rope_parameters=parameters))
    return fields | {"local_rotary_base": sliding.number("rope_theta", bases[1])}


def _share(parameters: Fields, values: Fields, default: float) -> float:
    """Read which share of a head turns; GPT-NeoX has a name of its own for it."""
    for fields in (parameters, values):
        for key in ("partial_rotary_factor", "rotary_pct"):
            if fields.has(key):
                return fields.number(key, most=1.0)
    return default


def _parameters(values: Fields) -> Fields:
    """Give what says how positions turn; none where nothing does."""
    key = "rope_parameters" if values.values.get("rope_scaling") in (None, {}) else "rope_scaling"
    found = values.values.get(key)
    if found is not None and (not isinstance(found, dict) or any(isinstance(value, dict) for value in found.values())):
        raise NotNativeError(
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
    if kind == "longrope":
        return _read_longrope(parameters, longest, trained)
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


def _read_longrope(parameters: Fields, longest: int, trained: int) -> RotaryScaling:
    # transformers prefers the factor that is told to the ratio of the two lengths.
    told = parameters.optional_number("factor", least=1.0, most=_MOST_FACTOR)
    return RotaryScaling(
        kind="longrope",
        factor=max(longest / trained, 1.0) if told is None else told,
        original_max_positions=trained,
        short_factors=parameters.numbers("short_factor", most=_MOST_FACTOR),
        long_factors=parameters.numbers("long_factor", most=_MOST_FACTOR),
        attention_factor=parameters.optional_number("attention_factor", most=_MOST_FACTOR),
    )


def _read_yarn(parameters: Fields, longest: int, trained: int) -> RotaryScaling:
    if not parameters.flag("truncate", True):
        raise NotNativeError(f"{parameters.source}: rotary scaling 'yarn' with truncate = False is not supported")
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
