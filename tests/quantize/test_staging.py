"""A bundle appears whole or not at all, and an earlier one stays whole until then."""

import errno
import os
import stat
from pathlib import Path

import pytest

from tfm.errors import ExportError
from tfm.quantize.staging import staged


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "room" / "x.tfm"


def write(folder: Path, text: str = "new") -> None:
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_text(text)
    (folder / "manifest.json").write_text(text)


def make_old(output: Path) -> None:
    output.mkdir(parents=True)
    write(output, "old")


def stage(output: Path, error: BaseException | None = None) -> None:
    """Write a bundle, and put it in place unless an error comes first."""
    with staged(output, overwrite=True) as (folder, put_in_place):
        write(folder)
        if error is not None:
            raise error
        put_in_place()


def content(output: Path) -> set[str]:
    files = [output / "manifest.json", output / "onnx" / "model.onnx"]
    assert {path for path in output.rglob("*") if path.is_file()} == set(files)
    assert [path.name for path in output.parent.iterdir()] == [output.name]  # no temporary sibling is left
    return {file.read_text() for file in files}


def test_what_was_put_in_place_is_there(output: Path) -> None:
    with staged(output, overwrite=False) as (folder, put_in_place):
        write(folder)
        assert folder.parent.parent == output.parent  # one file system, so that renaming is atomic
        assert not output.exists()
        put_in_place()
    assert content(output) == {"new"}
    plain = output.parent / "plain"
    plain.mkdir()
    assert stat.S_IMODE(output.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)  # not a temporary folder's 0700


def test_a_body_that_returns_early_leaves_nothing(output: Path, tmp_path: Path) -> None:
    with staged(output, overwrite=False) as (folder, _):
        write(folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), SystemExit(3), MemoryError()], ids=repr)
def test_a_body_that_raises_leaves_nothing(output: Path, tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        stage(output, error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()], ids=repr)
def test_an_old_bundle_outlives_an_error(output: Path, error: BaseException) -> None:
    make_old(output)
    with pytest.raises(type(error)):
        stage(output, error)
    assert content(output) == {"old"}


def test_an_old_bundle_is_replaced_as_a_whole(output: Path) -> None:
    make_old(output)
    (output / "extra.txt").write_text("old")
    with staged(output, overwrite=True) as (folder, put_in_place):
        write(folder)
        assert (output / "manifest.json").read_text() == "old"
        put_in_place()
    assert content(output) == {"new"}


@pytest.mark.parametrize("step", ["second rename", "flush"])
def test_an_old_bundle_is_put_back_where_the_new_one_cannot_be_placed(
    output: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    make_old(output)
    real, calls = os.rename, []

    def rename(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, *(("rename", rename) if step == "second rename" else ("fsync", fsync)))
    with pytest.raises(ExportError, match=r"the bundle could not be written to .*room: Input/output error"):
        stage(output)
    assert content(output) == {"old"}


def test_everything_is_flushed_before_it_is_renamed(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def rename(source: Path, target: Path) -> None:
        log.append(f"rename {Path(target).name}")
        real_rename(source, target)

    def fsync(descriptor: int) -> None:
        log.append("flush")
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    with staged(output, overwrite=False) as (folder, put_in_place):
        write(folder)
        put_in_place()
    assert log == ["flush"] * 3 + ["rename x.tfm", "flush"]  # two files and a folder, then the folder it is in


def test_what_exists_is_not_replaced_unasked(output: Path) -> None:
    make_old(output)
    with pytest.raises(ExportError, match=r"x\.tfm exists already; choose another folder with -o, or .*--overwrite"):
        staged(output, overwrite=False).__enter__()
    assert content(output) == {"old"}


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_bundle_is_never_replaced(output: Path, kind: str) -> None:
    output.parent.mkdir()
    if kind == "folder":
        output.mkdir()
        (output / "thesis.txt").write_text("precious")
    else:
        output.write_text("precious")
    with pytest.raises(ExportError, match=r"is not a bundle \(it has no manifest\.json\): --overwrite leaves it alone"):
        staged(output, overwrite=True).__enter__()
    assert (output / "thesis.txt" if kind == "folder" else output).read_text() == "precious"


def test_a_place_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExportError, match=r"no bundle can be written to .*: (Not a directory|File exists)"):
        staged(tmp_path / "file" / "deep" / "x.tfm", overwrite=False).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no bundle can be written to .*: File name too long"):
        staged(tmp_path / ("x" * 300), overwrite=False).__enter__()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["tempfile.mkdtemp", "pathlib.Path.mkdir"])
def test_a_place_that_is_read_only(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """By a stand-in for the system's answer: permissions do not stop a test that runs as root."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(call, refuse)
    with pytest.raises(ExportError, match=r"no bundle can be written to .*room: Permission denied"):
        staged(output, overwrite=False).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills(output: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"could not be written to .*room: No space left on device"):
        stage(output, OSError(errno.ENOSPC, "No space left on device"))
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_there_stay(output: Path, tmp_path: Path) -> None:
    output.parent.mkdir()
    with staged(output, overwrite=False):
        pass
    assert list(tmp_path.rglob("*")) == [output.parent]
