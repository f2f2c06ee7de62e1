"""Our translation of scaled_dot_product_attention: masks of every shape that eager takes, as the stock one fails on."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from tfm.export.attention import TRANSLATIONS
from tfm.export.to_onnx import _quiet

B, N, S, T, H = 2, 3, 4, 6, 8
ATOL = 2e-6  # a sum of H products, a softmax over T and a sum over T in float32, at a scale of about 1
# Not (T,): torch.export itself refuses a mask of one dimension, which eager takes.
SHAPES = [(S, T), (B, 1, 1, T), (1, N, S, T), (B, N, S, T), (B, 1, S, T), (1, 1, 1, 1)]


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **self.options)


def inputs(length: int = S, kv_heads: int = N, kv_length: int = T) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, N, length, H), (B, kv_heads, kv_length, H), (B, kv_heads, kv_length, H)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def export(module: nn.Module, tensors: list[Tensor], dynamic: Any = None) -> ort.InferenceSession:
    with torch.no_grad(), _quiet():
        program = torch.export.export(module, tuple(tensors), dynamic_shapes=dynamic)
        exported = torch.onnx.export(
            program, dynamo=True, opset_version=23, custom_translation_table=TRANSLATIONS, verbose=False
        )
    assert exported is not None
    assert [node.op_type for node in exported.model.graph].count("Attention") == 1
    return ort.InferenceSession(ir.to_proto(exported.model).SerializeToString(), providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, tensors: list[Tensor]) -> np.ndarray:
    names = [value.name for value in session.get_inputs()]
    return session.run(None, {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)})[0]


def check(module: nn.Module, tensors: list[Tensor], dynamic: Any = None) -> None:
    found = run(export(module, tensors, dynamic), tensors)
    np.testing.assert_allclose(found, module(*tensors).numpy(), atol=ATOL, rtol=0)


def mask_of(shape: tuple[int, ...], dtype: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if dtype == "float":
        return torch.randn(shape, generator=generator)
    mask = torch.rand(shape, generator=generator) < 0.6
    mask[..., 0] = True  # every row sees something
    return mask


@pytest.mark.parametrize("dtype", ["bool", "float"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_masks_that_broadcast(shape: tuple[int, ...], dtype: str) -> None:
    check(Attention(), [*inputs(), mask_of(shape, dtype)])


@pytest.mark.parametrize("dtype", ["bool", "float"])
def test_a_padding_mask_with_free_batch_and_lengths(dtype: str) -> None:
    """The [B, 1, 1, T] mask of every padded batch: the stock translation fails when run, for any S over 1."""
    batch, query, key = Dim("batch"), Dim("query"), Dim("key")
    dynamic = ({0: batch, 2: query}, {0: batch, 2: key}, {0: batch, 2: key}, {0: batch, 3: key})
    module = Attention()
    session = export(module, [*inputs(), mask_of((B, 1, 1, T), dtype)], dynamic)
    generator = torch.Generator().manual_seed(2)
    for b, s, t in [(2, 4, 6), (1, 1, 1), (5, 7, 3), (1, 3, 9), (4, 1, 8)]:
        tensors = [torch.randn(b, N, length, H, generator=generator) for length in (s, t, t)]
        tensors.append(mask_of((b, 1, 1, t), dtype))
        np.testing.assert_allclose(run(session, tensors), module(*tensors).numpy(), atol=ATOL, rtol=0)


@pytest.mark.parametrize(("length", "kv_length"), [(4, 4), (4, 6), (6, 4), (1, 6)])
def test_is_causal(length: int, kv_length: int) -> None:
    check(Attention(is_causal=True), inputs(length, kv_length=kv_length))


@pytest.mark.parametrize("scale", [0.3, 1.0, 1e-3])
def test_scale(scale: float) -> None:
    check(Attention(scale=scale), [*inputs(), mask_of((B, 1, 1, T), "bool")])


def test_no_mask() -> None:
    check(Attention(), inputs())


def test_dropout_is_for_training_alone() -> None:
    module = Attention(dropout_p=0.0)
    check(module.eval(), inputs())


@pytest.mark.parametrize("dtype", ["bool", "float"])
@pytest.mark.parametrize("shape", [(B, 1, 1, T), (B, 1, S, T)], ids=str)
def test_a_fully_masked_row_gives_eager_s_zeros(shape: tuple[int, ...], dtype: str) -> None:
    mask = torch.ones(shape, dtype=torch.bool)
    mask[0, :, 0] = False
    if dtype == "float":
        mask = torch.zeros(shape).masked_fill(~mask, -torch.inf)
    tensors = [*inputs(), mask]
    expected = Attention()(*tensors)
    assert (expected[0, :, 0] == 0).all()  # what eager does, and has to go on doing for this test to mean something
    check(Attention(), tensors)


@pytest.mark.parametrize("low", [torch.finfo(torch.float32).min, -1e9], ids=["finfo.min", "-1e9"])
@pytest.mark.parametrize("shape", [(B, 1, 1, T), (B, 1, S, T)], ids=str)
def test_a_row_masked_by_a_finite_number_gives_eager_s_mean(shape: tuple[int, ...], low: float) -> None:
    """The stock translation gives zeros for finfo.min, which is what many models mask with."""
    mask = torch.zeros(shape)
    mask[0, :, 0] = low
    mask[1, ..., 2:] = low
    tensors = [*inputs(), mask]
    torch.testing.assert_close(Attention()(*tensors)[0, :, 0], tensors[2][0].mean(1), atol=ATOL, rtol=0)  # in eager
    check(Attention(), tensors)


def test_what_a_float_mask_holds_beside_the_least_number_stays() -> None:
    mask = torch.tensor([0.0, 88.0, -1e30, -torch.inf, torch.inf, 0.0])
    mask = torch.stack([mask[:4], mask[[0, 1, 2, 3]], mask[[3, 2, 3, 3]], mask[[3, 3, 3, 3]]])[None, None]
    check(Attention(), [*inputs(kv_length=4), mask])


def test_a_model_s_fully_masked_source(export_tiny: Any) -> None:
    """A row of nothing but padding, end to end: what eager gives, and no NaN."""
    exported = export_tiny(kind="encoder", activation="gelu", num_encoder_layers=2, pooling="mean", pooler=True)[
        "model"
    ]
    ids, mask = torch.ones(2, 5, dtype=torch.int64), torch.tensor([[0] * 5, [1] * 5])
    with torch.no_grad():
        expected = exported.graph(ids, mask)
    session = ort.InferenceSession(Path(exported.path), providers=["CPUExecutionProvider"])
    found = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    for actual, tensor in zip(found, expected, strict=True):
        assert np.isfinite(actual).all()
        np.testing.assert_allclose(actual, tensor.numpy(), atol=2e-5, rtol=0)  # as in test_to_onnx: two layers
