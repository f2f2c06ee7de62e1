"""OpenVINO opens the graphs of checkpoints.py's bundles as they are: its greedy tokens are transformers' own.

python benchmarks/readers/read_openvino.py DIR
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino


def generate(model: Any, batch: dict[str, Any], new_tokens: int) -> list[list[int]]:
    """Continue rows, with a cache that grows."""
    ids, mask = np.array(batch["ids"]), np.array(batch["mask"])
    names = [name for port in model.inputs for name in port.names]
    sizes = {port.any_name: port.get_partial_shape() for port in model.inputs}
    cache = {
        name: np.zeros((len(ids), shape[1].get_length(), 0, shape[3].get_length()), np.float32)
        for name, shape in sizes.items()
        if name.startswith("past_key_values")
    }
    found: list[np.ndarray] = []
    while len(found) < new_tokens:
        places = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": places, **cache}
        results = model({name: feeds[name] for name in names if name in feeds})
        cache = {name: results[name.replace("past_key_values", "present")] for name in cache}
        ids = results["logits"][:, -1].argmax(-1)[:, None]
        mask = np.concatenate([mask, np.ones_like(ids)], 1)
        found.append(ids)
    return np.concatenate(found, 1).tolist()


def until_the_end(row: list[int], end: int) -> list[int]:
    """What is before the end token: readers fill up what is behind it each in their own way."""
    return row[: row.index(end)] if end in row else row


def main(folder: Path) -> int:
    """Print a line for each graph and batch; give how many differ."""
    expected = json.loads((folder / "expected.json").read_text())
    core, wrong = openvino.Core(), 0
    for one in expected["models"]:
        # Nor has it a soft cap, nor the operators of int8.
        if one["name"] == "gemma2" or one["precision"] != "fp32":
            continue
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        model = core.compile_model(folder / f"{one['name']}.tfm" / one["file"], "CPU", options)
        for kind, batch in one["batches"].items():
            if len(batch["ids"]) > 1:  # its form of GroupQueryAttention takes one row
                continue
            found = generate(model, batch, expected["new_tokens"])
            same = [until_the_end(row, batch["end"]) for row in found] == [
                until_the_end(row, batch["end"]) for row in batch["new"]
            ]
            wrong += not same
            print(f"OpenVINO {one['name']} {one['precision']}, {kind}: {'equal' if same else 'DIFFERENT'}", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
