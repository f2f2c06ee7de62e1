"""Which op of a bundle is quantized how: what a search finds, and what is replayed without one."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tfm.bundle import read_file
from tfm.errors import QuantizeError
from tfm.runtime import nearest

from .methods.method import Method, method_to_json, shown
from .methods.registry import method_from_json
from .search.candidates import PRECISIONS

RECIPE_SCHEMA = 1
"""Version of a recipe's JSON."""

_MOST_BYTES = 32 << 20
"""Of a recipe: one of a hundred thousand ops has less."""


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
        graphs = {role: {op: method_to_json(m) for op, m in ops.items()} for role, ops in self.methods.items()}
        return {"schema": RECIPE_SCHEMA, "precision": self.precision, "graphs": graphs}

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
    try:
        content = read_file(path, _MOST_BYTES)
    except OSError as error:
        reason = error.strerror or error
        raise QuantizeError(
            f"there is no recipe to read at {path} ({reason}); a quantized bundle has one, recipe_int8.json"
        ) from error
    values = _parse(path, content)
    # Compared with its type below: true and 1.0 equal 1.
    schema = values.get("schema") if isinstance(values, dict) else values
    if not isinstance(values, dict) or type(schema) is not int or schema != RECIPE_SCHEMA:
        raise QuantizeError(f"{path}: its schema must be {RECIPE_SCHEMA}, but is {shown(schema)}")
    precision, graphs = values.get("precision"), values.get("graphs")
    if not isinstance(precision, str) or not isinstance(graphs, dict):
        raise QuantizeError(f"{path} must name a precision and graphs")
    if precision not in PRECISIONS:
        raise QuantizeError(f"{path}: unknown precision {shown(precision)}; known: {', '.join(PRECISIONS)}")
    methods: dict[str, dict[str, Method]] = {}
    for role, ops in graphs.items():
        if not isinstance(ops, dict):
            raise QuantizeError(f"{path}: graphs.{shown(role)[1:-1]} must map ops to methods")
        place = f"{path}: graphs.{shown(role)[1:-1]}"
        methods[role] = {op: method_from_json(value, f"{place}.{shown(op)}") for op, value in ops.items()}
    return Recipe(precision=precision, methods=methods)


def _parse(path: Path, content: bytes) -> Any:
    """Read JSON that says each thing once."""
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_once)
    except RecursionError as error:
        raise QuantizeError(f"{path} is not JSON that can be read: it is nested too deeply") from error
    except ValueError as error:
        raise QuantizeError(f"{path} is not JSON: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object, whose every key is named once: the first method of an op would silently give way to the next."""
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in made if names.count(name) > 1)
        raise ValueError(f"it names {shown(twice)} twice")
    return made
