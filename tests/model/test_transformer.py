"""The Transformer against a numpy float64 implementation of the paper, torch.nn, and itself taken another way."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tfm.model import Transformer, TransformerConfig
from tfm.model.attention import SelfAttention, causal_mask, padding_mask
from tfm.model.layer import Layer

Array = np.ndarray
Weights = dict[str, Array]

EXACT = 1e-10  # float64 against float64: sums of some hundred terms of order 1, each rounded at 1e-16
SINGLE = 1e-5  # float32 taken two ways: the same sums rounded at 6e-8, through a few layers


class Oracle:
    """Section 3 of "Attention Is All You Need", in numpy, from a state_dict."""

    def __init__(self, config: TransformerConfig, weights: Weights, table: Array | None) -> None:
        self.config, self.weights, self.table = config, weights, table

    def linear(self, name: str, x: Array) -> Array:
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0.0)

    def norm(self, name: str, x: Array) -> Array:
        centered = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((centered**2).mean(-1, keepdims=True) + self.config.layer_norm_eps)
        return centered / scale * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attend(self, q: Array, k: Array, v: Array, mask: Array) -> Array:
        """One batch row: q (S, D), k and v (T, D), mask (S, T); head by head."""
        heads = []
        size = self.config.d_model // self.config.nhead
        for head in range(self.config.nhead):
            part = slice(head * size, (head + 1) * size)
            scores = np.where(mask, q[:, part] @ k[:, part].T / math.sqrt(size), -np.inf)
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(shares / shares.sum(-1, keepdims=True) @ v[:, part])
        return np.concatenate(heads, -1)

    def self_attention(self, name: str, x: Array, mask: Array) -> Array:
        q, k, v = np.split(self.linear(f"{name}.in_proj", x), 3, -1)
        return self.linear(f"{name}.out_proj", self.attend(q, k, v, mask))

    def cross_attention(self, name: str, x: Array, memory: Array, mask: Array) -> Array:
        k, v = np.split(self.linear(f"{name}.kv_proj", memory), 2, -1)
        return self.linear(f"{name}.out_proj", self.attend(self.linear(f"{name}.q_proj", x), k, v, mask))

    def feed_forward(self, name: str, x: Array) -> Array:
        return self.linear(f"{name}.linear2", np.maximum(self.linear(f"{name}.linear1", x), 0.0))

    def embed(self, name: str, ids: Array, segments: Array | None) -> Array:
        x = self.weights[f"{name}.token.weight"][ids]
        x = x * math.sqrt(self.config.d_model) if self.config.scale_embeddings else x
        if self.config.type_vocab_size:
            x = x + self.weights[f"{name}.segment.weight"][np.zeros_like(ids) if segments is None else segments]
        table = self.weights[f"{name}.position"] if self.table is None else self.table
        x = x + table[: len(ids)]
        return self.norm(f"{name}.norm", x) if self.config.embedding_norm else x

    def layer(self, name: str, x: Array, parts: list[tuple[str, Any]]) -> Array:
        for sublayer, part in parts:
            norm = f"{name}.{sublayer}_residual.norm"
            y = part(self.norm(norm, x)) if self.config.norm_first else part(x)
            if self.config.residual == "projected":
                x = np.maximum(self.linear(f"{name}.{sublayer}_residual.project", x) + y, 0.0)
            else:
                x = x + y
            x = x if self.config.norm_first else self.norm(norm, x)
        return x

    def encode(self, ids: Array, real: Array, segments: Array | None) -> Array:
        x = self.embed("encoder.embedding", ids, segments)
        mask = np.broadcast_to(real, (len(ids), len(ids)))
        for index in range(self.config.num_encoder_layers):
            name = f"encoder.layers.{index}"
            x = self.layer(
                name,
                x,
                [
                    ("self_attn", lambda y, n=name: self.self_attention(f"{n}.self_attn", y, mask)),
                    ("feed_forward", lambda y, n=name: self.feed_forward(f"{n}.feed_forward", y)),
                ],
            )
        return self.norm("encoder.norm", x) if self.config.norm_first else x

    def decode(self, ids: Array, real: Array, memory: Array | None, memory_real: Array | None) -> Array:
        x = self.embed("decoder.embedding", ids, None)
        itself = np.eye(len(ids), dtype=bool)  # all that padding sees
        mask = np.tril(np.ones((len(ids), len(ids)), bool)) & (real | itself)
        for index in range(self.config.num_decoder_layers):
            name = f"decoder.layers.{index}"
            parts = [("self_attn", lambda y, n=name: self.self_attention(f"{n}.self_attn", y, mask))]
            if memory is not None:
                sight = np.broadcast_to(memory_real, (len(ids), len(memory)))
                parts.append(
                    ("cross_attn", lambda y, n=name, s=sight: self.cross_attention(f"{n}.cross_attn", y, memory, s))
                )
            parts.append(("feed_forward", lambda y, n=name: self.feed_forward(f"{n}.feed_forward", y)))
            x = self.layer(name, x, parts)
        x = self.norm("decoder.norm", x) if self.config.norm_first else x
        head = "decoder.embedding.token.weight" if self.config.tie_embeddings else "decoder.head.weight"
        return x @ self.weights[head].T + self.weights.get("decoder.head.bias", 0.0)


def make(seed: int = 0, **options: Any) -> Transformer:
    """A float64 model whose every weight, biases and norms too, is random."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 11, "d_model": 8, "nhead": 2, "dim_feedforward": 12, "max_positions": 16}
    layers = {"num_encoder_layers": 2, "num_decoder_layers": 2}
    model = Transformer(TransformerConfig(**(sizes | layers | options))).eval().double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4 + (1.0 if "norm" in name and "weight" in name else 0.0))
    return model


def oracle_of(model: Transformer) -> Oracle:
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    side = model.encoder if model.config.has_encoder else model.decoder
    learned = model.config.positions == "learned"
    return Oracle(model.config, weights, None if learned else side.embedding.position.numpy())


def ragged(lengths: list[int], vocab: int = 11) -> tuple[Tensor, Tensor]:
    """Ids (B, T) and which of them are real: each row is padded on the right."""
    ids_BT = torch.randint(0, vocab, (len(lengths), max(lengths)))
    return ids_BT, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


options = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["encoder", "decoder", "encoder-decoder"]),
        "norm_first": st.booleans(),
        "residual": st.sampled_from(["identity", "projected"]),
        "positions": st.sampled_from(["sinusoidal", "learned"]),
        "scale_embeddings": st.booleans(),
        "tie_embeddings": st.booleans(),
        "embedding_norm": st.booleans(),
        "tgt_vocab_size": st.sampled_from([None, 9]),
        "type_vocab_size": st.sampled_from([0, 3]),
        "d_model": st.sampled_from([4, 8]),
        "nhead": st.sampled_from([1, 2, 4]),
        "num_encoder_layers": st.integers(1, 2),
        "num_decoder_layers": st.integers(1, 2),
        "seed": st.integers(0, 2**16),
    }
)
lengths = st.lists(st.integers(1, 7), min_size=2, max_size=2)


@settings(deadline=None, max_examples=60)
@given(options, lengths, lengths)
def test_whole_model_is_the_papers(options: dict[str, Any], src_lengths: list[int], tgt_lengths: list[int]) -> None:
    kind = options["kind"]
    options["tgt_vocab_size"] = options["tgt_vocab_size"] if kind == "encoder-decoder" else None
    options["type_vocab_size"] = options["type_vocab_size"] if kind == "encoder" else 0
    model = make(**options)
    oracle = oracle_of(model)
    src_BT, src_real_BT = ragged(src_lengths)
    tgt_BS, tgt_real_BS = ragged(tgt_lengths, 9)
    with torch.no_grad():
        if kind == "encoder":
            segments_BT = torch.randint(0, 3, src_BT.shape) if options["type_vocab_size"] else None
            got = model(src_BT, src_mask=src_real_BT, token_type_ids=segments_BT)
        elif kind == "decoder":
            got = model(src_BT, src_mask=src_real_BT.long())
        else:
            got = model(src_BT, tgt_BS, src_real_BT, tgt_real_BS)
    for row in range(2):
        src, src_real = src_BT[row].numpy(), src_real_BT[row].numpy()
        if kind == "encoder":
            want = oracle.encode(src, src_real, None if segments_BT is None else segments_BT[row].numpy())
        elif kind == "decoder":
            want = oracle.decode(src, src_real, None, None)
        else:
            memory = oracle.encode(src, src_real, None)
            want = oracle.decode(tgt_BS[row].numpy(), tgt_real_BS[row].numpy(), memory, src_real)
        np.testing.assert_allclose(got[row].numpy(), want, rtol=0, atol=EXACT)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([(4, 1), (8, 2), (12, 3), (8, 8)]), st.integers(1, 6), st.integers(0, 4), st.integers(0, 2**16))
def test_attention_alone_is_the_papers(sizes: tuple[int, int], length: int, past: int, seed: int) -> None:
    torch.manual_seed(seed)
    d_model, nhead = sizes
    config = TransformerConfig(vocab_size=1, d_model=d_model, nhead=nhead, dropout=0.5)
    attention = SelfAttention(config).eval().double()
    weights = {f"a.{name}": value.numpy() for name, value in attention.state_dict().items()}
    oracle = Oracle(config, weights, None)
    x_BTD = torch.randn(2, past + length, d_model, dtype=torch.float64)
    mask = causal_mask(torch.arange(past, past + length)[None], torch.arange(past + length))
    with torch.no_grad():
        _, cached = attention(x_BTD[:, :past], None) if past else (None, None)
        got, present = attention(x_BTD[:, past:], mask, cached)
    assert present[0].shape == (2, nhead, past + length, d_model // nhead)
    for row in range(2):
        want = oracle.self_attention("a", x_BTD[row].numpy(), np.tril(np.ones((past + length,) * 2, bool)))
        np.testing.assert_allclose(got[row].numpy(), want[past:], rtol=0, atol=EXACT)


def test_masks() -> None:
    query_S, key_T = torch.arange(1, 3), torch.arange(3)
    assert causal_mask(query_S[None], key_T).tolist() == [[[[True, True, False], [True, True, True]]]]
    assert causal_mask(query_S[None], key_T, 2).tolist() == [[[[True, True, False], [False, True, True]]]]
    assert causal_mask(query_S[None], key_T, 1).tolist() == [[[[False, True, False], [False, False, True]]]]
    spread = padding_mask(torch.tensor([[1, 0], [1, 1]]), 3)
    assert spread.dtype == torch.bool
    assert spread.tolist() == [[[[True, False]] * 3], [[[True, True]] * 3]]


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_encoder_layer_is_torchs(activation: str, norm_first: bool) -> None:
    config = TransformerConfig(
        vocab_size=1, d_model=12, nhead=3, dim_feedforward=20, activation=activation, norm_first=norm_first
    )
    torch.manual_seed(0)
    ours = Layer(config, cross=False).eval().double()
    theirs = nn.TransformerEncoderLayer(
        12, 3, 20, activation=activation, norm_first=norm_first, batch_first=True, layer_norm_eps=config.layer_norm_eps
    )
    theirs = theirs.eval().double()
    for parameter in theirs.parameters():  # fresh biases are zero and would hide a swap
        nn.init.normal_(parameter, std=0.5)
    names = {
        "self_attn.in_proj_weight": "self_attn.in_proj.weight",
        "self_attn.in_proj_bias": "self_attn.in_proj.bias",
        "linear1.weight": "feed_forward.linear1.weight",
        "linear1.bias": "feed_forward.linear1.bias",
        "linear2.weight": "feed_forward.linear2.weight",
        "linear2.bias": "feed_forward.linear2.bias",
        "norm1.weight": "self_attn_residual.norm.weight",
        "norm1.bias": "self_attn_residual.norm.bias",
        "norm2.weight": "feed_forward_residual.norm.weight",
        "norm2.bias": "feed_forward_residual.norm.bias",
    }
    ours.load_state_dict({names.get(name, name): value for name, value in theirs.state_dict().items()})
    x_BSD = torch.randn(3, 5, 12, dtype=torch.float64)
    _, real_BS = ragged([5, 3, 1])
    want = theirs(x_BSD, src_key_padding_mask=~real_BS)  # with gradients on: torch's plain path, not its fused one
    got, _ = ours(x_BSD, padding_mask(real_BS, 5))
    torch.testing.assert_close(got, want, rtol=0, atol=EXACT)


@pytest.mark.parametrize("norm_first", [False, True])
def test_whole_encoder_decoder_is_torchs(norm_first: bool) -> None:
    ours = make(norm_first=norm_first, tgt_vocab_size=9)
    last = [nn.LayerNorm(8) if norm_first else None for _ in range(2)]
    sizes: dict[str, Any] = {"norm_first": norm_first, "batch_first": True}
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 12, **sizes), 2, last[0], enable_nested_tensor=False
    )
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 12, **sizes), 2, last[1])
    theirs = nn.Transformer(8, custom_encoder=encoder, custom_decoder=decoder, **sizes).eval().double()
    weights = ours.state_dict()
    state = {}
    for name in weights:
        value, renamed = weights[name], name.replace("feed_forward.", "").replace("in_proj.", "in_proj_")
        last_norm = "norm2" if name.startswith("encoder.") else "norm3"
        renamed = renamed.replace("self_attn_residual.norm", "norm1").replace("cross_attn_residual.norm", "norm2")
        renamed = renamed.replace("feed_forward_residual.norm", last_norm)
        if ".q_proj." in name:
            value = torch.cat([value, weights[name.replace("q_proj", "kv_proj")]])
        renamed = renamed.replace("cross_attn", "multihead_attn").replace("q_proj.", "in_proj_")
        if not any(part in name for part in ("embedding", "head", ".kv_proj.")):
            state[renamed] = value
    theirs.load_state_dict(state)
    src_BT, src_real_BT = ragged([6, 4])
    tgt_BS, _ = ragged([5, 5], 9)
    with torch.no_grad():
        hidden = theirs(
            ours.encoder.embedding(src_BT, torch.arange(6)[None]),
            ours.decoder.embedding(tgt_BS, torch.arange(5)[None]),
            tgt_mask=~causal_mask(torch.arange(5)[None], torch.arange(5))[0, 0],
            src_key_padding_mask=~src_real_BT,
            memory_key_padding_mask=~src_real_BT,
        )
        torch.testing.assert_close(ours(src_BT, tgt_BS, src_real_BT), ours.decoder.head(hidden), rtol=0, atol=EXACT)


@pytest.mark.parametrize("kind", ["encoder", "encoder-decoder"])
def test_padding_does_not_change_real_tokens(kind: str) -> None:
    model = make(kind=kind).float()
    src_BT, real_BT = ragged([7, 3])
    tgt = [torch.randint(0, 11, (2, 4))] if kind == "encoder-decoder" else []
    with torch.no_grad():
        padded = model(src_BT, *tgt, src_mask=real_BT)[1:]
        other = model(src_BT.where(real_BT, 5), *tgt, src_mask=real_BT)[1:]
        alone = model(src_BT[1:, :3], *(ids[1:] for ids in tgt))
    length = alone.size(1)
    torch.testing.assert_close(padded[:, :length], other[:, :length], rtol=0, atol=0)  # what pads hold is never read
    torch.testing.assert_close(padded[:, :length], alone, rtol=0, atol=SINGLE)


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_later_tokens_do_not_change_earlier_logits(kind: str) -> None:
    model = make(kind=kind)
    src_BT = torch.randint(0, 11, (1, 5))
    tgt_BS = torch.randint(0, 11, (1, 6))
    changed_BS = tgt_BS.clone()
    changed_BS[0, 4] = (tgt_BS[0, 4] + 1) % 11
    with torch.no_grad():
        before, after = (model(ids) if kind == "decoder" else model(src_BT, ids) for ids in (tgt_BS, changed_BS))
    assert torch.equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().amax(-1).min() > 1e-3  # and it does change every later one


@pytest.mark.parametrize("steps", [[1] * 6, [3, 1, 1, 1], [2, 4], [6]], ids=str)
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_cached_decoding_is_the_full_pass(kind: str, norm_first: bool, steps: list[int]) -> None:
    model = make(kind=kind, norm_first=norm_first).float()
    src_BT, src_real_BT = ragged([5, 2])
    tgt_BS, _ = ragged([6, 6])
    with torch.no_grad():
        cross = None
        if kind == "decoder":
            full = model(tgt_BS)
        else:
            full = model(src_BT, tgt_BS, src_real_BT)
            cross = model.decoder.project(model.encoder(src_BT, src_real_BT))
        parts, past, start = [], None, 0
        for step in steps:
            sight = None if cross is None else src_real_BT
            logits, past = model.decoder(tgt_BS[:, start : start + step], None, past, cross, sight)
            parts.append(logits)
            start += step
    assert past is not None
    assert past[0][0].shape == (2, 2, 6, 4)
    assert (torch.cat(parts, 1) - full).abs().max() <= SINGLE


def test_tied_embeddings_share_storage() -> None:
    both = make(tie_embeddings=True)
    assert both.decoder.head.weight is both.decoder.embedding.token.weight
    assert both.encoder.embedding.token.weight is both.decoder.embedding.token.weight
    assert both.decoder.head.bias is None
    target = make(tie_embeddings=True, tgt_vocab_size=9)
    assert target.decoder.head.weight is target.decoder.embedding.token.weight
    assert target.encoder.embedding.token.weight is not target.decoder.embedding.token.weight
    free = make()
    assert free.decoder.head.weight is not free.decoder.embedding.token.weight


def test_wholly_masked_row_stays_finite() -> None:
    model = make(kind="decoder").float()
    ids_BS = torch.randint(0, 11, (1, 4))
    with torch.no_grad():  # padding on the left leaves the first query nothing to attend to
        assert model(ids_BS, src_mask=torch.tensor([[0, 0, 1, 1]])).isfinite().all()


def test_encoder_decoder_asks_for_its_target() -> None:
    with pytest.raises(ValueError, match="an encoder-decoder needs tgt"):
        make()(torch.zeros(1, 2, dtype=torch.int64))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooling(pooling: str, normalize: bool) -> None:
    model = make(kind="encoder", pooling=pooling, normalize=normalize)
    hidden_BTD = torch.randn(3, 5, 8, dtype=torch.float64)
    _, real_BT = ragged([5, 2, 1])
    got = model.pool(hidden_BTD, real_BT).numpy()
    for row, length in enumerate([5, 2, 1]):
        hidden = hidden_BTD[row].numpy()
        want = hidden[0] if pooling == "cls" else hidden[:length].sum(0) / length
        want = want / np.sqrt((want**2).sum()) if normalize else want
        np.testing.assert_allclose(got[row], want, rtol=0, atol=EXACT)


def test_pooler_is_berts() -> None:
    model = make(kind="encoder", pooler=True)
    hidden_BTD = torch.randn(3, 5, 8, dtype=torch.float64)
    weight, bias = (model.state_dict()[f"pooler.{part}"].numpy() for part in ("weight", "bias"))
    want = np.tanh(hidden_BTD[:, 0].numpy() @ weight.T + bias)
    np.testing.assert_allclose(model.pooler_output(hidden_BTD).detach().numpy(), want, rtol=0, atol=EXACT)


@pytest.mark.parametrize("scale", [False, True])
def test_fresh_padding_row_is_zero(scale: bool) -> None:
    config = TransformerConfig(vocab_size=5, d_model=4, nhead=1, pad_token_id=2, scale_embeddings=scale)
    fresh = Transformer(config)
    for side in (fresh.encoder, fresh.decoder):
        assert side.embedding.token.weight.abs().sum(1).ne(0).tolist() == [True, True, False, True, True]
