"""What is made is named after its checkpoint, all of it; and files are there whole or not at all."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from tfm.bundle.whole_file import write_whole
from tfm.cli.outputs import name_after, name_after_factory
from tfm.model import save_checkpoint

FILES = {
    "model.pt": "model",
    "Model.PT": "Model",
    "pytorch_model.bin": "pytorch_model",
    "net.v1.5.pth": "net.v1.5",
    "model.safetensors": "model",
    "model.safetensors.index.json": "model",
    "pytorch_model.bin.index.json": "pytorch_model",
    "SmolLM2-135M.Q8_0.gguf": "SmolLM2-135M.Q8_0",
    "exported.pt2": "exported",
    "last-epoch=3-loss=0.25.ckpt": "last-epoch=3-loss=0.25",
    "Qwen2.5-0.5B": "Qwen2.5-0.5B",
    ".pt": ".pt",
}


@pytest.mark.parametrize(("file", "name"), FILES.items())
def test_a_file_loses_the_ending_of_its_weights_alone(tmp_path: Path, file: str, name: str) -> None:
    (tmp_path / file).touch()
    assert name_after(tmp_path / file) == name


@pytest.mark.parametrize("name", ["Qwen2.5-0.5B-Instruct", "x.pt", "all-MiniLM-L6-v2", "v1.0"])
def test_folders_and_ids_keep_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    for source in (tmp_path / name, f"{tmp_path / name}/", ".", "./", f"../{name}", f"../{name}/.", f"org/{name}"):
        assert name_after(source) == name
    assert name_after("/") == "model"


def test_a_link_is_what_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "0f3c").touch()
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "0f3c")
    assert name_after(tmp_path / "model.safetensors") == "model"


def test_a_factory() -> None:
    assert name_after_factory("my.package.nets:make") == "make"
    assert name_after_factory("nets:Net.build.v2") == "Net.build.v2"


def test_commands_use_it(make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piped: Any) -> None:
    folder = tmp_path / "Tiny2.5-0.5B"
    folder.mkdir()
    save_checkpoint(make_model(kind="decoder"), folder / "model.safetensors")
    (tmp_path / "work").mkdir()
    script = tmp_path / "losses.py"
    script.write_text(
        "import torch\ndef losses(model):\n    ids = torch.arange(12).reshape(2, 6)\n"
        "    return [lambda m: m(ids).logsumexp(-1).sum(1)]\n"
    )
    done = piped("tfm-export", "--ckpt", folder, "--precision", "fp32", cwd=tmp_path / "work")
    assert done.returncode == 0, done.stderr
    done = piped("tfm", "prune", "--ckpt", folder, "--keep", 0.5, "--fine-tune", script, cwd=tmp_path / "work")
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path / "work")) == ["Tiny2.5-0.5B-pruned", "Tiny2.5-0.5B.tfm"]


def test_a_file_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.html"
    mask = os.umask(0o027)
    try:
        write_whole(file, "ü")
    finally:
        os.umask(mask)
    assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) == ("ü".encode(), 0o640)
    file.chmod(0o600)
    write_whole(file, b"\x00")
    assert (file.read_bytes(), stat.S_IMODE(file.stat().st_mode)) == (b"\x00", 0o600)
    (tmp_path / "link").symlink_to(file)
    write_whole(tmp_path / "link", "by the link")
    assert (tmp_path / "link").is_symlink()

    def full(path: Path, data: bytes) -> int:
        with open(path, "wb") as stream:
            stream.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: .*x\.html"):
        write_whole(file, "the next")
    assert file.read_text() == "by the link"
    assert sorted(os.listdir(tmp_path)) == ["link", "x.html"]


def test_a_device_is_not_replaced() -> None:
    write_whole(Path(os.devnull), "x")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_what_is_read_only_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x"
    file.write_text("mine")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anything
    with pytest.raises(PermissionError):
        write_whole(file, "x")
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("output", "said"), [("nowhere/x.html", "--output: there is no folder"), (".", "--output: . is a folder")]
)
def test_where_nothing_can_be_written_nothing_is_begun(piped: Any, output: str, said: str) -> None:
    done = piped("tfm", "inspect", "no-bundle", "a", "-o", output)
    assert done.returncode == 2
    assert said in done.stderr.decode()


@pytest.mark.parametrize(
    "arguments",
    [
        "tfm-export --ckpt {0}",
        "tfm-export --ckpt model.pt --config {0}",
        "tfm-export --ckpt model.pt -o {0}",
        "tfm activations --ckpt {0}",
        "tfm run {0} a",
        "tfm quantize {0}",
    ],
)
def test_a_name_that_no_file_can_have_is_of_no_file(
    piped: Any, make_model: Any, tmp_path: Path, arguments: str
) -> None:
    save_checkpoint(make_model(), tmp_path / "model.pt")
    done = piped(*arguments.format("x" * 300).split(), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
