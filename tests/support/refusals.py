"""Bundles that must not open, and the one sentence by which Python and JavaScript refuse each."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from tests.support import toys
from tfm.bundle import pack_bundle
from tfm.quantize import save_in_one_file

GRAPH = "onnx/model_quantized.onnx"


def _keys(private: Any) -> tuple[bytes, str]:
    secret = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return secret, public.decode()


OWN, FOREIGN = (_keys(ed25519.Ed25519PrivateKey.generate()) for _ in range(2))
KEYS = {"own": OWN[1], "foreign": FOREIGN[1], "another kind": _keys(ec.generate_private_key(ec.SECP256R1()))[1]}


@dataclass(frozen=True)
class Case:
    """A damaged bundle.

    Attributes:
        name: Of its folder.
        damage: Changes the folder of a good one.
        sentence: By which it is refused, with {place} for the bundle.
        key: Name of the public key that it is opened with, of `KEYS`; None: without one.
        precision: That is asked for.
    """

    name: str
    damage: Callable[[Path], object]
    sentence: str
    key: str | None = None
    precision: str = "auto"


def _flip(name: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return damage


def _append(folder: Path) -> None:
    with (folder / "tokenizer.json").open("ab") as file:
        file.write(b"  ")


def _manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        values = json.loads((folder / "manifest.json").read_text())
        change(values)
        (folder / "manifest.json").write_text(json.dumps(values))

    return damage


def _remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def _leave(folder: Path) -> None:
    pass


_ALTERED = "was altered: its SHA-256 is not the manifest's; copy the bundle again"
_MISSING = "is missing, though the manifest lists it; copy the bundle again"
_FOREIGN = "{place} is not signed by this key; take the bundle from who signed it, and copy all of it"
_SIZE = len(toys.tokenizer(by_character=False).to_str(pretty=True).encode())

CASES = (
    Case("changed-graph", _flip(GRAPH), f"{{place}}: {GRAPH} {_ALTERED}"),
    Case("changed-tokenizer", _flip("tokenizer.json"), f"{{place}}: tokenizer.json {_ALTERED}"),
    Case(
        "longer-file",
        _append,
        f"{{place}}: tokenizer.json was altered: it has {_SIZE + 2} bytes, not {_SIZE} as in the manifest; copy it "
        "again",
    ),
    Case("no-graph", _remove(GRAPH), f"{{place}}: {GRAPH} {_MISSING}"),
    Case("no-golden", _remove("golden.npz"), f"{{place}}: golden.npz {_MISSING}"),
    Case(
        "no-manifest",
        _remove("manifest.json"),
        "{place} is not a bundle: it holds no manifest.json; export one with tfm-export",
    ),
    Case(
        "other-schema",
        _manifest(lambda values: values.update(schema=9)),
        "{place}/manifest.json: its schema is 9, but this tfm-export reads 1; upgrade tfm-export, or export the bundle "
        "again with this one",
    ),
    Case(
        "other-kind",
        _manifest(lambda values: values.update(kind="decoration")),
        "{place}/manifest.json: kind must be one of encoder, decoder, encoder-decoder, module, but is "
        '"decoration"; export the bundle again',
    ),
    Case(
        "no-signature-of-graph",
        _manifest(lambda values: values.pop("signature")),
        "{place}/manifest.json: 'signature' is missing; export the bundle again",
    ),
    Case(
        "outside",
        _manifest(lambda values: values["files"].update({"../key.pem": {"size": 1, "sha256": "0" * 64}})),
        "{place}/manifest.json: '../key.pem' is not a path inside the bundle; export the bundle again",
    ),
    Case(
        "unlisted-graph",
        _manifest(lambda values: values["graphs"]["int8"].update(model="onnx/other.onnx")),
        '{place}/manifest.json: graphs.int8.model must be one of the paths in files, but is "onnx/other.onnx"; export '
        "the bundle again",
    ),
    Case("no-such-precision", _leave, "{place} has no 'int4' graph; it has: int8", precision="int4"),
    Case("foreign-signature", _leave, _FOREIGN, key="foreign"),
    Case("no-signature", _remove("manifest.json.sig"), _FOREIGN, key="own"),
    Case("damaged-signature", lambda folder: (folder / "manifest.json.sig").write_text("AAAA\n"), _FOREIGN, key="own"),
    Case("no-base64", lambda folder: (folder / "manifest.json.sig").write_text("no base64!"), _FOREIGN, key="own"),
    Case("signed-before", _manifest(lambda values: values.update(family="another")), _FOREIGN, key="own"),
    Case("another-kind-of-key", _leave, "the public key is no Ed25519 key", key="another kind"),
)


@cache
def _good() -> Path:
    folder = Path(mkdtemp(prefix="refusals-"))
    toys.add_golden(toys.write_bundle(folder / "toy.tfm", "encoder"))
    (folder / "key.pem").write_bytes(OWN[0])
    pack_bundle(folder / "toy.tfm", folder / "good", target="web", rewrite=save_in_one_file, key=folder / "key.pem")
    return folder / "good"


def damaged(case: Case, folder: Path) -> None:
    """Make the bundle of a case."""
    shutil.copytree(_good(), folder)
    case.damage(folder)


def tasks_of_refusals(root: str) -> list[dict[str, Any]]:
    """What JavaScript is to open."""
    options = [
        (case.name, {"precision": case.precision} | ({} if case.key is None else {"publicKey": KEYS[case.key]}))
        for case in CASES
    ]
    return [{"bundle": f"{root}/{name}", "options": asked, "calls": []} for name, asked in options]


def check_refusals(found: Sequence[Any], root: str) -> None:
    """Compare what JavaScript said of each with the sentence."""
    for case, one in zip(CASES, found, strict=True):
        assert one == {"error": case.sentence.format(place=f"{root}/{case.name}"), "name": "BundleError"}, case.name
