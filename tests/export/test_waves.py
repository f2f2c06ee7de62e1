"""Models that hear waves and spectrograms are exported, proved op by op, and compared with their pipelines."""

import json
from pathlib import Path
from typing import Any

import pytest

import tfm.export.bundle as bundles
from tests.support.sound_models import SIZES, make_sound_model
from tests.support.task_models import edit_json
from tfm.errors import ConfigError, ExportError, TfmError
from tfm.export import export_checkpoint
from tfm.export.generic.open import open_generic
from tfm.export.generic.waves import WaveGraph, samples_of
from tfm.export.verify.library import edits

transformers = pytest.importorskip("transformers", reason="the oracle: pip install transformers")


@pytest.fixture(autouse=True)
def _only_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "measure_latency", lambda *_: [])
    monkeypatch.setattr(bundles, "draw_report", lambda *_: None)


@pytest.mark.parametrize(
    ("family", "head", "measure"),
    [
        ("wav2vec2", "ForCTC", "task letters"),
        ("audio-spectrogram-transformer", "ForAudioClassification", "task scores"),
        pytest.param("wavlm", "ForCTC", "task letters", marks=pytest.mark.slow),
        pytest.param("hubert", "ForSequenceClassification", "task scores", marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
def test_all_of_it_is_proved(tmp_path: Path, family: str, head: str, measure: str) -> None:
    make_sound_model(family, head, tmp_path / "m")
    report = export_checkpoint(tmp_path / "m", tmp_path / "b", precisions=["fp32"])
    assert report.faults() == []
    [task] = [part for part in report.fidelity if part.measure == measure]
    assert (task.value, task.count) == (pytest.approx(1, abs=1e-5), 4)
    assert task.data.endswith(f"against transformers {transformers.__version__}")
    assert report.certificate["not_judged"] == []


def test_what_hears_otherwise_than_its_pipeline_is_not_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tfm.runtime.inputs.sounds as heard

    make_sound_model("wav2vec2", "ForCTC", tmp_path / "m")
    monkeypatch.setattr(heard, "normalized", lambda wave_S: wave_S[::-1].copy())
    report = export_checkpoint(tmp_path / "m", tmp_path / "b", precisions=["fp32"])
    assert not report.shipped
    assert any("task letters" in fault for fault in report.faults())


def test_samples_are_of_so_many_frames(tmp_path: Path) -> None:
    make_sound_model("wav2vec2", "ForCTC", tmp_path / "m")
    graph = open_generic(tmp_path / "m")
    assert isinstance(graph, WaveGraph)
    assert (graph.min_length, graph.max_length) == ({"samples": 50}, {"samples": 960000})
    import torch

    for length in (1, 5, 17):
        [wave] = graph.sample(torch.Generator(), 2, length)
        assert graph(wave)[0].shape == (2, length + 1, SIZES["vocab_size"])
    # What the convolutions of a real model make of a wave: 400 samples are one frame, 720 two.
    kernels, strides = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
    assert [samples_of(frames, kernels, strides) for frames in (1, 2, 50)] == [400, 720, 16080]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conv_kernel": [10, 3, 0]}, "weights of Wav2Vec2ForCTC are of another shape"),
        ({"conv_stride": [5, 2, "a"]}, "cannot read"),
        ({"conv_stride": [5, 2, 600]}, "conv_stride must be sizes from 1 to 512, but is"),
    ],
)
def test_odd_sizes_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    make_sound_model("wav2vec2", "ForCTC", tmp_path)
    edit_json(tmp_path / "config.json", **changes)
    with pytest.raises(TfmError, match=words):
        open_generic(tmp_path)


def test_an_odd_rate_is_refused(tmp_path: Path) -> None:
    make_sound_model("wav2vec2", "ForCTC", tmp_path)
    edit_json(tmp_path / "preprocessor_config.json", sampling_rate="16k")
    with pytest.raises(ConfigError, match="sampling_rate must be a number of samples a second, but is 16k"):
        open_generic(tmp_path)


@pytest.mark.parametrize(
    ("one", "other", "count"),
    [("", "", 0), ("abc", "abc", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)],
)
def test_edits_are_counted(one: str, other: str, count: int) -> None:
    assert edits(one, other) == edits(other, one) == count


def test_texts_with_images_in_them_are_refused_by_name(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    text = sizes | {"model_type": "llama", "vocab_size": 40}
    vision = sizes | {"model_type": "clip_vision_model", "image_size": 8, "patch_size": 4}
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=39)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    words = "LlavaForConditionalGeneration continues texts with images in them, which is not exported as a whole: save"
    with pytest.raises(ExportError, match=words):
        open_generic(tmp_path)


def test_images_without_a_table_are_as_large_as_they_are_prepared(tmp_path: Path) -> None:
    sizes = {"num_encoder_blocks": 1, "depths": [1], "sr_ratios": [1], "hidden_sizes": [8], "decoder_hidden_size": 8}
    sizes |= {"num_attention_heads": [1], "mlp_ratios": [2], "patch_sizes": [3], "strides": [2]}
    transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**sizes)).save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", image_size=None)
    with pytest.raises(ConfigError, match="beside it say how large images are made"):
        open_generic(tmp_path)
    for size, shape in (({"height": 16, "width": 24}, (16, 24)), ({"shortest_edge": 16}, (16, 16)), (8, (8, 8))):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": size}))
        assert open_generic(tmp_path).inputs[0].shape == ("batch", 3, *shape)
