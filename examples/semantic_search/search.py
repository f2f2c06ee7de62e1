"""Semantic search over the .txt and .md files of a folder: python search.py FOLDER "query" --model BUNDLE"""

import argparse
import hashlib
from pathlib import Path

import numpy as np

from tfm.runtime import load

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path)
parser.add_argument("query")
parser.add_argument("--model", default="all-MiniLM-L6-v2.tfm", help="a bundle with sentence embeddings")
args = parser.parse_args()

passages = []  # (file, number of the first line, text): paragraphs, and parts of long ones
for path in sorted(path for path in args.folder.rglob("*") if path.suffix in (".txt", ".md")):
    first, text = 1, ""
    for number, line in enumerate([*path.read_text(encoding="utf-8", errors="replace").splitlines(), ""], 1):
        if text and (not line.strip() or len(text) > 500):
            passages.append((path, first, text))
            text = ""
        first, text = (first, f"{text} {line.strip()}") if text else (number, line.strip())

model = load(args.model)
salt = "".join(file.sha256 for file in model.manifest.files.values()) + model.precision
keys = [hashlib.sha256((salt + text).encode()).hexdigest() for _, _, text in passages]
cache = args.folder / ".search.npz"
known = dict(np.load(cache)) if cache.exists() else {}
new = {key: text for key, (_, _, text) in zip(keys, passages, strict=True) if key not in known}
known.update(zip(new, model.embed(new.values(), progress=len(new) > 100), strict=True))
np.savez(cache, **{key: known[key] for key in keys})  # what is no longer there is forgotten

query = model.embed(args.query)[0]
scores = [known[key] @ query / np.linalg.norm(known[key]) / np.linalg.norm(query) for key in keys]
for score, (path, line, text) in sorted(zip(scores, passages, strict=True), reverse=True)[:5]:
    print(f"{score:.3f}  {path}:{line}  {text[:90]}")
