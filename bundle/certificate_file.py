"""A bundle's parity.json, the certificate: what was compared with what, how far apart it was, and the verdict.

docs/parity.md says what every field means. What is put into it is computed elsewhere; here it is written, read, and
written anew after a bundle was quantized.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfm.errors import BundleError

from .checked_json import parse_json
from .files import read_file
from .json_files import write_json

CERTIFICATE = "parity.json"
PARITY_SCHEMA = 3
"""Version of parity.json."""

PARITY_SCHEMAS = (2, PARITY_SCHEMA)
"""The versions that are read: one of schema 2 was written before anything was quantized by a search."""

Json = Mapping[str, Any]


def write_certificate(folder: Path, certificate: Json) -> None:
    """Write the certificate into a bundle's folder."""
    write_json(folder / CERTIFICATE, certificate)


def read_certificate(folder: Path) -> dict[str, Any] | None:
    """Read a bundle's certificate; None: it has none.

    Raises:
        BundleError: It is of a schema that is not known here, or no JSON.
    """
    path = folder / CERTIFICATE
    if not path.is_file():
        return None
    certificate = {name: value.value for name, value in parse_json(path, read_file(path)).fields().items()}
    check_schema(f"{path} is written anew from one", certificate)
    return certificate


def check_schema(what: str, certificate: Json) -> None:
    """Refuse a certificate of a schema that is not known here.

    Args:
        what: For the message: what is made of a certificate of which schemas.
        certificate: The content of parity.json.

    Raises:
        BundleError: It is of another one.
    """
    if certificate.get("schema") not in PARITY_SCHEMAS:
        raise BundleError(
            f"{what} of schema {' or '.join(map(str, PARITY_SCHEMAS))}, "
            f"and this one is of schema {certificate.get('schema')!r}: export the bundle anew"
        )


def renew_certificate(
    old: Json, precision: str, *, passed: bool, quantization: Json, latency: list[Json], speed: list[Json], size: int,
    files: Json,
) -> dict[str, Any]:  # fmt: skip
    """Put what quantizing a bundle anew found into its certificate.

    Args:
        old: The certificate, of any schema that is read; it becomes one of the newest.
        precision: What was quantized to. What was said of its graphs goes: they were not compared with eager's anew.
        passed: The verdict on the bundle as a whole.
        quantization: Precision → what was found of it.
        latency: What was timed now.
        speed: What was compared now.
        size: Bytes of the precision's ONNX files.
        files: Path within the bundle → size and digest of each of these.
    """
    lines = [*latency, *_other_works(old["latency"], precision, {line["work"] for line in latency})]
    return {
        **old,
        "schema": PARITY_SCHEMA,
        "passed": passed,
        **{key: [entry for entry in old[key] if entry["precision"] != precision] for key in ("graphs", "fidelity")},
        "quantization": {**old.get("quantization", {}), **quantization},
        "latency": lines,
        "speed": [*speed, *_other_speeds(old.get("speed", ()), precision, lines)],
        "sizes": {**old["sizes"], precision: size},
        "files": {**old["files"], **files},
    }


def _other_works(lines: Sequence[Json], precision: str, timed: set[str]) -> list[dict[str, Any]]:
    """Of what was timed before, the works that were not timed now, without the precision."""
    # An older certificate has no ratios.
    keyed = ("milliseconds", "ratios")
    return [
        {
            key: {k: v for k, v in value.items() if k != precision} if key in keyed else value
            for key, value in line.items()
        }
        for line in lines
        if line["work"] not in timed
    ]


def _other_speeds(speeds: Sequence[Json], precision: str, lines: Sequence[Json]) -> list[Json]:
    """Of what was compared before, all other precisions whose times the certificate still has."""
    times = [set(line["milliseconds"]) for line in lines]
    return [
        speed
        for speed in speeds
        if speed["precision"] != precision and all({speed["precision"], speed["baseline"]} <= known for known in times)
    ]
