"""How far int8 embeddings are from float32 on kinds of text that nothing was chosen by, beside CTranslate2's.

    python benchmarks/int8_domains.py BUNDLE [--ctranslate2 FOLDER] [--openvino MODEL] [--count 200]

Texts are taken from this machine: descriptions, code, licenses and names of the installed packages, and of a Debian
system change logs, C headers, descriptions of packages, Perl's diagnostics and programs' messages in all languages. The
bundle's graphs are opened by plain onnxruntime, as any other reader does, and run text by text and by 32, padded as
they come. FOLDER is what `ct2-transformers-converter --quantization int8` wrote of the same model, MODEL the
`model.xml` that `benchmarks/peers/encoder_models.py openvino` made by NNCF, with as many of our calibration's sentences
as `benchmarks/encoders.py` gives it.
"""

import argparse
import gettext
import gzip
import random
import re
import site
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import tokenizers

from tfm.quantize.search.evaluator import similarity_stats

BATCHES = (1, 32)
Embed = Callable[[Sequence[Sequence[int]]], np.ndarray]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--ctranslate2", type=Path)
    parser.add_argument("--openvino", type=Path)
    parser.add_argument("--count", type=int, default=200)
    options = parser.parse_args()
    tokenizer = tokenizers.Tokenizer.from_file(str(options.bundle / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    exact = opened(options.bundle / "onnx" / "model.onnx")
    engines = {"ours": opened(options.bundle / "onnx" / "model_int8.onnx")}
    if options.ctranslate2:
        engines["ctranslate2"] = converted(options.ctranslate2)
    if options.openvino:
        engines["openvino"] = compiled(options.openvino)
    print("| text | int8 | by | mean | first percentile | minimum | Spearman |\n|" + " --- |" * 7)
    for kind, texts in collect(options.count).items():
        rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
        expected = run(exact, rows, 1)
        for name, engine in engines.items():
            for size in BATCHES:
                print(
                    f"| {kind} | {name} | {size} | {' | '.join(figures(expected, run(engine, rows, size)))} |",
                    flush=True,
                )


def figures(expected: np.ndarray, found: np.ndarray) -> list[str]:
    """Give a line's figures: cosines of embeddings (R, D), float32, with float32's, and the order of similarities."""
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (expected, found)]
    cosines = (units[0] * units[1]).sum(1)
    ranks = similarity_stats(expected, found)["spearman"]
    return [f"{value:.5f}" for value in (cosines.mean(), np.quantile(cosines, 0.01), cosines.min(), ranks)]


def run(embed: Embed, rows: Sequence[Sequence[int]], size: int) -> np.ndarray:
    """Embed rows of ids, so many at a time, in their order."""
    return np.concatenate([embed(rows[start : start + size]) for start in range(0, len(rows), size)])


def opened(path: Path) -> Embed:
    """Open a graph by plain onnxruntime, with nothing of ours set."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = {spec.name for spec in session.get_inputs()}

    def embed(rows: Sequence[Sequence[int]]) -> np.ndarray:
        feeds = padded(rows)
        (found,) = session.run(["sentence_embedding"], {name: feeds[name] for name in names})
        return np.asarray(found)

    return embed


def padded(rows: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Give rows of ids as BERT takes them, filled up on the right."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)], mask[place, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def compiled(path: Path) -> Embed:
    """Open what NNCF quantized by OpenVINO; its token states are averaged here."""
    import openvino

    # What is not int8 in float32: on processors with AMX the default is bfloat16.
    model = openvino.Core().compile_model(path, "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})

    def embed(rows: Sequence[Sequence[int]]) -> np.ndarray:
        states = model(padded(rows))["last_hidden_state"]
        return np.stack([state[: len(row)].mean(0) for state, row in zip(states, rows, strict=True)])

    return embed


def converted(folder: Path) -> Embed:
    """Open what CTranslate2 converted; its token states are averaged here."""
    import ctranslate2

    encoder = ctranslate2.Encoder(str(folder), device="cpu", compute_type="int8")

    def embed(rows: Sequence[Sequence[int]]) -> np.ndarray:
        states = np.array(encoder.forward_batch([list(row) for row in rows]).last_hidden_state)
        return np.stack([state[: len(row)].mean(0) for state, row in zip(states, rows, strict=True)])

    return embed


def collect(count: int) -> dict[str, list[str]]:
    """Take texts of nine kinds from what is installed here."""
    packages = Path(site.getsitepackages()[0])
    found: dict[str, list[str]] = {"documents": [], "code": [], "licenses": [], "names": [], "change logs": []}
    for file in sorted(packages.glob("*.dist-info/METADATA")):
        head, _, body = file.read_text("utf-8", errors="ignore").partition("\n\n")
        found["documents"] += paragraphs(body)
        for line in head.splitlines():
            if match := re.match(r"(?:Name|Author|Keywords|Classifier|Summary): (.+)", line):
                found["names"].append(match[1].split("<")[0].strip()[:80])
    for file in sorted(packages.glob("*/*.py"))[::15]:
        lines = file.read_text("utf-8", errors="ignore").splitlines()
        found["code"] += ["\n".join(lines[start : start + 8]).strip()[:1200] for start in range(0, len(lines), 40)]
    for file in sorted(packages.glob("*.dist-info/**/LICENSE*")):
        found["licenses"] += paragraphs(file.read_text("utf-8", errors="ignore"))
    for file in sorted(Path("/usr/share/doc").glob("*/changelog*.gz"))[:200]:
        found["change logs"] += paragraphs(gzip.decompress(file.read_bytes()).decode("utf-8", errors="ignore"))[:20]
    found |= of_the_system()
    rng = random.Random(7)
    return {kind: some(rng, [text for text in texts if text], count) for kind, texts in found.items() if texts}


def of_the_system() -> dict[str, list[str]]:
    """Take texts of four kinds from a Debian system: what they are was looked at by nobody who chose a method."""
    found: dict[str, list[str]] = {"translations": [], "headers": [], "descriptions": [], "diagnostics": []}
    for file in sorted(Path("/usr/share/locale").glob("*/LC_MESSAGES/*.mo"))[::7]:
        try:
            with file.open("rb") as stream:
                catalog: dict[Any, str] = vars(gettext.GNUTranslations(stream))["_catalog"]
        except UnicodeDecodeError:  # an old one, in no encoding that it names
            continue
        found["translations"] += [text for text in catalog.values() if isinstance(text, str) and 20 < len(text) < 600][
            :30
        ]
    for file in sorted(Path("/usr/include").glob("*.h")):
        lines = file.read_text("utf-8", errors="ignore").splitlines()
        found["headers"] += ["\n".join(lines[start : start + 8]).strip()[:1200] for start in range(20, len(lines), 25)]
    status = Path("/var/lib/dpkg/status")
    if status.is_file():
        for part in re.findall(r"^Description: (.+\n(?: .+\n)*)", status.read_text("utf-8"), re.MULTILINE):
            found["descriptions"].append(" ".join(part.replace("\n .\n", "\n").split())[:900])
    for file in sorted(Path("/usr/share/perl").glob("*/pod/perldiag.pod")):
        found["diagnostics"] += paragraphs(file.read_text("utf-8", errors="ignore"))
    return found


def paragraphs(text: str) -> list[str]:
    """Give a text's paragraphs, in a line each, but for those that are too short or too long."""
    return [" ".join(part.split()) for part in text.split("\n\n") if 40 < len(part) < 900]


def some(rng: random.Random, texts: Sequence[str], count: int) -> list[str]:
    """Draw some of the texts, each once."""
    kept = list(dict.fromkeys(texts))
    rng.shuffle(kept)
    return kept[:count]


if __name__ == "__main__":
    main()
