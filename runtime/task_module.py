"""Bundles of a family that is not native, whose class says what its outputs mean."""

from .encoder import Encoder
from .module import Module


class TaskModule(Encoder, Module):
    """A module of ids or images, and an output that transformers' class has a task for: it has an encoder's methods."""
