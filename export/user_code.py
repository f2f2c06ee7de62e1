"""Python files of a user's own, such as what `tfm prune --fine-tune` and a study's task are."""

import os
import sys
from pathlib import Path
from types import ModuleType

from tfm.errors import InputError


def import_file(file: Path) -> ModuleType:
    """Import a file by its place, with its folder on sys.path as when it is run.

    Once it is imported, its folder goes to the end: a `random.py` there must not take the place of Python's own
    in what is imported later, which is not the user's code alone.

    Raises:
        InputError: There is no such file, or it fails.
    """
    if not os.path.isfile(file):
        raise InputError(f"{file} is no Python file that could be imported")
    # In sys.modules, where dataclasses look up the annotations of a class, but not by the file's own name: one
    # called random.py would be everybody's random from then on.
    module = ModuleType(f"tfm user code {file.stem}")
    sys.modules[module.__name__] = module
    module.__file__ = str(file.resolve())
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)
    # Compiled here, so that no __pycache__ is left beside it.
    try:
        exec(compile(file.read_bytes(), module.__file__, "exec"), module.__dict__)
    except Exception as error:  # a user's code may raise anything
        raise InputError(f"{file} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
        sys.path.append(folder)
    return module
