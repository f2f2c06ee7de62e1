"""Bundles in a .zip, as people make them and as nobody should."""

import json
import os
import random
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfm.bundle import archive
from tfm.errors import BundleError
from tfm.runtime import check_golden, load

Bundle = Callable[..., Path]
Edit = Callable[..., None]
INPUTS = {"input_ids": [[4, 5]], "attention_mask": [[1, 1]], "token_type_ids": [[0, 0]]}


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Unpack into a folder of this test's own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    for key, unpacked in list(archive._unpacked.items()):
        shutil.rmtree(unpacked, ignore_errors=True)
        del archive._unpacked[key]


def zip_content(bundle: Path) -> Path:
    return Path(shutil.make_archive(str(bundle), "zip", bundle))


def zip_folder(bundle: Path) -> Path:
    return Path(shutil.make_archive(str(bundle), "zip", bundle.parent, bundle.name))


def rezip(source: Path, target: Path, change: Callable[[zipfile.ZipInfo, bytes], Any]) -> Path:
    """Copy a zip; what `change` gives for each entry is written: pairs of a ZipInfo and its content."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            for made, content in change(info, old.read(info)):
                new.writestr(made, content)
    return target


@pytest.mark.parametrize("make", [zip_content, zip_folder])
def test_it_opens_as_the_folder_does(make_bundle: Bundle, make: Callable[[Path], Path], temporary: Path) -> None:
    bundle = make_bundle("encoder")
    from_folder, from_zip = (load(path, provider="cpu", threads=1) for path in (bundle, str(make(bundle))))
    assert from_zip.manifest.folder.parent == temporary
    assert from_zip.manifest.files == from_folder.manifest.files
    for name, expected in from_folder.run(**INPUTS).items():
        np.testing.assert_array_equal(from_zip.run(**INPUTS)[name], expected)
    assert from_zip.tokenize(["a b"]) == [[1, 4, 5, 2]]
    if os.name == "posix":
        assert stat.S_IMODE(from_zip.manifest.folder.stat().st_mode) == 0o700


def test_its_golden_outputs(make_golden: Callable[[], Path], temporary: Path) -> None:
    report = check_golden(zip_folder(make_golden()), provider="cpu")
    assert report.passed
    assert report.bundle.parent == temporary
    assert report.cases == 2


def test_it_is_unpacked_once(make_bundle: Bundle, temporary: Path) -> None:
    path = zip_folder(make_bundle("encoder"))
    same = shutil.copy(path, path.with_name("same.zip"))
    folders = {load(name, provider="cpu").manifest.folder for name in (path, path, same)}
    assert list(temporary.iterdir()) == list(folders)
    shutil.rmtree(folders.pop())  # as a cleaner of temporary files may
    assert load(path, provider="cpu").manifest.folder.is_dir()


def test_it_is_gone_when_the_process_ends(make_bundle: Bundle, temporary: Path) -> None:
    path = zip_folder(make_bundle("encoder"))
    code = f"""
import atexit, os, tempfile
tempfile.tempdir = {str(temporary)!r}
from tfm.bundle.archive import unpack
from pathlib import Path
folder = unpack(Path({str(path)!r}))
if hasattr(os, "fork"):
    child = os.fork()
    if child == 0:
        atexit._run_exitfuncs()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
print((folder / "manifest.json").is_file())
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    assert list(temporary.iterdir()) == []


def test_an_altered_graph_is_refused(make_bundle: Bundle) -> None:
    bundle = make_bundle("encoder")
    graph = bundle / "onnx/model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\xff")
    with pytest.raises(BundleError, match=r"onnx/model.onnx was altered: its SHA-256 is not the manifest's"):
        load(zip_folder(bundle), provider="cpu", precision="fp32")


def test_a_file_of_another_size(make_bundle: Bundle, temporary: Path) -> None:
    bundle = make_bundle("encoder")
    with open(bundle / "onnx/model.onnx", "ab") as stream:
        stream.write(b"more")
    with pytest.raises(BundleError, match=r"encoder.zip: onnx/model.onnx was altered: it has \d+ bytes, not \d+ as"):
        load(zip_folder(bundle))
    assert list(temporary.iterdir()) == []


def test_a_missing_file(make_bundle: Bundle) -> None:
    bundle = make_bundle("encoder")
    (bundle / "tokenizer.json").unlink()
    with pytest.raises(
        BundleError, match=r"encoder.zip: encoder/tokenizer.json is missing, though the manifest lists it"
    ):
        load(zip_folder(bundle))


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "..\\evil", "C:evil", ""])
def test_no_name_leads_outside(make_bundle: Bundle, edit_manifest: Edit, tmp_path: Path, name: str) -> None:
    """A name that the manifest lists is refused; one that only the archive has is not written."""
    bundle = make_bundle("encoder")
    path = zip_content(bundle)
    before = sorted(tmp_path.rglob("*evil*"))
    if name:
        with zipfile.ZipFile(path, "a") as content:
            content.writestr(name, b"evil")
    assert load(path, provider="cpu").precision == "int8"
    entry = {"size": 4, "sha256": "0" * 64}
    edit_manifest(bundle, lambda m: m["files"].update({name: entry}))
    listed = rezip(
        path,
        tmp_path / "listed.zip",
        lambda info, old: [
            (info, (bundle / "manifest.json").read_bytes() if info.filename == "manifest.json" else old)
        ],
    )
    with pytest.raises(BundleError, match="is not a path inside the bundle"):
        load(listed)
    assert sorted(tmp_path.rglob("*evil*")) == before
    assert not Path("/tmp/evil").exists()


def test_what_is_not_listed_is_not_written(make_bundle: Bundle) -> None:
    path = zip_content(make_bundle("encoder"))
    with zipfile.ZipFile(path, "a") as content:
        content.writestr("notes.txt", b"hello")
        content.writestr("__MACOSX/._manifest.json", b"junk")
    folder = load(path, provider="cpu").manifest.folder
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "onnx", "tokenizer.json"]


def test_links(make_bundle: Bundle, tmp_path: Path) -> None:
    def link(info: zipfile.ZipInfo, content: bytes) -> Any:
        if info.filename.endswith("tokenizer.json"):
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
        return [(info, content)]

    path = rezip(zip_folder(make_bundle("encoder")), tmp_path / "links.zip", link)
    with pytest.raises(BundleError, match=r"tokenizer.json is a link or no plain file"):
        load(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice(make_bundle: Bundle, tmp_path: Path) -> None:
    path = rezip(zip_folder(make_bundle("encoder")), tmp_path / "twice.zip", lambda info, old: [(info, old)] * 2)
    with pytest.raises(BundleError, match=r"twice.zip holds '.*' twice; zip the bundle's folder again"):
        load(path)


def test_other_compression(make_bundle: Bundle, tmp_path: Path) -> None:
    """Of all that Python reads, these two can hold far more than deflate in as many bytes."""
    for number, kind in enumerate((zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)):

        def change(info: zipfile.ZipInfo, content: bytes, kind: int = kind) -> Any:
            info.compress_type = kind
            return [(info, content)]

        path = rezip(
            zip_folder(make_bundle(f"{'encoder' if number else 'counter'}")), tmp_path / f"{number}.zip", change
        )
        with pytest.raises(BundleError, match=r"manifest.json is neither stored nor deflated"):
            load(path)


def test_a_bomb(make_bundle: Bundle, tmp_path: Path, temporary: Path) -> None:
    """A manifest that lists what the archive cannot hold: nothing is unpacked to find that out."""
    bundle = make_bundle("encoder")
    values = json.loads((bundle / "manifest.json").read_text())
    values["files"]["tokenizer.json"]["size"] = 1 << 40
    (bundle / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(BundleError, match=r"has \d+ bytes, which cannot hold the \d+ that its manifest lists"):
        load(zip_folder(bundle))
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("before", [False, True], ids=["behind", "before"])
def test_a_terabyte_of_nothing_is_not_read(make_bundle: Bundle, temporary: Path, before: bool) -> None:
    """Sparse, so that it takes no room: before its digest is taken, it must be a zip, no longer than its entries."""
    file = zip_content(make_bundle("encoder"))
    content = file.read_bytes()
    os.truncate(file, 0)
    os.truncate(file, 1 << 40)
    with open(file, "r+b") as stream:
        stream.seek(0, os.SEEK_END if before else os.SEEK_SET)
        stream.write(content)
    start = time.monotonic()
    with pytest.raises(BundleError, match="but its entries no more than" if before else "cannot be read as a zip"):
        load(file, provider="cpu", threads=1)
    assert time.monotonic() - start < 10
    assert not list(temporary.iterdir())


def test_more_than_it_says(make_bundle: Bundle, temporary: Path) -> None:
    """An entry that says the manifest's size, and holds a thousand times that: no more is written than it says."""
    bundle = make_bundle("encoder")
    size = (bundle / "tokenizer.json").stat().st_size
    (bundle / "tokenizer.json").write_bytes(bytes(1000 * size))
    path = zip_folder(bundle)
    wrong = path.read_bytes().replace((1000 * size).to_bytes(4, "little"), size.to_bytes(4, "little"))
    assert wrong != path.read_bytes()
    path.write_bytes(wrong)
    with pytest.raises(BundleError, match="cannot be read as a zip of a bundle: Bad CRC-32"):
        load(path)
    assert list(temporary.iterdir()) == []


def test_a_full_disk(make_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage(10, 9, 1)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(BundleError, match=r"unpacks to \d+ bytes, but .*temporary has 1 free; make room"):
        load(zip_folder(make_bundle("encoder")))


def test_no_bundle_and_several(make_bundle: Bundle, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as content:
        content.writestr("a/b/manifest.json", b"{}")
    with pytest.raises(BundleError, match=r"none.zip holds no manifest.json; zip the folder of one bundle"):
        load(tmp_path / "none.zip")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as content:
        content.writestr("a/manifest.json", b"{}")
        content.writestr("b/manifest.json", b"{}")
    with pytest.raises(BundleError, match=r"two.zip holds 2 bundles"):
        load(tmp_path / "two.zip")


def test_a_manifest_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "junk.zip", "w") as content:
        content.writestr("manifest.json", b"junk")
    with pytest.raises(BundleError, match=r"junk.zip.manifest.json cannot be read as JSON"):
        load(tmp_path / "junk.zip")
    monkeypatch.setattr(archive, "LARGEST_MANIFEST", 3)
    with pytest.raises(BundleError, match=r"its manifest.json has more than 3 bytes"):
        load(tmp_path / "junk.zip")


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), bytes(1000)])
def test_garbage(tmp_path: Path, temporary: Path, content: bytes) -> None:
    (tmp_path / "model.tfm").write_bytes(content)
    with pytest.raises(BundleError, match=r"model.tfm (cannot be read as a zip of a bundle|holds no manifest.json)"):
        load(tmp_path / "model.tfm")
    assert list(temporary.iterdir()) == []


def test_damaged_archives(make_bundle: Bundle, tmp_path: Path, temporary: Path) -> None:
    """Bytes changed, cut off or inserted anywhere: a BundleError, or the same files as before."""
    bundle = make_bundle("encoder")
    whole = zip_folder(bundle).read_bytes()
    numbers, refused = random.Random(0), 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(numbers.randint(1, 3)):
            place = numbers.choice([numbers.randrange(len(damaged)), len(damaged) - numbers.randint(1, 400)])
            how = numbers.randrange(4)
            if how == 0:
                damaged[place] ^= 1 << numbers.randrange(8)
            elif how == 1:
                damaged[place] = numbers.choice([0, 255])
            elif how == 2:
                del damaged[place : place + numbers.randint(1, 40)]
            else:
                damaged[place:place] = numbers.randbytes(4)
        path = tmp_path / "damaged.zip"
        path.write_bytes(damaged)
        try:
            folder = archive.unpack(path)
        except BundleError:
            refused += 1
        else:
            for name in ("manifest.json", "onnx/model.onnx", "onnx/model_int8.onnx", "tokenizer.json"):
                assert (folder / name).read_bytes() == (bundle / name).read_bytes()
            shutil.rmtree(folder)
    assert list(temporary.iterdir()) == []
    assert refused > 200
