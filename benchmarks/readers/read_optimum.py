"""optimum-onnx opens the bundles of checkpoints.py as they are: its greedy tokens are transformers' own.

python benchmarks/readers/read_optimum.py DIR
"""

import json
import sys
from pathlib import Path

import torch
from optimum.onnxruntime import ORTModelForCausalLM


def main(folder: Path) -> int:
    """Print a line for each bundle and batch; give how many differ."""
    expected = json.loads((folder / "expected.json").read_text())
    wrong = 0
    for name, batches in expected["models"].items():
        model = ORTModelForCausalLM.from_pretrained(folder / f"{name}.tfm", subfolder="onnx", file_name="model.onnx")
        for kind, batch in batches.items():
            ids, mask = torch.tensor(batch["ids"]), torch.tensor(batch["mask"])
            found = model.generate(ids, attention_mask=mask, max_new_tokens=expected["new_tokens"], do_sample=False)
            same = found[:, ids.shape[1] :].tolist() == batch["new"]
            wrong += not same
            print(f"optimum {name}, {kind}: {'equal' if same else 'DIFFERENT'}")
    return wrong


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
