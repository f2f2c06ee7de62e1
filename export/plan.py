"""What an export would make of a checkpoint, told beforehand; and all that can be exported, and which way each goes."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfm.errors import ExportError, NotNativeError
from tfm.model import FAMILIES, Transformer, load_checkpoint, locate_checkpoint, read_json

from .bundle import PRECISIONS
from .generic.open import is_generic
from .generic.vectors import from_vectors
from .graphs import Graph, graphs_of
from .source import family_of

_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1.0, "int4": 0.5625}
"""Of a weight, and of int4 the scale of each block of 32, in bytes; what is not quantized is left out of account."""

FORMATS = {
    "folders of Hugging Face, and ids on its hub": "native where the family is, else by transformers",
    "safetensors, pytorch_model.bin and sharded ones": "with the config.json beside them, or --config",
    "GGUF": "native: llama, qwen2",
    "consolidated.*.pth": "native, with params.json",
    "training checkpoints: Lightning, Trainer, torch.distributed.checkpoint": "as what is in them",
    "checkpoints of nanoGPT, llama2.c and litgpt": "native",
    "our own .pt": "native",
    "a state_dict of torch.nn.Transformer": "native, with --nhead",
    ".pt2 of torch.export.save": "generic",
    "any nn.Module": "generic, by --model package.module:factory",
}
"""What is read → which way it goes."""

_GENERATES = ("ForCausalLM", "LMHeadModel")
"""How transformers' classes end that continue a text."""

_PERCEIVES = {
    "WhisperForConditionalGeneration": "transcribe",
    "Speech2TextForConditionalGeneration": "transcribe",
    "VisionEncoderDecoderModel": "image_to_text",
}
"""Class of transformers that writes what it hears or sees → the task of its bundle."""

TASKS = {
    "embed": "encoders that sentence-transformers pools, and decoders that it does",
    "classify": "heads for sequences: …ForSequenceClassification, ViTForImageClassification",
    "classify_tokens": "heads for tokens: …ForTokenClassification, ElectraForPreTraining",
    "fill_mask": "heads for masked tokens: …ForMaskedLM",
    "transcribe": "heads for letters: …ForCTC, with a vocab.json; Whisper, Speech2Text",
    "classify_audio": "heads for sounds: Wav2Vec2ForSequenceClassification and its like, …ForAudioClassification",
    "image_to_text": "VisionEncoderDecoderModel",
    "generate": "decoders and encoder-decoders: …ForCausalLM, …LMHeadModel, …ForConditionalGeneration",
    "run": "every graph, by arrays: last states, pooled outputs, logits, and whatever a module of your own gives",
}
"""A task of the runtime → the models that have it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What an export would make.

    Attributes:
        checkpoint: Where it is on this machine; None where a factory alone makes the module.
        way: "native", "transformers", "program" or "factory".
        because: Why it is not native; "" where it is.
        family: A Hugging Face model_type, or "transformer" for our own forms; "module" where only the module knows.
        architecture: The class that config.json names, if it names one.
        kind: "encoder", "decoder" or "encoder-decoder"; "module" of what is not native.
        parameters: How many numbers the weights hold; None where that is not known before they are read.
        graphs: ONNX file → its inputs and outputs by name, where they are known without running anything.
        tasks: Of the runtime, that the bundle would have.
        sizes: Precision → about how many bytes its weights take.
        precisions: Those that are asked for.
        notes: What else is to be known before it is started.
    """

    checkpoint: Path | None
    way: str
    because: str = ""
    family: str
    architecture: str | None = None
    kind: str = "module"
    parameters: int | None = None
    graphs: Mapping[str, Mapping[str, Sequence[str]]] = dataclasses.field(default_factory=dict)
    tasks: tuple[str, ...] = ("run",)
    precisions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """Give about how many bytes the weights of each precision take."""
        return {name: round(_BYTES[name] * self.parameters) for name in self.precisions if self.parameters is not None}

    def to_dict(self) -> dict[str, Any]:
        """Give all of it as JSON values."""
        path = None if self.checkpoint is None else str(self.checkpoint)
        return dataclasses.asdict(self) | {"checkpoint": path, "sizes": self.sizes}


def plan_export(
    checkpoint: str | os.PathLike[str] | None,
    *,
    model: str | None = None,
    config: str | os.PathLike[str] | None = None,
    nhead: int | None = None,
    precisions: Sequence[str] = ("fp32", "int8"),
) -> Plan:
    """Say what `export_checkpoint` would make of the same arguments, without exporting, running or writing anything.

    Raises:
        TfmError: The checkpoint cannot be read, or a precision is not known.
    """
    if unknown := [name for name in precisions if name not in PRECISIONS]:
        raise ExportError(f"unknown precision {unknown[0]!r}; known: {', '.join(PRECISIONS)}")
    asked = tuple(dict.fromkeys(["fp32", *precisions]))
    path = None if checkpoint is None else Path(locate_checkpoint(checkpoint))
    if model is not None or path is None:
        return Plan(checkpoint=path, way="factory", family="module", because=f"{model} makes it", precisions=asked)
    if path.exists() and is_generic(path):
        return _generic(path, asked)
    try:
        # Of what is not there, the native reader says what is expected.
        native = load_checkpoint(path, config, nhead)
    except NotNativeError as error:
        if config is not None or nhead is not None or not path.is_dir():
            raise
        return _by_transformers(path, str(error), asked)
    return _native(path, native, config, asked)


def catalog() -> dict[str, Any]:
    """List all that can be exported, as JSON values: families, what each is read as, formats and tasks."""
    families = {name: {"way": "native", "reads": _reads(name)} for name in sorted(FAMILIES)}
    other = {
        "way": "transformers",
        "reads": "a graph over its cache of what continues a text, one over the whole input of any other class",
    }
    return {"families": families, "other families": other, "formats": FORMATS, "tasks": TASKS}


def _reads(family: str) -> str:
    """Give what a family's mapping says of itself first, without its verb."""
    said = " ".join((FAMILIES[family].__doc__ or "").split("\n\n")[0].split())
    return said.removeprefix("Map ").split(";")[0].removesuffix(", as `architectures` says.").rstrip(".")


def _native(
    path: Path, native: Transformer, config: str | os.PathLike[str] | None, precisions: tuple[str, ...]
) -> Plan:
    folder = path if path.is_dir() else path.parent
    named = folder / "config.json" if config is None else Path(config)
    graphs: Sequence[Graph] = [from_vectors(native)] if native.config.reads_vectors else graphs_of(native)
    return Plan(
        checkpoint=path,
        way="native",
        family=family_of(named),
        architecture=_architecture(named),
        kind=native.config.kind,
        parameters=sum(parameter.numel() for parameter in native.parameters()),
        graphs={f"{g.file}.onnx": {"inputs": _names(g.inputs), "outputs": _names(g.outputs)} for g in graphs},
        tasks=_tasks(native),
        precisions=precisions,
        notes=_notes(folder, native),
    )


def _generic(path: Path, precisions: tuple[str, ...]) -> Plan:
    if path.is_file():
        because = "torch.export saved it"
        return Plan(checkpoint=path, way="program", family="module", because=because, precisions=precisions)
    family = family_of(path / "config.json")
    return _by_transformers(path, f"{family[:80]} is not a native family", precisions)


def _by_transformers(folder: Path, because: str, precisions: tuple[str, ...]) -> Plan:
    values = read_json(folder / "config.json")
    if "auto_map" in values:
        raise ExportError(f"{folder}/config.json: auto_map asks for code that comes with the checkpoint; none is run")
    notes = ["transformers is needed, and its class is asked only then: it may refuse"]
    architecture = _architecture(folder / "config.json")
    # By its name alone: nothing of transformers is imported for a plan.
    generates = (architecture or "").endswith(_GENERATES) and not (folder / "modules.json").is_file()
    if generates:
        notes.append("it generates if its state is keys and values alone; else it gives logits of whole inputs")
    kind, tasks, graphs = _use_of(architecture or "", generates)
    return Plan(
        checkpoint=folder,
        way="transformers",
        because=because,
        family=str(values["model_type"]),
        architecture=architecture,
        kind=kind,
        graphs={name: {"inputs": [], "outputs": []} for name in graphs},
        tasks=tasks,
        precisions=precisions,
        notes=tuple(notes),
    )


def _use_of(architecture: str, generates: bool) -> tuple[str, tuple[str, ...], Sequence[str]]:
    """Tell the kind of bundle that a class becomes, its tasks and its graphs."""
    if perceives := _PERCEIVES.get(architecture):
        return "encoder-decoder", (perceives, "generate", "run"), ["encoder_model.onnx", "decoder.onnx"]
    if generates:
        return "decoder", ("generate", "run"), ["model.onnx"]
    return "module", ("transcribe", "run") if architecture.endswith("ForCTC") else ("run",), ["model.onnx"]


def _architecture(config: Path) -> str | None:
    if not config.is_file():
        return None
    values = read_json(config)
    named = values.get("architectures") if isinstance(values, dict) else None
    return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None


def _names(values: Sequence[Any]) -> list[str]:
    """Name the inputs or outputs, of a cache's many the first two."""
    names = [value.name for value in values]
    cached = [name for name in names if name.startswith(("past_key_values.", "present."))]
    return [name for name in names if name not in cached] + cached[:2] + (["…"] if len(cached) > 2 else [])


def _tasks(model: Transformer) -> tuple[str, ...]:
    config = model.config
    if config.kind != "encoder":
        return ("run",) if config.reads_vectors else ("generate", "run")
    heads = {"masked-lm": "fill_mask", "sequence": "classify", "token": "classify_tokens", None: None}
    # Images are arrays: there is no task that reads them from a file.
    task = None if config.image_size is not None else heads[config.head]
    pooled = ("embed",) if config.pooling else ()
    return (*pooled, *((task,) if task else ()), "run")


def _notes(folder: Path, model: Transformer) -> tuple[str, ...]:
    notes = []
    reads_text = model.config.image_size is None and not model.config.reads_vectors
    if reads_text and not (folder / "tokenizer.json").is_file():
        notes.append("there is no tokenizer.json beside it: texts cannot be given, ids can")
    if model.config.causal and model.config.pooling is None:
        notes.append("it has no output projection: its last state is given, and nothing is generated")
    return tuple(notes)
