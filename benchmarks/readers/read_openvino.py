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


def until_the_end(row: list[int]) -> list[int]:
    """What is before the end token."""
    return row[: row.index(2)] if 2 in row else row


def main(folder: Path) -> int:
    """Print a line for each bundle and batch; give how many differ."""
    expected = json.loads((folder / "expected.json").read_text())
    core, wrong = openvino.Core(), 0
    for name, batches in expected["models"].items():
        if name == "gemma2":  # nor does it have a soft cap
            continue
        model = core.compile_model(folder / f"{name}.tfm/onnx/model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        for kind, batch in batches.items():
            if len(batch["ids"]) > 1:  # its form of GroupQueryAttention takes one row
                continue
            found = generate(model, batch, expected["new_tokens"])
            same = list(map(until_the_end, found)) == list(map(until_the_end, batch["new"]))
            wrong += not same
            print(f"OpenVINO {name}, {kind}: {'equal' if same else 'DIFFERENT'}")
    return wrong


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
