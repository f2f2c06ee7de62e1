"""Every tolerance of the verification, in one table, each with its reason."""

import dataclasses
from typing import Any

from .error_stats import ErrorStats
from .names import ACTIVATION, ATTENTION, EMBEDDING, LINEAR, NORM, SOFTMAX, Kind


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """Largest absolute difference allowed: atol + rtol × the largest magnitude expected.

    The scale is the tensor's, not the element's: an element near zero, in the tail of an activation, carries the
    rounding of the large numbers that it is made from.
    """

    atol: float
    rtol: float
    reason: str = ""

    def limit(self, figures: ErrorStats) -> float:
        """Largest `max_abs` these figures may have."""
        return self.atol + self.rtol * figures.scale


# Most reasons tell what was measured and what the nearest mistake would be, so that a limit can be
# seen to lie between the two. Change one only together with its reason: both are printed in the
# certificate.
OWN: dict[Kind, Tolerance] = {
    ACTIVATION: Tolerance(
        1e-6,
        1e-6,
        "A few float32 roundings (2⁻²⁴ ≈ 6e-8) and onnxruntime's polynomial erf: gelu measured at most 2.8e-7 of the "
        "scale on MiniLM and g2p. The nearest wrong form, gelu by tanh instead of erf, lies 4.7e-4 off.",
    ),
    ATTENTION: Tolerance(
        2e-6,
        4e-6,
        "A sum of H products, a softmax over T and a sum over T, each in another order than eager's: measured at most "
        "1.3e-6 of the scale on MiniLM (T up to 512) and g2p. A scale 1 % off moves normal Q, K, V's by 2e-2.",
    ),
    SOFTMAX: Tolerance(
        1e-6,
        1e-6,
        "An exp per element and a sum over the row in another order than eager's; the results are at most 1: measured "
        "at most 3e-7. A row over one element too many or too few moves by 1/T, above 1e-3 for T up to 1000.",
    ),
    LINEAR: Tolerance(
        2e-6,
        4e-6,
        "A sum of D or F products in another order than eager's: measured at most 8.4e-7 of the scale on MiniLM "
        "and g2p, 1.4e-6 on SmolLM2. A wrong weight is found bit by bit, whatever this is.",
    ),
    NORM: Tolerance(
        2e-6,
        2e-6,
        "A mean and a variance over D in another order than eager's: measured at most 3.3e-7 of the scale, and 0.4 of "
        "this limit, on MiniLM, g2p and SmolLM2. It is narrow because a wrong ε moves little.",
    ),
    EMBEDDING: Tolerance(0.0, 0.0, "Rows are copied, not computed."),
}
"""An op by itself, fed what eager fed to it; float32."""

HALF = Tolerance(
    1e-6,
    2e-3,
    "A weight and a result are rounded by 2⁻¹¹ = 4.9e-4 of themselves each, and an op has several of both: measured at "
    "most 9.0e-4 of the scale on tiny models. The float32 graph it was made from is held to the narrow limits.",
)
"""An op by itself in a float16 graph, in place of `OWN`; its weights must be eager's, rounded."""

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
    rows = {f"{kind}, by itself": tolerance for kind, tolerance in OWN.items()}
    rows |= {"any op in fp16, by itself": HALF} if half else {}
    rows |= {"any op, inside the whole graph": FREE, "outputs, end to end": end_to_end}
    return [{"what": what, **dataclasses.asdict(tolerance)} for what, tolerance in rows.items()]
