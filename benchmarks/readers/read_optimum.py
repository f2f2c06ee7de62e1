"""optimum-onnx opens the bundles of checkpoints.py and sequences.py as they are: its tokens are transformers' own.

python benchmarks/readers/read_optimum.py DIR
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM


def until_the_end(row: list[int], end: int) -> list[int]:
    """What is before the end token: readers fill up what is behind it each in their own way."""
    return row[: row.index(end)] if end in row else row


def compare(model: Any, one: dict[str, Any], new_tokens: int, *, prompted: bool) -> int:
    """Print a line for each batch; give how many differ."""
    wrong = 0
    for kind, batch in one["batches"].items():
        ids, mask = torch.tensor(batch["ids"]), torch.tensor(batch["mask"])
        found = model.generate(ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, num_beams=1)
        # Behind the prompt, or the token that targets start with.
        new = found[:, ids.shape[1] if prompted else 1 :].tolist()
        same = [until_the_end(row, batch["end"]) for row in new] == [
            until_the_end(row, batch["end"]) for row in batch["new"]
        ]
        wrong += not same
        print(f"optimum {one['name']} {one['precision']}, {kind}: {'equal' if same else 'DIFFERENT'}", flush=True)
    return wrong


def main(folder: Path) -> int:
    """Print a line for each graph and batch; give how many differ."""
    expected, sequences = (json.loads((folder / f"{name}.json").read_text()) for name in ("expected", "sequences"))
    wrong, new_tokens = 0, expected["new_tokens"]
    for one in expected["models"]:
        file = Path(one["file"])
        bundle = folder / f"{one['name']}.tfm"
        model = ORTModelForCausalLM.from_pretrained(bundle, subfolder=str(file.parent), file_name=file.name)
        wrong += compare(model, one, new_tokens, prompted=True)
    for one in sequences["models"]:
        if one["dtype"] == "int8":  # of several precisions it opens fp32, or one decoder that is not merged
            continue
        model = ORTModelForSeq2SeqLM.from_pretrained(folder / one["bundle"], subfolder="onnx")
        wrong += compare(model, one, new_tokens, prompted=False)
    return wrong


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
