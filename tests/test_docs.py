"""The documents beside the code say what the code does."""

import re
from pathlib import Path

from tfm.model import FAMILIES

DOCS = Path(__file__).resolve().parents[1] / "docs"


def rows() -> list[list[str]]:
    """The cells of each row of the table of families, the header aside."""
    table = (DOCS / "families.md").read_text(encoding="utf-8").split("<!-- families -->")[1]
    lines = [line for line in table.split("<!-- /families -->")[0].splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_lists_every_family() -> None:
    assert [row[0].strip("`") for row in rows()] == sorted(FAMILIES), "make families renews the table"


def test_every_listed_family_was_compared_and_exported() -> None:
    for family, classes, _, configurations, error, verified in rows():
        assert re.match(r"`\w+`", classes), family
        assert 0.0 < float(error.split(",")[0]) <= (4e-5 if family == "`t5`" else 1e-5), family
        count, of = map(int, verified.split(" of "))
        assert of == int(configurations) >= 2, family
        assert 1 <= count <= of, f"no graph of {family} was verified"
