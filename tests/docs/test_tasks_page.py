"""docs/tasks.md says of tasks and families what the tests are run over, no more and no less."""

from tests.support.task_models import COMPARED, FAMILIES
from tests.support.tasks_table import PAGE, renewed


def test_the_tables_are_those_of_the_tests() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == renewed(page), "run make families, or python -m tests.support.tasks_table"


def test_ten_families_and_more() -> None:
    assert len(FAMILIES) >= 10
    assert {family for _, _, families in COMPARED.values() for family in families} >= set(FAMILIES)
