"""optimum-onnx opens the bundles of checkpoints.py as they are: its greedy tokens are transformers' own.

python benchmarks/readers/read_optimum.py DIR
"""

import json
import sys
from pathlib import Path

import torch
from optimum.onnxruntime import ORTModelForCausalLM


def until_the_end(row: list[int], end: int) -> list[int]:
    """What is before the end token: readers fill up what is behind it each in their own way."""
    return row[: row.index(end)] if end in row else row


def main(folder: Path) -> int:
    """Print a line for each graph and batch; give how many differ."""
    expected = json.loads((folder / "expected.json").read_text())
    wrong = 0
    for one in expected["models"]:
        file = Path(one["file"])
        bundle = folder / f"{one['name']}.tfm"
        model = ORTModelForCausalLM.from_pretrained(bundle, subfolder=str(file.parent), file_name=file.name)
        for kind, batch in one["batches"].items():
            ids, mask = torch.tensor(batch["ids"]), torch.tensor(batch["mask"])
            found = model.generate(ids, attention_mask=mask, max_new_tokens=expected["new_tokens"], do_sample=False)
            same = [until_the_end(row, batch["end"]) for row in found[:, ids.shape[1] :].tolist()] == [
                until_the_end(row, batch["end"]) for row in batch["new"]
            ]
            wrong += not same
            print(f"optimum {one['name']} {one['precision']}, {kind}: {'equal' if same else 'DIFFERENT'}", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
