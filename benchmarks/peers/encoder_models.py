"""Makes a peer's model of a BERT encoder, in an environment that has that peer; run by `encoders.py`.

    python encoder_models.py PEER CHECKPOINT CALIBRATION MODEL

PEER is a function here, CHECKPOINT a Hugging Face folder, CALIBRATION a JSON file of rows of token ids, for the peer
whose int8 is static, and MODEL the folder to fill. Each is converted as its own documentation says; BERT's pooler,
which a sentence embedding does not need, is left out where the peer lets one.
"""

import json
import sys
from pathlib import Path
from typing import Any


def ctranslate2(checkpoint: str, calibration: Path, model: Path) -> None:
    """CTranslate2: int8 weights; activations at run time, with a scale per token."""
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(checkpoint).convert(str(model), quantization="int8", force=True)


def openvino(checkpoint: str, calibration: Path, model: Path) -> None:
    """OpenVINO + NNCF: static int8 of weights and activations, smoothed and bias-corrected on calibration data."""
    import nncf
    import numpy as np
    import openvino as ov

    exact = ov.convert_model(_bert(checkpoint), example_input=_example())
    feeds = []
    for row in json.loads(calibration.read_text()):
        ids_1S = np.array([row], np.int64)
        segments_1S = np.zeros_like(ids_1S)
        feeds.append({"input_ids": ids_1S, "attention_mask": segments_1S + 1, "token_type_ids": segments_1S})
    quantized = nncf.quantize(exact, nncf.Dataset(feeds), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(feeds))
    ov.save_model(quantized, model / "model.xml")


def onnxruntime(checkpoint: str, calibration: Path, model: Path) -> None:
    """PyTorch's own export and onnxruntime's quantize_dynamic: activations at run time, a scale per tensor.

    The preparation that onnxruntime recommends, `quant_pre_process`, cannot infer the shapes of this export and fails.
    """
    import torch
    from onnxruntime.quantization import quantize_dynamic

    example, dim = _example(), torch.export.Dim.DYNAMIC
    torch.onnx.export(
        _bert(checkpoint),
        (),
        model / "float32.onnx",
        kwargs=example,
        dynamo=True,
        dynamic_shapes={name: {0: dim, 1: dim} for name in example},
        input_names=list(example),
        output_names=["last_hidden_state"],
        external_data=False,
    )
    quantize_dynamic(model / "float32.onnx", model / "model.onnx", per_channel=True)
    (model / "float32.onnx").unlink()


def optimum(checkpoint: str, calibration: Path, model: Path) -> None:
    """optimum-onnx: its export, and quantize_dynamic as its configuration for AVX512-VNNI asks."""
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    _optimum_export(checkpoint, model / "float32")
    config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    ORTQuantizer.from_pretrained(model / "float32", file_name="model.onnx").quantize(
        save_dir=model, quantization_config=config
    )
    (model / "float32" / "model.onnx").unlink()


def optimum_o2(checkpoint: str, calibration: Path, model: Path) -> None:
    """optimum-onnx: its export, optimized at its level O2, in float32."""
    from optimum.onnxruntime import ORTOptimizer
    from optimum.onnxruntime.configuration import AutoOptimizationConfig

    _optimum_export(checkpoint, model / "float32")
    ORTOptimizer.from_pretrained(model / "float32", file_names=["model.onnx"]).optimize(
        save_dir=model, optimization_config=AutoOptimizationConfig.O2()
    )
    (model / "float32" / "model.onnx").unlink()


def sentence_transformers(checkpoint: str, calibration: Path, model: Path) -> None:
    """sentence-transformers: its ONNX backend's export, and its own quantization of that for AVX512-VNNI."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.backend import export_dynamic_quantized_onnx_model

    exact = SentenceTransformer(checkpoint, backend="onnx", device="cpu", local_files_only=True)
    exact.save_pretrained(str(model))
    export_dynamic_quantized_onnx_model(exact, "avx512_vnni", str(model))
    (model / "onnx" / "model.onnx").unlink()


def _optimum_export(checkpoint: str, folder: Path) -> None:
    from optimum.exporters.onnx import main_export

    main_export(checkpoint, folder, task="feature-extraction", library_name="transformers")


def _bert(checkpoint: str) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(checkpoint, add_pooling_layer=False).eval()


def _example() -> dict[str, Any]:
    """Inputs to trace with, of two rows: a size of one would be taken for a constant."""
    import torch

    ids_BS = torch.full((2, 5), 1000)
    return {
        "input_ids": ids_BS,
        "attention_mask": torch.ones_like(ids_BS),
        "token_type_ids": torch.zeros_like(ids_BS),
    }


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
