"""Packing: what an app ships is a whole bundle of one precision, proved, signed where asked, and nothing else."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from tests.support import toys
from tfm.bundle import pack_bundle, read_manifest, weights_file
from tfm.cli.pack import pack as pack_command
from tfm.errors import BundleError, ExportError
from tfm.quantize import save_in_one_file
from tfm.runtime import check_golden, load


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """An encoder in fp32 and int8, int8's weights in a file of their own, with goldens, a page and a recipe."""
    folder = toys.add_golden(toys.write_bundle(tmp_path / "toy.tfm", "encoder"))
    values = json.loads((folder / "manifest.json").read_text())
    exact = values["graphs"]["fp32"]["model"]
    name = str(Path(exact).with_name("model_int8.onnx"))
    path = folder / values["graphs"].get("int8", {}).get("model", exact)
    model = ir.load(path)
    ir.external_data.load_to_model(model)
    if "int8" in values["graphs"] and values["graphs"]["int8"]["model"] != name:
        (folder / values["graphs"]["int8"]["model"]).unlink()
    ir.save(
        model, folder / name, external_data=weights_file(Path(name).name), size_threshold_bytes=64
    )  # constants of shapes stay
    values["graphs"]["int8"] = {"model": name}
    values["gates"] = [
        {"name": f"{precision} model", "stage": "graph", "precision": precision, "passed": True, "figure": None,
         "limit": None, "reason": ""}
        for precision in ("fp32", "int8")
    ]  # fmt: skip
    for extra in ("report.html", "parity.json", "recipe_int8.json"):
        (folder / extra).write_text("{}")
    toys.write_manifest(folder, values)
    return folder


def keys(folder: Path) -> tuple[Path, Path]:
    """A private key and its public one, in PEM."""
    private = ed25519.Ed25519PrivateKey.generate()
    return write_keys(folder, private)


def write_keys(folder: Path, private: Any) -> tuple[Path, Path]:
    folder.mkdir(exist_ok=True)
    secret = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (folder / "key.pem").write_bytes(secret)
    (folder / "public.pem").write_bytes(public)
    return folder / "key.pem", folder / "public.pem"


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_one_precision_and_nothing_else(toy: Path, tmp_path: Path) -> None:
    made = pack_bundle(toy, tmp_path / "app")
    graph = read_manifest(toy).graphs["int8"]["model"]
    expected = {graph, weights_file(graph), "tokenizer.json", "golden.json", "golden.npz", "manifest.json"}
    assert files_of(tmp_path / "app") == expected == {file.path for file in made.files}
    assert made.size == sum((tmp_path / "app" / name).stat().st_size for name in expected)
    assert [file.size for file in made.files] == sorted((file.size for file in made.files), reverse=True)
    packed = read_manifest(tmp_path / "app")
    assert dict(packed.graphs) == {"int8": {"model": graph}}
    assert [gate["precision"] for gate in packed.gates] == ["int8"]
    assert set(json.loads((tmp_path / "app" / "golden.json").read_text())["precisions"]) == {"int8"}
    ids = np.array([[4, 5, 6]])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    shutil.move(tmp_path / "app", tmp_path / "moved")
    shutil.rmtree(toy)  # the pack stands by itself
    found = load(tmp_path / "moved").run(**feeds)
    assert np.isfinite(found["sentence_embedding"]).all()
    assert [graph.precision for graph in check_golden(tmp_path / "moved").graphs] == ["int8"]


def test_what_is_asked_for(toy: Path, tmp_path: Path) -> None:
    made = pack_bundle(toy, tmp_path / "both", precisions=["fp32", "int8"], golden=False)
    assert made.precisions == ("fp32", "int8")
    assert not {"golden.json", "golden.npz"} & files_of(tmp_path / "both")
    assert set(read_manifest(tmp_path / "both").graphs) == {"fp32", "int8"}
    with pytest.raises(BundleError, match="has no int4 graph; it has: fp32, int8"):
        pack_bundle(toy, tmp_path / "none", precisions=["int4"])
    with pytest.raises(BundleError, match="names nothing to pack"):
        pack_bundle(toy, tmp_path / "none", precisions=[])
    with pytest.raises(BundleError, match="target must be one of python, native, web, node"):
        pack_bundle(toy, tmp_path / "none", target="phone")
    with pytest.raises(ExportError, match="exists already"):
        pack_bundle(toy, tmp_path / "both")
    assert not (tmp_path / "none").exists()


def test_an_altered_bundle_is_not_packed(toy: Path, tmp_path: Path) -> None:
    path = toy / weights_file(read_manifest(toy).graphs["int8"]["model"])
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="was altered"):
        pack_bundle(toy, tmp_path / "app")
    assert not (tmp_path / "app").exists()
    assert pack_bundle(toy, tmp_path / "app", precisions=["fp32"]).precisions == ("fp32",)


def test_a_zip(toy: Path, tmp_path: Path) -> None:
    pack_bundle(toy, tmp_path / "app.zip")
    folder = pack_bundle(toy, tmp_path / "app")
    with zipfile.ZipFile(tmp_path / "app.zip") as archive:
        assert {name for name in archive.namelist() if not name.endswith("/")} == {f.path for f in folder.files}
    assert load(tmp_path / "app.zip").precision == "int8"
    with pytest.raises(BundleError, match="exists already"):
        pack_bundle(toy, tmp_path / "app.zip")
    assert pack_bundle(toy, tmp_path / "app.zip", overwrite=True).output == tmp_path / "app.zip"
    assert {path.name for path in tmp_path.iterdir()} == {"toy.tfm", "app", "app.zip"}


def test_for_the_web(toy: Path, tmp_path: Path) -> None:
    made = pack_bundle(toy, tmp_path / "app", precisions=["fp32", "int8"], target="web", rewrite=save_in_one_file)
    graphs = [file.path for file in made.files if file.path.endswith(".onnx")]
    assert sorted(Path(name).name for name in graphs) == ["model.onnx", "model_quantized.onnx"]
    assert not [name for name in files_of(tmp_path / "app") if name.endswith("_data")]
    for name in graphs:
        onnx.checker.check_model(onnx.load(tmp_path / "app" / name, load_external_data=False))
    assert len(made.notes) == 2  # the toy has neither config.json nor tokenizer_config.json
    assert load(tmp_path / "app").precision == "int8"


def test_a_signed_bundle_runs_and_no_other(toy: Path, tmp_path: Path) -> None:
    key, public = keys(tmp_path / "mine")
    _, foreign = keys(tmp_path / "other")
    pack_bundle(toy, tmp_path / "app", key=key)
    pack_bundle(toy, tmp_path / "unsigned")
    assert load(tmp_path / "app", public_key=public).precision == "int8"
    assert load(tmp_path / "app", public_key=public.read_bytes()).precision == "int8"
    assert load(tmp_path / "app").precision == "int8"
    with pytest.raises(BundleError, match="is not signed by this key"):
        load(tmp_path / "app", public_key=foreign)
    with pytest.raises(BundleError, match="is not signed by this key"):
        load(tmp_path / "unsigned", public_key=public)
    for damaged in (b"", b"AAAA\n", b"no base64!"):
        (tmp_path / "unsigned" / "manifest.json.sig").write_bytes(damaged)
        with pytest.raises(BundleError, match="is not signed by this key"):
            load(tmp_path / "unsigned", public_key=public)
    # A manifest that was made to fit altered weights is another one than was signed.
    values = json.loads((tmp_path / "app" / "manifest.json").read_text())
    values["family"] = "another"
    (tmp_path / "app" / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(BundleError, match="is not signed by this key"):
        load(tmp_path / "app", public_key=public)


def test_keys_that_are_none(toy: Path, tmp_path: Path) -> None:
    other, other_public = write_keys(tmp_path / "ec", ec.generate_private_key(ec.SECP256R1()))
    _, public = keys(tmp_path / "mine")
    with pytest.raises(BundleError, match="is no Ed25519 key; make one with: openssl genpkey"):
        pack_bundle(toy, tmp_path / "app", key=other)
    with pytest.raises(BundleError, match="is no private key in PEM"):
        pack_bundle(toy, tmp_path / "app", key=public)
    with pytest.raises(BundleError, match="cannot be read: No such file"):
        pack_bundle(toy, tmp_path / "app", key=tmp_path / "nosuch.pem")
    assert not (tmp_path / "app").exists()
    pack_bundle(toy, tmp_path / "app")
    with pytest.raises(BundleError, match="the public key is no Ed25519 key"):
        load(tmp_path / "app", public_key=other_public)
    with pytest.raises(BundleError, match="cannot be read as PEM"):
        load(tmp_path / "app", public_key=b"x")


def test_the_command(toy: Path, tmp_path: Path) -> None:
    found = CliRunner().invoke(pack_command, [str(toy), "-o", str(tmp_path / "app"), "--json"])
    assert found.exit_code == 0, found.output
    content = json.loads(found.stdout)
    assert content["precisions"] == ["int8"]
    assert content["size"] == sum(file["size"] for file in content["files"])
    assert content["left"] > 0
    found = CliRunner().invoke(pack_command, [str(toy), "-o", str(tmp_path / "web"), "--for", "web"])
    assert found.exit_code == 0, found.output
    assert "model_quantized.onnx" in found.output
    assert "tokenizer_config.json" in found.output
    assert f"tfm parity {tmp_path / 'web'}" in found.output
