"""A bundle's recipe_PRECISION.json: which op of which graph is quantized how. The methods are `tfm.quantize`'s."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfm.errors import QuantizeError

from .files import read_file
from .json_files import parse_once, write_json
from .messages import brief

RECIPE_SCHEMA = 1
"""Version of a recipe's JSON."""

_MOST_BYTES = 32 << 20
"""Of a recipe: one of a hundred thousand ops has less."""


@dataclass(frozen=True, kw_only=True)
class RecipeFile:
    """A recipe as it is stored.

    Attributes:
        precision: "int8" or "int4": what the graphs are named by.
        graphs: Role → name of the op → its method, as JSON values.
    """

    precision: str
    graphs: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON values."""
        return {"schema": RECIPE_SCHEMA, "precision": self.precision, "graphs": self.graphs}

    def write(self, folder: Path) -> None:
        """Write it into a bundle's folder."""
        write_json(folder / f"recipe_{self.precision}.json", self.to_json())


def read_recipe_file(path: Path) -> RecipeFile:
    """Read a recipe; whether its methods are any is for who knows them.

    Raises:
        QuantizeError: There is none, or it is malformed; the message says where.
    """
    values = _parse(path)
    # Compared with its type below: true and 1.0 equal 1.
    schema = values.get("schema") if isinstance(values, dict) else values
    if not isinstance(values, dict) or type(schema) is not int or schema != RECIPE_SCHEMA:
        raise QuantizeError(f"{path}: its schema must be {RECIPE_SCHEMA}, but is {brief(schema)}")
    precision, graphs = values.get("precision"), values.get("graphs")
    if not isinstance(precision, str) or not isinstance(graphs, dict):
        raise QuantizeError(f"{path} must name a precision and graphs")
    for role, ops in graphs.items():
        if not isinstance(ops, dict):
            raise QuantizeError(f"{path}: graphs.{brief(role)[1:-1]} must map ops to methods")
    return RecipeFile(precision=precision, graphs=graphs)


def _parse(path: Path) -> Any:
    try:
        return parse_once(read_file(path, _MOST_BYTES))
    except OSError as error:
        reason = error.strerror or error
        raise QuantizeError(
            f"there is no recipe to read at {path} ({reason}); a quantized bundle has one, recipe_int8.json"
        ) from error
    except RecursionError as error:
        raise QuantizeError(f"{path} is not JSON that can be read: it is nested too deeply") from error
    except ValueError as error:
        raise QuantizeError(f"{path} is not JSON: {error}") from error
