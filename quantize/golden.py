"""How far quantized graphs were off on golden inputs where they were made: other machines allow a multiple of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tfm.bundle import ARRAYS, LIMITS, GoldenCase, GoldenLimits, Manifest, read_golden, renew_limits
from tfm.runtime import ErrorStats, count_threads, open_session

GOLDEN_NMSE = (2.0, 1e-9)
"""A quantized output on the machine it runs on: so many times the NMSE that the exporting machine had, plus so much.

Ties that round the other way moved it by a factor of 0.95 to 1.06 (every float in the int8 graphs of MiniLM and g2p off
by 1e-7 to 1e-6, ten times each). Products that saturate, as on x86 without VNNI (an emulated Haswell), made it 9 to 51
times as large in g2p, 64 times in SmolLM2's logits, and 1.07 times in MiniLM, where next to none does. The second
number is for outputs that no quantized product leads to: float32 alone is off by 1e-14 to 3e-12."""


def measure_nmse(path: Path, cases: Sequence[GoldenCase]) -> dict[str, float | None]:
    """NMSE of each output of an ONNX file over all cases; None of integers, and of what eager gives as all zeros."""
    session = open_session(path, "cpu", count_threads(None))
    figures = {name: ErrorStats() for name in cases[0][1]}
    for inputs, outputs in cases:
        for (name, expected), actual in zip(outputs.items(), session.run(list(outputs), dict(inputs)), strict=True):
            figures[name].add(actual, expected)
    # Three digits: what is kept must not depend on the order in which threads add.
    return {
        name: float(f"{found.nmse:.3g}") if found.scale > 0 and cases[0][1][name].dtype.kind == "f" else None
        for name, found in figures.items()
    }


def renew_golden(manifest: Manifest, folder: Path, precision: str, files: Mapping[str, Path]) -> None:
    """Write anew what golden.json says of one precision of a bundle.

    Args:
        manifest: The bundle's, with the golden cases; where it has none, nothing is written.
        folder: Where its golden.json has been copied to.
        precision: "int8", say.
        files: Role → its ONNX file.
    """
    if ARRAYS in manifest.files and LIMITS in manifest.files:
        cases = read_golden(manifest).cases
        nmse = {role: measure_nmse(path, cases[role]) for role, path in files.items()}
        factor, floor = GOLDEN_NMSE
        renew_limits(folder, precision, GoldenLimits(measure="nmse", factor=factor, floor=floor, nmse=nmse))
