"""Millions of rows through a bundle: files in, files out, resumable, each row once and in order. The extra "map"."""

from typing import TYPE_CHECKING

from tfm.lazy import lazily

if TYPE_CHECKING:
    from .map_file import MapReport, map_file
    from .mapper import Mapper

__all__ = ["MapReport", "Mapper", "map_file"]

__getattr__, __dir__ = lazily(__name__, {"map_file": "MapReport map_file", "mapper": "Mapper"})
