"""The tables of docs/tasks.md, made of what the tests in tests/runtime/tasks are run over: `make families`.

python -m tests.support.tasks_table
"""

import re
from pathlib import Path

from tests.support.task_models import COMPARED, FAMILIES
from tfm.model import FAMILIES as NATIVE_FAMILIES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tasks.md"


def tasks_table() -> str:
    """One line a task: which library it is compared with, and what of it."""
    lines = ["| Task | Compared with | What of it |", "| --- | --- | --- |"]
    lines += [f"| `{task}` | {library} | {what} |" for task, (library, what, _) in COMPARED.items()]
    return "\n".join(lines)


def families_table() -> str:
    """One line a family: for each task the library that it is compared with; nothing where no test does."""
    families = list(dict.fromkeys([*FAMILIES, *(family for _, _, tested in COMPARED.values() for family in tested)]))
    tasks = [task for task in COMPARED if task != "similarity"]
    lines = [
        f"| Family | Read | {' | '.join(f'`{task}`' for task in tasks)} |",
        f"| --- | --- |{' --- |' * len(tasks)}",
    ]
    for family in families:
        cells = [COMPARED[task][0] if family in COMPARED[task][2] else "" for task in tasks]
        how = "natively" if family in NATIVE_FAMILIES else "by transformers"
        lines.append(f"| {family} | {how} | {' | '.join(cells)} |")
    return "\n".join(lines)


def renewed(page: str) -> str:
    """Put the tables as they are now into the page."""
    for name, table in (("tasks", tasks_table()), ("families", families_table())):
        marks = re.compile(rf"(<!-- {name} -->\n\n).*?(\n\n<!-- /{name} -->)", re.DOTALL)
        assert marks.search(page), f"docs/tasks.md has no place for the table of {name}"
        page = marks.sub(lambda found, table=table: f"{found[1]}{table}{found[2]}", page)
    return page


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
