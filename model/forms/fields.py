"""Strict reading of the configurations that forms bring along: what is unknown is refused by name."""

import difflib
from pathlib import Path
from typing import Any

from tfm.errors import ConfigError


def check_fields(file: Path, form: str, values: dict[str, Any], known: str) -> None:
    """Refuse a field that is not known and so might change the function.

    Args:
        file: Named in messages.
        form: Named in messages.
        values: The fields that are set; one that is null, false, zero or empty is as if it were not.
        known: Their names, separated by spaces.

    Raises:
        ConfigError: There is one.
    """
    for key, value in values.items():
        if key not in known.split() and value not in (None, False, 0, {}, []):
            near = difflib.get_close_matches(str(key), known.split(), n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"{file}: {form} with {key} = {value!r} is not supported; the nearest known field is {near!r}"
            )
