"""The tolerances of the verification that are of no single kind of op, each with its reason; see `KINDS`."""

import dataclasses
from typing import Any

from .error_stats import Tolerance
from .kinds import KINDS

HALF = Tolerance(
    1e-6,
    2e-3,
    "A weight and a result are rounded by 2⁻¹¹ = 4.9e-4 of themselves each, and an op has several of both: measured at "
    "most 9.0e-4 of the scale on tiny models. The float32 graph it was made from is held to the narrow limits.",
)
"""An op by itself in a float16 graph, in place of its kind's; its weights must be eager's, rounded."""

FREE = Tolerance(
    1e-5,
    2e-5,
    "Measured at most 3.1e-6 of the scale on MiniLM and g2p, 3 to 6 layers deep, and 0.39 of this limit on SmolLM2, 30 "
    "layers deep; the rest is room, chosen and not derived.",
)
"""An op inside the whole float32 graph, and what is fed to it there."""

END_TO_END = Tolerance(1e-5, 1e-5, "Chosen: what users expect of an exact export; --atol and --rtol replace it.")
"""Outputs of a float32 graph."""

GOLDEN_NMSE_HALF = (8.0, 1e-7)
"""A float16 output on the machine it runs on: so many times the NMSE that the exporting machine had, plus so much.

That was on the CPU, which drops most of the rounding; with every result rounded as CUDA stores it, the NMSE was 2.4
times as large in MiniLM and 5.7 times in SmolLM2. The rest is room, chosen and not derived."""

SWEEPS: dict[tuple[str, str], Tolerance] = {
    ("float32", "activation"): Tolerance(
        3e-7,
        3e-7,
        "atol per unit of |x|: it multiplies the error of onnxruntime's erf, tanh and logistic, rational "
        "approximations in float32 (the logistic is 0 below -18). Measured: at most 45 % of the limit (silu at "
        "-16.4). Gelu by tanh in place of erf is 590 times the limit off.",
    ),
    ("float16", "activation"): Tolerance(
        3e-7,
        1.2e-3,
        "As in float32, then one rounding to float16, 2⁻¹¹ of the result. Measured: at most 41 % of the limit; "
        "quick-gelu, whose 1.702 is a float16 too, 74 %. Gelu by tanh in place of erf is 100 times the limit off.",
    ),
    ("float32", "attention"): Tolerance(
        4e-7,
        1e-6,
        "atol per unit of (1 + the largest score, before its cap) · the largest value: a score is a rounded sum, "
        "and its exponential makes the absolute error a relative one of the weight. Measured: at most 32 % of the "
        "limit. A scale 1 % off fails.",
    ),
    ("float32", "sinusoidal"): Tolerance(
        4e-8,
        0.0,
        "The table is rounded to float32 once: half a last place below 1 is 2⁻²⁵ = 3.0e-8, which is what was measured.",
    ),
    ("float32", "rotary"): Tolerance(
        3e-7,
        0.0,
        "atol per unit of (1 + the angle) · the largest entry: θ and p · θ are rounded, 2⁻²⁴ = 6e-8 of them each, "
        "and so are the steps of θ's power and scaling. Measured: at most 55 % of the limit (llama3), as eager.",
    ),
    ("float32", "relative"): Tolerance(
        1e-7,
        0.0,
        "Weights are looked up, nothing is computed. Measured: 0.",
    ),
    ("float32", "alibi"): Tolerance(
        1e-7,
        1e-7,
        "One product of a slope and a whole number. Measured: 0.",
    ),
    ("float32", "layer_norm"): Tolerance(
        3e-7,
        1e-6,
        "atol per unit of 1 + |mean| / σ: the mean is rounded, 2⁻²⁴ = 6e-8 of it, and divided by σ. Measured: at "
        "most 69 % of the limit (mean 0, σ = 0.01); 24 % at mean 10,000, where eager is 2.6 times as far off as "
        "ours.",
    ),
    ("float32", "rms_norm"): Tolerance(
        2e-7,
        5e-7,
        "A sum of squares, a root, a division and a product in float32. Measured: at most 37 % of the limit. Twice "
        "the ε moves a row of σ = 0.01 by 4 %.",
    ),
}
"""An op alone, as `tfm.export.sweeps` feeds it, against float64. Per element: atol times how large the terms are that
it is made of, + rtol · what is expected."""


def tolerance_table(end_to_end: Tolerance = END_TO_END, *, half: bool = False) -> list[dict[str, Any]]:
    """Give every tolerance of a verification as JSON values, for the certificate; `half`: of float16 graphs too."""
    # The limits of sweeps are not among them: an export does not judge by those.
    rows = {f"{kind}, by itself": entry.tolerance for kind, entry in KINDS.items()}
    rows |= {"any op in fp16, by itself": HALF} if half else {}
    rows |= {"any op, inside the whole graph": FREE, "outputs, end to end": end_to_end}
    return [{"what": what, **dataclasses.asdict(tolerance)} for what, tolerance in rows.items()]
