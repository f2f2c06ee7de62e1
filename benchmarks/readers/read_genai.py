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


def until_the_end(row: list[int]) -> list[int]:
    """What is before the end token: readers fill up what is behind it each in their own way."""
    return row[: row.index(2)] if 2 in row else row


def main(folder: Path) -> int:
    """Print a line for each bundle and batch; give how many differ."""
    expected = json.loads((folder / "expected.json").read_text())
    wrong = 0
    for name, batches in expected["models"].items():
        model = og.Model(str(folder / f"{name}.tfm"))
        for kind, batch in batches.items():
            if "padded" in kind:  # its mask says that all tokens are real, whatever they are
                continue
            found = generate(model, batch["ids"], expected["new_tokens"])
            same = list(map(until_the_end, found)) == list(map(until_the_end, batch["new"]))
            wrong += not same
            print(f"onnxruntime-genai {name}, {kind}: {'equal' if same else 'DIFFERENT'}")
    return wrong


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
