"""How a command with a verdict ends: the report is printed, and its gates give the exit code."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from .streams import say_json

if TYPE_CHECKING:  # importing it loads numpy, which --help must not wait for
    from tfm.bundle import Judged


def conclude(
    context: click.Context, report: "Judged", content: Mapping[str, Any] | None, show: Callable[[], None]
) -> None:
    """Print a report and end the command: with 0 if all its gates passed, else with 1, whatever was done about it.

    Args:
        context: Of the command.
        report: What was found.
        content: It as JSON values, to be printed with its gates and faults; None: it is for people.
        show: Prints it for people.
    """
    if content is None:
        show()
    else:
        gates = [gate.to_json() for gate in report.gates()]
        say_json({"passed": report.passed, "faults": report.faults(), "gates": gates} | dict(content))
    context.exit(0 if report.passed else 1)
