"""genai_config.json names a graph that the bundle has, whatever becomes of the bundle."""

import json
from pathlib import Path

import pytest

from tests.support import toys
from tfm.bundle import GENAI_CONFIG, graph_of_genai, pack_bundle, read_manifest, renew_genai_config
from tfm.errors import BundleError

CONTENT = {"model": {"type": "llama", "decoder": {"filename": "onnx/gone.onnx", "head_size": 8}}, "search": {}}


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    """A decoder in fp32 and int8."""
    folder = toys.write_bundle(tmp_path / "counter.tfm", "counter")
    values = json.loads((folder / "manifest.json").read_text())
    (folder / "onnx/model_int8.onnx").write_bytes((folder / "onnx/model.onnx").read_bytes())
    values["graphs"]["int8"] = {"model": "onnx/model_int8.onnx"}
    (folder / GENAI_CONFIG).write_text(json.dumps(CONTENT))
    toys.write_manifest(folder, values)
    return folder


def test_the_graph_that_the_runtime_takes() -> None:
    graphs = {name: {"model": f"{name}.onnx"} for name in ("fp32", "int4", "int8", "fp16")}
    assert graph_of_genai(graphs) == "int8.onnx"
    del graphs["int8"]
    assert graph_of_genai(graphs) == "fp32.onnx"
    del graphs["fp32"]
    assert graph_of_genai(graphs) == "int4.onnx"


def test_only_the_name_is_renewed(tmp_path: Path) -> None:
    graphs = {"fp32": {"model": "onnx/model.onnx"}}
    renew_genai_config(tmp_path, graphs)
    assert list(tmp_path.iterdir()) == []  # there was none
    (tmp_path / GENAI_CONFIG).write_text(json.dumps(CONTENT))
    renew_genai_config(tmp_path, graphs)
    found = json.loads((tmp_path / GENAI_CONFIG).read_text())
    assert found["model"]["decoder"].pop("filename") == "onnx/model.onnx"
    assert found == {"model": {"type": "llama", "decoder": {"head_size": 8}}, "search": {}}


@pytest.mark.parametrize("content", ["[]", "{", '{"model": {}}', '{"model": {"decoder": "x"}}'])
def test_malformed(tmp_path: Path, content: str) -> None:
    (tmp_path / GENAI_CONFIG).write_text(content)
    with pytest.raises(BundleError, match=r"genai_config\.json"):
        renew_genai_config(tmp_path, {"fp32": {"model": "onnx/model.onnx"}})


@pytest.mark.parametrize(("precision", "file"), [("fp32", "onnx/model.onnx"), ("int8", "onnx/model_int8.onnx")])
def test_a_pack_names_its_own_graph(decoder: Path, tmp_path: Path, precision: str, file: str) -> None:
    pack_bundle(decoder, tmp_path / "app.tfm", precisions=[precision], target="native")
    found = json.loads((tmp_path / "app.tfm" / GENAI_CONFIG).read_text())
    assert found["model"]["decoder"]["filename"] == file
    assert (tmp_path / "app.tfm" / file).is_file()
    assert GENAI_CONFIG in read_manifest(tmp_path / "app.tfm").files


def test_no_browser_reads_it(decoder: Path, tmp_path: Path) -> None:
    def copy(source: Path, to: Path) -> None:
        to.write_bytes(source.read_bytes())

    pack_bundle(decoder, tmp_path / "web", target="web", rewrite=copy)
    assert not (tmp_path / "web" / GENAI_CONFIG).exists()
