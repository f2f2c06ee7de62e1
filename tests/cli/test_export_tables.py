"""`tfm-export --list` and `--dry-run`, for people and as JSON."""

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from tfm.cli.export import export
from tfm.model import FAMILIES, save_checkpoint


def run(*arguments: str) -> str:
    result = CliRunner().invoke(export, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_the_list_names_what_is_native_and_what_is_not() -> None:
    text = run("--list")
    assert all(f" {family} " in text for family in FAMILIES)
    assert "any other" in text
    assert "transformers" in text
    found = json.loads(run("--list", "--json"))
    assert set(found) == {"families", "other families", "formats", "tasks"}
    assert found["families"]["bert"]["way"] == "native"


def test_a_dry_run_tells_and_makes_nothing(make_model: Any, tmp_path: Path) -> None:
    save_checkpoint(make_model(kind="encoder"), tmp_path / "m.pt")
    output = tmp_path / "m.tfm"
    text = run("--ckpt", str(tmp_path / "m.pt"), "-o", str(output), "--dry-run")
    assert text.startswith("transformer, read natively\nencoder of ")
    assert "onnx/model.onnx: input_ids, attention_mask → last_hidden_state\n" in text
    assert text.endswith(f"nothing was exported; it would go to {output}\n")
    found = json.loads(run("--ckpt", str(tmp_path / "m.pt"), "-o", str(output), "--dry-run", "--json"))
    assert (found["output"], found["way"], found["precisions"]) == (str(output), "native", ["fp32", "int8"])
    assert not output.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]
