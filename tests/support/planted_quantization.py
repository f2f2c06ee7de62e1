"""Entries of a certificate's "quantization", built by hand: drops add up, time goes with the size of a weight."""

import random
from typing import Any

Shapes = list[tuple[str, tuple[int, int]]]
"""Names of weights and their shapes."""


def encoder_weights(layers: int = 6, model: int = 384, inner: int = 1536) -> Shapes:
    """Four products a layer."""
    parts = {"attention.qkv": (model, 3 * model), "attention.out": (model, model)}
    parts |= {"feed_forward.up": (model, inner), "feed_forward.down": (inner, model)}
    return [(f"layers.{i}.{name}.weight", shape) for i in range(layers) for name, shape in parts.items()]


def decoder_weights() -> Shapes:
    """A tied embedding, and four products in each of 30 layers: 121 ops."""
    return [("embed_tokens.weight", (49152, 576)), *encoder_weights(30, 576, 1536)]


def planted(
    weights: Shapes,
    measure: str = "cosine",
    *,
    seed: int = 0,
    roles: tuple[str, ...] = ("model",),
    float32: tuple[int, ...] = (),
    max_drop: float = 0.003,
) -> dict[str, Any]:
    """An entry whose mix leaves the ops of these numbers in float32 and keeps to the budget."""
    rng = random.Random(seed)
    sizes = [
        (rows if len(weights) < 100 or index else 0) * columns for index, (_, (rows, columns)) in enumerate(weights)
    ]
    raw = [rng.lognormvariate(0, 1.1) for _ in weights]
    share = 0.55 * max_drop / sum(value for index, value in enumerate(raw) if index not in float32 or len(raw) == 1)
    drop = 0.55 * max_drop
    ops = []
    for index, (name, shape) in enumerate(weights):
        kept, alone = index in float32, raw[index] * share
        spent = 0.85 * sizes[index] / sum(sizes)
        alpha = rng.choice((None, 0.5, 0.7))
        method = (
            "float32" if kept else "dynamic" + (f", smooth {alpha}" if alpha else "") + ", by row" * (index % 7 == 0)
        )
        ops.append(
            {
                "role": roles[index * len(roles) // len(weights)],
                "weight": name,
                "shape": list(shape),
                "uses": ["embedding", "matmul"] if "embed" in name else ["matmul"],
                "method": method,
                "own_snr_db": None if kept else rng.uniform(24, 38),
                "alone": 40 * alone if kept else alone,
                "all_but": None if kept else drop - alone * rng.uniform(0.7, 1.2),
                "flips_alone": rng.uniform(1e-4, 4e-3) if measure == "kl" else None,
                "time": spent if kept else spent * rng.uniform(0.2, 0.35),
                "time_float32": spent,
            }
        )
    relative = 0.15 + sum(op["time"] for op in ops)
    steps = range(-3, 6)
    return {
        "measure": measure,
        "max_drop": max_drop,
        "drop": drop,
        "top_1": 0.9843 if measure == "kl" else None,
        "samples": "32 English sentences" if measure == "cosine" else "24 passages of English prose, 4,096 tokens",
        "relative_time": relative,
        "searched": True,
        "search": "full",
        "forced": False,
        "ops": ops,
        "front": [
            {
                "relative_time": relative + 0.025 * step + 0.004 * abs(step) * step,
                "drop": drop * 10 ** (-0.22 * step),
                "measured": abs(step) < 3,
                "chosen": step == 0,
                "float32": max(0, len(float32) + step),
            }
            for step in steps
        ],
        "held_out": {
            "samples": "64 English sentences, held out",
            "drop": drop,
            "worst": "short, by 32",
            "top_1": None if measure == "cosine" else 0.98,
            "least_cosine": 0.99 if measure == "cosine" else None,
            "domains": [
                {
                    "domain": domain,
                    "way": way,
                    "rows": 32,
                    "mean": drop * share,
                    "low": drop * share * 0.9,
                    "high": drop * share * 1.1,
                    "first_percentile": 0.995 if measure == "cosine" else None,
                    "least": 0.99 if measure == "cosine" else None,
                    "spearman": 0.999 if measure == "cosine" else None,
                    "recall_at_10": 0.97 if measure == "cosine" else None,
                    "top_1": None if measure == "cosine" else 0.98,
                }
                for domain, share in (("short", 1.0), ("logs", 0.7), ("languages", 0.8))
                for way, share in (("alone", 0.8 * share), ("by 32", share))
            ],
            "elsewhere": [
                {"way": "alone", "low": drop * 0.3, "high": drop * 1.6, "kinds": 3},
                {"way": "by 32", "low": drop * 0.4, "high": drop * 2, "kinds": 3},
            ],
        },
        "passed": True,
        "portability": {
            "vnni_only": False,
            "saturating": [weights[len(weights) // 8][0], weights[-1][0]],
            "extra_drop": 1.4e-4,
        },
    }
