"""Sweeps of the norms over rows of large mean and small variance, float32.

A LayerNorm subtracts the mean, which carries an error of |mean| · 2⁻²⁴ where it is rounded to float32 once; the
division by the deviation magnifies it. Eager PyTorch's is up to three times as large.
"""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tfm.model import TransformerConfig, make_norm
from tfm.ops import oracles

from ..graphs import Value
from .subjects import Case, Check, OpGraph, Source, limits_of

NAMES = ("layer_norm", "rms_norm")
# 20 fills no whole number of AVX vectors; 768 is a size of real models. A large mean over a small
# deviation is where subtraction loses digits.
SIZES = (20, 768)
MEANS = (0.0, 1.0, 1e2, 1e4)
DEVIATIONS = (1.0, 1e-2)
EPS = 1e-5


def subjects(name: str) -> list[Source]:
    """List the sweeps of one norm."""
    return [
        Source(
            group="norms",
            op=name,
            tolerances=limits_of(name),
            title=f"{name} of {size}",
            make=functools.partial(make_graph, name, size),
            cases=functools.partial(_cases, name, size),
        )
        for size in SIZES
    ]


def make_graph(name: str, size: int) -> OpGraph:
    """Build a norm whose weights and biases differ; x (rows, size) → y."""
    kind: Any = name.removesuffix("_norm")
    config = TransformerConfig(vocab_size=1, d_model=size, nhead=1, positions="none", norm=kind, layer_norm_eps=EPS)
    module, generator = make_norm(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            # Away from 1 and 0, so that a weight that is left out or taken for the bias shows.
            parameter.copy_(torch.rand(size, generator=generator) + 0.5)

    def draw(generator: torch.Generator, batch: int, length: int, past: int) -> list[Tensor]:
        return [torch.randn(batch + length + past, size, generator=generator)]

    values = [Value(name=name, dtype="float32", shape=("rows", size)) for name in ("x", "y")]
    return OpGraph(module, (values[0],), (values[1],), draw)


def _cases(name: str, size: int, graph: OpGraph, dtype: str) -> Iterator[Case]:
    del dtype
    random = np.random.default_rng(0)
    weights = {key: value.double().numpy() for key, value in graph.model.state_dict().items()}
    for mean in MEANS:
        for deviation in DEVIATIONS:
            x = (random.standard_normal((16, size)) * deviation + mean).astype(np.float32)
            # Of the rounded numbers, so that rounding the input is no error of the op.
            exact = x.astype(np.float64)
            unit = 1.0
            if name == "layer_norm":
                y = oracles.layer_norm(exact, weights["weight"], weights["bias"], EPS)
                # The mean is rounded to 2⁻²⁴ of itself, and divided by the deviation. An RMSNorm
                # subtracts nothing.
                unit += mean / float(np.sqrt(exact.var(-1).min() + EPS))
            else:
                y = oracles.rms_norm(exact, weights["weight"], EPS)
            where = f"{size} entries, σ={deviation:g}"
            check = Check(form=f"mean {mean:g}", output="y", expected=y, unit=unit, where=where)
            yield Case(feeds=(x,), checks=(check,))
