"""Bundles of a family that is not native, whose class says what its outputs mean."""

from .encoder import Encoder
from .module import Module
from .sound_tasks import SoundTasks


class TaskModule(Encoder, SoundTasks, Module):
    """A module of ids, images or sounds whose class has a task in transformers: it has the methods of an encoder."""
