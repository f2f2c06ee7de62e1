"""One engine of `minilm_int8.py`, in a process and an environment of its own.

    python worker.py '{"engine": …, "model": …, "rows": …, "output": …}'

Opens the file or folder `model` with one of `ENGINES`, on one thread, and answers two kinds of lines on stdin:

- "sentences N" embeds the rows of token ids in the JSON file `rows`, N at a time, into `output`/N.npy: "done";
- "time B S SECONDS" runs B rows of S tokens for that long, at least once: the fastest run's seconds.

Shapes: B batch, S sequence, D model size.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Embed = Callable[[Array, Array], Array]
"""From ids and mask, both int64 (B, S), to embeddings (B, D)."""


def tfm(job: dict[str, Any]) -> Embed:
    """A graph of our bundle, by our own runtime; it pools inside."""
    from tfm.runtime.manifest import read_manifest
    from tfm.runtime.session import Session

    session = Session(Path(job["model"]), read_manifest(job["bundle"]).signature["model"], "cpu", 1)

    def embed(ids_BS: Array, mask_BS: Array) -> Array:
        feeds = {"input_ids": ids_BS, "attention_mask": mask_BS, "token_type_ids": np.zeros_like(ids_BS)}
        return session.run(outputs=["sentence_embedding"], **feeds)["sentence_embedding"]

    return embed


def onnxruntime(job: dict[str, Any]) -> Embed:
    """An ONNX file that gives token states."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])

    def embed(ids_BS: Array, mask_BS: Array) -> Array:
        feeds = {"input_ids": ids_BS, "attention_mask": mask_BS, "token_type_ids": np.zeros_like(ids_BS)}
        return pool(session.run(["last_hidden_state"], feeds)[0], mask_BS)

    return embed


def ctranslate2(job: dict[str, Any]) -> Embed:
    """CTranslate2; what is beyond a row's length is padding to it, and segments are 0 where none are given."""
    from ctranslate2 import Encoder, StorageView

    encoder = Encoder(job["model"], device="cpu", compute_type="int8", inter_threads=1, intra_threads=1)

    def embed(ids_BS: Array, mask_BS: Array) -> Array:
        ids, lengths = ids_BS.astype(np.int32), mask_BS.sum(axis=1, dtype=np.int32)
        found = encoder.forward_batch(StorageView.from_array(ids), StorageView.from_array(lengths))
        return pool(np.array(found.last_hidden_state), mask_BS)

    return embed


def openvino(job: dict[str, Any]) -> Embed:
    """OpenVINO; `hint`: the type that it computes in what is not int8, where its own choice is not wanted."""
    import openvino as ov

    config = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    if "hint" in job:
        config["INFERENCE_PRECISION_HINT"] = job["hint"]
    compiled = ov.Core().compile_model(job["model"], "CPU", config)

    def embed(ids_BS: Array, mask_BS: Array) -> Array:
        feeds = {"input_ids": ids_BS, "attention_mask": mask_BS, "token_type_ids": np.zeros_like(ids_BS)}
        return pool(compiled(feeds)["last_hidden_state"], mask_BS)

    return embed


def torch(job: dict[str, Any]) -> Embed:
    """The checkpoint itself, in float32 by transformers and PyTorch."""
    import torch
    from transformers import AutoModel

    torch.set_num_threads(1)
    model = AutoModel.from_pretrained(job["model"], add_pooling_layer=False).float().eval()

    def embed(ids_BS: Array, mask_BS: Array) -> Array:
        with torch.inference_mode():
            states = model(input_ids=torch.from_numpy(ids_BS), attention_mask=torch.from_numpy(mask_BS))
        return pool(states.last_hidden_state.numpy(), mask_BS)

    return embed


ENGINES = {function.__name__: function for function in (tfm, onnxruntime, ctranslate2, openvino, torch)}


def pool(states_BSD: Array, mask_BS: Array) -> Array:
    """Mean of a row's token states, padding left out, made a unit vector: the checkpoint's `modules.json`."""
    means_BD = np.einsum("bsd,bs->bd", states_BSD, mask_BS.astype(np.float32)) / mask_BS.sum(axis=1)[:, None]
    return means_BD / np.linalg.norm(means_BD, axis=1, keepdims=True)


def embed_all(embed: Embed, rows: list[list[int]], size: int) -> Array:
    """Embed `size` rows at a time, in the order given, padded on the right to the longest."""
    parts = []
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        ids_BS = np.zeros((len(batch), max(map(len, batch))), np.int64)
        mask_BS = np.zeros_like(ids_BS)
        for b, row in enumerate(batch):
            ids_BS[b, : len(row)], mask_BS[b, : len(row)] = row, 1
        parts.append(np.array(embed(ids_BS, mask_BS), np.float32))
    return np.concatenate(parts)


def fastest(embed: Embed, shape: tuple[int, int], seconds: float) -> float:
    """Seconds of the fastest run."""
    ids_BS = np.random.default_rng(0).integers(1000, 20_000, shape)
    mask_BS = np.ones_like(ids_BS)
    found, end = float("inf"), time.perf_counter() + seconds
    embed(ids_BS, mask_BS)  # wakes caches and clock frequency after the other engines' turns
    while True:
        start = time.perf_counter()
        embed(ids_BS, mask_BS)
        now = time.perf_counter()
        found = min(found, now - start)
        if now >= end:
            return found


def main(job: dict[str, Any]) -> None:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    embed = ENGINES[job["engine"]](job)
    rows = json.loads(Path(job["rows"]).read_text())
    for line in sys.stdin:
        what, *numbers = line.split()
        if what == "sentences":
            (size,) = map(int, numbers)
            np.save(Path(job["output"]) / f"{size}.npy", embed_all(embed, rows, size))
            print("done", file=answers, flush=True)
        else:
            batch, length, seconds = numbers
            print(fastest(embed, (int(batch), int(length)), float(seconds)), file=answers, flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
