"""Calibration files of absurd sizes are refused before they are read."""

import io
import resource
import struct
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tfm.bundle.manifest import Manifest, Signature, TensorSpec
from tfm.errors import CalibrationError
from tfm.quantize.calibration.files import read_samples
from tfm.quantize.calibration.samples import SampleReader

LITTLE = 64 << 10
"""KiB by which refusing may raise the greatest memory."""


def header(shape: tuple[int, ...], dtype: str = "<i8") -> bytes:
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape})
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n"


class Zeros(io.RawIOBase):
    """So many zeros, made as they are read."""

    def __init__(self, count: int) -> None:
        self.left = count

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self.left)
        buffer[:size] = bytes(size)
        self.left -= size
        return size


def write(path: Path, shape: tuple[int, ...], zeros: int, dtype: str = "<i8") -> Path:
    """An .npz of one array, deflated: its header says one shape, and so many zeros follow."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("input_ids.npy", "w", force_zip64=True) as stream,
    ):
        stream.write(header(shape, dtype))
        source = Zeros(zeros)
        while block := source.read(1 << 20):
            stream.write(block)
    return path


def refused(source: Path, told: str, most_bytes: int = 1 << 20) -> str:
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(CalibrationError, match=told) as caught:
        list(read_samples(source, most_bytes))
    assert time.process_time() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < LITTLE
    assert len(str(caught.value)) < 600
    assert str(source) in str(caught.value)
    return str(caught.value)


def test_a_row_of_four_gigabytes_is_not_read(tmp_path: Path) -> None:
    """The header alone tells it; that the file holds it, or only says so, makes no difference."""
    path = write(tmp_path / "a.npz", (1, 1 << 29), 64 << 20)
    message = refused(path, r"input_ids\.npy: one sample of it has shape \(536870912,\) and takes 4096 MiB")
    assert "the first axis must count samples" in message
    refused(path, "one sample of it has shape", most_bytes=1 << 30)


@pytest.mark.parametrize(
    ("shape", "dtype", "told"),
    [
        ((1, 2**62, 2**62), "<i8", "one sample of it has shape"),
        ((2**62,), "<i8", "should hold 36893488147419103232 bytes, but has"),
        ((9, 4), "<i8", "should hold 288 bytes, but has .*; was it cut short"),
        ((1,), "<U1000000", r"one sample of it has shape \(\) and takes 3 MiB"),
        ((1,), "|O", "holds objects, which only pickle reads"),
        ((), "<i8", "its first axis must count samples"),
        ((-1,), "<i8", "its first axis must count samples"),
    ],
    ids=range(7),
)
def test_odd_headers(tmp_path: Path, shape: tuple[int, ...], dtype: str, told: str) -> None:
    refused(write(tmp_path / "a.npz", shape, 64, dtype), told)


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write(path, (1 << 24, 16), 1)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02")  # the directory's word on how far it unpacks
    for name, size in (("file_size", 3 << 30), ("file_size", (1 << 32) - 2)):
        content[place + 24 : place + 28] = struct.pack("<I", size)
        path.write_bytes(content)
        assert zipfile.ZipFile(path).infolist()[0].file_size == size, name
        refused(path, "would unpack to .* MiB, more than 100 times its size; give real samples")


def test_more_arrays_than_any_graph_has(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for number in range(1001):
            archive.writestr(f"x{number}.npy", header((1,)) + bytes(8))
    refused(tmp_path / "a.npz", "holds 1001 arrays; give one for each input")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("x.npy", header((1,)) + bytes(8))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x.npy", header((1,)) + bytes(8))
    refused(tmp_path / "b.npz", "holds 2 arrays; give one for each input")


def test_masks_that_pack_well_are_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", attention_mask=np.ones((4096, 64), np.int64))
    assert len(list(read_samples(tmp_path / "a.npz"))) == 4096


def manifest(*specs: TensorSpec, **limits: int) -> Manifest:
    signature = Signature(inputs=specs, outputs=(), max_length=limits)
    options: dict[str, Any] = dict.fromkeys(Manifest.__dataclass_fields__, None)
    return Manifest(**(options | {"kind": "module", "signature": {"model": signature}}))


def spec(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)


def test_what_is_absurd_depends_on_the_model() -> None:
    assert SampleReader(manifest(spec("x", "batch", 3))).most_bytes == 1 << 20
    image = SampleReader(manifest(spec("x", "batch", 3, 1024, 1024))).most_bytes
    assert 3 << 20 < image < 1 << 30
    assert SampleReader(manifest(spec("x", "batch", "s", 1 << 16), s=1 << 16)).most_bytes == 1 << 30
    assert SampleReader(manifest(spec("x", "batch", "s"), s=512)).most_bytes == 1 << 20


def rows(path: Path) -> Iterator[npt.NDArray[Any]]:
    for _, content in read_samples(path):
        assert isinstance(content, dict)
        yield content["x"]


def test_plain_arrays_of_every_kind_of_number_are_read(tmp_path: Path) -> None:
    for dtype in ("?", "i1", "u8", "f2", "f4", "f8", ">i4"):
        array = np.arange(6).reshape(3, 2).astype(dtype)
        np.savez(tmp_path / "a.npz", x=array)
        assert [row.tolist() for row in rows(tmp_path / "a.npz")] == array.tolist()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"x" * (3 << 20), "line 1 is longer than 1048576 bytes"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n", "line 1 is not JSON"),
        ("a.jsonl", b'{"input_ids": [' + b"9" * 5000 + b"]}\n", "line 1 is not JSON"),
        ("a.jsonl", b'{"text": "' + b"x" * (2 << 20), "line 1 is longer than 1048576 bytes"),
    ],
    ids=range(4),
)
def test_odd_lines(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, told)
