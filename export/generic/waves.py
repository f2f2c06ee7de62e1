"""What reads sound: raw waves of any length, and features whose number per second is fixed.

Of a wave a model makes frames by convolutions, 50 a second as a rule; how many samples a frame needs follows from their
kernels and strides. Samples to verify with are of so many frames. Batches are not padded: a wave is read alone, or with
others of its length, so that no mask is needed, as optimum's graphs have none.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tfm.errors import ConfigError, ExportError
from tfm.model import read_json

from ..reasons import one_line
from .graph import GenericConfig, GenericGraph

SECONDS = 60
"""Longest wave that is read at once: attention takes a gigabyte for two minutes."""

SAMPLES = "samples"

_VERIFIED = 256
"""Frames of the longest sample to verify with, five seconds as a rule: nothing has a table that ends behind it."""

_FRAMES = (2, 4, 8, 16, 32)
"""Least frames of a wave: torch takes 1 for a constant, and some heads look at several."""

_USUAL_RATE = 16000


class WaveGraph(GenericGraph):
    """A module over raw waves (B, samples); lengths of samples to verify with are counted in frames."""

    def __init__(self, module: nn.Module, least: int, longest: int, hop: int, config: GenericConfig) -> None:
        """Read outputs off two runs.

        Args:
            module: Takes `input_values`.
            least: Samples of the shortest wave.
            longest: Samples of the longest one.
            hop: Samples from a frame to the next.
            config: What the bundle says of it.
        """
        self._least, self._hop, self._longest = least, hop, longest
        self.min_length = {SAMPLES: least}
        example = torch.randn(2, least + hop, generator=torch.Generator().manual_seed(0))
        super().__init__(module, {"input_values": example}, {"input_values": {0: "batch", 1: SAMPLES}}, config=config)
        self.max_length = {SAMPLES: longest}
        self.longest_case = _VERIFIED

    def sample(self, generator: torch.Generator, batch: int, length: int, past: int = 0) -> list[Tensor]:
        """Make waves of noise of about so many frames, and some samples more, which make no whole frame."""
        del past
        samples = min(self._least + (length - 1) * self._hop + self._hop // 3, self._longest)
        return self.sample_at(generator, batch, {SAMPLES: samples})


def reads_waves(module: Any) -> bool:
    """Whether a module makes frames of raw samples by convolutions that its configuration tells."""
    kernels = getattr(module.config, "conv_kernel", None)
    return module.main_input_name == "input_values" and isinstance(kernels, list | tuple)


@torch.no_grad()
def wave_graph(source: Path, module: Any, outputs: nn.Module, about: GenericConfig) -> WaveGraph:
    """Make the graph of a module over raw waves.

    Args:
        source: Its config.json.
        module: Of transformers.
        outputs: What gives its tensors by name.
        about: What the bundle says of it.

    Raises:
        ConfigError: Its kernels and strides are none.
        ExportError: It does not run on a short wave.
    """
    kernels, strides = (_sizes(source, module.config, name) for name in ("conv_kernel", "conv_stride"))
    if len(kernels) != len(strides):
        raise ConfigError(f"{source}: conv_kernel has {len(kernels)} sizes, but conv_stride {len(strides)}")
    hop = 1
    for stride in strides:
        hop *= stride
    longest = SECONDS * sampling_rate(source.parent)
    error: Exception | None = None
    for frames in _FRAMES:
        least = samples_of(frames, kernels, strides)
        try:
            module(torch.zeros(1, least))
        except Exception as failed:  # whatever torch raises of a wave that is too short
            error = failed
            continue
        if least + hop > longest:
            break
        return WaveGraph(outputs, least, longest, hop, about)
    reason = f": {one_line(error)}" if error is not None else ", nor does its first frame end within a minute"
    raise ExportError(f"{type(module).__name__} does not run on a wave of {_FRAMES[-1]} frames{reason}")


def samples_of(frames: int, kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Tell the fewest samples that become so many frames."""
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        frames = (frames - 1) * stride + kernel
    return frames


def sampling_rate(folder: Path) -> int:
    """Read how many samples a second has, as the checkpoint's processor says; 16,000 where it does not."""
    path = folder / "preprocessor_config.json"
    values = read_json(path) if path.is_file() else {}
    rate = values.get("sampling_rate", _USUAL_RATE) if isinstance(values, Mapping) else None
    if type(rate) is not int or not 1 <= rate <= 1 << 20:
        raise ConfigError(f"{path}: sampling_rate must be a number of samples a second, but is {str(rate)[:80]}")
    return rate


def _sizes(source: Path, config: Any, name: str) -> list[int]:
    sizes = getattr(config, name, None)
    if not isinstance(sizes, list | tuple) or not sizes or any(type(s) is not int or not 1 <= s <= 512 for s in sizes):
        raise ConfigError(f"{source}: {name} must be sizes from 1 to 512, but is {str(sizes)[:80]}")
    return list(sizes)
