"""Raw results of a study that was never run: invented figures of about the size of real ones."""

import random
from typing import Any

LAYERS = [f"{half}.layers.{index}" for half in ("encoder", "decoder") for index in range(3)]
WORKS = ("encoder 1×16", "encoder 1×63", "decoder step after 16", "decoder step after 63")

# Form, error, what int8 loses of it, KL divergence, time, dead, saturated, near zero, exactly zero.
ACTIVATIONS: dict[str, tuple[str, float, float, float, float, float, float, float, float]] = {
    "relu": ("Relu", 0.1020, 0.0004, 6e-4, 1.00, 0.008, 0.77, 0.771, 0.77),
    "sigmoid": ("Sigmoid", 0.1190, 0.0002, 2e-4, 1.10, 0.000, 0.22, 0.067, 0.0),
    "tanh": ("Tanh", 0.1105, 0.0003, 3e-4, 1.08, 0.000, 0.033, 0.005, 0.0),
    "gelu": ("Gelu", 0.1015, 0.0009, 9e-4, 1.13, 0.000, 0.042, 0.039, 0.001),
    "gelu_tanh": ("Gelu, tanh", 0.1018, 0.0008, 9e-4, 1.06, 0.000, 0.042, 0.040, 0.001),
    "silu": ("QuickGelu", 0.1024, 0.0007, 8e-4, 1.07, 0.000, 0.026, 0.007, 0.0),
    "mish": ("Mish", 0.1026, 0.0007, 8e-4, 1.45, 0.000, 0.023, 0.006, 0.0),
    "squared_relu": ("Relu, Mul", 0.0997, 0.0120, 2e-2, 1.02, 0.002, 0.717, 0.749, 0.716),
    "reglu": ("Relu, Mul", 0.0985, 0.0030, 4e-3, 1.05, 0.000, 0.62, 0.634, 0.62),
    "geglu": ("Gelu, Mul", 0.0979, 0.0028, 4e-3, 1.16, 0.000, 0.022, 0.094, 0.0),
    "swiglu": ("QuickGelu, Mul", 0.0978, 0.0032, 4e-3, 1.09, 0.000, 0.019, 0.060, 0.0),
}


def results(names: tuple[str, ...] = tuple(ACTIVATIONS), seeds: int = 3, steps: int = 1200) -> dict[str, Any]:
    """The content of a results.json."""
    chance = random.Random(8)
    luck = [chance.gauss(0, 4e-4) for _ in range(seeds)]
    config = {"kind": "encoder-decoder", "num_encoder_layers": 3, "num_decoder_layers": 3}
    return {
        "schema": 1,
        "task": "g2p",
        "config": config | {"d_model": 160, "nhead": 4, "dim_feedforward": 480, "activation": "gelu"},
        "schedule": {"steps": steps, "batch_size": 128, "lr": 2e-3, "weight_decay": 0.01, "clip": 1.0},
        "activations": list(names),
        "seeds": seeds,
        "questions": None,
        "machine": {"processor": "AMD EPYC", "cores": 2},
        "versions": {"python": "3.11.7", "torch": "2.13.0", "onnxruntime": "1.32.0"},
        "runs": [_run(name, seed, steps, luck[seed], chance) for seed in range(seeds) for name in names],
        "speed": [_speed(work, precision, names, chance) for work in WORKS for precision in ("fp32", "int8")],
    }


def _run(name: str, seed: int, steps: int, luck: float, chance: random.Random) -> dict[str, Any]:
    form, error, loss, drop, _, *shares = ACTIVATIONS[name]
    error += luck + chance.gauss(0, 5e-4)
    curve = [
        0.62 + 5 * error + 5.3 / (1 + 6 * index / 48) ** 1.6 + chance.gauss(0, 0.012)
        for index in range(max(steps // 25, 1))
    ]
    kinds = ("dead", "saturated", "near_zero", "zero")
    units = {
        layer: {
            kind: min(max(share * chance.uniform(0.9, 1.1), 0.0), 1.0)
            for kind, share in zip(kinds, shares, strict=True)
        }
        for layer in LAYERS
    }
    norms = (0.2, 0.125, 0.1, 0.31, 0.17, 0.145)
    trained = {
        "parameters": 1874240 + 160 * name.endswith("glu"),
        "loss": curve,
        "gradient_norm": {layer: n * chance.uniform(0.85, 1.15) for layer, n in zip(LAYERS, norms, strict=True)},
        "units": units,
    }
    int8 = error + loss + chance.gauss(0, 2e-4)
    deployed = {
        "activation": {"form": [form], "max_abs": 1e-7},
        "int8": {"drop": drop * chance.uniform(0.8, 1.25), "sizes": {"fp32": 7691517, "int8": 2038238}},
        "errors": {
            precision: {"phoneme_error": e, "phoneme_error_without_stress": 0.8 * e, "word_error": 3.8 * e}
            for precision, e in (("fp32", error), ("int8", int8))
        },
    }
    return {"activation": name, "seed": seed, "trained": trained, "deployed": deployed}


def _speed(work: str, precision: str, names: tuple[str, ...], chance: random.Random) -> dict[str, Any]:
    ratio = {}
    for name in names[1:]:
        cost = (ACTIVATIONS[name][4] - 1) * (0.5 if "step" in work else 1.0) * (1.6 if precision == "int8" else 1.0)
        value = 1 + cost + chance.gauss(0, 0.01)
        low, high = value - chance.uniform(0.01, 0.04), value + chance.uniform(0.01, 0.06)
        ratio[name] = {"value": value, "low": low, "high": high, "noisy": name == "mish" and "16" in work}
    return {"work": work, "precision": precision, "milliseconds": dict.fromkeys(names, 0.2), "ratio": ratio}
