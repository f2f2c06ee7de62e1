"""Every tolerance of the verification, in one table, each with its reason."""

import dataclasses

from tfm.runtime import Figures

from .ops import ACTIVATION, ATTENTION, SOFTMAX, Kind


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """Largest absolute difference allowed: atol + rtol × the largest magnitude expected.

    The scale is the tensor's, not the element's: an element near zero, in the tail of an activation, carries the
    rounding of the large numbers that it is made from.
    """

    atol: float
    rtol: float
    reason: str = ""

    def limit(self, figures: Figures) -> float:
        """Largest `max_abs` these figures may have."""
        return self.atol + self.rtol * figures.scale

    def allows(self, figures: Figures) -> bool:
        """Whether something was compared, and nothing lies too far off."""
        return figures.count > 0 and figures.max_abs <= self.limit(figures)


OWN: dict[Kind, Tolerance] = {
    # A few float32 roundings (2⁻²⁴ ≈ 6e-8) and onnxruntime's polynomial erf: gelu measured at most 2.8e-7 of the scale
    # on MiniLM and g2p. The nearest wrong form, gelu by tanh instead of erf, lies 4.7e-4 off.
    ACTIVATION: Tolerance(1e-6, 1e-6),
    # A sum of H products, a softmax over T and a sum over T, each in another order than eager's: measured at most
    # 1.3e-6 of the scale on MiniLM (T up to 512) and g2p. A scale that is 1 % off moves normal Q, K, V's by 2e-2.
    ATTENTION: Tolerance(2e-6, 4e-6),
    # An exp per element and a sum over the row in another order than eager's; the results are at most 1: measured at
    # most 3e-7. A row normalised over one element too many or too few moves by 1/T, above 1e-3 for T up to 1000.
    SOFTMAX: Tolerance(1e-6, 1e-6),
}
"""An op by itself, fed what eager fed to it; float32."""

FREE = Tolerance(1e-5, 2e-5)
"""An op inside the whole float32 graph: measured at most 3.1e-6 of the scale on MiniLM and g2p, 3 to 6 layers
deep; the rest is room for deeper models, chosen and not derived (SmolLM2's 30 layers fit)."""

END_TO_END = Tolerance(1e-5, 1e-5)
"""Outputs of a float32 graph; `--atol` and `--rtol` replace it."""

SWEEPS: dict[tuple[str, str], Tolerance] = {
    ("float32", "activation"): Tolerance(
        3e-7,
        3e-7,
        "per unit of |x|, and of the result: onnxruntime's erf, tanh and logistic are rational approximations in float32 "
        "(the logistic is 0 below -18), whose error |x| multiplies; measured at most 45 % of it (silu at -16.4). Gelu by "
        "tanh instead of erf lies 600 times the limit off.",
    ),
    ("float16", "activation"): Tolerance(
        3e-7,
        1.2e-3,
        "as in float32, then rounded once to float16, 2⁻¹¹ of the result: measured 41 % of it; quick-gelu, whose 1.702 is "
        "a float16 too, 74 %. Gelu by tanh instead of erf lies 40 times the limit off.",
    ),
    ("float32", "attention"): Tolerance(
        4e-7,
        1e-6,
        "per unit of (1 + the largest score) · the largest value: a score carries the rounding of its sum, and the "
        "exponential makes an absolute error of it a relative one of the weight. A scale that is 1 % off fails.",
    ),
    ("float32", "sinusoidal"): Tolerance(
        4e-8,
        0.0,
        "half a place of a float32 below 1 is 2⁻²⁵ = 3.0e-8, and that is what was measured: the table is rounded once.",
    ),
    ("float32", "rotary"): Tolerance(
        3e-7,
        0.0,
        "per unit of (1 + the angle) · the largest entry: the angle p · θ is a float32 product of a float32 θ, 2⁻²⁴ of it "
        "off for each, and θ's power and scaling add as much; measured at most 55 % of it (llama3), the same as eager's.",
    ),
    ("float32", "relative"): Tolerance(
        1e-7, 0.0, "a learned weight is looked up and nothing is computed: measured 0. Any other bucket's is 0.1 off."
    ),
    ("float32", "alibi"): Tolerance(
        1e-7, 1e-7, "one product of a float32 slope and a whole distance; measured 0. A slope that is 1 % off fails."
    ),
    ("float32", "layer_norm"): Tolerance(
        3e-7,
        1e-6,
        "per unit of 1 + |mean| / σ: the mean is rounded to float32, 2⁻²⁴ of it = 6e-8, and then divided by σ; measured at "
        "most 69 % of it (mean 0, σ = 0.01), and 24 % at a mean of 10,000, where eager is 2.6 times as far off as ours.",
    ),
    ("float32", "rms_norm"): Tolerance(
        2e-7,
        5e-7,
        "a sum of squares, a root, a division and a product in float32: measured at most 36 % of it. An ε of twice the "
        "size moves rows of σ = 0.01 by 4 %.",
    ),
}
"""An op alone, as `tfm.export.sweeps` feeds it, against float64: per element, atol · what its terms are as large as + rtol ·
what is expected."""
