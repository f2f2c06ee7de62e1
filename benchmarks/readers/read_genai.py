"""onnxruntime-genai opens the bundles of checkpoints.py as they are: its greedy tokens are transformers' own.

python benchmarks/readers/read_genai.py DIR
"""

import json
import sys
from pathlib import Path
from typing import Any

import onnxruntime_genai as og


def generate(model: Any, rows: list[list[int]], new_tokens: int) -> list[list[int]]:
    """Continue rows of one length."""
    parameters = og.GeneratorParams(model)
    length = len(rows[0])
    parameters.set_search_options(max_length=length + new_tokens, do_sample=False, batch_size=len(rows))
    generator = og.Generator(model, parameters)
    generator.append_tokens(rows if len(rows) > 1 else rows[0])
    while not generator.is_done():
        generator.generate_next_token()
    return [generator.get_sequence(row)[length:].tolist() for row in range(len(rows))]


def open_graph(bundle: Path, file: str) -> Any:
    """Open a graph of a bundle: it names one in genai_config.json, and this may be another."""
    config = og.Config(str(bundle))
    config.overlay(json.dumps({"model": {"decoder": {"filename": file}}}))
    return og.Model(config)


def until_the_end(row: list[int], end: int) -> list[int]:
    """What is before the end token: readers fill up what is behind it each in their own way."""
    return row[: row.index(end)] if end in row else row


def main(folder: Path) -> int:
    """Print a line for each graph and batch; give how many differ."""
    expected = json.loads((folder / "expected.json").read_text())
    wrong = 0
    for one in expected["models"]:
        model = open_graph(folder / f"{one['name']}.tfm", one["file"])
        for kind, batch in one["batches"].items():
            if "padded" in kind:  # its mask says that all tokens are real, whatever they are
                continue
            found = generate(model, batch["ids"], expected["new_tokens"])
            same = [until_the_end(row, batch["end"]) for row in found] == [
                until_the_end(row, batch["end"]) for row in batch["new"]
            ]
            wrong += not same
            said = "equal" if same else "DIFFERENT"
            print(f"onnxruntime-genai {one['name']} {one['precision']}, {kind}: {said}", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
