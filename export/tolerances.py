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

GOLDEN_NMSE = (2.0, 1e-9)
"""A quantised output on the machine it runs on: so many times the NMSE that the exporting machine had, plus so much.

Ties that round the other way moved it by a factor of 0.95 to 1.06 (every float in the int8 graphs of MiniLM and g2p off
by 1e-7 to 1e-6, ten times each). Products that saturate, as on x86 without VNNI (an emulated Haswell), made it 9 to 51
times as large in g2p, 64 times in SmolLM2's logits, and 1.07 times in MiniLM, where next to none does. The second
number is for outputs that no quantised product leads to: float32 alone is off by 1e-14 to 3e-12."""
