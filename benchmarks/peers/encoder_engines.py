"""The engines of `encoders.py`: how each opens a sentence encoder and embeds rows of token ids.

An engine is a function of its job that imports its package and gives another, which opens the model for so many calls
side by side, its threads shared among them, and gives what embeds.

Shapes: B batch, S sequence, D model size.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Embed = Callable[[Array, Array], Array]
"""From ids and mask, both int64 (B, S), padded on the right, to embeddings (B, D)."""
Open = Callable[[int], Embed]

Job = dict[str, Any]


def tfm(job: Job) -> Open:
    """Our bundle by our own runtime, which takes rows and schedules them by itself."""
    from tfm.runtime import load

    def open_bundle(streams: int) -> Embed:
        model: Any = load(job["model"], precision=job["precision"], provider="cpu", threads=job["threads"])

        def embed(ids_BS: Array, mask_BS: Array) -> Array:
            lengths = mask_BS.sum(axis=1)
            return model.embed([ids_S[:length] for ids_S, length in zip(ids_BS, lengths, strict=True)])

        return embed

    return open_bundle


def onnxruntime(job: Job) -> Open:
    """An ONNX file that gives token states."""
    import onnxruntime as ort

    def open_file(streams: int) -> Embed:
        options = ort.SessionOptions()
        options.intra_op_num_threads = job["threads"] // streams  # of one: each call runs in its caller's thread alone
        session = ort.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
        segments = any(node.name == "token_type_ids" for node in session.get_inputs())

        def embed(ids_BS: Array, mask_BS: Array) -> Array:
            feeds = {"input_ids": ids_BS, "attention_mask": mask_BS}
            if segments:
                feeds["token_type_ids"] = np.zeros_like(ids_BS)
            return pool(session.run(["last_hidden_state"], feeds)[0], mask_BS)

        return embed

    return open_file


def sentence_transformers(job: Job) -> Open:
    """sentence-transformers with its ONNX backend, handed the features that its tokenizer would give."""
    import onnxruntime as ort
    import torch
    from sentence_transformers import SentenceTransformer

    def open_folder(streams: int) -> Embed:
        torch.set_num_threads(job["threads"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = job["threads"]
        model = SentenceTransformer(
            job["model"],
            backend="onnx",
            device="cpu",
            local_files_only=True,
            model_kwargs={
                "file_name": job["file"],
                "provider": "CPUExecutionProvider",
                "session_options": options,
            },
        )

        def embed(ids_BS: Array, mask_BS: Array) -> Array:
            features = {"input_ids": torch.from_numpy(ids_BS), "attention_mask": torch.from_numpy(mask_BS)}
            features["token_type_ids"] = torch.zeros_like(features["input_ids"])
            with torch.inference_mode():
                return model(features)["sentence_embedding"].numpy()

        return embed

    return open_folder


def ctranslate2(job: Job) -> Open:
    """CTranslate2; what is beyond a row's length is padding to it, and segments are 0 where none are given."""
    from ctranslate2 import Encoder, StorageView

    def open_folder(streams: int) -> Embed:
        encoder = Encoder(
            job["model"],
            device="cpu",
            compute_type="int8",
            inter_threads=streams,
            intra_threads=job["threads"] // streams,
        )

        def embed(ids_BS: Array, mask_BS: Array) -> Array:
            ids, lengths = ids_BS.astype(np.int32), mask_BS.sum(axis=1, dtype=np.int32)
            found = encoder.forward_batch(StorageView.from_array(ids), StorageView.from_array(lengths))
            return pool(np.array(found.last_hidden_state), mask_BS)

        return embed

    return open_folder


def openvino(job: Job) -> Open:
    """OpenVINO, by the performance hint `hint`, each caller's thread with an infer request of its own."""
    import threading

    import openvino as ov

    def open_file(streams: int) -> Embed:
        config = {"INFERENCE_NUM_THREADS": job["threads"], "PERFORMANCE_HINT": job["hint"]}
        compiled = ov.Core().compile_model(job["model"], "CPU", config)
        requests = threading.local()

        def embed(ids_BS: Array, mask_BS: Array) -> Array:
            if not hasattr(requests, "own"):
                requests.own = compiled.create_infer_request()
            feeds = {"input_ids": ids_BS, "attention_mask": mask_BS, "token_type_ids": np.zeros_like(ids_BS)}
            return pool(requests.own.infer(feeds, share_inputs=True)["last_hidden_state"], mask_BS)

        return embed

    return open_file


def torch(job: Job) -> Open:
    """The checkpoint itself by transformers and PyTorch; eager or compiled, in float32 or by torchao in int8."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = job["cache"]
    import torch
    from transformers import AutoModel

    quantize: Callable[[Any], None] | None = None
    if job["int8"]:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        def quantize(model: Any) -> None:
            quantize_(model, Int8DynamicActivationInt8WeightConfig())

    def open_folder(streams: int) -> Embed:
        torch.set_num_threads(job["threads"])
        model = AutoModel.from_pretrained(job["model"], add_pooling_layer=False).float().eval()
        if quantize:
            quantize(model)
        if job["compile"]:
            from torch._inductor import config

            config.freezing = True
            model = torch.compile(model, dynamic=True)

        def embed(ids_BS: Array, mask_BS: Array) -> Array:
            with torch.inference_mode():
                states = model(input_ids=torch.from_numpy(ids_BS), attention_mask=torch.from_numpy(mask_BS))
            return pool(states.last_hidden_state.numpy(), mask_BS)

        return embed

    return open_folder


def pool(states_BSD: Array, mask_BS: Array) -> Array:
    """Mean of a row's token states, padding left out, made a unit vector: the checkpoint's `modules.json`."""
    means_BD = np.einsum("bsd,bs->bd", states_BSD, mask_BS.astype(np.float32)) / mask_BS.sum(axis=1)[:, None]
    return means_BD / np.linalg.norm(means_BD, axis=1, keepdims=True)
