"""Every reader on the same bundles, each in an environment of its own: `make readers`.

    python benchmarks/readers/run.py PEERS DIR [--smollm2]

PEERS keeps the environments of `benchmarks/peers/environments.py`, and one of Node; DIR the bundles. Ends with 1 where
a reader gives other tokens than transformers' greedy `generate`, or cannot be run.
"""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))

from environments import python_of

HERE = Path(__file__).parent

READERS = {"optimum": "read_optimum.py", "genai": "read_genai.py", "openvino": "read_openvino.py"}
"""Environment → script."""

TRANSFORMERS_JS = "@huggingface/transformers@4.3.2"


def node_folder(peers: Path) -> Path:
    """Install transformers.js unless it is there, without what onnxruntime-node's own script fetches for GPUs."""
    folder = peers / "transformersjs"
    if not (folder / "node_modules").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true}\n')
        environment = {**os.environ, "ONNXRUNTIME_NODE_INSTALL": "skip"}
        subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", TRANSFORMERS_JS], cwd=folder, env=environment, check=True
        )
    return folder


def main(peers: Path, folder: Path, *options: str) -> int:
    """Make the bundles, and have each reader read them."""
    subprocess.run([sys.executable, str(HERE / "checkpoints.py"), str(folder), *options], check=True)
    subprocess.run([sys.executable, str(HERE / "sequences.py"), str(folder)], check=True)
    codes = [
        subprocess.run([str(python_of(peers, name)), str(HERE / script), str(folder)], check=False).returncode
        for name, script in READERS.items()
    ]
    script = str((HERE / "read_transformersjs.mjs").resolve())
    codes.append(
        subprocess.run(["node", script, str(folder.resolve())], cwd=node_folder(peers), check=False).returncode
    )
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]), *sys.argv[3:]))
