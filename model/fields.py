"""The fields of a configuration that came from elsewhere: each is read as what it must be, or refused by its name.

Every family and form reads through `Fields`, so that no value reaches arithmetic, a loop or a table before its type and
its range are known.
"""

import difflib
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfm.errors import ConfigError, NotNativeError

MOST_SIZE = 1 << 24
"""Of any size but a vocabulary's: float32 counts no further, and products of a few of these fit into 64 bits."""

MOST_TOKENS = (1 << 31) - 1
"""Of a vocabulary's size, and of a length that nothing is made for."""

MOST_LAYERS = 10_000
"""Ten times as deep as the deepest Transformer that was ever trained."""

_TINIEST, _GREATEST = 1e-30, 1e30
"""Of numbers that must be positive: what float32 holds with room for a product."""

_NEAR = 0.75
"""From which likeness on a key is told as what may have been meant."""


class _Short(reprlib.Repr):
    """A repr of one short line, however long, deep or large the value is."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxset, self.maxdict = 3, 6, 6, 6, 4
        self.maxstring, self.maxlong, self.maxother = 120, 60, 60

    def repr_int(self, x: int, level: int) -> str:
        """Give an integer, of one with very many digits only how many bits it has: Python refuses to write it out."""
        return f"an integer of {x.bit_length()} bits" if x.bit_length() > 1024 else super().repr_int(x, level)


def shown(value: object) -> str:
    """Give a value as a message shows it: never more than a line."""
    return _Short().repr(value).replace("\n", " ")


class Fields:
    """The fields of one configuration.

    Attributes:
        source: The file it is in, named in messages.
        form: What kind of configuration it is, named in messages.
        values: The fields as they are there.
    """

    def __init__(self, source: Path | str, form: str, values: Mapping[str, Any], within: str = "") -> None:
        self.source, self.form, self.values, self._within = source, form, values, within

    def of(self, form: str) -> "Fields":
        """Give the same fields under the name of a form that is more to the point."""
        return Fields(self.source, form, self.values, self._within)

    def replaced(self, **values: Any) -> "Fields":
        """Give the same fields with some others in their place."""
        return Fields(self.source, self.form, {**self.values, **values}, self._within)

    def has(self, key: str) -> bool:
        """Whether there is such a field, and it is not null."""
        return self.values.get(key) is not None

    def any(self, key: str) -> Any:
        """Give a required field, of any type."""
        if key in self.values:
            return self.values[key]
        near = difflib.get_close_matches(key, map(str, self.values), n=1, cutoff=_NEAR)
        hint = f"; it has {shown(near[0])} instead" if near else ""
        where = f" in {self._within[:-1]}" if self._within else ""
        raise ConfigError(
            f"{self.source}: a {self.form} configuration needs {key!r}{where}, which this one lacks{hint}"
        )

    def error(self, key: str, expected: str) -> ConfigError:
        """Make the error that a field is not what it must be."""
        found = shown(self.values.get(key))
        return ConfigError(f"{self.source}: {self._within}{key} must be {expected}, but is {found}")

    def size(self, key: str, default: int | None = None, *, least: int = 1, most: int = MOST_SIZE) -> int:
        """Read an integer in a range; where there is a default, the field may be absent."""
        value = default if default is not None and key not in self.values else self.any(key)
        # `type`, here and below: to isinstance, true is an integer.
        if type(value) is not int or not least <= value <= most:
            raise self.error(key, f"an integer from {least} to {most}")
        return value

    def optional_size(self, key: str, *, least: int = 1, most: int = MOST_SIZE) -> int | None:
        """Read an integer in a range, or None where the field is absent or null."""
        return self.size(key, least=least, most=most) if self.has(key) else None

    def nullable_size(self, key: str, *, most: int = MOST_SIZE) -> int | None:
        """Read an integer of at least 1, or None where the field is null; it must be there."""
        return None if self.any(key) is None else self.size(key, most=most)

    def layers(self, key: str, default: int | None = None) -> int:
        """Read a number of layers."""
        return self.size(key, default, most=MOST_LAYERS)

    def vocabulary(self, key: str = "vocab_size") -> int:
        """Read the size of a vocabulary."""
        return self.size(key, most=MOST_TOKENS)

    def number(
        self, key: str, default: float | None = None, *, least: float = _TINIEST, most: float = _GREATEST
    ) -> float:
        """Read a number in a range, positive unless `least` says otherwise; NaN and infinity are in none."""
        value = default if default is not None and key not in self.values else self.any(key)
        # Written so that NaN, which compares with nothing, is outside.
        if type(value) not in (int, float) or not least <= value <= most:
            raise self.error(key, f"a number from {least:g} to {most:g}")
        return float(value)

    def optional_number(self, key: str, *, least: float = _TINIEST, most: float = _GREATEST) -> float | None:
        """Read a number in a range, or None where the field is absent or null."""
        return self.number(key, least=least, most=most) if self.has(key) else None

    def nullable_number(self, key: str) -> float | None:
        """Read a positive number, or None where the field is null; it must be there."""
        return None if self.any(key) is None else self.number(key)

    def share(self, key: str, default: float) -> float:
        """Read a probability below 1, as that of dropout."""
        value = self.number(key, default, least=0.0, most=1.0)
        if value == 1.0:
            raise self.error(key, "a number of at least 0 and below 1")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """Read true or false; null is as false, where that is the default."""
        value = self.values.get(key, default)
        if value is None and not default:
            return False
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def numbers(self, key: str, *, least: float = _TINIEST, most: float = _GREATEST) -> tuple[float, ...]:
        """Read a list of numbers in a range."""
        values = self.any(key)
        alike = isinstance(values, list | tuple) and len(values) <= MOST_SIZE
        if not alike or not all(type(value) in (int, float) and least <= value <= most for value in values):
            raise self.error(key, f"a list of numbers from {least:g} to {most:g}")
        return tuple(map(float, values))

    def text(self, key: str, default: str | None = None) -> str:
        """Read a string; where there is a default, the field may be absent."""
        value = default if default is not None and key not in self.values else self.any(key)
        if not isinstance(value, str):
            raise self.error(key, "a string")
        return value

    def choice(self, key: str, known: Collection[str], default: str | None = None) -> str:
        """Read one of the known strings."""
        value = self.text(key, default)
        if value not in known:
            known = list(known)
            near = difflib.get_close_matches(value, known, n=1, cutoff=_NEAR)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise NotNativeError(
                f"{self.source}: {self.form} with {self._within}{key} = {shown(value)} is not supported; known: "
                f"{', '.join(known)}{hint}"
            )
        return value

    def texts(self, key: str) -> list[str]:
        """Read a list of strings; none where the field is absent or null."""
        values = self.values.get(key)
        if values is None:
            return []
        if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
            raise self.error(key, "a list of strings")
        return list(values)

    def flags(self, key: str) -> list[bool] | None:
        """Read a list of true and false, or of 1 and 0 throughout; None where it is absent or null."""
        values = self.values.get(key)
        if values is None:
            return None
        alike = isinstance(values, list | tuple) and len({type(value) for value in values}) <= 1
        if not alike or not all(type(v) in (bool, int) and v in (0, 1) for v in values):
            raise self.error(key, "a list of true and false")
        return [bool(value) for value in values]

    def token(self, key: str, default: int | None = None) -> int | None:
        """Read a token's id, whatever its range; null and absent give the default."""
        value = default if self.values.get(key) is None else self.values[key]
        if value is not None and type(value) is not int:
            raise self.error(key, "the id of a token, an integer, or null")
        return value

    def tokens(self, key: str) -> list[int]:
        """Read one token's id or a list of several; none where the field is absent or null."""
        value = self.values.get(key)
        values: Sequence[Any] = [] if value is None else value if isinstance(value, list) else [value]
        if any(type(token) is not int for token in values) or value == []:
            raise self.error(key, "the id of a token, an integer, a list of several, or null")
        return list(values)

    def inner(self, key: str) -> "Fields":
        """Read an object within; one without fields where it is absent or null."""
        value = self.values.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.error(key, "an object of names and values")
        return Fields(self.source, self.form, value, f"{self._within}{key}.")

    def supports(self, key: str, allowed: Iterable[object]) -> None:
        """Refuse a field that would make the model another function.

        Args:
            key: The field; absent and null are always fine.
            allowed: The values of it that are supported: these alone, and of their types.
        """
        value, allowed = self.values.get(key), list(allowed)
        # By type too: 1, 1.0 and true are equal.
        if value is not None and not any(type(value) is type(option) and value == option for option in allowed):
            expected = " or ".join(shown(option) for option in allowed)
            raise NotNativeError(
                f"{self.source}: {self.form} with {self._within}{key} = {shown(value)} is not supported; "
                f"expected {expected}"
            )

    def refuse_unknown(self, known: str) -> None:
        """Refuse a field that is not known, and so might change the function.

        Args:
            known: The names that are, separated by spaces. A field that is null, false, zero or empty is as if it were
                not there.
        """
        for key, value in self.values.items():
            if key not in known.split() and not _is_nothing(value):
                name = shown(key).strip("'")
                near = difflib.get_close_matches(name, known.split(), n=1, cutoff=0.0)[0]
                raise ConfigError(
                    f"{self.source}: {self.form} with {self._within}{name} = {shown(value)} is not supported; the "
                    f"nearest known field is {near!r}"
                )


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, int | float | dict | list) and not value)
