"""All-pairs designs: few combinations in which any two choices of any two factors meet."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any


def product(factors: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of one choice per factor."""
    return [dict(zip(factors, choices, strict=True)) for choices in itertools.product(*factors.values())]


def all_pairs(factors: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Choose combinations, always the first that adds most, until every two choices of two factors have met."""

    def met(row: dict[str, Any]) -> set[Any]:
        return set(itertools.combinations([(name, repr(choice)) for name, choice in row.items()], 2))

    candidates = product(factors)
    missing: set[Any] = set().union(*map(met, candidates))
    chosen = []
    while missing:
        # max takes the first of equals, so that the same factors give the same design.
        best = max(candidates, key=lambda row: len(met(row) & missing))
        chosen.append(best)
        missing -= met(best)
    return chosen
