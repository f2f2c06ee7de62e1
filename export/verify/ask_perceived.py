"""What transformers writes of sounds and images, by its own processors and settings, token by token."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tfm.runtime import Perceiver

from .ask_generation import Continued, Way, near, until
from .transformers_model import open_model, transformers

_CLASSES = {"transcribe": "AutoModelForSpeechSeq2Seq", "image_to_text": "AutoModelForImageTextToText"}
_OLDER = {"image_to_text": "AutoModelForVision2Seq"}
"""Classes that transformers 4 has in the place of others."""

_NEW = 20
"""New tokens, at most."""


def ask_perceive(folder: Path, bundle: Perceiver, sources: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Way]]:
    """Let transformers write what it hears or sees, greedily.

    Args:
        folder: The checkpoint's.
        bundle: What was made of it.
        sources: Waves at the model's rate, or images.

    Returns:
        The sources, and what became of them.
    """
    generation, task = bundle.manifest.generation, bundle.tasks[0]
    if generation is None:
        raise ValueError("the checkpoint does not say how a text begins and ends")
    cls = _CLASSES[task] if hasattr(transformers(), _CLASSES[task]) else _OLDER[task]
    model = open_model(folder, cls)
    longest = min(most for most in bundle.manifest.signature["decoder"].max_length.values())
    plain = {"do_sample": False, "num_beams": 1, "max_new_tokens": max(1, min(_NEW, longest - 8))}
    expected = [_written(model, inputs, generation.eos_token_ids, plain) for inputs in _prepared(folder, task, sources)]
    return sources, [Way(plain, expected)]


def share_that_is_written(bundle: Perceiver, sources: Sequence[Any], ways: Sequence[Way]) -> tuple[float, int]:
    """Tell of which share of the sources a bundle writes what transformers does, and of how many; all at once."""
    ends = bundle.manifest.generation.eos_token_ids if bundle.manifest.generation else ()
    rows: list[Any] = bundle.perceive(list(sources))
    same = []
    for way in ways:
        found: Sequence[Any] = bundle.generate(rows, stop=(), **way.settings)
        same += [theirs.agrees(list(ours), ends) for ours, theirs in zip(found, way.expected, strict=True)]
    return float(np.mean(same)), len(same)


def _prepared(folder: Path, task: str, sources: Sequence[Any]) -> Sequence[Mapping[str, Any]]:
    """Prepare each source by the checkpoint's own processor."""
    if task == "transcribe":
        extractor = transformers().AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
        rate = extractor.sampling_rate
        return [extractor(wave.copy(), sampling_rate=rate, return_tensors="pt") for wave in sources]
    # Its other way to resize, by torchvision, gives other pixels.
    by_pil = {"backend": "pil"} if int(transformers().__version__.partition(".")[0]) >= 5 else {"use_fast": False}
    processor = transformers().AutoImageProcessor.from_pretrained(folder, local_files_only=True, **by_pil)
    return [processor(image, return_tensors="pt") for image in sources]


@torch.no_grad()
def _written(model: Any, inputs: Mapping[str, Any], ends: Sequence[int], settings: Mapping[str, Any]) -> Continued:
    asked = dict(settings, return_dict_in_generate=True, output_scores=True)
    if model.config.model_type == "whisper":  # which would hear the rest of a sound again, behind a time
        asked["force_unique_generate_call"] = True
    made = model.generate(**inputs, **asked)
    # Whatever it begins with has no scores.
    row = made.sequences[0].tolist()
    new = row[len(row) - len(made.scores) :]
    return Continued([], until(new, ends), ties=[near(scores_1V[0]) for scores_1V in made.scores])
