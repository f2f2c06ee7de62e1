"""Which op of a bundle is quantized how: what a search finds, and what is replayed without one."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tfm.bundle import RecipeFile, read_recipe_file
from tfm.errors import QuantizeError
from tfm.runtime import nearest

from .methods.method import Method, method_to_json, shown
from .methods.registry import method_from_json
from .search.candidates import PRECISIONS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method for every op of every graph.

    Attributes:
        precision: "int8" or "int4": what the graphs are named by.
        methods: Role → name of the op → method.
    """

    precision: str
    methods: Mapping[str, Mapping[str, Method]]

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON values."""
        return self.stored().to_json()

    def stored(self) -> RecipeFile:
        """Give it as it is stored in a bundle."""
        graphs = {role: {op: method_to_json(m) for op, m in ops.items()} for role, ops in self.methods.items()}
        return RecipeFile(precision=self.precision, graphs=graphs)

    def check(self, precision: str, roles: Iterable[str]) -> None:
        """Check that it is for this precision and for graphs of no other roles.

        Raises:
            QuantizeError: It is not.
        """
        if self.precision != precision:
            raise QuantizeError(
                f"the recipe is for {self.precision}, not for {precision}; ask for {self.precision} with --precision"
            )
        known = list(roles)
        if other := [role for role in self.methods if role not in known]:
            raise QuantizeError(
                f"the recipe is for another model: the bundle has no graph {other[0]!r}; {nearest(other[0], known)}"
            )

    def of(self, role: str, ops: list[str]) -> dict[str, Method]:
        """Give the methods of a graph.

        Raises:
            QuantizeError: It is the recipe of another model: an op is missing, or there is none of that name.
        """
        methods = self.methods.get(role, {})
        if unknown := [name for name in methods if name not in ops]:
            raise QuantizeError(
                f"the recipe is for another model: the {role} has no op {unknown[0]!r}; {nearest(unknown[0], ops)}"
            )
        if missing := [name for name in ops if name not in methods]:
            raise QuantizeError(
                f"the recipe is for another model: it does not say how to quantize {missing[0]!r} of the {role}"
            )
        return {name: methods[name] for name in ops}


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Args:
        path: A recipe.json, which every bundle with a quantized precision has (recipe_int8.json, say).

    Raises:
        QuantizeError: There is none, or it is malformed; the message says where.
    """
    stored = read_recipe_file(path)
    if stored.precision not in PRECISIONS:
        raise QuantizeError(f"{path}: unknown precision {shown(stored.precision)}; known: {', '.join(PRECISIONS)}")
    methods: dict[str, dict[str, Method]] = {}
    for role, ops in stored.graphs.items():
        place = f"{path}: graphs.{shown(role)[1:-1]}"
        methods[role] = {op: method_from_json(value, f"{place}.{shown(op)}") for op, value in ops.items()}
    return Recipe(precision=stored.precision, methods=methods)
