"""How a checkpoint wants to be generated with: all settings of its generation_config.json, or of an older config.json.

Transformers' `generate` takes them for whatever its caller does not say, and so does the runtime. What it cannot do is
refused where the answer would be another one, and named where it would not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tfm.bundle import read_json
from tfm.errors import ConfigError, InputError
from tfm.model import Fields, shown
from tfm.runtime import GenerationSettings, check_defaults

_NOT_OF_A_FILE = {"max_new_tokens", "seed", "num_return_sequences", "stop", "stop_token_ids", "logits_processors"}
_NOT_OF_A_FILE |= {"prompt_lookup_num_tokens"}
_CARRIED = [setting.name for setting in fields(GenerationSettings) if setting.name not in _NOT_OF_A_FILE]
"""Settings that the runtime has under the same name."""

_NEUTRAL = {setting.name: setting.default for setting in fields(GenerationSettings)}
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_LIKELIEST = 50
"""How many tokens transformers draws from where a file asks for sampling and does not say."""

_REFUSED: dict[str, tuple[Any, ...]] = {
    "constraints": (),
    "diversity_penalty": (0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "exponential_decay_length_penalty": (),
    "force_words_ids": (),
    "guidance_scale": (1,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0,),
    "renormalize_logits": (False,),
    "sequence_bias": (),
    "token_healing": (False,),
    "watermarking_config": (),
}
"""What the runtime lacks and another answer comes of → values that change nothing, beside null."""

_REFUSED_WHEN_DRAWN: dict[str, tuple[Any, ...]] = {
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (),
    "typical_p": (1,),
}

_ELSEWHERE = """
    pad_token_id bos_token_id eos_token_id decoder_start_token_id max_new_tokens max_length stop_strings
    split_on_whitespace transformers_version _from_model_config _commit_hash
"""
"""What is read by others, or says nothing of an answer."""

_WITHOUT_EFFECT = """
    use_cache cache_implementation cache_config max_cache_len return_legacy_cache output_attentions
    output_hidden_states output_scores output_logits return_dict_in_generate is_assistant num_assistant_tokens
    num_assistant_tokens_schedule assistant_confidence_threshold assistant_early_exit assistant_lookbehind
    assistant_ensemble_weight target_lookbehind prompt_lookup_num_tokens max_matching_ngram_size speculation_type
    compile_config disable_compile prefill_chunk_size low_memory remove_invalid_values continuous_batching_config
    use_mtp
"""
"""How transformers computes the same answer, or what it gives beside it."""


_OF_WHISPER = """
    lang_to_id task_to_id no_timestamps_token_id forced_decoder_ids is_multilingual max_initial_timestamp_index language
    task return_timestamps alignment_heads prev_sot_token_id
"""
"""What Whisper is asked by, which the runtime reads of the bundle's own generation_config.json; the last two are of
what it does not do: times of words, and what was said before."""

_REFUSED_OF_WHISPER: dict[str, tuple[Any, ...]] = {
    "condition_on_prev_tokens": (False,),
    "no_speech_threshold": (),
    "logprob_threshold": (),
    "compression_ratio_threshold": (),
}
"""What makes Whisper's answer another one, and the runtime does not do → values that change nothing, beside null."""

_MOST_NEW_TOKENS = (1 << 31) - 1
"""The most that a file may ask for. The runtime stops at the longest sequence anyway."""


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """What a bundle generates with where its caller does not say.

    Attributes:
        settings: Those of the runtime, by name, as JSON values.
        max_new_tokens: At most so many new tokens; None: not said.
        max_length: Greatest length of a row, its prompt or start token included; None: not said.
        not_carried: What else the file says, by name, of which the runtime has nothing and no answer is another one.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    max_new_tokens: int | None = None
    max_length: int | None = None
    not_carried: tuple[str, ...] = ()


def generation_defaults(folder: Path, vocabulary: int) -> GenerationDefaults:
    """Read generation_config.json; where there is none, what an older config.json says of generating.

    Args:
        folder: With these files, or without.
        vocabulary: How many tokens the model can choose from.

    Raises:
        ConfigError: A setting is not what it can be, or changes the answer and the runtime does not have it.
    """
    told = _told(folder)
    whisper = _is_whisper(folder)
    _refuse(told, _REFUSED | (_REFUSED_OF_WHISPER if whisper else {}))
    # What narrows a draw changes nothing where none is made: it is named then, not refused.
    drawn = told.flag("do_sample")
    if drawn:
        _refuse(told, _REFUSED_WHEN_DRAWN)
    settings = _carried(told, drawn)
    # Out of range, they are left out, as nothing can be drawn with them whoever asks.
    dropped = [] if drawn else _drop_what_cannot_be_drawn_with(settings)
    _check(told, settings, vocabulary)
    most = told.optional_size("max_new_tokens", most=_MOST_NEW_TOKENS)
    # Of two limits, that of new tokens counts, as in transformers.
    return GenerationDefaults(
        settings=settings,
        max_new_tokens=most,
        max_length=told.optional_size("max_length", most=_MOST_NEW_TOKENS) if most is None else None,
        not_carried=tuple(sorted({*_unknown(told), *dropped} - {*(_OF_WHISPER.split() if whisper else ())})),
    )


def _is_whisper(folder: Path) -> bool:
    path = folder / "config.json"
    written = read_json(path) if path.is_file() else {}
    return isinstance(written, dict) and written.get("model_type") == "whisper"


def _carried(told: Fields, drawn: bool) -> dict[str, Any]:
    """What the runtime has too, but for values that change nothing."""
    settings = {name: told.any(name) for name in _CARRIED if told.has(name) and told.any(name) != _NEUTRAL[name]}
    if told.has("stop_strings") and told.any("stop_strings"):
        settings["stop"] = told.any("stop_strings")
    # Of the two, transformers minds the first.
    if told.has("min_new_tokens"):
        settings.pop("min_length", None)
    if drawn and not told.has("top_k"):
        settings["top_k"] = _LIKELIEST
    return settings


def _told(folder: Path) -> Fields:
    """What the checkpoint says of generating. Of config.json, only what is known to be of that."""
    path = folder / "generation_config.json"
    if path.is_file():
        return Fields(path, "generation", read_json(path))
    path = folder / "config.json"
    written = read_json(path) if path.is_file() else {}
    # As transformers does it: what the decoder's own part says counts where the whole says nothing.
    inner: Any = next((written[name] for name in ("decoder", "generator", "text_config") if written.get(name)), {})
    values = {**_of_generating(inner if isinstance(inner, dict) else {}), **_of_generating(written)}
    # The name that forced_bos_token_id had in the first BART.
    if written.get("force_bos_token_to_be_generated") is True and written.get("bos_token_id") is not None:
        values["forced_bos_token_id"] = written["bos_token_id"]
    return Fields(path, "generation", values)


def _of_generating(written: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an older config.json that say how to generate."""
    known = {*_CARRIED, *_REFUSED, *_REFUSED_WHEN_DRAWN, "max_new_tokens", "max_length"}
    return {name: value for name, value in written.items() if name in known and value is not None}


def _refuse(told: Fields, names: Mapping[str, tuple[Any, ...]]) -> None:
    for name, neutral in names.items():
        if told.has(name) and told.any(name) not in neutral and told.any(name) != []:
            raise ConfigError(
                f"{told.source}: {name} = {shown(told.any(name))} is not supported: the runtime has no such setting, "
                f"and would generate something else; take it out of the file to export without it"
            )


def _drop_what_cannot_be_drawn_with(settings: dict[str, Any]) -> list[str]:
    """Drop settings of sampling that are out of range: where nothing is drawn, some files have a temperature of 0."""
    dropped = []
    for name in _SAMPLING:
        try:
            GenerationSettings(do_sample=True, **{key: settings[key] for key in (name,) if key in settings})
        except InputError:
            del settings[name]
            dropped.append(name)
    return dropped


def _check(told: Fields, settings: dict[str, Any], vocabulary: int) -> None:
    """Refuse what the runtime would refuse."""
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        # Transformers passes over ids that no token has.
        if name in settings:
            settings[name] = [token for token in told.tokens(name) if token < vocabulary]
    # The runtime's own rules, so that no bundle is written that it would not generate with.
    try:
        check_defaults(settings, vocabulary)
    except InputError as error:
        raise ConfigError(f"{told.source}: {error}") from error


def _unknown(told: Fields) -> list[str]:
    """What else is there and not null: of what other programs read, and of how much transformers gives."""
    # What has been refused by now is as if it were not there.
    known = {*_CARRIED, *_REFUSED, *_ELSEWHERE.split(), *_WITHOUT_EFFECT.split()}
    neutral = {"num_return_sequences": (1,), **_REFUSED_WHEN_DRAWN}
    return [
        name
        for name in told.values
        if name not in known and told.has(name) and told.any(name) not in neutral.get(name, ())
    ]
