"""Bundles of any other nn.Module: arrays in, arrays out."""

from .model import Model


class Module(Model):
    """A bundle whose graph is of no known kind: it is run, and no more."""
