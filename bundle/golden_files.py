"""Golden inputs and outputs on disk: what eager PyTorch was given, what it gave, and how far off a graph may be.

    golden.npz     ROLE/CASE/inputs/NAME and ROLE/CASE/outputs/NAME: what eager PyTorch was given, and what it gave
    golden.json    the number of cases per role; per precision the limits, and how far the exporting machine was off

An fp32 output may differ by atol + rtol × its largest value. That of any other precision is off already where it was
exported; elsewhere its NMSE may be `nmse_factor` times as large, since another processor rounds other ties the other
way.
"""

import io
import json
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tfm.errors import BundleError

from .checked_json import CheckedJson, parse_json
from .files import read_file
from .json_files import write_json
from .manifest import Manifest, read_proved

ARRAYS, LIMITS = "golden.npz", "golden.json"
GOLDEN_SCHEMA = 1
"""Version of golden.json."""

_MOST = 1 << 30
"""Bytes of all arrays; goldens are a few samples of one model."""

_KEYS: dict[str, tuple[str, str]] = {"max_abs": ("rtol", "atol"), "nmse": ("nmse_factor", "nmse_floor")}
"""Measure → what its factor and its floor are called in golden.json."""

Array = npt.NDArray[Any]
GoldenCase = tuple[dict[str, Array], dict[str, Array]]
"""Inputs and eager's outputs, by name."""


@dataclass(frozen=True, kw_only=True)
class GoldenLimits:
    """How far the outputs of one precision may be off.

    Attributes:
        measure: What is limited: "max_abs" in fp32, "nmse" in any other precision.
        factor: Of the largest value; of NMSE, how many times that of the exporting machine is allowed.
        floor: What is allowed on top.
        nmse: Role → output → that of the exporting machine; None where it tells nothing, of integers and of what is
            zero throughout.
    """

    measure: Literal["max_abs", "nmse"]
    factor: float
    floor: float
    nmse: Mapping[str, Mapping[str, float | None]]

    def limit(self, role: str, output: str, scale: float) -> float | None:
        """Give the most that `measure` may be; None: nothing is known of this output.

        Args:
            role: Of the graph.
            output: Its name.
            scale: Its largest value.
        """
        of = scale if self.measure == "max_abs" else self.nmse[role][output]
        return None if of is None else self.floor + self.factor * of

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON values."""
        factor, floor = _KEYS[self.measure]
        # As it has always been written: of fp32 atol comes first.
        names = {factor: self.factor, floor: self.floor}
        ordered = reversed(names.items()) if self.measure == "max_abs" else names.items()
        return {**dict(ordered), "nmse": self.nmse}


@dataclass(frozen=True, kw_only=True)
class Golden:
    """The golden cases of every role, and the limits of each precision."""

    cases: Mapping[str, Sequence[GoldenCase]]
    limits: Mapping[str, GoldenLimits]


def write_golden_files(folder: Path, golden: Golden) -> None:
    """Write golden.npz and golden.json into a bundle's folder."""
    arrays = {
        _key(role, number, side, name): array
        for role, cases in golden.cases.items()
        for number, case in enumerate(cases)
        for side, values in zip(("inputs", "outputs"), case, strict=True)
        for name, array in values.items()
    }
    # Of no array is the name allow_pickle.
    np.savez_compressed(folder / ARRAYS, **arrays)  # type: ignore[arg-type]
    counts = {role: len(cases) for role, cases in golden.cases.items()}
    precisions = {name: limits.to_json() for name, limits in golden.limits.items()}
    write_json(folder / LIMITS, {"schema": GOLDEN_SCHEMA, "cases": counts, "precisions": precisions})


def read_golden(manifest: Manifest, precisions: Iterable[str] = ()) -> Golden:
    """Read a bundle's golden cases, and the limits of some of its precisions.

    Raises:
        BundleError: The bundle has none, they were altered, or they are malformed.
    """
    for name in (ARRAYS, LIMITS):
        if name not in manifest.files:
            raise BundleError(
                f"{manifest.folder} holds no {name}: an older tfm-export made it, and stored no outputs to compare "
                "with; export it again"
            )
    top = _parse(manifest.folder / LIMITS, read_proved(manifest, LIMITS))
    counts = {role: top["cases"][role].integer(1) for role in manifest.compared}
    cases = _cases(manifest, counts)
    return Golden(cases=cases, limits={name: _limits(top["precisions"][name], manifest) for name in precisions})


def renew_limits(folder: Path, precision: str, limits: GoldenLimits) -> None:
    """Write anew what a golden.json says of one precision."""
    content = _parse(folder / LIMITS, read_file(folder / LIMITS)).value
    content["precisions"][precision] = limits.to_json()
    write_json(folder / LIMITS, content)


def keep_limits(folder: Path, precisions: Collection[str]) -> None:
    """Write a golden.json anew with what it says of some precisions alone."""
    content = _parse(folder / LIMITS, read_file(folder / LIMITS)).value
    content["precisions"] = {name: value for name, value in content["precisions"].items() if name in precisions}
    write_json(folder / LIMITS, content)


def keep_roles(folder: Path, roles: Mapping[str, str]) -> None:
    """Write golden.npz and golden.json anew with some graphs alone.

    Args:
        folder: The bundle.
        roles: Of those that stay → what each is called from now on.
    """
    with np.load(folder / ARRAYS, allow_pickle=False) as stored:
        split = [(key.split("/", 1), array) for key, array in stored.items()]
    kept = {f"{roles[role]}/{rest}": array for (role, rest), array in split if role in roles}
    np.savez_compressed(folder / ARRAYS, **kept)
    content = _parse(folder / LIMITS, read_file(folder / LIMITS)).value
    for part in (content, *content["precisions"].values()):
        name = "cases" if "cases" in part else "nmse"
        part[name] = {roles[role]: value for role, value in part[name].items() if role in roles}
    write_json(folder / LIMITS, content)


def golden_inputs(manifest: Manifest, role: str = "model") -> list[dict[str, Array]]:
    """Read the inputs of each golden case of a graph; none where a bundle stores no golden cases.

    Raises:
        BundleError: They were altered, are not what numpy.savez writes, or are too large.
    """
    cases: dict[str, dict[str, Array]] = {}
    for key, array in _arrays(manifest).items() if ARRAYS in manifest.files else ():
        # The name comes last, as it may have slashes.
        owner, case, side, name = (*key.split("/", 3), "", "", "")[:4]
        if (owner, side) == (role, "inputs"):
            cases.setdefault(case, {})[name] = array
    return list(cases.values())


def _key(role: str, case: int, side: str, name: str) -> str:
    return f"{role}/{case}/{side}/{name}"


def _parse(path: Path, content: bytes) -> CheckedJson:
    top = parse_json(path, content)
    schema = top["schema"].value
    if type(schema) is not int or schema != GOLDEN_SCHEMA:
        raise BundleError(
            f"{top.path}: its schema is {json.dumps(schema)}, but this tfm-export reads {GOLDEN_SCHEMA}; "
            "upgrade tfm-export, or export the bundle again with this one"
        )
    return top


def _limits(value: CheckedJson, manifest: Manifest) -> GoldenLimits:
    measure: Literal["max_abs", "nmse"] = "nmse" if "nmse_factor" in value.fields() else "max_abs"
    factor, floor = (value[key].number(0.0) for key in _KEYS[measure])
    measured = {
        role: {spec.name: value["nmse"][role][spec.name].optional_number(0.0) for spec in signature.outputs}
        for role, signature in manifest.compared.items()
    }
    return GoldenLimits(measure=measure, factor=factor, floor=floor, nmse=measured)


def _cases(manifest: Manifest, counts: Mapping[str, int]) -> dict[str, list[GoldenCase]]:
    """Read golden.npz, which must hold every input and output of every case and nothing else."""
    path, arrays = manifest.folder / ARRAYS, _arrays(manifest)
    cases: dict[str, list[GoldenCase]] = {}
    try:
        for role, signature in manifest.compared.items():
            sides = {"inputs": signature.inputs, "outputs": signature.outputs}
            for number in range(counts[role]):
                # They are taken out, so that what is left over in the end belongs to no graph.
                inputs, outputs = (
                    {spec.name: arrays.pop(_key(role, number, side, spec.name)) for spec in specs}
                    for side, specs in sides.items()
                )
                cases.setdefault(role, []).append((inputs, outputs))
    except KeyError as error:
        raise BundleError(f"{path} holds no {error}; export the bundle again") from error
    if arrays:
        raise BundleError(f"{path} holds {next(iter(arrays))!r}, which no graph has; export the bundle again")
    return cases


def _arrays(manifest: Manifest) -> dict[str, Array]:
    """Read golden.npz, as `numpy.savez` writes it."""
    # What is read is what was proved: the file is not opened by its path again.
    content = io.BytesIO(read_proved(manifest, ARRAYS))
    try:
        with zipfile.ZipFile(content) as archive:
            # zipfile gives no more of an entry than it says here, so that the sum is a bound.
            size = sum(info.file_size for info in archive.infolist())
        # A small file may unpack to far more than there is memory.
        if size > _MOST:
            raise ValueError(f"its arrays have {size} bytes, more than {_MOST}")
        content.seek(0)
        with np.load(content, allow_pickle=False) as stored:
            return dict(stored)
    except Exception as error:  # those of numpy, zipfile and zlib share no narrower base
        raise BundleError(f"{manifest.folder / ARRAYS} cannot be read: {error}; export the bundle again") from error
