"""Whisper's prompt, its times and its parts are those of transformers, and so is what it writes, token for token."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.sound_models import sounds
from tests.support.task_models import quick
from tests.support.writing_models import SPOKEN, TIMES, VOCABULARY, make_whisper, text_of
from tfm.errors import InputError, MissingTaskError
from tfm.runtime import Whisper, load
from tfm.runtime.generation.dialect import Asked, Dialect, TimeRule, segments_of

transformers = pytest.importorskip("transformers", reason="the oracle: pip install transformers")

DIALECT = Dialect(start=51, end=50, languages=SPOKEN["lang_to_id"], tasks=SPOKEN["task_to_id"], silent=59, latest=10)
SECOND = 16000
NEW = 12


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    folder = tmp_path_factory.mktemp("whisper")
    theirs = make_whisper(folder / "m")
    ours = load(quick(folder / "m", folder / "b"), provider="cpu", threads=1)
    return ours, theirs, transformers.WhisperFeatureExtractor.from_pretrained(folder / "m")


def heard() -> list[Any]:
    return [wave[:SECOND] for wave in sounds()]


def written(theirs: Any, extractor: Any, wave: Any, **options: Any) -> Any:
    """What transformers writes of one sound."""
    long = {"truncation": False, "padding": "longest"} if len(wave) > SECOND else {}
    inputs = extractor(wave.copy(), sampling_rate=SECOND, return_tensors="pt", return_attention_mask=True, **long)
    return theirs.generate(**inputs, max_new_tokens=NEW, **options)


@pytest.mark.parametrize(
    "asked",
    [{}, {"language": "de"}, {"language": "<|en|>", "task": "translate"}, {"task": "transcribe"}, {"num_beams": 3}],
)
def test_sounds_are_written_as_transformers_writes_them(both: Any, asked: dict[str, Any]) -> None:
    ours, theirs, extractor = both
    assert isinstance(ours, Whisper)
    assert ours.tasks == ("transcribe", "generate")
    found = ours.transcribe(heard(), max_new_tokens=NEW, **asked)
    expected = [written(theirs, extractor, wave, **asked)[0].tolist() for wave in heard()]
    assert [one["text"] for one in found] == [text_of(ids) for ids in expected]
    assert len({one["text"] for one in found}) > 2


def test_generate_asks_as_the_checkpoint_says(both: Any) -> None:
    ours, theirs, extractor = both
    texts = ours.generate(heard(), max_new_tokens=NEW)
    ids = ours.generate(ours.perceive(heard()), max_new_tokens=NEW)
    once = {"force_unique_generate_call": True}
    expected = [written(theirs, extractor, wave, **once)[0].tolist() for wave in heard()]
    # Where it is made at once, what it begins with is there too: a language and that no times are wanted.
    assert {tuple(row[:3]) for row in expected} <= {(51, 52, 59), (51, 53, 59)}
    cut = [row[3 : row.index(50)] if 50 in row else row[3:] for row in expected]
    assert ids == cut
    assert texts == [text_of(row) for row in cut]
    assert "".join(ours.stream(heard()[0], max_new_tokens=NEW)) == texts[0]


@pytest.mark.parametrize("asked", [{}, {"language": "de"}])
def test_sentences_and_their_times_are_those_of_transformers(both: Any, asked: dict[str, str]) -> None:
    ours, theirs, extractor = both
    longer = [sounds()[0], np.concatenate(sounds()), sounds()[3]]
    assert [len(wave) > SECOND for wave in longer] == [False, True, True]
    for wave in longer:
        [found] = ours.transcribe(wave, return_timestamps=True, max_new_tokens=NEW, **asked)
        expected = written(theirs, extractor, wave, return_timestamps=True, return_segments=True, **asked)
        [segments] = expected["segments"]
        assert [one["text"] for one in found["chunks"]] == [text_of(one["tokens"].tolist()) for one in segments]
        for one, other in zip(found["chunks"], segments, strict=True):
            assert one["timestamp"] == pytest.approx((float(other["start"]), float(other["end"])), abs=1e-6)
        assert found["text"] == text_of(expected["sequences"][0].tolist())
        # What is longer than a second is heard in parts, whether its times are wanted or not.
        if len(wave) > SECOND:
            assert ours.transcribe(wave, max_new_tokens=NEW, **asked) == [{"text": found["text"]}]


def test_what_cannot_be_asked_is_refused_by_name(both: Any) -> None:
    ours, _, _ = both
    for asked, words in (
        ({"language": "fr"}, "language must be one of de, en, but is 'fr'"),
        ({"task": "sing"}, "task must be one of transcribe, translate, but is 'sing'"),
        ({"return_timestamps": "word"}, "those of words need the decoder's attention"),
        ({"num_return_sequences": 2, "num_beams": 2}, "gives one text of each sound"),
        ({"tempo": 2}, "there is no setting 'tempo'"),
    ):
        with pytest.raises(InputError, match=words):
            ours.transcribe(heard()[0], **asked)
    with pytest.raises(InputError, match=r"inputs\[0\] is 2.1 s long, and this model hears 1 s at once"):
        ours.generate(sounds()[3])
    with pytest.raises(MissingTaskError, match="reads no texts and has no translate"):
        ours.translate("a")
    with pytest.raises(MissingTaskError, match="sees no images; it has transcribe, generate, run"):
        ours.image_to_text("a.png")
    with pytest.raises(InputError, match="this model knows English alone"):
        Dialect(start=1, end=2, multilingual=False).check(Asked("en"))
    with pytest.raises(InputError, match="has no no_timestamps_token_id, so there are no times"):
        Dialect(start=1, end=2).check(Asked(times=True))


FORCED = [[1, None], [2, 54]]


@pytest.mark.parametrize("times", [True, False])
@pytest.mark.parametrize(
    "spoken",
    [
        {},
        {"forced_decoder_ids": FORCED},
        {"forced_decoder_ids": [[1, 53], [2, 55], [3, 59]]},
        {"language": "<|de|>"},
        {"task": "translate"},
        {"lang_to_id": None, "task_to_id": None, "forced_decoder_ids": [[1, 59]]},
        {"lang_to_id": None, "task_to_id": None, "no_timestamps_token_id": None},
    ],
)
def test_the_prompt_is_that_of_transformers(spoken: dict[str, Any], times: bool) -> None:
    told = {name: value for name, value in {**SPOKEN, **spoken}.items() if value is not None}
    if times and "no_timestamps_token_id" not in told:
        return  # which transformers refuses, as the other test says of ours
    generation = transformers.GenerationConfig(decoder_start_token_id=51, eos_token_id=50)
    for name, value in told.items():
        setattr(generation, name, value)
    generation.return_timestamps = times

    class Module:
        device = "cpu"

        def detect_language(self, **_: Any) -> Any:
            return torch.tensor([53])

    make = transformers.WhisperForConditionalGeneration._retrieve_init_tokens
    dialect = Dialect(
        start=51,
        end=50,
        languages=told.get("lang_to_id", {}),
        tasks=told.get("task_to_id", {}),
        silent=told.get("no_timestamps_token_id"),
        forced=tuple(token for _, token in told.get("forced_decoder_ids", [])),
        language=told.get("language"),
        task=told.get("task"),
    )
    languages = (None, "de", "en") if "lang_to_id" in told else (None,)
    for language in languages:
        for task in (None, "transcribe", "translate") if "task_to_id" in told else (None,):
            for name, value in {"language": language or told.get("language"), "task": task or told.get("task")}.items():
                setattr(generation, name, value)
            config = transformers.WhisperConfig()
            config.forced_decoder_ids = None
            expected = make(
                Module(),
                None,
                batch_size=1,
                generation_config=generation,
                config=config,
                num_segment_frames=1,
                kwargs={},
            )
            asked = Asked(language, task, times)
            if dialect.must_hear(asked):
                asked = Asked(language, task, times, heard=53)
            assert dialect.prompt(asked) == expected[0].tolist()


def test_times_are_ruled_as_by_transformers() -> None:
    generation = transformers.GenerationConfig(eos_token_id=50)
    generation.no_timestamps_token_id, generation.max_initial_timestamp_index = 59, 10
    theirs, ours = transformers.WhisperTimeStampLogitsProcessor(generation, begin_index=2), TimeRule(DIALECT, 2)
    rng = np.random.default_rng(0)
    for _ in range(300):
        length = int(rng.integers(0, 6))
        said = np.where(rng.random(length) < 0.5, rng.integers(0, 50, length), rng.integers(60, VOCABULARY, length))
        row = [51, 59, *said.tolist()]
        # Some times are likelier together than any word, and some are not.
        logits = rng.standard_normal((1, VOCABULARY)).astype(np.float32) * 2
        logits[:, 60:] -= rng.choice([0.0, 3.0, 6.0])
        expected = theirs(torch.tensor([row]), torch.from_numpy(logits.copy()))[0].numpy()
        np.testing.assert_array_equal(ours([row], logits.copy())[0], expected)


def test_segments_are_cut_as_by_transformers() -> None:
    rng = np.random.default_rng(0)
    cut = transformers.WhisperForConditionalGeneration._retrieve_segment
    for _ in range(300):
        length = int(rng.integers(2, 9))
        said = np.where(rng.random(length) < 0.4, rng.integers(0, 50, length), rng.integers(60, VOCABULARY, length))
        frames = int(rng.integers(30, 100))
        expected, seek = cut(
            seek_sequence=torch.from_numpy(said),
            seek_outputs=[None],
            time_offset=torch.tensor([3.5], dtype=torch.float64),
            timestamp_begin=60,
            seek_num_frames=torch.tensor([frames]),
            time_precision=0.02,
            time_precision_features=0.01,
            input_stride=2,
            prev_idx=0,
            idx=0,
            return_token_timestamps=False,
            decoder_input_ids=torch.zeros(1, 2),
        )
        found, heard_frames = segments_of(said.tolist(), DIALECT, 3.5, frames)
        assert heard_frames == int(seek)
        assert [one.tokens for one in found] == [one["tokens"].tolist() for one in expected]
        for one, other in zip(found, expected, strict=True):
            assert (one.start, one.end) == pytest.approx((float(other["start"]), float(other["end"])))
    assert TIMES == VOCABULARY - 60


def test_the_export_says_what_of_whisper_is_not_done(tmp_path: Path) -> None:
    from tfm.errors import ConfigError
    from tfm.export.generation_defaults import generation_defaults

    make_whisper(tmp_path, alignment_heads=[[1, 0]])
    said = generation_defaults(tmp_path, VOCABULARY)
    assert said.not_carried == ()
    assert said.settings == {"suppress_tokens": [3, 5, 56, 57, 58], "begin_suppress_tokens": [7, 50]}
    make_whisper(tmp_path, no_speech_threshold=0.6)
    with pytest.raises(ConfigError, match=r"no_speech_threshold = 0.6 is not supported"):
        generation_defaults(tmp_path, VOCABULARY)
