"""A bundle appears whole or not at all, and an earlier one stays whole until then."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tfm.bundle import renames, staging
from tfm.bundle.scratch import LOCK, HeldFolder
from tfm.bundle.staging import finish, staged
from tfm.errors import ExportError


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "room" / "x.tfm"


def write(folder: Path, text: str = "new") -> None:
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_text(text)
    (folder / "manifest.json").write_text(text)


@pytest.fixture(params=["at once", "one by one"])
def renaming(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to put a folder in place: as this system can, and as one without flags for renaming can."""
    if request.param == "one by one":
        monkeypatch.setattr(renames, "_rename", refuse_flags)
    return str(request.param)


def refuse_flags(*_: object) -> None:
    raise OSError(errno.EINVAL, "Invalid argument")


def make_old(output: Path) -> None:
    output.mkdir(parents=True)
    write(output, "old")


def everything(folder: Path) -> dict[str, str]:
    """All that is in a folder, hidden or not."""
    return {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else ""
        for path in folder.rglob("*")
        if not path.is_dir() or not any(path.iterdir())
    }


def bundle(name: str, text: str) -> dict[str, str]:
    return {f"{name}/manifest.json": text, f"{name}/onnx/model.onnx": text}


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


@pytest.mark.usefixtures("renaming")
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


@pytest.mark.usefixtures("renaming")
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

    monkeypatch.setattr(renames, "_rename", refuse_flags)
    monkeypatch.setattr(os, *(("rename", rename) if step == "second rename" else ("fsync", fsync)))
    with pytest.raises(ExportError, match=r"the bundle could not be written to .*room: Input/output error"):
        stage(output)
    assert content(output) == {"old"}


def test_everything_is_flushed_before_it_is_renamed(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    real_fsync, real_move = os.fsync, staging.move

    def move(source: Path, target: Path) -> None:
        log.append(f"rename {Path(target).name}")
        real_move(source, target)

    def fsync(descriptor: int) -> None:
        log.append("flush")
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(staging, "move", move)
    with staged(output, overwrite=False) as (folder, put_in_place):
        write(folder)
        put_in_place()
    assert log == ["flush"] * 4 + ["rename x.tfm", "flush"]  # two files and two folders, then the folder it is in


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


# ------------------------------------------------ what others do meanwhile


def make_folder(output: Path) -> None:
    output.mkdir()
    (output / "thesis.txt").write_text("precious")


def stage_while(output: Path, meanwhile: Callable[[Path], object], *, overwrite: bool = False) -> None:
    """Write a bundle, let something happen to its place, and put it there."""
    with staged(output, overwrite=overwrite) as (folder, put_in_place):
        write(folder)
        meanwhile(output)
        put_in_place()


def look(path: Path) -> object:
    return everything(path) if path.is_dir() else os.lstat(path)[:7]


@pytest.mark.usefixtures("renaming")
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "appear",
    [
        make_folder,
        make_old,
        Path.mkdir,
        lambda output: output.write_text("precious"),
        lambda o: o.symlink_to("nowhere"),
    ],
    ids=["folder", "bundle", "empty folder", "file", "dangling link"],
)
def test_what_appears_meanwhile_stays(output: Path, appear: Callable[[Path], None], overwrite: bool) -> None:
    """Nor is the finished work thrown away."""
    seen = []
    said = r"x\.tfm has appeared while this ran, and is left as it is; .*x-2\.tfm: move it"
    with pytest.raises(ExportError, match=said):
        stage_while(output, lambda path: (appear(path), seen.append(look(path))), overwrite=overwrite)
    assert [look(output)] == seen
    assert {path.name for path in output.parent.iterdir()} == {"x.tfm", "x-2.tfm"}
    assert everything(output.parent).items() >= bundle("x-2.tfm", "new").items()


@pytest.mark.usefixtures("renaming")
def test_a_name_that_is_free_is_taken_for_the_finished_folder(tmp_path: Path) -> None:
    for name, kept in (("a.b", "a.b-2"), ("x.tfm", "x-4.tfm")):
        (tmp_path / "x-2.tfm").mkdir(exist_ok=True)
        (tmp_path / "x-3.tfm").write_text("precious")
        with pytest.raises(ExportError, match=kept):
            stage_while(tmp_path / name, make_folder)
        assert (tmp_path / kept / "manifest.json").read_text() == "new"
    assert (tmp_path / "x-3.tfm").read_text() == "precious"
    assert list((tmp_path / "x-2.tfm").iterdir()) == []


def replaced(output: Path) -> None:
    shutil.rmtree(output)
    make_folder(output)


@pytest.mark.usefixtures("renaming")
@pytest.mark.parametrize(
    "change",
    [replaced, lambda output: (output / "manifest.json").write_text("other"), lambda o: (o / "manifest.json").unlink()],
    ids=["another folder", "another bundle", "no bundle"],
)
def test_only_what_was_to_be_replaced_is_replaced(output: Path, change: Callable[[Path], None]) -> None:
    make_old(output)
    seen = []
    said = r"x\.tfm was changed while this ran, and is left as it is; .*x-2\.tfm: move it"
    with pytest.raises(ExportError, match=said):
        stage_while(output, lambda path: (change(path), seen.append(look(path))), overwrite=True)
    assert [look(output)] == seen
    assert {path.name for path in output.parent.iterdir()} == {"x.tfm", "x-2.tfm"}
    assert everything(output.parent).items() >= bundle("x-2.tfm", "new").items()


@pytest.mark.usefixtures("renaming")
def test_what_was_to_be_replaced_may_be_gone(output: Path) -> None:
    make_old(output)
    stage_while(output, shutil.rmtree, overwrite=True)
    assert content(output) == {"new"}


def test_what_is_changed_at_the_last_moment_stays(output: Path, renaming: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it was looked at, before it is renamed."""
    make_old(output)
    module, name = (staging, "exchange") if renaming == "at once" else (os, "rename")
    real, calls = getattr(module, name), []

    def late(source: Path, target: Path) -> object:
        if not calls:
            replaced(output)
        calls.append(source)
        return real(source, target)

    monkeypatch.setattr(module, name, late)
    with pytest.raises(ExportError, match="was changed while this ran"):
        stage(output)
    assert everything(output.parent) == {"x.tfm/thesis.txt": "precious", **bundle("x-2.tfm", "new")}


def test_what_is_taken_out_by_mistake_is_never_lost(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what was exchanged at the last moment cannot be changed back."""
    make_old(output)
    real, calls = staging.exchange, []

    def once(source: Path, target: Path) -> bool:
        calls.append(source)
        if len(calls) == 1:
            replaced(output)
        return len(calls) == 1 and real(source, target)

    monkeypatch.setattr(staging, "exchange", once)
    with pytest.raises(ExportError, match=r"the finished bundle is there, and what was there is .*x-2\.tfm"):
        stage(output)
    assert everything(output.parent) == {"x-2.tfm/thesis.txt": "precious", **bundle("x.tfm", "new")}


def test_what_appears_between_two_renames_stays(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_old(output)
    monkeypatch.setattr(renames, "_rename", refuse_flags)
    real = os.rename

    def late(source: Path, target: Path) -> None:
        real(source, target)
        if source == output:
            make_folder(output)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(ExportError, match=r"was changed while this ran.*x-3\.tfm"):
        stage(output)
    assert everything(output.parent) == {
        "x.tfm/thesis.txt": "precious",
        **bundle("x-2.tfm", "old"),
        **bundle("x-3.tfm", "new"),
    }


def test_what_can_be_neither_replaced_nor_put_back_is_finished_by_the_next(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old(output)
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if target == output:
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(renames, "_rename", refuse_flags)
        patched.setattr(os, "rename", rename)
        with pytest.raises(ExportError, match=r"could not be replaced, nor put back: Input/output error; it is .*old"):
            stage(output)
    finish(output)
    assert content(output) == {"new"}


def test_a_second_process_is_told_at_once(output: Path) -> None:
    with staged(output, overwrite=True) as (folder, put_in_place):
        write(folder)
        said = rf"another process \(number {os.getpid()}\) is making .*x\.tfm just now; wait until it has ended"
        with pytest.raises(ExportError, match=said):
            staged(output, overwrite=True).__enter__()
        with pytest.raises(ExportError, match=said):
            finish(output)
        put_in_place()
    assert content(output) == {"new"}


@pytest.mark.usefixtures("renaming")
@pytest.mark.parametrize("old", [False, True])
def test_of_two_that_began_in_the_same_instant_the_second_is_told(
    output: Path, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    if old:
        make_old(output)
    monkeypatch.setattr(staging, "finish", lambda output: None)  # neither sees the other begin

    def first(place: Path) -> None:
        with staged(place, overwrite=old) as (folder, put_in_place):
            write(folder, "first")
            put_in_place()

    said = r"while this ran, and is left as it is; the finished bundle is .*x-2\.tfm"
    with pytest.raises(ExportError, match=said):
        stage_while(output, first, overwrite=old)
    assert everything(output.parent) == {**bundle("x.tfm", "first"), **bundle("x-2.tfm", "new")}


# ------------------------------------------------ what the killed leave behind

KILLED = """
import json, os, pathlib, shutil, signal, sys
from tfm.bundle import renames, staging
output, scenario = pathlib.Path(sys.argv[1]), sys.argv[2]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def then_die(module, name, call):
    real, calls = getattr(module, name), []
    def patched(*arguments):
        found = real(*arguments)
        calls.append(0)
        if len(calls) == call:
            die()
        return found
    setattr(module, name, patched)
if scenario.startswith("rename"):
    renames._rename = lambda *_: (_ for _ in ()).throw(NotImplementedError)
    then_die(os, "rename", int(scenario[-1]))
elif scenario == "exchange":
    then_die(staging, "exchange", 1)
elif scenario == "made":
    make = pathlib.Path.mkdir
    pathlib.Path.mkdir = lambda self, *a, **k: die() if self.name == "new" else make(self, *a, **k)
elif scenario == "removing":
    shutil.rmtree = lambda path, **_: (os.unlink(path + "/manifest.json"), die())
elif scenario == "removed":
    rmdir = os.rmdir
    os.rmdir = lambda path, **options: rmdir(path, **options) if options else die()
with staging.staged(output, overwrite=True) as (folder, put_in_place):
    (folder / "onnx").mkdir()
    (folder / "manifest.json").write_text("new")
    if scenario == "writing":
        die()
    (folder / "onnx" / "model.onnx").write_text("new")
    put_in_place()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")
@pytest.mark.parametrize(
    ("scenario", "there", "then"),
    [
        ("made", "old", "old"),
        ("writing", "old", "old"),
        ("exchange", "new", "new"),
        ("rename 1", None, "new"),
        ("rename 2", "new", "new"),
        ("removing", "new", "new"),
        ("removed", "new", "new"),
    ],
)
def test_killed_at_any_step(output: Path, scenario: str, there: str | None, then: str) -> None:
    """The next process finishes what is half done, and removes what was left."""
    make_old(output)
    done = subprocess.run([sys.executable, "-c", KILLED, output, scenario], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(output.parent.iterdir())) == (2 if there else 1)  # something was left
    assert (output / "manifest.json").read_text() == there if there else not output.exists()
    finish(output)
    assert content(output) == {then}


def test_what_is_not_ours_is_never_removed(output: Path) -> None:
    output.parent.mkdir()
    others = [f".x.tfm.{name}" for name in ("settings", "settings.tmp", "long_settings.tmp", "int8.search")]
    for name in others:
        make_folder(output.parent / name)
    make_folder(output.parent / ".x.tfm.strangex.tmp")
    (output.parent / ".x.tfm.strangex.tmp" / LOCK).touch()
    before = everything(output.parent)
    with HeldFolder(output.parent, ".x.") as held, staged(output, overwrite=False):
        pass
    with staged(output.with_name("x"), overwrite=False):  # its folders are called alike
        pass
    assert everything(output.parent) == before
    assert held.path.name.startswith(".x.")


# ------------------------------------------------ signals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_impatient_user_does_not_cut_the_clean_up_short(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.rmtree

    def rmtree(*arguments: object, **options: object) -> None:
        signal.raise_signal(signal.SIGINT)
        real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(shutil, "rmtree", rmtree)

    def interrupt(_: Path) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        stage_while(output, interrupt)
    signal.raise_signal(signal.SIGINT)
    assert list(tmp_path.iterdir()) == []


def test_the_first_one_may_come_during_the_clean_up(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.rmtree

    def rmtree(*arguments: object, **options: object) -> None:
        signal.raise_signal(signal.SIGINT)
        real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    with pytest.raises(KeyboardInterrupt), staged(output, overwrite=False) as (folder, _):
        write(folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("renaming")
@pytest.mark.parametrize("old", [False, True])
def test_a_signal_while_it_is_put_in_place_comes_after(
    output: Path, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    if old:
        make_old(output)
    staging.placed.clear()
    for name in ("move", "exchange"):
        real = getattr(staging, name)
        monkeypatch.setattr(staging, name, lambda a, b, real=real: (signal.raise_signal(signal.SIGINT), real(a, b))[1])
    with pytest.raises(KeyboardInterrupt):
        stage(output)
    assert content(output) == {"new"}
    assert staging.placed == [output]


def test_handlers_are_put_back(output: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with staged(output, overwrite=False):
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
