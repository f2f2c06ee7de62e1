"""Names that a package imports when they are first asked for, so that who imports it waits for what it uses alone.

As PEP 562 describes: a module's `__getattr__` is called for the names that it does not have yet.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazily(
    package: str, modules: Mapping[str, str], renamed: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the `__getattr__` and the `__dir__` of a package.

    Args:
        package: Its `__name__`.
        modules: Module of the package → the names that are in it, with spaces between them.
        renamed: Old name → what it is called now, for the message of who still asks for it.

    Returns:
        Both, to be bound to these names in the package.
    """
    module_of = {name: module for module, names in modules.items() for name in names.split()}

    def get(name: str) -> Any:
        if name in module_of:
            value = getattr(importlib.import_module(f".{module_of[name]}", package), name)
            setattr(sys.modules[package], name, value)  # the next access does not come here
            return value
        hint = f"; it is called {renamed[name]} now" if renamed and name in renamed else ""
        raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}")

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *module_of})

    return get, names


class MovedFinder:
    """Where an import ends that nobody else could answer: says where a module is that has moved."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        """Raise ModuleNotFoundError with the new name, where there is one."""
        if name.startswith("tfm."):
            from .moved import MOVED  # only a miss needs it

            if name in MOVED:
                # without `name=`: `from package import name` would take that for its own miss, and not say this
                raise ModuleNotFoundError(f"{name} is {MOVED[name]} now")
