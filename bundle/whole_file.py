"""Files that are there whole, or not at all."""

import contextlib
import errno
import os
import secrets
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file: first beside it, then in its place, so that what was there stays until all is written.

    A link is followed; a device or pipe, such as /dev/stdout, is written to as it is.

    Args:
        path: Where to.
        content: Text, for UTF-8, or bytes.

    Raises:
        OSError: It cannot be written; nothing has changed.
    """
    data = content.encode() if isinstance(content, str) else content
    # Renamed onto a link, the file would take the link's place, not that of what it leads to.
    place = Path(os.path.realpath(path))
    if place.exists() and not place.is_file():
        place.write_bytes(data)
        return
    # Which renaming would not ask for.
    if place.exists() and not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    # In the same folder, as a rename across file systems is none.
    part = place.with_name(f".tfm-{secrets.token_hex(6)}.part")
    try:
        part.write_bytes(data)
        if place.exists():
            # A rename keeps the new file's permissions; who could read the old one can read this.
            os.chmod(part, place.stat().st_mode & 0o777)
        os.replace(part, place)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        # It is the file that was asked for that cannot be written.
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None
        raise
