"""What an app ships of a bundle: some of its precisions, the files that run them, and their proof; nothing else."""

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tfm.errors import BundleError

from .checked_json import parse_json
from .companions import CONFIG, MASK_FILES, PROCESSOR, SENTENCES, TEMPLATE, TOKENIZER, VOCABULARY
from .external_data import external_locations
from .files import read_file
from .genai_file import GENAI_CONFIG, renew_genai_config
from .golden_files import ARRAYS, LIMITS, keep_limits, keep_roles
from .json_files import read_json
from .locate import MANIFEST, folder_of
from .manifest import LARGEST_MANIFEST, MERGED_ROLE, Manifest, check_digests, read_manifest, renew_manifest
from .signature import SIGNATURE, sign
from .staging import staged

TARGETS = ("python", "native", "web", "node")
"""What reads it: tfm.runtime; onnxruntime from C and its kin; transformers.js in a browser, or under Node."""

SUFFIXES = {"fp32": "", "int8": "_quantized", "int4": "_q4", "fp16": "_fp16"}
"""What transformers.js looks for, by precision: the default of its "q8" ends in _quantized."""

Rewrite = Callable[[Path, Path], None]
"""Writes an ONNX file anew with its weights in it: from where, to where."""

_REASONS = {
    TOKENIZER: "makes ids of texts",
    CONFIG: "what the outputs mean",
    ARRAYS: "inputs and outputs that tfm parity compares with; left out by --no-golden",
    LIMITS: "how far tfm parity lets them be off",
    PROCESSOR: "says how images or sounds are prepared",
    VOCABULARY: "says which letters a model hears",
    SENTENCES: "by which measure embeddings are compared",
    TEMPLATE: "how messages of a chat are written",
    GENAI_CONFIG: "what onnxruntime-genai reads",
    **dict.fromkeys(MASK_FILES, "special tokens"),
}
_OF_READERS = (PROCESSOR, VOCABULARY, SENTENCES, "generation_config.json", TEMPLATE)
"""Files that readers other than tfm.runtime look for, where a bundle has them."""


@dataclass(frozen=True, kw_only=True)
class PackedFile:
    """A file of a pack.

    Attributes:
        path: Within the pack.
        size: Bytes.
        reason: What it is for.
    """

    path: str
    size: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Pack:
    """What was packed, and what was left.

    Attributes:
        output: The folder, or the .zip.
        precisions: Of its graphs.
        files: The largest first; the manifest among them.
        left: Bytes of the bundle that are not in it.
        notes: What a reader of this kind will miss, in sentences.
    """

    output: Path
    precisions: tuple[str, ...]
    files: tuple[PackedFile, ...]
    left: int
    notes: tuple[str, ...]

    @property
    def can_be_compared(self) -> bool:
        """Whether goldens came along, so that `tfm parity` has something to compare with."""
        return any(file.path == LIMITS for file in self.files)

    @property
    def size(self) -> int:
        """Bytes of all files, before they are zipped."""
        return sum(file.size for file in self.files)


def pack_bundle(
    bundle: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    precisions: Sequence[str] | None = None,
    target: str = "python",
    golden: bool = True,
    key: Path | None = None,
    rewrite: Rewrite | None = None,
    overwrite: bool = False,
) -> Pack:
    """Write what an app ships of a bundle: a bundle itself, which `tfm.load` opens and `tfm parity` checks.

    Args:
        bundle: The bundle, or a .zip of it.
        output: Folder to make, or a .zip.
        precisions: Which; None: int8 where it has that, else its first.
        target: One of `TARGETS`. For "web" and "node" graphs have the names that transformers.js looks for, and their
            weights in them.
        golden: Whether what `tfm parity` compares with comes along.
        key: Ed25519 private key, in PEM, to sign the manifest with.
        rewrite: How graphs get their weights into them, for "web" and "node".
        overwrite: Replace a bundle that is at `output` already.

    Returns:
        What is in it.

    Raises:
        BundleError: It is no bundle, is altered, or has no such precision.
        ExportError: It cannot be written.
    """
    if target not in TARGETS:
        raise BundleError(f"target must be one of {', '.join(TARGETS)}, but is {target!r}")
    manifest = read_manifest(folder_of(bundle))
    chosen = _choose(manifest, precisions)
    place = Path(os.path.realpath(output))
    zipped = place.suffix == ".zip"
    folder_place = place.with_suffix("") if zipped else place
    if zipped and place.exists() and not overwrite:
        raise BundleError(f"{place} exists already; choose another file with -o, or replace it with --overwrite")
    with staged(folder_place, overwrite=overwrite, what="bundle") as (folder, put_in_place):
        roles = _roles(manifest, target)
        graphs, reasons = _copy_graphs(manifest, chosen, roles, folder, rewrite if target in ("web", "node") else None)
        for name, reason in _companions(manifest, target, golden):
            _copy(manifest, name, folder / name)
            reasons[name] = reason
        renew_genai_config(folder, graphs)
        if golden and LIMITS in manifest.files:
            keep_limits(folder, chosen)
            if manifest.merged is not None:
                keep_roles(folder, roles)
        requires = {name: manifest.requires[name] for name in chosen if name in manifest.requires}
        gates = [gate for gate in manifest.gates if gate.get("precision") in ("", None, *chosen)]
        changes = {"graphs": graphs, "requires": {"onnxruntime": requires}, "gates": gates}
        renew_manifest(manifest, folder, {**changes, **_signature(manifest, roles)})
        reasons[MANIFEST] = "what is in the folder, and the digests that prove it"
        if key is not None:
            sign(folder, key)
            reasons[SIGNATURE] = "who signed the manifest, by --sign"
        # Nothing that was not asked for, and nothing that was altered meanwhile.
        check_digests(read_manifest(folder), read_manifest(folder).files)
        files = [
            PackedFile(path=name, size=(folder / name).stat().st_size, reason=reason)
            for name, reason in reasons.items()
        ]
        notes = _notes(manifest, folder, target)
        if zipped:
            # The archive is complete before it has its name.
            part = Path(shutil.make_archive(str(folder.with_name(f"{folder.name}.part")), "zip", folder))
            os.replace(part, place)
        else:
            put_in_place()
    files.sort(key=lambda file: -file.size)
    whole = sum(file.size for file in manifest.files.values())
    return Pack(
        output=Path(output),
        precisions=tuple(chosen),
        files=tuple(files),
        left=max(whole - sum(file.size for file in files if file.path not in (MANIFEST, SIGNATURE)), 0),
        notes=tuple(notes),
    )


def _choose(manifest: Manifest, precisions: Sequence[str] | None) -> list[str]:
    if precisions is None:
        return ["int8" if "int8" in manifest.graphs else next(iter(manifest.graphs))]
    if not precisions:
        raise BundleError("--precision names nothing to pack")
    for name in precisions:
        if name not in manifest.graphs:
            raise BundleError(f"{manifest.folder} has no {name} graph; it has: {', '.join(manifest.graphs)}")
    return list(dict.fromkeys(precisions))


def _roles(manifest: Manifest, target: str) -> dict[str, str]:
    """Which graphs are read where it is going → what each is there: the decoder of an encoder-decoder has two forms."""
    # tfm.runtime and whoever follows it have no use for what is there for others, nor these for what is its own.
    roles = {role: role for role in manifest.signature}
    if manifest.merged is not None and target in ("web", "node"):
        del roles["decoder"]
        roles[MERGED_ROLE] = "decoder"
    return roles


def _signature(manifest: Manifest, roles: Mapping[str, str]) -> dict[str, Any]:
    """What the manifest says of the graphs that come along, as JSON has it; nothing where all of them do."""
    if manifest.merged is None:
        return {}
    content = parse_json(manifest.folder / MANIFEST, read_file(manifest.folder / MANIFEST, LARGEST_MANIFEST)).value
    said = {**content["signature"], MERGED_ROLE: content["merged"]["signature"]}
    return {"signature": {new: said[role] for role, new in roles.items()}, "merged": None}


def _copy_graphs(
    manifest: Manifest, precisions: Collection[str], roles: Mapping[str, str], folder: Path, rewrite: Rewrite | None
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Copy the graphs and their weights; give the manifest's entry, and what each file is for."""
    graphs: dict[str, dict[str, str]] = {}
    reasons: dict[str, str] = {}
    for precision in precisions:
        paths = manifest.paths(precision)
        for role, path in ((new, paths[old]) for old, new in roles.items()):
            weights = _weights_of(manifest, path)
            name = path
            if rewrite is None:
                for one in (path, *weights):
                    _copy(manifest, one, folder / one)
                    reasons[one] = f"the {role} in {precision}" if one == path else f"the weights of {path}"
            else:
                check_digests(manifest, [path, *weights])
                name = _name_for_web(path, precision)
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                rewrite(manifest.folder / path, folder / name)
                reasons[name] = f"the {role} in {precision}, weights and all"
            graphs.setdefault(precision, {})[role] = name
    return graphs, reasons


def _weights_of(manifest: Manifest, path: str) -> list[str]:
    """The files beside a graph that hold its weights, by its own word."""
    here = PurePosixPath(path).parent
    found = [str(here / name) for name in external_locations((manifest.folder / path).read_bytes())]
    if unknown := [name for name in found if name not in manifest.files]:
        raise BundleError(f"{manifest.folder}: {path} has weights in {unknown[0]}, which the manifest does not list")
    return found


def _name_for_web(path: str, precision: str) -> str:
    """What transformers.js calls a graph: by the name of the fp32 one, and the ending of the precision."""
    named = PurePosixPath(path)
    stem = named.stem
    for ending in ("_int8", "_q4", "_fp16"):
        stem = stem.removesuffix(ending)
    return str(named.with_name(f"{stem}{SUFFIXES[precision]}.onnx"))


def _companions(manifest: Manifest, target: str, golden: bool) -> Iterator[tuple[str, str]]:
    """The small files that are read where it is going, and what each is for."""
    native = (GENAI_CONFIG,) if target in ("python", "native") else ()
    for name in (TOKENIZER, CONFIG, *MASK_FILES, *_OF_READERS, *native):
        if name in manifest.files:
            yield name, _REASONS.get(name, f"read by other readers for {target}")
    for name in (ARRAYS, LIMITS) if golden else ():
        if name in manifest.files:
            yield name, _REASONS[name]


def _copy(manifest: Manifest, name: str, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    check_digests(manifest, [name])
    shutil.copyfile(manifest.folder / name, to)


def _notes(manifest: Manifest, folder: Path, target: str) -> list[str]:
    """What transformers.js will miss."""
    if target not in ("web", "node"):
        return []
    notes = []
    if manifest.kind == "encoder-decoder" and manifest.merged is None:
        notes.append(
            "transformers.js reads another form of the decoder, which this bundle has none of; export it again"
        )
    if not (folder / "tokenizer_config.json").is_file() and (folder / TOKENIZER).is_file():
        notes.append(
            "transformers.js makes no tokenizer without tokenizer_config.json, which the checkpoint had none of"
        )
    if not (folder / CONFIG).is_file() or "model_type" not in read_json(folder / CONFIG):
        notes.append("transformers.js needs a config.json with a model_type, and the checkpoint had none")
    return notes
