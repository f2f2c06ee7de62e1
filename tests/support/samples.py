"""Certificates built by hand, as parity.json of schema 3 holds them; random where a figure does not matter."""

import copy
import math
import random
from typing import Any

import numpy as np

from tests.support.planted_quantization import decoder_weights, encoder_weights, planted
from tfm.report import ActivationCurve, AttentionMap

Certificate = dict[str, Any]
SOURCES = {
    "attention": "tfm/model/attention.py:85",
    "activation": "tfm/model/transformer.py:61",
    "linear": "tfm/model/transformer.py:58",
    "norm": "tfm/model/transformer.py:112",
    "embedding": "tfm/model/transformer.py:140",
}
FORMS = {
    "attention": "Attention",
    "activation": "Gelu",
    "linear": "MatMul Add",
    "norm": "LayerNormalization",
    "embedding": "Gather",
}
TOKENS = ("[CLS]", "the", "cat", "sat", "by", "the", "river", "bank", "and", "slept", ".", "[SEP]")


def figures(rng: random.Random, error: float, scale: float = 4.0, **more: Any) -> dict[str, Any]:
    """Figures whose largest error is about `error`."""
    max_abs = error * 10 ** rng.uniform(-0.3, 0.3)
    nmse = (0.3 * max_abs / scale) ** 2
    found = {"count": 231168, "max_abs": max_abs, "nmse": nmse, "snr_db": -10 * math.log10(nmse)}
    return found | {"cosine": 1 - nmse / 2, "scale": scale} | more


def unmeasured(**more: Any) -> dict[str, Any]:
    return {"count": 0, "max_abs": 0.0, "nmse": 0.0, "snr_db": None, "cosine": 1.0, "scale": 0.0} | more


def op(rng: random.Random, kind: str, path: str, layer: int, precision: str, call: int = 0) -> dict[str, Any]:
    float32 = precision == "fp32"
    place = (1.5e-6 if float32 else 0.05) * (1 + layer) ** 0.7
    limit = 4e-4 if float32 else None
    around = kind in ("linear", "norm", "embedding")
    swallowed = kind == "activation" and float32
    after = {"level": "all", "node": "BiasGelu" if swallowed else FORMS[kind], "at": f"view_{layer}"}
    kernel = {"op_type": after["node"], "domain": "com.microsoft" if swallowed else "", "best": True, "advice": ""}
    if kind == "linear" and not float32:
        kernel |= {"op_type": "DynamicQuantizeMatMul", "domain": "com.microsoft"}
    if swallowed:
        kernel |= {"best": False, "advice": "BiasGelu was slower than Gelu where it was timed: export with opset 20."}
    return {
        "op": f"{kind} {path}" + (f" {call}" if call else ""),
        "kind": kind,
        "path": path,
        "call": call,
        "source": SOURCES[kind],
        "form": FORMS[kind],
        "passed": True,
        "fault": "",
        "own": figures(rng, 8e-7, limit=1.6e-5),
        "inherited": unmeasured() if kind == "embedding" else figures(rng, place * 0.8),
        "free": figures(rng, place, limit=limit),
        "weights": None if not around else "identical" if float32 else "quantized",
        "optimized": after | {"swallowed": swallowed} | figures(rng, place, limit=limit),
        "kernel": kernel | {"provider": "CPUExecutionProvider"},
    }


def graph(rng: random.Random, role: str, precision: str, layers: int, attentions: list[str], linears: int) -> Any:
    stack = "decoder" if role == "decoder" else "encoder"
    ops = [op(rng, "embedding", f"{stack}.embedding", 0, precision)]
    for layer in range(layers):
        prefix = f"{stack}.layers.{layer}"
        ops += [op(rng, "linear", f"{prefix}.linear_{index}", layer, precision) for index in range(linears)]
        ops += [op(rng, "attention", f"{prefix}.{name}", layer, precision) for name in attentions]
        ops.append(op(rng, "activation", f"{prefix}.feed_forward.activation", layer, precision))
        ops.append(op(rng, "norm", f"{prefix}.norm1", layer, precision))
    names = ["logits"] if role == "decoder" else ["last_hidden_state", "sentence_embedding"]
    if role == "decoder":
        names += [f"present.{layer}.{name}" for layer in range(layers) for name in ("key", "value")]
    outputs = [
        {"name": name, "level": level, "passed": True, "fault": ""}
        | figures(rng, 5e-6 if precision == "fp32" else 0.3)
        | {"limit": 7.3e-5 if precision == "fp32" else None}
        for level in ("disabled", "basic", "extended", "all")
        for name in names
    ]
    head = {"role": role, "precision": precision, "provider": "CPUExecutionProvider"}
    return head | {"passed": True, "first_fault": "", "first_failed": None, "ops": ops, "outputs": outputs}


def certificate(name: str, kind: str, graphs: list[Any]) -> Certificate:
    return {
        "schema": 3,
        "passed": True,
        "parameters": 22713216,
        "name": f"{name}.tfm",
        "family": "bert",
        "kind": kind,
        "made": {
            "date": "2026-11-23",
            "versions": {
                "tfm-export": "0.1.0",
                "torch": "2.13.0+cpu",
                "onnx": "1.23.2",
                "onnxruntime": "1.32.0",
            },
            "opset": 23,
            "machine": "x86_64, 2 cores",
        },
        "files": {
            "onnx/model.onnx": {"size": 90287789, "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b" + "2b" * 12},
            "onnx/model_int8.onnx": {
                "size": 22892866,
                "sha256": "60303ae22b998861bce3b28f33eec1be758a213c" + "86" * 12,
            },
        },
        "tolerances": [
            {
                "what": "attention, by itself, float32",
                "atol": 2e-6,
                "rtol": 4e-6,
                "reason": "Both sum up to 128 products in float32 in an order of their own. Twice the worst measured.",
            },
            {
                "what": "activation, by itself, float32",
                "atol": 1e-6,
                "rtol": 1e-6,
                "reason": "onnxruntime's erf is a polynomial of its own.",
            },
            {
                "what": "end to end, float32",
                "atol": 1e-5,
                "rtol": 1e-5,
                "reason": "What the ops may be off by, as it adds up over the layers.",
            },
        ],
        "graphs": graphs,
        "fidelity": [
            {
                "precision": precision,
                "measure": "cosine",
                "value": value,
                "floor": floor,
                "count": 256,
                "data": "sentence embeddings of English sentences",
                "passed": True,
            }
            for precision, value, floor in (("fp32", 0.9999999999997159, 0.999999), ("int8", 0.99244967, 0.99))
        ],
        "latency": [
            {
                "work": "model 1×16",
                "milliseconds": {"eager": 7.921969, "fp32": 4.381406, "int8": 1.216686},
                "baseline": "eager",
                "ratios": {"fp32": FP32, "int8": INT8},
            },
            {
                "work": "model 1×128",
                "milliseconds": {"eager": 38.030144, "fp32": 18.564591, "int8": 8.62926},
                "baseline": "eager",
                "ratios": {"fp32": FP32, "int8": INT8},
            },
        ],
        "speed": [
            {"precision": "fp32", "baseline": "eager", **FP32},
            {"precision": "int8", "baseline": "eager", **INT8},
            {"precision": "int8", "baseline": "fp32", **OVER_FP32},
        ],
        "not_judged": [],
        "quantization": {},
        "sizes": {"fp32": 90287789, "int8": 22892866},
    }


FP32 = {"ratio": 1.9, "low": 1.8, "high": 2.1, "verdict": "faster", "said": "faster 1.9× (1.8–2.1)"}
INT8 = {"ratio": 5.3, "low": 4.6, "high": 6.2, "verdict": "faster", "said": "faster 5.3× (4.6–6.2)"}
OVER_FP32 = {"ratio": 2.8, "low": 2.4, "high": 3.3, "verdict": "faster", "said": "faster 2.8× (2.4–3.3)"}


def encoder() -> Certificate:
    rng = random.Random(0)
    graphs = [graph(rng, "model", precision, 6, ["self_attn"], 6) for precision in ("fp32", "int8")]
    found = certificate("all-MiniLM-L6-v2", "encoder", graphs)
    return found | {"quantization": {"int8": planted(encoder_weights(), float32=(3, 11))}}


def failing() -> Certificate:
    """A wrong form of gelu in the fp32 graph; all that follows it is off in place, and so are the outputs."""
    found = encoder()
    bad = found["graphs"][0]
    bad["passed"] = found["passed"] = False
    start = next(
        i for i, o in enumerate(bad["ops"]) if o["op"] == "activation encoder.layers.2.feed_forward.activation"
    )
    wrong = bad["ops"][start]
    wrong["own"] |= {"max_abs": 4.7e-4, "nmse": 1e-9, "snr_db": 90.0}
    wrong |= {"passed": False, "fault": "off by itself by 4.7e-04, more than 1.6e-05"}
    for later in bad["ops"][start + 1 :]:
        later["free"] |= {"max_abs": 2.3e-3, "nmse": 1e-7, "snr_db": 70.0}
        later["optimized"] |= {"max_abs": 2.3e-3, "nmse": 1e-7, "snr_db": 70.0}
        later |= {"passed": False, "fault": "off in the whole graph by 2.3e-03, more than 4.0e-04"}
    last = bad["ops"][-1]
    last["free"] |= {"max_abs": None, "nmse": None, "snr_db": None, "cosine": None}
    last["fault"] = "off in the whole graph: NaN or infinity where eager has another value, or the other way round"
    for output in bad["outputs"]:
        output |= {"passed": False, "fault": "off by 2.0e-03, more than 7.3e-05", "max_abs": 2e-3, "snr_db": 60.0}
    bad |= {"first_fault": f"{wrong['op']}: {wrong['fault']}", "first_failed": {"op": wrong["op"]}}
    return found


def encoder_decoder() -> Certificate:
    rng = random.Random(1)
    graphs = []
    for precision in ("fp32", "int8"):
        graphs.append(graph(rng, "encoder", precision, 3, ["self_attn"], 4))
        graphs.append(graph(rng, "decoder", precision, 3, ["self_attn", "cross_attn"], 6))
    assignment = planted(encoder_weights(6, 256, 1024), "kl", roles=("encoder", "decoder"), max_drop=0.01)
    found = certificate("g2p", "encoder-decoder", graphs)
    return found | {"family": "tfm", "quantization": {"int8": assignment}}


def big() -> Certificate:
    """30 layers of 7 linear layers, in two precisions."""
    rng = random.Random(2)
    graphs = [graph(rng, "decoder", precision, 30, ["self_attn"], 7) for precision in ("fp32", "int8")]
    assignments = {
        name: planted(decoder_weights(), "kl", seed=seed, float32=kept, max_drop=0.01)
        for seed, (name, kept) in enumerate({"int8": (4, 64, 120), "int4": ()}.items())
    }
    return certificate("SmolLM2-135M", "decoder", graphs) | {"family": "llama", "quantization": assignments}


def long_names() -> Certificate:
    """A failing certificate whose every name is too long for a line, and has no place to break it."""
    whole = ("kind", "role", "precision", "provider", "level", "weights", "sha256", "date")

    def stretch(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: stretch(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [stretch(inner) for inner in value]
        return value + "_x" * 70 if isinstance(value, str) and value and key not in whole else value

    found: Certificate = stretch(failing())
    for measure in found["latency"]:
        measure["work"] += "_x" * 70
    return found


def null_everything() -> Certificate:
    """A failing certificate whose every figure is null."""

    def blank(value: Any) -> Any:
        if isinstance(value, dict):
            keep = ("count", "passed", "schema", "size", "opset", "parameters", "call", "swallowed", "best")
            return {key: inner if key in keep else blank(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [blank(inner) for inner in value]
        return None if isinstance(value, float) else value

    found: Certificate = blank(copy.deepcopy(failing()))
    return found


def attention_maps(layers: int = 6, heads: int = 12, tokens: tuple[str, ...] = TOKENS) -> list[AttentionMap]:
    """Maps as trained heads have them: to themselves, to a neighbor, to the first token, spread out."""
    generator = np.random.default_rng(3)
    count = len(tokens)
    away = np.arange(count)[None, :] - np.arange(count)[:, None]
    made = []
    for layer in range(layers):
        logits = generator.normal(0, 1.0, (heads, count, count))
        for head in range(heads):
            logits[head] += (-abs(away - (head % 4 - 1)) * (head % 3 + 0.4)) + 3 * (np.arange(count) == 0) * (head % 2)
        weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        eager = weights.astype(np.float32)
        onnx = eager + generator.normal(0, 2e-8, eager.shape).astype(np.float32)
        made.append(AttentionMap(op=f"encoder.layers.{layer}.self_attn", tokens=tokens, eager=eager, onnx=onnx))
    return made


def activation_curves() -> list[ActivationCurve]:
    x = [-10 + 20 * i / 2000 for i in range(2001)]
    wobble = random.Random(4)

    def curve(name: str, y: list[float], limit: float, off: float = 6e-8) -> ActivationCurve:
        error = [abs(wobble.gauss(0, off)) * (0.05 + abs(value)) for value in y]
        return ActivationCurve(name=name, x=x, y=y, error=error, limit=limit)

    gelu = [v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x]
    tanh = [0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x]
    wrong = [abs(a - b) for a, b in zip(gelu, tanh, strict=True)]
    silu = [v / (1 + math.exp(-v)) for v in x]
    ends = [-math.inf, -10.0, 0.0, 10.0, math.inf, math.nan]
    return [
        curve("gelu", gelu, 4e-6),
        curve("gelu, tanh form", tanh, 4e-6),
        curve("silu", silu, 4e-6),
        ActivationCurve(name="gelu by tanh where erf is meant", x=x, y=gelu, error=wrong, limit=4e-6),
        ActivationCurve(name="relu", x=ends, y=[0.0, 0.0, 0.0, 10.0, math.inf, math.nan], error=[0.0] * 6, limit=0.0),
        ActivationCurve(name="broken", x=x, y=silu, error=[math.nan if v > 9 else 0.0 for v in x], limit=4e-6),
    ]
