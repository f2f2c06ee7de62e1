"""Options that several commands have, and what they were called before."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from .streams import say

F = TypeVar("F", bound=Callable[..., Any])


def renamed(old: str, new: str, name: str) -> Callable[[F], F]:
    """Keep an option's old name, hidden from the help: who uses it reads the new one on standard error.

    Args:
        old: As it is written, "--favour".
        new: What it is called now.
        name: The parameter that both set; the new one's option has the callback `or_by_its_old_name`.
    """

    def keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value is not None:
            say(f"{old} is called {new} now, and means the same", err=True)
            context.meta[name] = value

    return click.option(old, hidden=True, expose_value=False, is_eager=True, callback=keep)


def or_by_its_old_name(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Give what was said by the old name of an option, checked as by its new one."""
    # The old option is eager, so that it has been read by now.
    said = context.meta.get(str(parameter.name))
    return value if said is None else parameter.type.convert(said, parameter, context)


_optimize_for = click.option(
    "--optimize-for",
    "objective",
    type=click.Choice(["size", "speed"]),
    default="size",
    show_default=True,
    callback=or_by_its_old_name,
    help="What a mix within the budget is to have least of: bytes, or time (decoders then read prompts in int8).",
)


search = click.option(
    "--search",
    type=click.Choice(["full", "quick", "none"]),
    default="full",
    show_default=True,
    help="How much is tried for a mix: every form, those that are chosen most, or one fixed form of each kind of op. "
    "Whatever comes of it is judged alike.",
)


runtime = click.option(
    "--runtime",
    metavar="X.Y",
    help="Oldest onnxruntime that is to open the graphs, from 1.17 [default: the newest, which is fastest].",
)


portable = click.option(
    "--portable", is_flag=True, help="Graphs of ONNX's own operators alone, for engines other than onnxruntime."
)


def objective(command: F) -> F:
    """`--optimize-for`, and its old name."""
    return _optimize_for(renamed("--favour", "--optimize-for", "objective")(command))
