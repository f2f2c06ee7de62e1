"""The ways to quantize an op. To add one: a file beside this one with a `Method`, and its class in `METHODS`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfm.errors import QuantizeError

from .blocks import Blocks
from .dynamic import Dynamic
from .method import Float32, Method, shown
from .rotated import Rotated
from .static import Static

METHODS: list[type[Method]] = [Float32, Dynamic, Rotated, Static, Blocks]
"""In the order in which a search lists what it tries: what is left as it is first, dearer ones later."""

_FORMERLY = {"blocks": {"products": "int8"}}
"""Fields that methods had in older recipes, and the one value of each that is still computed."""


def method_from_json(values: Any, place: str) -> Method:
    """Read what `method_to_json` gave.

    Raises:
        QuantizeError: It is no method; the message says where.
    """
    forms = {method.form: method for method in METHODS}
    form = values.get("form") if isinstance(values, Mapping) else None
    if not isinstance(form, str) or form not in forms:
        raise QuantizeError(f"{place} must have a form of {', '.join(forms)}, but is {shown(values)}")
    method, formerly = forms[form], _FORMERLY.get(form, {})
    known = [field.name for field in dataclasses.fields(method)]  # type: ignore[arg-type]
    given = {name: v for name, v in values.items() if name != "form" and not (name in formerly and v == formerly[name])}
    if unknown := [name for name in given if name not in known]:
        raise QuantizeError(f"{place}: {form} has no {shown(unknown[0])}; known: {', '.join(known) or 'nothing'}")
    for name, value in given.items():
        if not method.fits(name, value):
            raise QuantizeError(f"{place}: {name} cannot be {shown(value)}")
    return method(**given)
