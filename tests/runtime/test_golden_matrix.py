"""`tfm parity --on`: a matrix of runtimes, in which what is not there or is off fails by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tfm.cli.parity import parity
from tfm.errors import BundleError, InputError
from tfm.runtime import check_golden_on


def test_python_and_node_say_the_same(node: Path, packs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(node)
    found = CliRunner().invoke(parity, [str(packs / "g2p-int8"), "--on", "cpu,node", "--json"])
    assert found.exit_code == 0, found.output
    content = json.loads(found.stdout)
    assert [(place["name"], place["passed"]) for place in content["places"]] == [("cpu", True), ("node", True)]
    assert content["places"][1]["engine"].startswith("onnxruntime-node 1.")
    assert [gate["name"] for gate in content["gates"]] == [
        f"int8 {role} on {place}" for place in ("cpu", "node") for role in ("encoder", "decoder")
    ]
    found = CliRunner().invoke(parity, [str(packs / "g2p-int8"), "--on", "cpu,node"])
    assert "✓ same everywhere as when it was exported" in found.output


def test_what_is_off_fails_in_each_place_in_the_same_words(
    toys: Any, node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = toys.add_golden(toys.write_bundle(tmp_path / "toy.tfm", "encoder"))
    limits = json.loads((folder / "golden.json").read_text())
    limits["precisions"]["int8"]["nmse_factor"] = 0.5  # where it is 1
    (folder / "golden.json").write_text(json.dumps(limits))
    toys.write_manifest(folder, json.loads((folder / "manifest.json").read_text()))
    monkeypatch.chdir(node)
    matrix = check_golden_on(folder, ["cpu", "node"])
    here, there = ([gate.reason for gate in place.gates] for place in matrix.places)
    assert here == there
    assert here[0] == ""
    assert here[1].startswith(
        "int8 model: last_hidden_state has NMSE 1.0e+00, more than 5.0e-01; where it was exported"
    )
    assert not matrix.passed
    assert [fault.partition(":")[0] for fault in matrix.faults()] == ["cpu", "node"]
    assert check_golden_on(folder, ["cpu", "node"], precision=["fp32"]).passed


def test_what_is_not_there_fails(toys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = toys.add_golden(toys.write_bundle(tmp_path / "toy.tfm", "encoder"))
    monkeypatch.setattr("shutil.which", lambda name: None)
    matrix = check_golden_on(folder, ["cpu", "node"])
    assert not matrix.passed
    assert matrix.faults() == ["node: there is no node here; install Node 20 or newer, or leave node out of --on"]
    found = CliRunner().invoke(parity, [str(folder), "--on", "node"])
    assert found.exit_code == 1
    assert "✗ node: there is no node here" in found.output


def test_what_is_asked_for_must_be_known_and_whole(toys: Any, tmp_path: Path) -> None:
    folder = toys.add_golden(toys.write_bundle(tmp_path / "toy.tfm", "encoder"))
    with pytest.raises(InputError, match="there is no place 'moon' to run it; known are cpu, cuda, node"):
        check_golden_on(folder, ["moon"])
    for options, said in (
        (["--on", "moon"], "there is no place 'moon'"),
        (["--on", ","], "--on names nothing to compare"),
        (["--on", "cpu", "--threads", "1"], "--on says by itself where it runs"),
    ):
        found = CliRunner().invoke(parity, [str(folder), *options])
        assert found.exit_code == 2
        assert said in found.output
    (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes().replace(b"a", b"b", 1))
    with pytest.raises(BundleError, match=r"tokenizer\.json was altered"):
        check_golden_on(folder, ["cpu", "node"])
