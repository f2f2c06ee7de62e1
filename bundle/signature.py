"""Signatures of bundles: Ed25519 (RFC 8032) over manifest.json, which holds the digest of every other file."""

import base64
import binascii
import hashlib
import os
from pathlib import Path
from typing import Any

from tfm.errors import BundleError

from .files import read_file
from .locate import MANIFEST
from .manifest import LARGEST_MANIFEST, Manifest

SIGNATURE = "manifest.json.sig"
"""64 bytes in base64."""

_MOST = 1 << 16
"""Bytes of a key or signature."""


def sign(folder: Path, key: Path) -> None:
    """Write the signature of a bundle's manifest beside it.

    Args:
        folder: The bundle.
        key: Ed25519 private key in PEM, as `openssl genpkey -algorithm ed25519` writes it.

    Raises:
        BundleError: The key cannot be read or is of another kind.
    """
    serialization, ed25519 = _library()
    content = _read_key(key)
    try:
        private = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:  # TypeError: it is encrypted
        raise BundleError(f"{key} is no private key in PEM that can be read: {error}") from error
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise BundleError(f"{key} is no Ed25519 key; make one with: openssl genpkey -algorithm ed25519 -out KEY.pem")
    signature = private.sign(read_file(folder / MANIFEST, LARGEST_MANIFEST))
    (folder / SIGNATURE).write_bytes(base64.b64encode(signature) + b"\n")


def check_signature(manifest: Manifest, public_key: str | os.PathLike[str] | bytes) -> None:
    """Check that whoever has the private key signed this manifest.

    Args:
        manifest: The bundle's, as it was read.
        public_key: In PEM: its bytes, or the path of a file of them.

    Raises:
        BundleError: The bundle is not signed, or by another key, or was altered; or the key is none.
    """
    serialization, ed25519 = _library()
    content = public_key if isinstance(public_key, bytes) else _read_key(Path(public_key))
    try:
        public = serialization.load_pem_public_key(content)
    except ValueError as error:
        raise BundleError(f"the public key cannot be read as PEM: {error}") from error
    if not isinstance(public, ed25519.Ed25519PublicKey):
        raise BundleError("the public key is no Ed25519 key")
    foreign = BundleError(
        f"{manifest.folder} is not signed by this key; take the bundle from who signed it, and copy all of it"
    )
    try:
        signature = base64.b64decode(read_file(manifest.folder / SIGNATURE, _MOST), validate=False)
        signed = read_file(manifest.folder / MANIFEST, LARGEST_MANIFEST)
    except (OSError, binascii.Error) as error:
        raise foreign from error
    # What is checked is what was read: the file may have been exchanged since.
    if hashlib.sha256(signed).hexdigest() != manifest.digest:
        raise foreign
    # Which is there: the key was read by it.
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(signature, signed)
    except InvalidSignature as error:
        raise foreign from error


def _read_key(path: Path) -> bytes:
    try:
        return read_file(path, _MOST)
    except OSError as error:
        raise BundleError(f"the key {path} cannot be read: {error.strerror or error}") from error


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        raise BundleError("signatures need the package cryptography: pip install 'tfm-export[sign]'") from error
    return serialization, ed25519
