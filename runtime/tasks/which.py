"""Which tasks a bundle is for, as its graph's inputs and outputs and its configuration say."""

from collections.abc import Mapping
from typing import Any

from tfm.bundle import Manifest, Signature, TensorSpec

from .zero_shot import entailment_of

TEXT_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})
"""What a graph is given of a text."""

_HEADS = {
    "masked-lm": "fill_mask",
    "sequence": "classify",
    "token": "classify_tokens",
    "question-answering": "answer",
}
"""A native model's head → what it is for."""

_CLASSES = {
    "ForMaskedLM": "fill_mask",
    "ForSequenceClassification": "classify",
    "ForTokenClassification": "classify_tokens",
    "ForQuestionAnswering": "answer",
    "ForImageClassification": "classify_images",
    "ForAudioClassification": "classify_audio",
    "ForCTC": "transcribe",
}
"""How the class that transformers made of a checkpoint ends → what it is for."""

_RANKS = {"fill_mask": 3, "classify": 2, "classify_tokens": 3, "classify_images": 2}

_SOUNDS = ({"input_values"}, {"input_features"})
"""What graphs are given of a sound: a wave, or features of it."""

"""Task → how many axes its logits have."""

_BY_RANK = {2: "classify", 3: "classify_tokens"}
"""How many axes logits have → what they are for, where nothing says so."""


def tasks_of(manifest: Manifest) -> tuple[str, ...]:
    """List the tasks that a bundle of one graph has an output for, and inputs that are known here.

    Where `architectures` and heads are silent, logits (B, L) are labels of texts, and (B, S, L) labels of tokens.
    """
    signature = manifest.signature.get("model")
    if signature is None:
        return ()
    # A graph that wants anything else, such as a decoder's ids, is one that only `run` can serve.
    inputs = {spec.name for spec in signature.inputs}
    if inputs == {"pixel_values"}:
        return ("classify_images",) if _labels_images(manifest, signature) else ()
    if inputs in _SOUNDS:
        return _sound_tasks(manifest, signature)
    return _text_tasks(manifest, signature) if "input_ids" in inputs and inputs <= TEXT_INPUTS else ()


def _text_tasks(manifest: Manifest, signature: Signature) -> tuple[str, ...]:
    outputs = {spec.name: spec for spec in signature.outputs}
    found = ["embed"] if "sentence_embedding" in outputs else []
    # By what the checkpoint's class is for, and only if the graph has what that gives.
    head = _head(manifest)
    if head is None or not _gives(head, outputs):
        return tuple(found)
    found.append(head)
    if head == "classify":
        # What a label is good for beside itself: one alone is a score, and entailment is asked about any other.
        found += ["rank"] if outputs["logits"].shape[-1] == 1 else []
        found += ["classify_zero_shot"] if entailment_of(_labels(manifest)) is not None else []
    return tuple(found)


def _labels(manifest: Manifest) -> list[str]:
    """List the names of labels, where they are names; what is wrong with them is told where they are used."""
    named = manifest.config.get("labels") or manifest.config.get("id2label") or ()
    return [name for name in (named.values() if isinstance(named, dict) else named) if isinstance(name, str)]


def _gives(task: str, outputs: Mapping[str, TensorSpec]) -> bool:
    """Whether the outputs of a graph are those of a task."""
    if task == "answer":
        return {"start_logits", "end_logits"} <= outputs.keys()
    return "logits" in outputs and len(outputs["logits"].shape) == _RANKS[task]


def _head(manifest: Manifest) -> str | None:
    """Tell what a head is for; of logits that nobody names, by what native models have had from the first."""
    config = manifest.config
    # Native models say it themselves; of all others it is in the name of their class.
    if config.get("head") is not None:
        return _HEADS.get(config["head"])
    named: Any = config.get("architectures")
    if isinstance(named, list) and named:
        return next((task for ending, task in _CLASSES.items() if str(named[0]).endswith(ending)), None)
    # Logits of a module may be anything.
    if manifest.kind != "encoder":
        return None
    ranks = {len(spec.shape) for spec in manifest.signature["model"].outputs if spec.name == "logits"}
    return _BY_RANK.get(max(ranks, default=0))


def _labels_images(manifest: Manifest, signature: Signature) -> bool:
    logits = next((spec for spec in signature.outputs if spec.name == "logits"), None)
    return logits is not None and len(logits.shape) == 2 and _head(manifest) in ("classify", "classify_images")


def _sound_tasks(manifest: Manifest, signature: Signature) -> tuple[str, ...]:
    # Families of waves call a sound a sequence.
    task = {"classify": "classify_audio"}.get(str(_head(manifest)), _head(manifest))
    ranks = {len(spec.shape) for spec in signature.outputs if spec.name == "logits"}
    wanted = {"classify_audio": 2, "transcribe": 3}
    return (task,) if task in wanted and wanted[task] in ranks else ()
