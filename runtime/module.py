"""Bundles of any other nn.Module: arrays in, arrays out."""

from collections.abc import Mapping
from typing import Any

from .control import CancelToken, Control
from .inputs.checks import Array
from .model import Model


class Module(Model):
    """A bundle whose graph is of no known kind: it is run, and no more."""

    def run(
        self,
        arrays: Mapping[str, Any] | None = None,
        /,
        *,
        cancel: CancelToken | None = None,
        timeout: float | None = None,
        **named: Any,
    ) -> dict[str, Array]:
        """Run the graph as `Session.run` does.

        Args:
            arrays: Every input that the manifest's signature names, by name.
            cancel: A token that ends the run.
            timeout: Seconds after which it is ended; None: never.
            **named: Inputs too, but those that have the name of one of these parameters.

        Returns:
            Every output that it names.

        Raises:
            InputError: An input that the graph must not see.
            RunCancelledError: The token was cancelled.
            RunTimeoutError: The time is up.
        """
        return self._sessions["model"].run(arrays, control=Control(cancel, timeout), **named)
