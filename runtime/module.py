"""Bundles of any other nn.Module: arrays in, arrays out."""

from typing import Any

from .checks import Array
from .model import Model


class Module(Model):
    """A bundle whose graph is of no known kind: it is run, and no more."""

    def run(self, **arrays: Any) -> dict[str, Array]:
        """Run the graph as `Session.run` does.

        Args:
            **arrays: Every input that the manifest's signature names.

        Returns:
            Every output that it names.

        Raises:
            InputError: An input that the graph must not see.
        """
        return self._sessions["model"].run(**arrays)
