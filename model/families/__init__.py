"""Hugging Face families: each a mapping of configuration and weight names, in a file of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import TransformerConfig
from .bert import convert_bert

Convert = Callable[[Path, dict[str, Any], dict[str, Tensor]], tuple[TransformerConfig, dict[str, Tensor]]]
"""(folder, values of its config.json, its weights) → (our configuration, our weights)."""

FAMILIES: dict[str, Convert] = {"bert": convert_bert}
