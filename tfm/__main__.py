"""`python -m tfm`: the command `tfm`."""

from .cli import main

main()
