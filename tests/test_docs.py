"""The documents beside the code say what the code does."""

import re
from pathlib import Path

from tfm.model import FAMILIES

ROOT = Path(__file__).resolve().parents[1]


def rows(file: str = "docs/families.md", mark: str = "<!-- families -->") -> list[list[str]]:
    """The cells of each row of a table of families, the header aside."""
    table = (ROOT / file).read_text(encoding="utf-8").split(mark)[1]
    lines = [line for line in table.split("<!-- /families -->")[0].splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_lists_every_family() -> None:
    assert [row[0].strip("`") for row in rows()] == sorted(FAMILIES), "make families renews the table"


def test_the_readme_says_the_same_in_brief() -> None:
    assert rows("README.md", "<!-- families in brief -->") == [row[:1] + row[3:] for row in rows()]


def test_every_listed_family_was_compared_and_exported() -> None:
    for family, classes, _, configurations, error, verified in rows():
        assert re.match(r"`\w+`", classes), family
        assert 0.0 < float(error.split(",")[0]) <= 1e-5, family
        count, of = map(int, verified.split(" of "))
        assert of == int(configurations) >= 2, family
        assert 1 <= count <= of, f"no graph of {family} was verified"
