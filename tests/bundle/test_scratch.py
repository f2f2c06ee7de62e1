"""What a killed process leaves in the folder for temporary files is gone after the next; what is in use stays."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tfm.bundle import archive, scratch
from tfm.bundle.scratch import LOCK, HeldFolder, clear_up, scratch_folder
from tfm.runtime import load

Bundle = Callable[..., Path]

KILLED = """
import os, pathlib, signal, sys, tempfile
tempfile.tempdir = sys.argv[1]
from tfm.bundle.scratch import HeldFolder
held = HeldFolder(pathlib.Path(sys.argv[1]))
(held.path / "deep").mkdir()
(held.path / "deep" / "file").write_text("x")
(held.path / "file").write_text("x")
print(held.path.name, flush=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(scratch, "_cleared", False)
    monkeypatch.setattr(archive, "_unpacked", {})
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


posix = pytest.mark.skipif(os.name == "nt", reason="Windows has neither SIGKILL nor fork")


@posix
def test_a_dead_processs_folder_is_removed_and_a_live_ones_is_not(temporary: Path) -> None:
    command = [sys.executable, "-c", KILLED, temporary]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert clear_up(temporary) == [str(process.pid)]
        assert names(temporary / name) == [LOCK, "deep", "file"]
        process.communicate("die\n")
    assert process.returncode == -signal.SIGKILL
    assert names(temporary) == [name]
    with scratch_folder() as mine:
        assert names(temporary) == [mine.name]
    assert names(temporary) == []


@posix
def test_the_next_archive_that_is_unpacked_clears_up(make_bundle: Bundle, temporary: Path, tmp_path: Path) -> None:
    packed = shutil.make_archive(str(tmp_path / "x"), "zip", make_bundle("encoder"))
    code = (
        f"import os, signal, tempfile; tempfile.tempdir = {str(temporary)!r}; from tfm.bundle.archive import unpack; "
        f"from pathlib import Path; unpack(Path({packed!r})); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code]).returncode == -signal.SIGKILL
    (left,) = temporary.iterdir()
    assert (left / "manifest.json").is_file()
    folder = load(packed, provider="cpu").manifest.folder
    assert list(temporary.iterdir()) == [folder]
    other = shutil.make_archive(str(tmp_path / "y"), "zip", make_bundle("counter"))
    assert load(other, provider="cpu").manifest.folder != folder
    assert folder.is_dir()  # still in use


def test_what_is_not_ours_stays(temporary: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / LOCK).touch()
    (temporary / "tfm-linkedto.tmp").symlink_to(tmp_path / "precious", target_is_directory=True)
    for name in ("tfm-withfile.tmp", "tfm-longer_name.tmp", "tfm-12345678", "tmp12345678"):
        (temporary / name).mkdir()
        (temporary / name / "file").touch()
    (temporary / "tfm-itisfile.tmp").touch()
    before = names(temporary)
    assert clear_up(temporary) == []
    assert names(temporary) == before
    assert names(tmp_path / "precious") == [LOCK]


@posix
def test_what_another_user_owns_stays(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (temporary / "tfm-12345678.tmp").mkdir()
    (temporary / "tfm-12345678.tmp" / LOCK).touch()
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: 12345)
        clear_up(temporary)
    assert names(temporary) == ["tfm-12345678.tmp"]
    clear_up(temporary)
    assert names(temporary) == []


@posix
def test_links_in_it_are_not_followed(temporary: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    left = temporary / "tfm-12345678.tmp"
    left.mkdir()
    (left / LOCK).touch()
    (left / "folder").symlink_to(tmp_path / "precious", target_is_directory=True)
    (left / "file").symlink_to(tmp_path / "precious" / "file")
    clear_up(temporary)
    assert names(temporary) == []
    assert names(tmp_path / "precious") == ["file"]
    left.mkdir()
    (left / LOCK).symlink_to(tmp_path / "precious" / "file")
    clear_up(temporary)
    assert left.is_dir()


def test_without_locks_nothing_is_taken_for_left_behind(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(scratch, "_lock", refuse)
    with HeldFolder(temporary) as held:
        (held.path / "file").touch()
        assert clear_up(temporary) == []
        assert names(held.path) == [LOCK, "file"]
    assert names(temporary) == []


@posix
@pytest.mark.parametrize("bare", [False, True])
def test_one_that_is_cleared_up_before_it_is_locked_is_made_again(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, bare: bool
) -> None:
    real, seen = scratch._open_lock, []

    def late(folder: Path, bare: bool) -> int:
        if not seen:  # another process clears up just now
            seen.append(folder)
            clear_up(temporary, bare=bare)
            assert not folder.exists()
        return real(folder, bare)

    with monkeypatch.context() as patched:
        patched.setattr(scratch, "_open_lock", late)
        with HeldFolder(temporary, bare=bare) as held:
            assert held.path.is_dir()
            assert seen[0] != held.path
            assert clear_up(temporary, bare=bare) == ["?" if bare else str(os.getpid())]
            assert names(held.path) == ([] if bare else [LOCK])


def test_what_cannot_be_removed_whole_stays_known(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock is the last to go: without it nobody would ever know whose it is."""
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", lambda *_, **__: None)
        with HeldFolder(temporary) as held:
            (held.path / "deep").mkdir()
    assert names(held.path) == [LOCK, "deep"]
    clear_up(temporary)
    assert names(temporary) == []


@posix
def test_a_forked_child_leaves_it(temporary: Path) -> None:
    code = f"""
import os, pathlib
from tfm.bundle.scratch import HeldFolder
held = HeldFolder(pathlib.Path({str(temporary)!r}))
if (child := os.fork()) == 0:
    held.remove()
    os._exit(0)
os.waitpid(child, 0)
print(held.path.is_dir())
held.remove()
held.remove()
print(held.path.exists())
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\nFalse\n"
