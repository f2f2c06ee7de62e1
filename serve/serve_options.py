"""What a server is told."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tfm.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names of this machine to itself."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How a server runs.

    Attributes:
        bundles: Folders or .zip files; a bundle's name in requests is its file's, without .tfm or .zip.
        precision: As for `tfm.runtime.load`.
        threads: Threads of each model; None: as many as there are usable cores.
        api_keys: One of these has to come with every request but /health and the page; empty: none.
        most_body: Bytes of a request's body.
        most_inputs: Texts of one request.
        most_waiting: Tokens that may wait for a model, roughly; what comes on top is answered by 429.
        batch_tokens: Tokens that one call of an encoder reads, roughly.
        most_rows: Texts that a decoder generates side by side.
        most_new_tokens: Tokens that one request may have generated.
        timeout: Seconds that a request may take, and its client may take to send it or to read an answer's next part.
        hosts: Names by which the server may be asked; empty: any. A web page that has its own name lead to this machine
            is kept out by them.
        allow_origins: Web pages of these origins may ask ("*": all); empty: none but the server's own page.
    """

    bundles: Sequence[Path]
    precision: str = "auto"
    threads: int | None = None
    api_keys: Sequence[str] = ()
    most_body: int = 8 << 20
    most_inputs: int = 2048
    most_waiting: int = 200_000
    batch_tokens: int = 8192
    most_rows: int = 16
    most_new_tokens: int = 4096
    timeout: float = 300.0
    allow_origins: Sequence[str] = ()
    hosts: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check them.

        Raises:
            InputError: There is no bundle, or two of one name; or a number is not positive.
        """
        names = [name_of(bundle) for bundle in self.bundles]
        if not names:
            raise InputError("there is no bundle to serve")
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"two bundles have the name {name}; rename one")
        for name in (*_COUNTS, "timeout"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be greater than 0, but is {getattr(self, name)}")


_COUNTS = ("most_body", "most_inputs", "most_waiting", "batch_tokens", "most_rows", "most_new_tokens")


def name_of(bundle: Path) -> str:
    """Name a bundle in requests."""
    name = Path(bundle).resolve().name
    return name.removesuffix(".zip").removesuffix(".tfm") or name
