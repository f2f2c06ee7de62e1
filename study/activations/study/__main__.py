"""Prints the table of a study: `python -m tfm.study.activations.study docs/activations.json`."""

import json
import sys
from pathlib import Path

from .summary import markdown, summarize

if __name__ == "__main__":
    print(markdown(summarize(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))), end="")
