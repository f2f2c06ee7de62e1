"""What a bundle generates with where its caller does not say, and how far that goes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tfm.errors import InputError

from .settings import ONLY_BEAMS, ONLY_SAMPLING, GenerationSettings

_NOT_OF_A_BUNDLE = (
    *("max_new_tokens", "seed", "num_return_sequences", "prompt_lookup_num_tokens"),
    *("json_schema", "regex", "logits_processors"),
)

PLAIN_SETTINGS: Mapping[str, Any] = {
    setting.name: setting.default for setting in fields(GenerationSettings) if setting.name not in _NOT_OF_A_BUNDLE
}
"""Settings that leave logits as they are and take the likeliest token, whatever a bundle's defaults are."""


def merged_settings(defaults: Mapping[str, Any], asked: Mapping[str, Any], *, one_text: bool = False) -> dict[str, Any]:
    """Put together what a caller asks for, and a bundle's defaults for the rest.

    A default that would have no effect beside what was asked for is left out; what was asked for is not.

    Args:
        defaults: The bundle's, by name.
        asked: The caller's, by name.
        one_text: Whether there is to be one text that nothing is taken back of: no beams, unless asked for.
    """
    kept = {name: value for name, value in defaults.items() if name not in asked}
    if one_text:
        kept.pop("num_beams", None)
    _drop_the_other(kept, asked)
    idle = _without_effect({**kept, **asked}, asked)
    kept = {name: value for name, value in kept.items() if name not in idle}
    # Where a caller wants fewer tokens than a text has at least, it has as many as he wants.
    if "min_new_tokens" in kept and "max_new_tokens" in asked:
        kept["min_new_tokens"] = min(kept["min_new_tokens"], asked["max_new_tokens"])
    return {**kept, **asked}


def _without_effect(chosen: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Which defaults have nothing to change: of sampling, of beams, or beside what was asked for."""
    idle = [] if chosen.get("do_sample") else [*ONLY_SAMPLING]
    if chosen.get("num_beams", 1) == 1:
        idle += ONLY_BEAMS
    # Transformers minds only one of the two.
    return [*idle, "min_length"] if "min_new_tokens" in asked else idle


def _drop_the_other(kept: dict[str, Any], asked: Mapping[str, Any]) -> None:
    """Drawing and beams exclude each other: where a caller asks for one, a default of the other goes."""
    if asked.get("do_sample"):
        kept.pop("num_beams", None)
    if asked.get("num_beams", 1) != 1:
        kept.pop("do_sample", None)


def check_defaults(defaults: Mapping[str, Any], vocabulary: int) -> None:
    """Check a bundle's defaults, those of sampling and of beams too where only a caller would ask for these.

    Raises:
        InputError: One is unknown, malformed, or names an id that the model does not have.
    """
    for name in defaults:
        if name not in PLAIN_SETTINGS:
            raise InputError(f"there is no setting {name!r}")
    asked: list[dict[str, Any]] = [{}, {"do_sample": True}]
    if not defaults.get("stop"):
        asked.append({"num_beams": 2})
    for choice in asked:
        GenerationSettings(**merged_settings(defaults, choice)).check_ids(vocabulary)


@dataclass(frozen=True)
class Limit:
    """How long a text may get.

    Attributes:
        new: At most so many new tokens; None: not said.
        whole: At most so many with those of its prompt, an encoder-decoder's start token among them; None: not said.
    """

    new: int | None
    whole: int | None = None

    def of(self, lengths: Sequence[int], longest: int | None) -> list[int]:
        """Count how many tokens prompts of these lengths may get, of a model that reads at most so many.

        Raises:
            InputError: A prompt leaves room for none.
        """
        found = []
        for place, length in enumerate(lengths):
            if self.whole is not None and length >= self.whole:
                raise InputError(
                    f"prompt {place} has {length} tokens, and this bundle's texts end at {self.whole}, their prompt "
                    "included (max_length of its generation_config.json); pass max_new_tokens"
                )
            # The last of them is not read, so it needs no place.
            limits = (self.new, self.whole and self.whole - length, longest and longest - length + 1)
            found.append(min(limit for limit in limits if limit is not None))
        return found
