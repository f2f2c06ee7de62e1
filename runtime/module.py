"""Bundles of any other nn.Module: arrays in, arrays out."""

from typing import Any

from .checks import Array
from .control import CancelToken, Control
from .model import Model


class Module(Model):
    """A bundle whose graph is of no known kind: it is run, and no more."""

    def run(
        self, *, cancel: CancelToken | None = None, timeout: float | None = None, **arrays: Any
    ) -> dict[str, Array]:
        """Run the graph as `Session.run` does.

        Args:
            cancel: A token that ends the run.
            timeout: Seconds after which it is ended; None: never.
            **arrays: Every input that the manifest's signature names.

        Returns:
            Every output that it names.

        Raises:
            InputError: An input that the graph must not see.
            RunCancelledError: The token was cancelled.
            RunTimeoutError: The time is up.
        """
        return self._sessions["model"].run(control=Control(cancel, timeout), **arrays)
