"""Where a bundle is: the folder of a path that a caller gives, or of the .zip there."""

from pathlib import Path
from typing import Any

from tfm.errors import BundleError

from .messages import brief, kind_of

MANIFEST = "manifest.json"


def path_of(bundle: Any) -> Path:
    """Make a path of what a caller gives as one; whether something is there is for who opens it to say.

    Raises:
        BundleError: It is no path, or none that this system takes.
    """
    try:
        path = Path(bundle)
    except TypeError as error:
        raise BundleError(
            f"a bundle is given by the path of its folder or .zip, a str or a Path, but this is {kind_of(bundle)}"
        ) from error
    if bundle == "":
        raise BundleError('the path of the bundle is empty; pass "." for the current folder')
    try:
        # Whether there is anything is not the question: only a path that the system itself refuses.
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # ValueError: a NUL, or half a character
        reason = error.strerror if isinstance(error, OSError) else error
        raise BundleError(f"{brief(str(path))} cannot be looked at: {reason}; check the path of the bundle") from error
    return path


def folder_of(bundle: Any) -> Path:
    """Find a bundle's folder; of a .zip, the private folder that it is unpacked into.

    Raises:
        BundleError: It is no path, the .zip is not one of a bundle, or it is a file within one.
    """
    path = path_of(bundle)
    if path.is_file():
        # Graphs lie one folder below the manifest, so a file of a bundle is found from it upwards.
        around = next((folder for folder in path.absolute().parents[:3] if (folder / MANIFEST).is_file()), None)
        # Which may well lie in a folder with a manifest.json.
        if around is not None and path.suffix != ".zip":
            raise BundleError(
                f"{path} is a file of the bundle {around}, which is what load() takes, with precision= to choose among "
                "its graphs"
            )
        # What it imports is not for those who open folders.
        from .archive import unpack

        return unpack(path)
    return path
