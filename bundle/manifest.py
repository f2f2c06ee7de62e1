"""A bundle's manifest.json: what is in the folder, what each graph takes and gives, and the digests that prove it."""

import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfm.errors import BundleError

from .checked_json import CheckedJson, parse_json
from .files import HeldFile, read_file
from .json_files import describe_file, write_json
from .locate import MANIFEST, path_of
from .requires import Requires, read_requires

SCHEMA = 1
LARGEST_MANIFEST = 1 << 26
"""Bytes; one of a thousand files has a tenth of a MiB."""
ROLES: dict[str, tuple[str, ...]] = {
    "encoder": ("model",),
    "decoder": ("model",),
    "encoder-decoder": ("encoder", "decoder"),
    "module": ("model",),
}
MERGED = "decoder_model_merged"
"""What optimum and transformers.js call the file of a decoder that they take apart from its encoder."""

MERGED_ROLE = "merged"

DTYPES = (
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float16",
    "float32",
    "float64",
)


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of a graph.

    Attributes:
        name: Its name in the graph.
        dtype: A numpy dtype's name.
        shape: Fixed sizes, and names of dimensions; equal names are equal sizes. A sum of names, as
            "past_sequence + sequence", is the sum of their sizes.
        below: Values must be in [0, below); None: any.
        default: What an input is where it is not given; None: it must be.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    below: int | None = None
    default: int | None = None


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What one graph takes and gives.

    Attributes:
        inputs: Every input; those without a default are required.
        outputs: Every output.
        max_length: Greatest size of a named dimension, or of a sum of them ("past_sequence + sequence").
        min_length: Least size of a named dimension, where that is more than 1.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_length: Mapping[str, int]
    min_length: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How a bundle generates.

    Attributes:
        pad_token_id: Fills up shorter rows of a batch; None: 0 does.
        bos_token_id: Starts what an encoder-decoder generates.
        eos_token_ids: Each ends it; where there is none, only the length does.
        max_new_tokens: Greatest number of new tokens unless asked otherwise.
        split_on_whitespace: Texts are words, tokenized by character.
        max_length: Greatest length of a text with its prompt or start token, unless asked otherwise; None: not said,
            and max_new_tokens alone limits it.
        defaults: Settings of generating that hold unless asked otherwise, by name.
        not_carried: What else the checkpoint says of generating, which changes no answer or asks for several.
        short_length: Tokens up to which a text is read in one way, and beyond which all of it in another; None: in one.
    """

    pad_token_id: int | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    max_new_tokens: int
    split_on_whitespace: bool
    max_length: int | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    not_carried: tuple[str, ...] = ()
    short_length: int | None = None


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """How texts are prepared before they are tokenized.

    Attributes:
        truncation_side: "right", or "left" where a text that is too long loses its beginning.
        lower_case: Whether texts are lower-cased before the tokenizer sees them.
        prompts: Name → what goes in front of a text that is embedded.
        default_prompt: Which of them does where nobody asks for another; None: none does.
    """

    truncation_side: str = "right"
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None


@dataclass(frozen=True, kw_only=True)
class File:
    """Size in bytes and hexadecimal SHA-256 of one file."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The decoder of an encoder-decoder in the form of other readers, which `tfm.runtime` does not open.

    Attributes:
        graphs: Precision → path within the bundle.
        signature: What it takes and gives.
    """

    graphs: Mapping[str, str]
    signature: Signature


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A bundle's manifest, checked.

    Attributes:
        folder: The bundle, an absolute path: a program may change its working directory.
        kind: "encoder", "decoder", "encoder-decoder", or "module": anything else.
        family: Where the checkpoint came from, e.g. "bert".
        config: The exported model's configuration, for information.
        graphs: Precision → role → path within the bundle.
        signature: Role → what its graph takes and gives; the same in every precision.
        generation: How to generate; None: not said.
        max_text_tokens: Where `embed` truncates texts; None: where the graph's limit is.
        text: How texts are prepared.
        files: Every file of the bundle but the manifest, by path.
        versions: What wrote the bundle.
        opset: The graphs' ONNX opset.
        gates: What was verified, with which verdict.
        digest: SHA-256 of manifest.json, which tells the bundle from any other.
        requires: Precision → role → the lowest onnxruntime that opens its graph; empty: an older tfm-export said none.
        merged: The decoder once more, for other readers; None: there is none.
    """

    folder: Path
    kind: str
    family: str
    config: Mapping[str, Any]
    graphs: Mapping[str, Mapping[str, str]]
    signature: Mapping[str, Signature]
    generation: Generation | None
    max_text_tokens: int | None
    text: TextSettings = TextSettings()
    files: Mapping[str, File]
    versions: Mapping[str, Any]
    opset: int
    gates: tuple[Any, ...]
    digest: str = ""
    requires: Requires = field(default_factory=dict)
    merged: Merged | None = None

    @property
    def compared(self) -> Mapping[str, Signature]:
        """Role → what its graph takes and gives, of every graph that golden cases are stored for."""
        return dict(self.signature) | ({} if self.merged is None else {MERGED_ROLE: self.merged.signature})

    def paths(self, precision: str) -> Mapping[str, str]:
        """Give role → path within the bundle, of every graph of a precision, those of other readers too."""
        merged = {} if self.merged is None else self.merged.graphs
        return dict(self.graphs[precision]) | ({MERGED_ROLE: merged[precision]} if precision in merged else {})


def read_manifest(bundle: str | os.PathLike[str]) -> Manifest:
    """Read a bundle's manifest and check that every file it lists is there, with its size.

    Args:
        bundle: The bundle's folder.

    Returns:
        The manifest.

    Raises:
        BundleError: It is no bundle, its manifest is of another schema or malformed, or a file is missing or altered.
    """
    folder = Path(os.path.abspath(path_of(bundle)))
    if not folder.is_dir():
        state = "a file, not a folder" if folder.exists() else "not there"
        raise BundleError(f"{folder} is {state}; a bundle is the folder that tfm-export wrote")
    path = folder / MANIFEST
    try:
        content = read_file(path, LARGEST_MANIFEST)
    except FileNotFoundError as error:
        raise BundleError(f"{folder} is not a bundle: it holds no manifest.json; export one with tfm-export") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}; copy the bundle again") from error
    manifest = parse_manifest(folder, content)
    for name, file in manifest.files.items():
        try:
            found = (folder / name).stat()
        except (OSError, ValueError) as error:
            raise BundleError(
                f"{folder}: {name} is missing, though the manifest lists it; copy the bundle again"
            ) from error
        if not stat.S_ISREG(found.st_mode):
            raise BundleError(f"{folder}: {name} is a folder, or no plain file; copy the bundle again")
        # Only sizes are compared here; digests, where a file is opened and read as a whole.
        if found.st_size != file.size:
            raise BundleError(
                f"{folder}: {name} was altered: it has {found.st_size} bytes, not {file.size} as in the manifest; "
                "copy it again"
            )
    return manifest


def parse_manifest(folder: Path, content: bytes) -> Manifest:
    """Read the content of a manifest.json; the files it lists are not looked for.

    Args:
        folder: The bundle that it is of.
        content: JSON, as UTF-8.

    Raises:
        BundleError: It is of another schema or malformed, or lists a file outside the bundle.
    """
    manifest = _parse(folder, parse_json(folder / MANIFEST, content))
    return dataclasses.replace(manifest, digest=hashlib.sha256(content).hexdigest())


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write manifest.json over all other files that are in a bundle's folder at this moment.

    Args:
        folder: The bundle.
        content: Everything but the schema and the files, as JSON values.
    """
    files = {
        file.relative_to(folder).as_posix(): describe_file(file)
        # So that the same bundle has the same manifest.
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    write_json(folder / MANIFEST, {"schema": SCHEMA, **content, "files": files})


def renew_manifest(manifest: Manifest, folder: Path, changes: Mapping[str, Any]) -> None:
    """Write a bundle's manifest.json anew, into another folder with its files; what is not changed stays.

    Args:
        manifest: The bundle's.
        folder: Where to.
        changes: Key → its new value, as JSON has it.
    """
    content = parse_json(manifest.folder / MANIFEST, read_file(manifest.folder / MANIFEST, LARGEST_MANIFEST))
    write_manifest(folder, {**_plain(content), **changes})


def check_digests(manifest: Manifest, names: Iterable[str]) -> None:
    """Compare the content of listed files with their SHA-256.

    Raises:
        BundleError: A file was altered or cannot be read.
    """
    for name in names:
        try:
            file = HeldFile(manifest.folder / name)
            try:
                digest = file.sha256()
            finally:
                file.close()
        except OSError as error:
            raise BundleError(f"{manifest.folder}: {name} cannot be read: {error}") from error
        if digest != manifest.files[name].sha256:
            raise altered(manifest, name)


def read_proved(manifest: Manifest, name: str) -> bytes:
    """Read a listed file once, and compare what was read with its SHA-256.

    Raises:
        BundleError: It was altered or cannot be read.
    """
    try:
        # No more than the manifest says, so that a file that grew takes no memory.
        content = read_file(manifest.folder / name, manifest.files[name].size)
    except OSError as error:
        raise BundleError(f"{manifest.folder}: {name} cannot be read: {error}; copy the bundle again") from error
    if hashlib.sha256(content).hexdigest() != manifest.files[name].sha256:
        raise altered(manifest, name)
    return content


def altered(manifest: Manifest, name: str) -> BundleError:
    """Make the error that a file is not what the manifest says."""
    return BundleError(
        f"{manifest.folder}: {name} was altered: its SHA-256 is not the manifest's; copy the bundle again"
    )


def _parse(folder: Path, top: CheckedJson) -> Manifest:
    schema = top["schema"].value
    if type(schema) is not int or schema != SCHEMA:
        raise BundleError(
            f"{top.path}: its schema is {json.dumps(schema)}, but this tfm-export reads {SCHEMA}; "
            "upgrade tfm-export, or export the bundle again with this one"
        )
    kind = top["kind"].choice(ROLES)
    files = {top.inside(name): _file(value) for name, value in top["files"].fields().items()}
    graphs = {precision: _graph(value, kind, files) for precision, value in top["graphs"].fields().items()}
    if not graphs:
        raise top["graphs"].error("at least one precision")
    generation = top["generation"]
    return Manifest(
        folder=folder,
        kind=kind,
        family=top["family"].text(),
        config=_plain(top["config"]),
        graphs=graphs,
        signature={role: _signature(top["signature"][role], kind) for role in ROLES[kind]},
        generation=None if generation.value is None else _generation(generation, kind),
        max_text_tokens=top["max_text_tokens"].optional_integer(1),
        text=_text(top["text"]) if "text" in top.fields() else TextSettings(),  # older bundles do not say
        files=files,
        versions=_plain(top["versions"]),
        opset=top["opset"].integer(1),
        gates=tuple(item.value for item in top["gates"].items()),
        requires=read_requires(top),
        merged=_merged(top, graphs, files),
    )


def _merged(top: CheckedJson, graphs: Collection[str], files: Mapping[str, File]) -> Merged | None:
    if "merged" not in top.fields() or top["merged"].value is None:
        return None
    value = top["merged"]
    paths = {precision: path.inside(path.text()) for precision, path in value["graphs"].fields().items()}
    if paths.keys() != {*graphs} or not {*paths.values()} <= files.keys():
        raise value["graphs"].error("of every precision one of the paths in files")
    return Merged(graphs=paths, signature=_signature(value["signature"], "encoder-decoder"))


def _text(value: CheckedJson) -> TextSettings:
    prompts = {name: item.string() for name, item in value["prompts"].fields().items()}
    default = value["default_prompt"]
    return TextSettings(
        truncation_side=value["truncation_side"].choice(("right", "left")),
        lower_case=value["lower_case"].flag(),
        prompts=prompts,
        default_prompt=None if default.value is None else default.choice(prompts),
    )


def _plain(value: CheckedJson) -> dict[str, Any]:
    return {key: field.value for key, field in value.fields().items()}


def _file(value: CheckedJson) -> File:
    sha256 = value["sha256"].text()
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise value["sha256"].error("64 lower-case hexadecimal digits")
    return File(size=value["size"].integer(0), sha256=sha256)


def _graph(value: CheckedJson, kind: str, files: Mapping[str, File]) -> dict[str, str]:
    paths = {}
    for role in ROLES[kind]:
        paths[role] = value[role].inside(value[role].text())
        if paths[role] not in files:
            raise value[role].error("one of the paths in files")
    return paths


def _signature(value: CheckedJson, kind: str) -> Signature:
    inputs = tuple(_tensor(item) for item in value["inputs"].items())
    outputs = tuple(_tensor(item) for item in value["outputs"].items())
    names = {spec.name for spec in inputs}
    cached = any(name.startswith("past_key_values.") for name in names)
    if kind != "module":
        _check_names(value, names, cached)
    if cached:
        _check_decoder(value, inputs, outputs)
    dims = {dim for spec in inputs for dim in _named(spec)}
    _check_sums(value, inputs, dims)
    limits = {"max_length": _limits(value["max_length"], dims)}
    if "min_length" in value.fields():  # most graphs have none
        limits["min_length"] = _limits(value["min_length"], dims)
    return Signature(inputs=inputs, outputs=outputs, **limits)


def _check_sums(value: CheckedJson, inputs: Sequence[TensorSpec], dims: Collection[str]) -> None:
    for spec, item in zip(inputs, value["inputs"].items(), strict=True):
        if not all(_is_sum(dim, dims) for dim in _named(spec)):
            raise item["shape"].error("of sizes, plain names and sums of plain names")


def _limits(value: CheckedJson, dims: Collection[str]) -> dict[str, int]:
    for key, item in value.fields().items():
        # Checks add up the sizes of inputs, where they would not find this one.
        if not {*key.split(" + ")} <= {*dims}:
            raise BundleError(f"{value.path}: {item.place} limits no dimension of an input; export the bundle again")
    return {key: item.integer(1) for key, item in value.fields().items()}


def _check_names(value: CheckedJson, names: Collection[str], cached: bool) -> None:
    """Check that a transformer's graph takes ids or pixels, and what it needs beside a cache."""
    if not {"input_ids", "pixel_values", "input_features"} & {*names}:
        raise BundleError(f"{value.path}: {value.place}.inputs has no input_ids; export the bundle again")
    # Graphs of older versions lack these, and would fail far from here without saying why.
    # The last fills one in itself.
    masks = {"attention_mask", "decoder_attention_mask", "use_cache_branch"}
    if cached and not (masks & {*names} and "num_logits_to_keep" in names):
        raise BundleError(
            f"{value.path}: {value.place} takes its cache in the form of older versions, not in Hugging Face's; export "
            "it again"
        )


def _named(spec: TensorSpec) -> list[str]:
    """The dimensions of a tensor that have names, or sums of names."""
    return [dim for dim in spec.shape if isinstance(dim, str)]


def _check_decoder(value: CheckedJson, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    """Check what generating relies on: by which names caches and masks are made, and how many ids there are."""
    for spec, item in zip(inputs, value["inputs"].items(), strict=True):
        # The cross-attention's keys and values are the encoder's, whose length is the source's.
        own = spec.name.startswith("past_key_values.") and ".encoder." not in spec.name
        if own and not {*_named(spec)} <= {"batch", "past_sequence"}:
            raise item["shape"].error("of sizes, batch and past_sequence")
        _check_plain(spec, item)
    for spec, item in zip(outputs, value["outputs"].items(), strict=True):
        if spec.name == "logits" and not (spec.shape and isinstance(spec.shape[-1], int)):
            raise item["shape"].error("of a fixed size at its end, that of the vocabulary")


def _check_plain(spec: TensorSpec, item: CheckedJson) -> None:
    if spec.shape not in _PLAIN.get(spec.name, (spec.shape,)):
        raise item["shape"].error(" or ".join(map(str, map(list, _PLAIN[spec.name]))))


_ALL = (("batch", "total_sequence"), ("batch", "past_sequence + sequence"))
_PLAIN: dict[str, tuple[tuple[str, ...], ...]] = {
    "input_ids": (("batch", "sequence"),),
    "position_ids": (("batch", "sequence"),),
    "attention_mask": _ALL,
    "decoder_attention_mask": _ALL,
    "num_logits_to_keep": ((),),
}
"""Shapes of what a decoder is fed beside its caches."""


def _is_sum(dim: str, dims: Collection[str]) -> bool:
    """Whether `dim` is a plain name, or a sum of names that are themselves among `dims`."""
    return all(part.isidentifier() and part in dims for part in dim.split(" + "))


def _tensor(value: CheckedJson) -> TensorSpec:
    shape = tuple(d.text() if isinstance(d.value, str) else d.integer(1) for d in value["shape"].items())
    below = value["below"].integer(1) if "below" in value.fields() else None
    dtype = value["dtype"].choice(DTYPES)
    # Only integers are compared with it, by their bits.
    if below is not None and "int" not in dtype:
        raise value["below"].error(f"absent for {dtype}")
    default = value["default"].integer(0) if "default" in value.fields() else None
    # What may be left out is a number by itself.
    if default is not None and (shape or "int" not in dtype):
        raise value["default"].error("absent but for an integer without dimensions")
    return TensorSpec(name=value["name"].text(), dtype=dtype, shape=shape, below=below, default=default)


def _generation(value: CheckedJson, kind: str) -> Generation:
    bos, eos = value["bos_token_id"], value["eos_token_id"]
    # Hugging Face's configurations have one id, a list of them, or null.
    ends = [end.integer(0) for end in eos.items()] if isinstance(eos.value, list) else [eos.optional_integer(0)]
    return Generation(
        pad_token_id=value["pad_token_id"].optional_integer(0),
        bos_token_id=bos.integer(0) if kind == "encoder-decoder" else bos.optional_integer(0),
        eos_token_ids=tuple(end for end in ends if end is not None),
        max_new_tokens=value["max_new_tokens"].integer(1),
        split_on_whitespace=value["split_on_whitespace"].flag(),
        **_generation_defaults(value),
    )


def _generation_defaults(value: CheckedJson) -> dict[str, Any]:
    """What older bundles do not say. The settings themselves are checked by what generates."""
    said = value.fields()
    return {
        "max_length": said["max_length"].optional_integer(1) if "max_length" in said else None,
        "short_length": said["short_length"].optional_integer(1) if "short_length" in said else None,
        "defaults": _plain(said["defaults"]) if "defaults" in said else {},
        "not_carried": tuple(item.text() for item in said["not_carried"].items()) if "not_carried" in said else (),
    }
