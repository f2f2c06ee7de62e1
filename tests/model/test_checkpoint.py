"""Checkpoints: what is saved comes back, and whatever else is offered is refused in one clear sentence."""

import io
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tfm.errors import CheckpointError, ConfigError, NotNativeError, TfmError
from tfm.model import Transformer, TransformerConfig, load_checkpoint, save_checkpoint

SIZES: dict[str, Any] = {
    "vocab_size": 11,
    "d_model": 8,
    "nhead": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "dim_feedforward": 12,
    "max_positions": 16,
    "pad_token_id": 0,
}


class Attack:
    """Unpickling this makes a file: proof that code was run."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    return Transformer(TransformerConfig(**SIZES)).eval()


@pytest.fixture
def content(model: Transformer) -> dict[str, Any]:
    """What a .pt file of ours holds."""
    return {"config": model.config.to_dict(), "state_dict": dict(model.state_dict())}


def refused(path: Path, kind: type[TfmError] = CheckpointError) -> str:
    """The one sentence with which `path` is refused."""
    with pytest.raises(kind) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert type(caught.value) is kind
    assert str(path.name) in message
    assert "\n" not in message
    assert len(message) < 600
    return message


def refused_content(tmp_path: Path, content: object, kind: type[TfmError] = CheckpointError) -> str:
    torch.save(content, tmp_path / "model.pt")
    return refused(tmp_path / "model.pt", kind)


# What is fine


@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder-decoder"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("name", "given"),
    [(name, name) for name in ("model.pt", "any.name", "model.safetensors")]
    + [(name, ".") for name in ("model.pt", "model.safetensors")],
)
def test_round_trip(tmp_path: Path, kind: str, tied: bool, name: str, given: str) -> None:
    pooling = {"pooler": True, "pooling": "mean", "type_vocab_size": 2} if kind == "encoder" else {}
    config = TransformerConfig(**(SIZES | {"kind": kind, "tie_embeddings": tied, **pooling}))
    model = Transformer(config)
    save_checkpoint(model, tmp_path / name)
    if given == "." and name == "model.pt":  # a folder needs its config.json only where the file has none
        assert sorted(os.listdir(tmp_path)) == ["model.pt"]
    loaded = load_checkpoint(tmp_path / given)
    assert loaded.config == config
    assert not loaded.training
    want, got = model.state_dict(), loaded.state_dict()
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], want[key]) for key in want)
    if tied and kind != "encoder":
        assert loaded.decoder.head.weight is loaded.decoder.embedding.token.weight


def test_path_may_be_a_string(tmp_path: Path, model: Transformer) -> None:
    save_checkpoint(model, str(tmp_path / "m.pt"))
    assert load_checkpoint(str(tmp_path / "m.pt")).config == model.config


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    model = Transformer(TransformerConfig(**SIZES, tie_embeddings=True))
    save_checkpoint(model, tmp_path / "model.safetensors")
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert len([name for name in stored if name.endswith(("token.weight", "head.weight"))]) == 1


def test_plain_state_dict_with_a_config_beside_it(tmp_path: Path, content: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content["config"]))
    for saved in (content["state_dict"], {"state_dict": content["state_dict"], "epoch": 3}):
        torch.save(saved, tmp_path / "w.pt")
        assert load_checkpoint(tmp_path / "w.pt").config.to_dict() == content["config"]


def test_format_of_old_torch(tmp_path: Path, content: dict[str, Any]) -> None:
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    loaded = load_checkpoint(tmp_path / "model.pt").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in content["state_dict"].items())


def test_other_precisions_are_kept(tmp_path: Path, content: dict[str, Any]) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        cast = {name: value.to(dtype) for name, value in content["state_dict"].items()}
        torch.save(content | {"state_dict": cast}, tmp_path / "model.pt")
        loaded = load_checkpoint(tmp_path / "model.pt").state_dict()
        assert {value.dtype for value in loaded.values()} == {dtype}
        assert all(torch.equal(loaded[name], value) for name, value in cast.items())


# What is no checkpoint


def test_missing(tmp_path: Path) -> None:
    assert refused(tmp_path / "absent.pt") == f"there is no checkpoint at {tmp_path / 'absent.pt'}"


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "model.pt").touch()
    assert refused(tmp_path / "model.pt").endswith("model.pt is empty")


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "holds none of model.safetensors, model.safetensors.index.json, pytorch_model.bin" in refused(
        tmp_path / "folder"
    )


@pytest.mark.parametrize("name", ["zip.pt", "legacy.pt", "model.safetensors"])
def test_cut_short_anywhere(tmp_path: Path, model: Transformer, content: dict[str, Any], name: str) -> None:
    path = tmp_path / name
    if name == "legacy.pt":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        save_checkpoint(model, path)
    whole = path.read_bytes()
    cuts = [1, 2, 4, 8, 9, 10, 20, 100, *range(200, len(whole), len(whole) // 60), len(whole) - 1]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        refused(path)
    path.write_bytes(whole[: len(whole) // 2])
    assert "cut short" in refused(path)


@pytest.mark.parametrize("name", ["zip.pt", "legacy.pt", "model.safetensors"])
def test_damaged_bytes_never_escape_as_another_error(
    tmp_path: Path, model: Transformer, content: dict[str, Any], name: str
) -> None:
    path = tmp_path / name
    if name == "legacy.pt":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        save_checkpoint(model, path)
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    messages = []
    for turn in range(120):
        damaged = bytearray(whole)
        ends = (200, 2000, len(whole))[turn % 3]
        for place in torch.randint(min(ends, len(whole)), (3,), generator=generator).tolist():
            damaged[place if turn % 2 else -1 - place] ^= 0x91
        path.write_bytes(damaged)
        try:
            load_checkpoint(path)  # damage to a weight's own bytes cannot be told from another weight
        except TfmError as error:
            messages.append(str(error))
    assert len(messages) > 30
    assert not [message for message in messages if "\n" in message]


@pytest.mark.parametrize(
    "data",
    [
        b"hello, this is text\n",
        b"{}",
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        b"\0" * 64,
        b"\x08\x07onnx",
        b"P",
    ],
    ids=repr,
)
def test_other_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(data)
    message = refused(tmp_path / "model.pt")
    assert "is not a checkpoint: neither a torch.save file nor safetensors" in message
    assert repr(data[:8]) in message


def test_zip_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    assert "is a zip archive, but not one written by torch.save" in refused(tmp_path / "model.pt")


def test_torchscript(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("m/code/__torch__.py", "class M: pass")
        archive.writestr("m/constants.pkl", pickle.dumps((), protocol=2))
    assert "is TorchScript, which holds code; save its state_dict()" in refused(tmp_path / "model.pt")


@pytest.mark.parametrize("content", [[1, 2], "text", None, torch.ones(3), 4.5], ids=lambda value: type(value).__name__)
def test_content_that_is_no_dict(tmp_path: Path, content: object) -> None:
    message = refused_content(tmp_path, content)
    assert f"holds a {type(content).__name__}, not a dict; save it with tfm.model.save_checkpoint" in message


# What would run code


def pickled(content: object, how: str) -> bytes:
    stream = io.BytesIO()
    if how == "torch.save":
        torch.save(content, stream)
    elif how == "old torch.save":
        torch.save(content, stream, _use_new_zipfile_serialization=False)
    else:
        pickle.dump(content, stream, protocol=int(how))
    return stream.getvalue()


@pytest.mark.parametrize("how", ["torch.save", "old torch.save", "2", "3", "4", "5"])
@pytest.mark.parametrize("nested", [False, True])
def test_code_is_not_run_and_named(tmp_path: Path, content: dict[str, Any], how: str, nested: bool) -> None:
    marker = tmp_path / "marker"
    attack = Attack(marker)
    data = pickled(content | {"extra": attack} if nested else attack, how)
    (tmp_path / "model.pt").write_bytes(data)
    message = refused(tmp_path / "model.pt")
    assert not marker.exists()
    if not (nested and how.isdigit()):  # plain pickles of tensors call more than the attack
        assert re.search(r"refers to (posix|nt)\.system, which could run code on loading; nothing was run", message)
    pickle.loads(pickle.dumps(attack))
    assert marker.exists()  # the attack itself does work


@pytest.mark.parametrize("protocol", [0, 1])
def test_text_pickles_are_not_run(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Attack(marker), protocol=protocol))
    assert "is not a checkpoint" in refused(tmp_path / "model.pt")
    assert not marker.exists()


@pytest.mark.parametrize("how", ["torch.save", "old torch.save"])
def test_whole_module_is_told_how_to_convert(tmp_path: Path, how: str) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    (tmp_path / "model.pt").write_bytes(pickled(module, how))
    message = refused(tmp_path / "model.pt")
    assert "is a pickled whole module (torch.nn.modules.container.Sequential)" in message
    assert "nothing was run" in message
    assert "torch.save({'config': ..., 'state_dict': module.state_dict()}, path)" in message


def test_our_own_module_pickled_whole(tmp_path: Path, model: Transformer) -> None:
    message = refused_content(tmp_path, model)
    assert "is a pickled whole module (tfm.model.transformer.Transformer)" in message


# What does not fit


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_weights_without_configuration(tmp_path: Path, content: dict[str, Any], name: str) -> None:
    if name == "model.pt":
        torch.save(content["state_dict"], tmp_path / name)
    else:
        safetensors.torch.save_file(content["state_dict"], tmp_path / name)
    assert "holds weights but no configuration: put its config.json beside it" in refused(tmp_path / name)


@pytest.mark.parametrize("text", ["{", "", "\xff\xfe"])
def test_config_json_that_is_no_json(tmp_path: Path, content: dict[str, Any], text: str) -> None:
    torch.save(content["state_dict"], tmp_path / "model.pt")
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"config\.json is missing or not JSON"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("config", [[1], "x", None, 3], ids=repr)
def test_config_that_is_no_dict(tmp_path: Path, content: dict[str, Any], config: object) -> None:
    message = refused_content(tmp_path, content | {"config": config})
    assert f"its config is a {type(config).__name__}, not a dict" in message


@pytest.mark.parametrize("weights", [{}, [], None, "x"], ids=repr)
def test_no_weights(tmp_path: Path, content: dict[str, Any], weights: object) -> None:
    assert "its state_dict holds no weights" in refused_content(tmp_path, content | {"state_dict": weights})


@pytest.mark.parametrize(
    ("entry", "message"),
    [({"step": 3}, "its state_dict entry 'step' is a int, not a tensor"), ({3: torch.ones(1)}, "entry 3 is a Tensor")],
)
def test_entry_that_is_no_named_tensor(
    tmp_path: Path, content: dict[str, Any], entry: dict[Any, Any], message: str
) -> None:
    assert message in refused_content(tmp_path, content | {"state_dict": content["state_dict"] | entry})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "gelo"}, "unknown activation 'gelo'; the nearest is 'gelu'"),
        ({"nhead": 3}, "d_model must be a multiple of nhead, but 8 % 3 is 2"),
        ({"n_head": 2}, "unknown configuration key 'n_head'; the nearest known one is 'nhead'"),
        ({"vocab_size": "11"}, "vocab_size must be int, but is '11'"),
        ({"vocab_size": torch.ones(1)}, "vocab_size must be int"),
        ({5: 1}, "unknown configuration key 5"),
    ],
    ids=str,
)
def test_configuration_that_is_wrong(
    tmp_path: Path, content: dict[str, Any], change: dict[Any, Any], message: str
) -> None:
    kind = NotNativeError if "activation" in change else ConfigError
    assert message in refused_content(tmp_path, content | {"config": content["config"] | change}, kind)


def test_configuration_without_vocab_size(tmp_path: Path, content: dict[str, Any]) -> None:
    del content["config"]["vocab_size"]
    assert "has no vocab_size" in refused_content(tmp_path, content, ConfigError)


def test_missing_weights_are_named(tmp_path: Path, content: dict[str, Any]) -> None:
    names = list(content["state_dict"])
    del content["state_dict"][names[0]]
    message = refused_content(tmp_path, content)
    assert message.endswith(f"the weights do not fit the configuration: missing: {names[0]}")
    for name in names[1:7]:
        del content["state_dict"][name]
    assert refused_content(tmp_path, content).endswith(f"missing: {', '.join(names[:3])} and 4 more")


def test_extra_weights_are_named(tmp_path: Path, content: dict[str, Any]) -> None:
    content["state_dict"] |= {f"extra.{index}": torch.ones(1) for index in range(5)}
    assert refused_content(tmp_path, content).endswith("not in the model: extra.0, extra.1, extra.2 and 2 more")


def test_misshapen_weights_are_named(tmp_path: Path, content: dict[str, Any]) -> None:
    content["config"]["dim_feedforward"] = 13
    message = refused_content(tmp_path, content)
    assert "of another shape: encoder.layers.0.feed_forward.linear1.weight is (12, 8), not (13, 8)" in message
    assert message.endswith(" and 3 more")


def test_all_faults_are_told_together(tmp_path: Path, content: dict[str, Any]) -> None:
    weights = content["state_dict"]
    weights["head"] = weights.pop("decoder.head.weight")
    weights["decoder.head.bias"] = torch.ones(2)
    message = refused_content(tmp_path, content)
    assert (
        "missing: decoder.head.weight; not in the model: head; of another shape: decoder.head.bias is (2,)" in message
    )


@pytest.mark.parametrize(
    "weight",
    [torch.ones(11, dtype=torch.int8), torch.ones(11, dtype=torch.complex64), torch.ones(11).to_sparse()],
    ids=["int8", "complex", "sparse"],
)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_weights_that_are_no_plain_floats(tmp_path: Path, content: dict[str, Any], weight: Tensor) -> None:
    content["state_dict"]["decoder.head.bias"] = weight
    message = refused_content(tmp_path, content)
    assert f"not plain floating point: decoder.head.bias is {weight.dtype}" in message


def test_tied_weights_that_differ(tmp_path: Path, content: dict[str, Any]) -> None:
    config = content["config"] | {"tie_embeddings": True}
    weights = {name: value for name, value in content["state_dict"].items() if name != "decoder.head.bias"}
    message = refused_content(tmp_path, {"config": config, "state_dict": weights})
    assert re.search(r"the configuration ties .*token\.weight and .*head\.weight, but the weights differ", message)


def test_tied_weights_may_be_given_under_one_name(tmp_path: Path, content: dict[str, Any]) -> None:
    config = content["config"] | {"tie_embeddings": True}
    weights = {name: value for name, value in content["state_dict"].items() if name != "decoder.head.bias"}
    del weights["encoder.embedding.token.weight"], weights["decoder.embedding.token.weight"]
    torch.save({"config": config, "state_dict": weights}, tmp_path / "model.pt")
    loaded = load_checkpoint(tmp_path / "model.pt")
    assert torch.equal(loaded.encoder.embedding.token.weight, weights["decoder.head.weight"])


@pytest.mark.parametrize("family", ["mamba", None, ["bert"]], ids=repr)
def test_unknown_family(tmp_path: Path, content: dict[str, Any], family: object) -> None:
    torch.save(content["state_dict"], tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(
        CheckpointError,
        match=re.escape(f"config.json: model_type {family!r} is not supported; known: albert, arcee, bart"),
    ):
        load_checkpoint(tmp_path)


# Writing


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_failing_save_leaves_the_earlier_file_whole(
    tmp_path: Path, model: Transformer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    save_checkpoint(model, tmp_path / name)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(_: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    other = Transformer(TransformerConfig(**(SIZES | {"num_encoder_layers": 2})))
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} could not be written: no space left on device"):
        save_checkpoint(other, tmp_path / name)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_a_killed_save_never_mixes_two_models(tmp_path: Path, model: Transformer, moment: int) -> None:
    """Both are of the same sizes, so that a mixture would be read in good faith."""
    path = tmp_path / "model.safetensors"
    save_checkpoint(model, path)
    program = f"""
import os, torch
from tfm.model import TransformerConfig, Transformer, save_checkpoint
put, done = os.replace, []
def kill(*paths):
    done.append(paths)
    if len(done) == {moment}:
        os._exit(9)
    put(*paths)
os.replace = kill
config = {model.config.to_dict() | {"activation": "silu"}!r}
save_checkpoint(Transformer(TransformerConfig.from_dict(config)), {str(path)!r})
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stderr
    is_ours = safetensors.torch.load_file(path)["encoder.embedding.token.weight"].equal(
        model.encoder.embedding.token.weight
    )
    if (tmp_path / "config.json").exists():
        assert (load_checkpoint(path).config.activation == model.config.activation) == is_ours
    else:
        assert moment > 1
        with pytest.raises(CheckpointError, match="holds weights but no configuration"):
            load_checkpoint(path)


def test_weights_that_cannot_be_put_leave_the_earlier_ones(
    tmp_path: Path, model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, put = tmp_path / "model.safetensors", os.replace
    save_checkpoint(model, path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def replace(source: Path, target: Path) -> None:
        if target == path:
            raise PermissionError("it is in use")
        put(source, target)

    monkeypatch.setattr(os, "replace", replace)
    other = Transformer(TransformerConfig(**(SIZES | {"activation": "silu"})))
    with pytest.raises(CheckpointError, match="could not be written: it is in use"):
        save_checkpoint(other, path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_saving_where_no_folder_is(tmp_path: Path, model: Transformer) -> None:
    with pytest.raises(CheckpointError, match="could not be written"):
        save_checkpoint(model, tmp_path / "absent" / "model.pt")
