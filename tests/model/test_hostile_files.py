"""Checkpoints that claim more than they hold, or are no files: refused at once, in a sentence, within little memory."""

import os
import struct
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tfm.errors import CheckpointError
from tfm.export import export_checkpoint
from tfm.model import TransformerConfig, load_checkpoint, save_checkpoint
from tfm.model.formats.files import sniff
from tfm.model.formats.litgpt import read_yaml
from tfm.model.transformer import Transformer

SECONDS = 5
"""More than any of these takes, on a machine that is busy; today's readers went on without end."""


def save(path: Path) -> Path:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 11, "d_model": 8, "nhead": 2, "dim_feedforward": 12, "max_positions": 16}
    save_checkpoint(Transformer(TransformerConfig(kind="encoder", num_encoder_layers=1, **sizes)), path)
    return path


def refused(path: Path) -> str:
    start = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert time.monotonic() - start < SECONDS
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(path: Path, change: Callable[[zipfile.ZipInfo, bytes], list[tuple[zipfile.ZipInfo, bytes]]]) -> None:
    """Write a zip archive's entries anew."""
    with zipfile.ZipFile(path) as archive:
        entries = [made for info in archive.infolist() for made in change(info, archive.read(info))]
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")  # a name that is there twice
        for info, content in entries:
            archive.writestr(info, content)


def test_a_compressed_entry_is_not_mapped(tmp_path: Path) -> None:
    """Its packed bytes would be taken for the weights themselves."""
    file = save(tmp_path / "m.pt")

    def deflate(info: zipfile.ZipInfo, content: bytes) -> list[tuple[zipfile.ZipInfo, bytes]]:
        info.compress_type = zipfile.ZIP_DEFLATED if "/data/" in info.filename else zipfile.ZIP_STORED
        return [(info, content)]

    rewrite(file, deflate)
    assert "is compressed, which torch never does" in refused(file)


def test_an_entry_that_unpacks_to_far_more_is_not_unpacked(tmp_path: Path) -> None:
    file = save(tmp_path / "m.pt")

    def bomb(info: zipfile.ZipInfo, content: bytes) -> list[tuple[zipfile.ZipInfo, bytes]]:
        if info.filename.endswith("data.pkl"):
            info.compress_type = zipfile.ZIP_DEFLATED
            content += bytes(1 << 24)
        return [(info, content)]

    rewrite(file, bomb)
    assert "is compressed" in refused(file)


def test_an_entry_that_is_there_twice(tmp_path: Path) -> None:
    file = save(tmp_path / "m.pt")
    rewrite(file, lambda info, content: [(info, content)] * (2 if info.filename.endswith("data.pkl") else 1))
    assert "'m/data.pkl' twice" in refused(file)


def test_an_entry_larger_than_the_file(tmp_path: Path) -> None:
    file = save(tmp_path / "m.pt")
    content = bytearray(file.read_bytes())
    at = content.rfind(b"PK\1\2")  # the last entry as the central directory has it
    content[at + 20 : at + 28] = struct.pack("<II", 1 << 30, 1 << 30)
    file.write_bytes(content)
    assert "would have 1073741824 bytes, but the file has" in refused(file)


@pytest.mark.parametrize("offset", [4, 6, 8, 42], ids=["made by", "version", "flags", "place"])
def test_a_directory_of_odd_values(tmp_path: Path, offset: int) -> None:
    """Whatever zipfile raises of these, it is one sentence; so it is when it is asked whether this is a program."""
    from tfm.export.source import open_source

    file = save(tmp_path / "m.pt")
    content = bytearray(file.read_bytes())
    at = content.rfind(b"PK\1\2")
    content[at + offset : at + offset + 2] = b"\xff\xff"
    file.write_bytes(content)
    said = ""
    try:
        open_source(file)
    except CheckpointError as error:
        said = str(error)
    assert "\n" not in said


def test_gguf_that_claims_more_items_than_a_lifetime_has_time_for(tmp_path: Path) -> None:
    key = b"tokenizer.ggml.tokens"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key
    claims = {
        "of an array": struct.pack("<IIQ", 9, 8, 1 << 55),
        "where 8": struct.pack("<IIQ", 9, 6, 1 << 55) + bytes(8),
        "bytes are to follow": struct.pack("<IQ", 8, 1 << 55),
        "the unknown type 44": struct.pack("<I", 44),
        "the unknown type 9": struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 6,
    }
    for said, claim in claims.items():
        (tmp_path / "m.gguf").write_bytes(head + claim)
        assert said in refused(tmp_path / "m.gguf")
    for counts in ((1 << 55, 0), (0, 1 << 55)):
        (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts))
        assert "for which there is no room" in refused(tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["m.pt", "model.safetensors", "m.gguf"])
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert "neither a folder nor a plain file" in refused(tmp_path / name)
    with pytest.raises(CheckpointError, match="not a plain file"):
        sniff(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    assert "neither a folder nor a plain file" in refused(tmp_path / name)


def test_a_link_to_itself_beside_the_weights(tmp_path: Path) -> None:
    file = save(tmp_path / "m.pt")
    (tmp_path / "loop").symlink_to("loop")
    assert load_checkpoint(file).config.kind == "encoder"


def test_a_file_that_cannot_be_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under a limit of memory; safetensors says MemoryError then."""

    def no_room(*_: Any) -> None:
        raise MemoryError("Cannot allocate memory (os error 12)")

    file = save(tmp_path / "model.safetensors")
    monkeypatch.setattr(safetensors.torch, "load_file", no_room)
    assert "cannot be read: Cannot allocate memory" in refused(file)


def test_an_old_pickle_that_goes_on_without_end(tmp_path: Path) -> None:
    """A sparse terabyte behind it is not read to find out what it refers to."""
    file = tmp_path / "m.pt"
    file.write_bytes(b"\x80\x02cos\nmkdir\n(Vcanary\ntR.")
    os.truncate(file, 1 << 40)
    assert "os.mkdir" in refused(file)
    assert not Path("canary").exists()


@pytest.mark.parametrize(
    "text",
    ["a: !!bool x", "a: !!int ''", "a: !!python/name:os.system", "a: &b [1]\nc: *b", "{" * 5000, "a: " + "[" * 20_000],
    ids=["a flag", "a number", "a name", "a reference", "objects", "lists"],
)
def test_yaml_of_more_than_plain_values(tmp_path: Path, text: str) -> None:
    """PyYAML raises KeyError and IndexError of odd tags, and takes 10 s of 5,000 brackets."""
    (tmp_path / "model_config.yaml").write_text(text)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match="is missing or not YAML of plain values"):
        read_yaml(tmp_path / "model_config.yaml")
    assert time.monotonic() - start < SECONDS


def test_a_companion_without_end(tmp_path: Path) -> None:
    """A sparse terabyte that calls itself tokenizer.json is not copied into the bundle."""
    file = save(tmp_path / "m.pt")
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    os.truncate(tmp_path / "tokenizer.json", 1 << 40)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is larger than 256 MiB"):
        export_checkpoint(file, tmp_path / "m.tfm")
    assert not (tmp_path / "m.tfm").exists()
