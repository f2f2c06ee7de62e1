"""Options that several commands have."""

import click

favour = click.option(
    "--favour",
    type=click.Choice(["size", "speed"]),
    default="size",
    show_default=True,
    help="What a mix within the budget is to have least of: bytes, or time (decoders then read prompts in int8).",
)
