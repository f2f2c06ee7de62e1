"""The documents beside the code say what the code does."""

import re
from pathlib import Path

import tomllib

from tfm.model import FAMILIES

ROOT = Path(__file__).resolve().parents[1]


def rows(file: str = "docs/families.md", mark: str = "<!-- families -->") -> list[list[str]]:
    """The cells of each row of a table of families, the header aside."""
    table = (ROOT / file).read_text(encoding="utf-8").split(mark)[1]
    lines = [line for line in table.split("<!-- /families -->")[0].splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_lists_every_family() -> None:
    assert [row[0].strip("`") for row in rows()] == sorted(FAMILIES), "make families renews the table"


def test_the_page_of_checkpoints_says_the_same_in_brief() -> None:
    assert rows("docs/checkpoints.md", "<!-- families in brief -->") == [row[:1] + row[3:] for row in rows()]


def test_every_listed_family_was_compared_and_exported() -> None:
    for family, classes, _, configurations, error, verified in rows():
        assert re.match(r"`\w+`", classes), family
        assert 0.0 < float(error.split(",")[0]) <= 1e-5, family
        count, of = map(int, verified.split(" of "))
        assert of == int(configurations) >= 2, family
        assert 1 <= count <= of, f"no graph of {family} was verified"


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = ("onnxruntime", "numpy", "click", "tokenizers")


def combinations() -> list[list[str]]:
    """The cells of each row of docs/versions.md that was run: Python, packages, extra, then a verdict of each kind."""
    page = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    lines = [line for line in page.split("\n## ")[0].splitlines() if re.match(r"\| 3\.\d+\.\d+ \|", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_combination_of_versions_ran_or_was_refused_with_the_sentence() -> None:
    verdicts = [verdict for row in combinations() for verdict in row[6:]]
    assert len(verdicts) >= 4 * 7
    assert {re.sub(r"[\d.]+", "X", verdict) for verdict in verdicts} == {"✓", "refused: needs ≥ X"}


def test_the_oldest_versions_that_are_declared_were_run() -> None:
    """On the lowest Python, together: what pip may install, somebody has used."""
    declared = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["text"]]
    bounds = dict(requirement.split(">=") for requirement in declared)
    assert set(bounds) == set(PACKAGES)
    oldest = [f"{bounds[name]}.0.0".split(".")[:3] for name in PACKAGES]
    lowest = PROJECT["requires-python"].removeprefix(">=")
    rows = [row for row in combinations() if row[0].startswith(f"{lowest}.") and row[5] == "text"]
    assert oldest in [[version.split(".") for version in row[1:5]] for row in rows]


def test_the_pythons_that_are_declared_were_run() -> None:
    said = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert said == sorted({row[0].rpartition(".")[0] for row in combinations()})
    assert PROJECT["requires-python"] == f">={said[0]}"
