"""Every format that is read: what its files are made of, how they are mutated, and who reads them.

A reader must accept what was not mutated. Of anything else it may think what it likes, as long as it says so by a
`TfmError`; only where the manifest has the digest of a file, every change of what is read of it must be refused.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from . import seeds
from .byte_edits import edit_bytes
from .gguf_edits import edit_gguf
from .json_edits import edit_json
from .npy_edits import edit_npz
from .onnx_edits import edit_onnx, outside_data
from .path_edits import edit_path
from .pickle_edits import edit_pickle
from .safetensors_edits import edit_safetensors
from .text_edits import edit_lines, edit_text, edit_yaml
from .zip_edits import edit_zip

Edit = Callable[[Random, bytes], bytes]


MOST = 1 << 22
"""Bytes of a file that is mutated once more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """One format.

    Attributes:
        make: Makes unharmed files: one folder or more below the one that it is given.
        targets: What is mutated: glob within such a folder → how.
        read: Reads such a folder; gives what changed unnoticed, "" where nothing did.
        seal: Gives mutated files the digests that they then have.
        weight: How many cases it gets, beside the others.
        only: What such a folder must hold, a glob; others are left out.
    """

    make: Callable[[Path], None]
    targets: dict[str, Edit]
    read: Callable[[Path, Path], str]
    seal: Callable[[Path], None] | None = None
    weight: int = 2
    only: str = "*"


def mutate(rng: Random, form: Format, folder: Path) -> list[str]:
    """Change a folder, in one way mostly; tell what was done."""
    done = []
    (folder.parent / "outside.bin").write_bytes(bytes(4096))  # what no bundle may reach
    for _ in range(rng.choice([1, 1, 1, 1, 2, 4])):
        pattern = rng.choice(sorted(form.targets))
        files = sorted(path for path in folder.glob(pattern) if path.is_file() and not path.is_symlink())
        if not files:
            continue
        file = rng.choice(files)
        name = file.relative_to(folder).as_posix()
        if rng.random() < 0.04:
            done.append(f"{name}: {edit_path(rng, file)}")
        elif file.stat().st_size < MOST:
            file.write_bytes(form.targets[pattern](rng, file.read_bytes()))
            done.append(name)
    if form.seal is not None:
        form.seal(folder)
    return done


# Readers. They come late to what they import, so that who only mutates waits for nothing.


def read_checkpoint(folder: Path, unharmed: Path) -> str:
    """Read as `tfm-export --ckpt` does, all but the export."""
    from tfm.export.bundle import _copy_what_belongs
    from tfm.export.source import open_source

    names = ("model.pt", "model.pt2", "model.gguf", "model.safetensors")
    file = next((folder / name for name in names if os.path.lexists(folder / name)), folder)
    fields = folder / "fields.json"
    subject = open_source(
        file if file.suffix in (".pt2", ".gguf") else folder, config=fields if os.path.lexists(fields) else None
    )
    output = folder.parent / "belongs"
    output.mkdir(exist_ok=True)
    _copy_what_belongs(subject, output)
    return ""


def read_file(folder: Path, unharmed: Path) -> str:
    """Read a checkpoint that is named itself."""
    from tfm.export.source import open_source

    fields = folder / "fields.json"
    open_source(folder / "model.pt", config=fields if os.path.lexists(fields) else None)
    return ""


def read_bundle(folder: Path, unharmed: Path) -> str:
    """Open a bundle and use it; tell of weights that it read and that no digest is of."""
    from tfm.runtime import load

    with load(folder, provider="cpu", threads=1) as model:
        _use(model)
        manifest = model.manifest
        for path in manifest.graphs[model.precision].values():
            for location in outside_data((manifest.folder / path).read_bytes()):
                if (Path(path).parent / location).as_posix() not in manifest.files:
                    return f"{path} has weights in {location!r}, of which there is no digest"
    return ""


def read_proven(folder: Path, unharmed: Path) -> str:
    """Open a bundle whose manifest is as it was; tell of a file that was read and is not."""
    from tfm.runtime import load

    with load(folder, provider="cpu", threads=1) as model:
        _use(model)
        graphs = model.manifest.graphs[model.precision].values()
        opened = {name for path in graphs for name in (path, f"{path}_data", "tokenizer.json")}
    return _altered(folder, unharmed, sorted(opened))


def read_zip(folder: Path, unharmed: Path) -> str:
    """Open an archive of a bundle; tell of a file in it that is not what the manifest says."""
    from tfm.runtime import load

    with load(folder / "bundle.zip", provider="cpu", threads=1) as model:
        _use(model)
        manifest = model.manifest
        graphs = manifest.graphs[model.precision].values()
        opened = {name for path in graphs for name in (path, f"{path}_data", "tokenizer.json")} & set(manifest.files)
        for name in sorted(opened):
            if hashlib.sha256((manifest.folder / name).read_bytes()).hexdigest() != manifest.files[name].sha256:
                return f"{name} is not what its digest says"
    return ""


def read_golden(folder: Path, unharmed: Path) -> str:
    """Compare a bundle with its golden outputs."""
    from tfm.runtime import check_golden

    check_golden(folder, provider="cpu", threads=1).to_dict()
    return ""


def read_proven_golden(folder: Path, unharmed: Path) -> str:
    """Compare a bundle with golden outputs of which one file was altered."""
    read_golden(folder, unharmed)
    return _altered(folder, unharmed, list(json.loads((unharmed / "manifest.json").read_text())["files"]))


def read_recipe_file(folder: Path, unharmed: Path) -> str:
    """Read a recipe, and look up what it says."""
    from tfm.quantize.recipe import read_recipe

    recipe = read_recipe(folder / "recipe_int8.json")
    recipe.check("int8", ["model"])
    [str(method) for method in recipe.of("model", list("abcde")).values()]
    json.dumps(recipe.to_json())
    return ""


def read_journal(folder: Path, unharmed: Path) -> str:
    """Go on with a search, which uses what is remembered."""
    from tfm.quantize.search.evaluator import Loss
    from tfm.quantize.search.figures import is_loss, numbers
    from tfm.quantize.search.journal import Journal

    journal = Journal(folder / "search", "s")
    noise: list[float] = journal.recall("noise a", lambda: [0.0, 1e-9], numbers(2))
    sum(noise)
    Loss(**journal.recall("drop 0 1", lambda: {"value": 0.5, "flips": None, "least": 0.25}, is_loss))
    (total,) = journal.recall("time x", lambda: [1e-5], numbers(1, positive=True))
    1.0 / total
    return ""


def read_calibration_data(folder: Path, unharmed: Path) -> str:
    """Read calibration data into batches."""
    from tfm.bundle.manifest import read_manifest
    from tfm.quantize.calibration.read import read_calibration

    manifest = read_manifest(folder / "bundle")
    source = folder / f"data.{unharmed.name.partition('-')[2]}"
    calibration = read_calibration(source, manifest, count=8)
    role = "encoder" if manifest.kind == "encoder-decoder" else "model"
    for _ in calibration.batches(role, 2):
        pass
    return calibration.digest[:0]


def _use(model: Any) -> None:
    """Run whatever a bundle offers."""
    import numpy as np

    from tfm.errors import InputError

    repr(model)
    if hasattr(model, "generate"):
        model.generate(["abc"], max_new_tokens=3, timeout=5)
        return
    if hasattr(model, "embed"):
        try:
            model.embed(["a b c", "d"])
        except InputError:  # it gives no embeddings
            model.run(input_ids=[[4, 5]], attention_mask=[[1, 1]])
        return
    specs = model.manifest.signature["model"].inputs
    shapes = [[dim if isinstance(dim, int) else 1 for dim in spec.shape] for spec in specs]
    if all(math.prod(shape) < MOST for shape in shapes):
        model.run({spec.name: np.zeros(shape, spec.dtype) for spec, shape in zip(specs, shapes, strict=True)})


def _altered(folder: Path, unharmed: Path, names: list[str]) -> str:
    for name in names:
        was = unharmed / name
        if was.is_file() and (
            (folder / name).stat().st_size != was.stat().st_size or (folder / name).read_bytes() != was.read_bytes()
        ):
            return f"{name} was altered"
    return ""


def seal(folder: Path) -> None:
    """Give a bundle's manifest the digests that the files have, as one would who meddles with them."""
    inside = folder / "manifest.json"
    for manifest in [inside] if inside.is_file() else folder.glob("*/manifest.json"):
        values = json.loads(manifest.read_text())
        for name in values["files"]:
            file = manifest.parent / name
            if file.is_file() and file.stat().st_size < MOST:
                with contextlib.suppress(OSError):  # /proc/self/mem, say
                    content = file.read_bytes()
                    values["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest.write_text(json.dumps(values))


_SIZES = (
    8,
    11,
    16,
    24,
    2**31,
    "float32",
    "int64",
    ["batch"],
    "batch",
    "sequence",
    "batch + sequence",
    "input_ids",
    "onnx/model.onnx",
)
_CONFIG = (
    "bert",
    "llama",
    "t5",
    "vit",
    "gelu",
    "relu",
    "linear",
    "default",
    "yarn",
    "dynamic",
    "rope_scaling",
    "head_dim",
    "silu",
    {"0": "a"},
)
_TOKENIZER = (
    "BPE", "WordPiece", "WordLevel", "Unigram", "Sequence", "Split", "ByteLevel", "Metaspace", "Precompiled",
    "Replace", "Regex", "(a+)+$", {"Regex": "(a|a)*$"}, {"Regex": "("}, {"String": ""}, "TemplateProcessing",
    "Isolated", "precompiled_charsmap", "AAAA", "merges", "<unk>", [["a", "b"]],
    {"Sequence": {"id": "A", "type_id": 0}}, "byte_fallback", "max_input_chars_per_word", "dropout",
    {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}, "Truncate", "Left", "pattern", "Strip", "content",
    "Fuse", "CTC", "Prepend", "Whitespace", "special", "id",
)  # fmt: skip


def _json(*hints: Any) -> Edit:
    return lambda rng, data: edit_json(rng, data, hints)


def _pt(rng: Random, data: bytes) -> bytes:
    return edit_zip(rng, data, {".pkl": edit_pickle, "model.json": _json(*_SIZES)})


def _pt2(rng: Random, data: bytes) -> bytes:
    hints = (
        "torch.ops.aten.add.Tensor", "torch.ops.aten.from_file.default", "os.system", "s0", "Max(1, s0)",
        "torch.hub.load", "math.floor", "__import__('os').mkdir('canary')", {"as_int": 2**63},
        {"as_expr": {"expr_str": "os.mkdir('canary')"}}, "9**9**9**9", "Pow(9, Pow(9, 9**9))", "LShift(1, 10**18)",
        "s0**1000000000", {"as_expr": {"expr_str": "9**9**9"}}, True, "use_pickle", [["a"], "exec"],
    )  # fmt: skip
    edits = {
        "model.pt": _pt,
        "model.json": _json(*hints),
        "config.json": _json(*hints, "weight_0", "../x", [8, 8], 7),
        "weight_0": edit_bytes,
    }
    return edit_zip(rng, data, edits)


def _zipped_bundle(rng: Random, data: bytes) -> bytes:
    return edit_zip(rng, data, {"manifest.json": _json(*_SIZES)})


FORMATS: dict[str, Format] = {
    "pt": Format(make=seeds.make_pt, targets={"model.pt": _pt}, read=read_checkpoint, weight=3),
    "pt-old": Format(make=seeds.make_old_pickle, targets={"model.pt": edit_pickle}, read=read_file),
    "safetensors": Format(
        make=seeds.make_safetensors, targets={"*.safetensors": edit_safetensors}, read=read_checkpoint
    ),
    "safetensors-index": Format(
        make=seeds.make_index,
        targets={
            "*.index.json": _json("model-00001-of-00002.safetensors", "../x", "config.json"),
            "*.safetensors": edit_safetensors,
        },
        read=read_checkpoint,
    ),
    "gguf": Format(make=seeds.make_gguf, targets={"model.gguf": edit_gguf}, read=read_checkpoint, weight=3),
    "config.json": Format(
        make=seeds.make_config, targets={"config.json": _json(*_CONFIG)}, read=read_checkpoint, weight=3
    ),
    "config.json-ours": Format(
        make=seeds.make_own_config, targets={"config.json": _json(*_CONFIG)}, read=read_checkpoint
    ),
    "generation_config.json": Format(
        make=seeds.make_generation_config,
        targets={"generation_config.json": _json("decoder_start_token_id", [1, 2])},
        read=read_checkpoint,
        weight=1,
    ),
    "sentence-transformers": Format(
        make=seeds.make_sentence_transformers,
        targets={
            "modules.json": _json("pooling_mode", "Pooling"),
            "1_Pooling/*": _json("cls", "pooling_mode"),
            "sentence_*": _json(5),
        },
        read=read_checkpoint,
        weight=1,
    ),
    "params.json": Format(make=seeds.make_params, targets={"params.json": _json(8, 2)}, read=read_checkpoint, weight=1),
    "litgpt-yaml": Format(make=seeds.make_litgpt, targets={"*.yaml": edit_yaml}, read=read_checkpoint),
    "nanogpt": Format(make=seeds.make_nanogpt, targets={"model.pt": _pt}, read=read_file, weight=1),
    "torch-nn": Format(
        make=seeds.make_torch_nn, targets={"model.pt": _pt, "fields.json": _json(*_CONFIG)}, read=read_file, weight=1
    ),
    "pt2": Format(make=seeds.make_pt2, targets={"model.pt2": _pt2}, read=read_checkpoint),
    "tokenizer.json-export": Format(
        make=seeds.make_checkpoint_tokenizer,
        targets={"tokenizer.json": _json(*_TOKENIZER)},
        read=read_checkpoint,
        weight=1,
    ),
    "tokenizer.json": Format(
        make=seeds.make_bundles, targets={"tokenizer.json": _json(*_TOKENIZER)}, read=read_bundle, seal=seal
    ),
    "manifest": Format(make=seeds.make_bundles, targets={"manifest.json": _json(*_SIZES)}, read=read_bundle, weight=3),
    "golden": Format(
        make=seeds.make_bundles,
        only="golden.npz",
        targets={"golden.json": _json(0.0), "golden.npz": edit_npz},
        read=read_golden,
        seal=seal,
    ),
    "golden-unsealed": Format(
        make=seeds.make_bundles,
        only="golden.npz",
        targets={"golden.json": _json(0.0), "golden.npz": edit_npz, "onnx/*": edit_bytes},
        read=read_proven_golden,
        weight=1,
    ),
    "onnx": Format(make=seeds.make_bundles, targets={"onnx/*.onnx": edit_onnx}, read=read_bundle, seal=seal, weight=4),
    "onnx_data": Format(
        make=seeds.make_bundles,
        only="onnx/*_data",
        targets={"onnx/*_data": edit_bytes, "onnx/*.onnx": edit_onnx},
        read=read_bundle,
        seal=seal,
    ),
    "bundle-unsealed": Format(
        make=seeds.make_bundles,
        targets={"onnx/*.onnx": edit_onnx, "onnx/*": edit_bytes, "tokenizer.json": _json(*_TOKENIZER)},
        read=read_proven,
    ),
    "zip": Format(make=seeds.make_zip, targets={"bundle.zip": _zipped_bundle}, read=read_zip, weight=3),
    "recipe": Format(
        make=seeds.make_recipe,
        targets={"recipe_int8.json": _json("int8", "dynamic", 0.5, 64)},
        read=read_recipe_file,
        weight=1,
    ),
    "journal": Format(make=seeds.make_journal, targets={"search": edit_lines}, read=read_journal, weight=1),
    "calibration-txt": Format(
        make=seeds.make_calibration,
        only="data.txt",
        targets={"data.txt": edit_text},
        read=read_calibration_data,
        weight=1,
    ),
    "calibration-jsonl": Format(
        make=seeds.make_calibration,
        only="data.jsonl",
        targets={"data.jsonl": edit_lines},
        read=read_calibration_data,
        weight=1,
    ),
    "calibration-npz": Format(
        make=seeds.make_calibration, only="data.npz", targets={"data.npz": edit_npz}, read=read_calibration_data
    ),
}


def schedule() -> Iterator[str]:
    """Names of formats, each as often as its weight, without end."""
    rounds = [
        name
        for turn in range(max(form.weight for form in FORMATS.values()))
        for name, form in FORMATS.items()
        if turn < form.weight
    ]
    while True:
        yield from rounds
