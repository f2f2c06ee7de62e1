"""The Transformer of "Attention Is All You Need", its encoder-only and decoder-only forms, and what came after it.

Shapes: B batch, S target (or only) length, T source length, P past length, N heads, K key/value heads, H head size,
D model size, F feed-forward size, V vocabulary. Token ids are int64; masks are boolean, True means "real token".
"""

import functools
import inspect
from collections.abc import Sequence
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor, nn

from tfm.errors import ConfigError

from .attention import CrossAttention, KeyValue, causal_mask, last_tokens, padding_mask, window_mask
from .config import TransformerConfig
from .embedding import Embedding, NoEmbedding, PatchEmbedding
from .heads import LabelHead, MaskedLMHead
from .layer import Layer
from .norms import make_norm
from .pooling import POOLINGS, SentenceEmbedding
from .positions import Alibi, RelativeBias, Rotary

_MASKED = torch.finfo(torch.float32).min / 2
"""What a float mask holds where a token may not attend: finite, so that a row that may attend nowhere gives the mean of
all values in eager and ONNX alike; at the very least number onnxruntime would give zeros."""


class Stack(nn.Module):
    """What encoder and decoder share: layers, final norm, and how positions and masks enter the layers."""

    def __init__(self, config: TransformerConfig, *, depth: int, causal: bool) -> None:
        super().__init__()
        part: Literal["encoder", "decoder"] = "decoder" if causal else "encoder"
        cross = causal and config.has_encoder
        heads, sizes = config.layer_heads(part), config.layer_feedforward(part)
        cross_heads = config.layer_heads("cross") if cross else (None,) * depth
        self.layers = nn.ModuleList(
            Layer(config, cross=cross, heads=own, cross_heads=other, feed_forward=size, first=index == 0)
            for index, (own, other, size) in enumerate(zip(heads, cross_heads, sizes, strict=True))
        )
        # Modules of their own, so that each op has a name; parameters in common.
        if config.shared_layers:
            _share(self.layers)
        self.norm = make_norm(config) if config.has_final_norm else None
        self.window, self.slides = config.sliding_window, _among(config.sliding_layers, depth)
        if self.window is None:
            self.slides = [False] * depth
        self.rotary = Rotary(config) if config.positions == "rotary" else None
        # Of two bases each is computed once, and every layer takes the one that is its own.
        local = self.rotary is not None and config.local_rotary_base is not None
        self.local_rotary = Rotary(config, local=True) if local else None
        self.turns = _among(config.rotary_layers, depth)
        self.bias: RelativeBias | Alibi | None = None
        if config.positions == "relative":
            self.bias = RelativeBias(config, causal=causal)
        elif config.positions == "alibi":
            self.bias = Alibi(config.nhead)

    def run(
        self,
        x_BSD: Tensor,
        masks: Sequence[Tensor | None],
        position_ids: Tensor,
        past: Sequence[KeyValue] | None = None,
        cross: Sequence[KeyValue] | None = None,
        cross_mask: Tensor | None = None,
        cache_position_B: Tensor | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """Run all layers, each under its mask; positions (B or 1, S) turn queries and keys where they are rotary."""
        rotation = None if self.rotary is None else self.rotary(position_ids)
        local = rotation if self.local_rotary is None else self.local_rotary(position_ids)
        presents = []
        for index, (layer, mask) in enumerate(zip(self.layers, masks, strict=True)):
            turn = (local if self.slides[index] else rotation) if self.turns[index] else None
            layer_past = None if past is None else past[index]
            layer_cross = None if cross is None else cross[index]
            x_BSD, present = layer(x_BSD, mask, turn, layer_past, layer_cross, cross_mask, cache_position_B)
            presents.append(present)
        return x_BSD if self.norm is None else self.norm(x_BSD), presents

    def biased(self, mask: Tensor | None, query_BS: Tensor, key_T: Tensor) -> Tensor | None:
        """Put the bias of relative or ALiBi positions, if there is one, into the mask: float, added to the scores."""
        if self.bias is None:
            return mask
        # Attention takes one mask: what may be attended to goes into the bias, as numbers.
        bias_BNST = self.bias(query_BS, key_T)
        return bias_BNST if mask is None else bias_BNST.masked_fill(~mask, _MASKED)


class Encoder(Stack):
    """Embedding of tokens or patches, and a stack of layers."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config, depth=config.num_encoder_layers, causal=False)
        self.causal = config.causal
        patches = config.image_size is not None
        self.embedding: Embedding | PatchEmbedding | NoEmbedding
        self.embedding = (
            PatchEmbedding(config, config.image_size or 0) if patches else _embedding(config, config.vocab_size)
        )

    def forward(self, ids_BT: Tensor, mask_BT: Tensor | None = None, token_type_ids_BT: Tensor | None = None) -> Tensor:
        """Token ids (B, T), vectors (B, T, D) or pixels (B, C, height, width) to states (B, T, D)."""
        if isinstance(self.embedding, PatchEmbedding):
            x_BTD = self.embedding(ids_BT)
            # T is the patches and the class token, known only behind the embedding.
            place_T = torch.arange(x_BTD.size(1), device=ids_BT.device)
        else:
            place_T = torch.arange(ids_BT.size(1), device=ids_BT.device)
            segments = () if token_type_ids_BT is None else (token_type_ids_BT,)
            x_BTD = self.embedding(ids_BT, place_T[None], *segments)
        padding = None if mask_BT is None else padding_mask(mask_BT, x_BTD.size(1))
        seen = {slides: self._mask(padding, place_T, slides=slides) for slides in dict.fromkeys(self.slides)}
        return self.run(x_BTD, [seen[slides] for slides in self.slides], place_T[None])[0]

    def _mask(self, padding: Tensor | None, place_T: Tensor, *, slides: bool) -> Tensor | None:
        """Give what tokens may see in the layers that slide, or in the others; None where that is all."""
        # Float masks of relative positions are made last, of all that may be seen.
        window = self.window if slides else None
        if self.causal:
            seen = causal_mask(place_T[None], place_T, window)
        elif window is not None:
            seen = window_mask(place_T[None], place_T, window)
        else:
            return self.biased(padding, place_T[None], place_T)
        # A row of padding may have none left that it sees: itself, so that no row of scores is empty.
        if padding is not None:
            seen = seen & (padding | (place_T == place_T[:, None]))
        return self.biased(seen, place_T[None], place_T)


class Decoder(Stack):
    """Embedding, a stack of layers and the output projection."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config, depth=config.num_decoder_layers, causal=True)
        self.embedding = _embedding(config, config.target_vocab_size)
        self.head: nn.Linear | None = None
        if not config.reads_vectors:
            self.head = nn.Linear(config.d_model, config.target_vocab_size, bias=config.has_head_bias)
        if config.tie_embeddings and self.head is not None:
            # One Parameter under two names: it is read, saved and exported once.
            self.head.weight = cast(Embedding, self.embedding).token.weight
        self.logit_scale, self.logit_softcap = config.logit_scale, config.logit_softcap

    def project(self, memory_BTD: Tensor) -> list[KeyValue]:
        """Compute each layer's cross-attention keys and values, once per source."""
        return [cast(CrossAttention, cast(Layer, layer).cross_attn).project(memory_BTD) for layer in self.layers]

    def forward(
        self,
        ids_BS: Tensor,
        mask_BT: Tensor | None = None,
        past: Sequence[KeyValue] | None = None,
        cross: Sequence[KeyValue] | None = None,
        cross_mask_BT: Tensor | None = None,
        position_ids_BS: Tensor | None = None,
        cache_position_B: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> tuple[Tensor, list[KeyValue]]:
        """Compute the logits of the next token after each of S tokens that follow P cached ones.

        Args:
            ids_BS: Token ids (B, S), or vectors (B, S, D) where config.reads_vectors.
            mask_BT: Which of all P + S tokens are real, (B, P + S), or None for all.
            past: Per layer the keys and values (B, K, P, H) of the tokens before, or None; with mask_BT, which then
                tells P, they may have room for more.
            cross: Per layer the keys and values (B, K, T, H) of the source, from `project`, or None.
            cross_mask_BT: Which source tokens are real, (B, T), or None for all.
            position_ids_BS: Positions of the new tokens, (B, S), for rows padded on the left; None: their places.
            cache_position_B: How many tokens each row has in the cache, int64 (B,), where `past` has a fixed length
                that the new ones fit into; they come after those, and rows may be padded on the right. None: P.
            wanted: After which of the S tokens logits are wanted: indices into each row, int64 (B, P); or how many, the
                last ones, an int64 scalar, of which 0 is all of them. None: all.

        Returns:
            Logits (B, S, V), or of the tokens that are wanted, or as many last states of size D where
            config.reads_vectors, and per layer the keys and values of all P + S tokens, or the whole cache.
        """
        # Places in the cache decide what a token sees. Its position may be another: that of rows
        # padded on the left counts from their first real token.
        new = ids_BS.size(1)
        past_length = 0 if past is None else past[0][0].size(2)
        new_S = torch.arange(new, device=ids_BS.device)
        if cache_position_B is not None:
            # The cache has T keys, however many are filled: the causal mask hides those that come
            # after.
            query_BS, length = new_S + cache_position_B[:, None], past_length
        else:
            length = past_length + new if past is None or mask_BT is None else mask_BT.size(1)
            query_BS = new_S[None] + (length - new)
        grows = past is not None and cache_position_B is None
        key_T = torch.arange(length, device=ids_BS.device)
        real = None
        # Padding sees itself alone, so that no row of scores is empty.
        if mask_BT is not None:
            real = padding_mask(mask_BT, new) | (key_T == query_BS[:, :, None])[:, None]
        # Two masks at most, for layers that slide and for those that do not, whatever the depth.
        seen: dict[bool, Tensor | None] = {}
        for slides in dict.fromkeys(self.slides):
            # An attention over a cache that grows is causal by itself.
            mask = None if grows and not slides else causal_mask(query_BS, key_T, self.window if slides else None)
            both = [part for part in (mask, real) if part is not None]
            seen[slides] = self.biased(functools.reduce(torch.bitwise_and, both) if both else None, query_BS, key_T)
        cross_mask = None if cross_mask_BT is None else padding_mask(cross_mask_BT, new)
        position_ids = query_BS if position_ids_BS is None else position_ids_BS
        x_BSD = self.embedding(ids_BS, position_ids)
        masks = [seen[slides] for slides in self.slides]
        x_BSD, presents = self.run(x_BSD, masks, position_ids, past, cross, cross_mask, cache_position_B)
        # The head is a fifth of a small model: of a prompt, its last token does.
        if wanted is not None:
            indices = wanted[:, :, None].expand(-1, -1, x_BSD.size(-1)) if wanted.dim() else None
            x_BSD = last_tokens(x_BSD, wanted) if indices is None else x_BSD.gather(1, indices)
        if self.head is None:
            return x_BSD, presents
        logits_BSV = self.head(x_BSD if self.logit_scale == 1.0 else x_BSD * self.logit_scale)
        if self.logit_softcap is not None:
            logits_BSV = torch.tanh(logits_BSV / self.logit_softcap) * self.logit_softcap
        return logits_BSV, presents


def _among(layers: Sequence[int] | None, depth: int) -> list[bool]:
    """Tell of each layer whether it is one of these; None: all are."""
    return [layers is None or layer in layers for layer in range(depth)]


def _share(layers: nn.ModuleList) -> None:
    """Give all layers the first one's parameters: each is saved and exported once, though modules have names apart."""
    for layer in layers[1:]:
        for name, parameter in layers[0].named_parameters():
            owner, _, leaf = name.rpartition(".")
            setattr(layer.get_submodule(owner), leaf, parameter)


def _embedding(config: TransformerConfig, vocab_size: int) -> Embedding | NoEmbedding:
    return NoEmbedding() if config.reads_vectors else Embedding(config, vocab_size)


def _one_config(*args: Any, **kwargs: Any) -> TransformerConfig:
    """The configuration that is given, or that the textbook's terms stand for."""
    # Exactly one argument, a configuration, or the textbook's terms: nothing of both.
    given = [*args, *kwargs.values()]
    if len(given) == 1 and isinstance(given[0], TransformerConfig) and (args or "config" in kwargs):
        return given[0]
    try:
        if any(isinstance(value, TransformerConfig) for value in given):
            raise TypeError("a configuration stands alone")
        terms = inspect.signature(TransformerConfig.from_terms).bind(*args, **kwargs)
    except TypeError as error:
        raise ConfigError(
            "make a Transformer of a TransformerConfig, Transformer(config), or of the terms "
            f"Transformer(ntoken, nhead, nhid, num_layers, dropout=0.1): {error}"
        ) from error
    return TransformerConfig.from_terms(*terms.args, **terms.kwargs)


class Transformer(nn.Module):
    """An encoder-decoder, an encoder or a decoder, as its configuration says.

    Made of a configuration, `Transformer(config)`, or of the textbook's terms, `Transformer(ntoken, nhead, nhid,
    num_layers, dropout)`, which `TransformerConfig.from_terms` explains. What is neither raises ConfigError.

    Attributes:
        config: The `TransformerConfig` it was made from.
        encoder: `Encoder`, unless kind is "decoder".
        decoder: `Decoder`, unless kind is "encoder".
        pooler: Linear (D, D) under the tanh of BERT's pooled output, where config.pooler.
        head: `LabelHead` or `MaskedLMHead`, where config.head.
    """

    @overload
    def __init__(self, config: TransformerConfig) -> None: ...

    @overload
    def __init__(self, ntoken: int, nhead: int, nhid: int, num_layers: int, dropout: float = 0.1) -> None: ...

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        config = _one_config(*args, **kwargs)
        self.config = config
        if config.has_encoder:
            self.encoder = Encoder(config)
        if config.has_decoder:
            self.decoder = Decoder(config)
        # With one vocabulary for both sides all three tables are one.
        if config.kind == "encoder-decoder" and config.tie_embeddings and config.tgt_vocab_size is None:
            shared = cast(Embedding, self.decoder.embedding)
            cast(Embedding, self.encoder.embedding).token.weight = shared.token.weight
        if config.pooler:
            self.pooler = nn.Linear(config.d_model, config.d_model)
            self.pooler_activation = nn.Tanh()
        # Mean pooling by itself has no weights, and any encoder can be asked for it.
        if config.has_encoder:
            self.embed = SentenceEmbedding(config)
        if config.head == "masked-lm":
            self.head: LabelHead | MaskedLMHead = MaskedLMHead(config)
            if config.tie_embeddings:
                self.head.output.weight = cast(Embedding, self.encoder.embedding).token.weight
        elif config.head is not None:
            self.head = LabelHead(config)

    def forward(
        self,
        src: Tensor,
        tgt: Tensor | None = None,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Run the whole model, uncached.

        Args:
            src: Token ids, (B, T); of the only side for an encoder or a decoder. Pixels (B, C, height, width) for ViT.
            tgt: Target token ids, (B, S), for an encoder-decoder; decoding is always causal.
            src_mask: Which source tokens are real, (B, T), boolean or 0/1; None: all.
            tgt_mask: Which target tokens are real, (B, S), boolean or 0/1; None: all.
            token_type_ids: Segment ids, (B, T), where type_vocab_size; None: zeros.

        Returns:
            Encoder: last hidden state (B, T, D). Decoder, encoder-decoder: logits (B, S, V).

        Raises:
            ValueError: An encoder-decoder got no tgt.
        """
        if self.config.kind == "encoder":
            return self.encoder(src, src_mask, token_type_ids)
        if self.config.kind == "decoder":
            return self.decoder(src, src_mask)[0]
        if tgt is None:
            raise ValueError("an encoder-decoder needs tgt, the target token ids (B, S)")
        cross = self.decoder.project(self.encoder(src, src_mask))
        return self.decoder(tgt, tgt_mask, cross=cross, cross_mask_BT=src_mask)[0]

    def pool(self, hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Make one sentence embedding of token states, as sentence-transformers does: (B, D), or of another size."""
        return self.embed(hidden_BTD, mask_BT)

    def pooler_output(self, hidden_BTD: Tensor) -> Tensor:
        """Compute BERT's pooled output (B, D): tanh of a linear layer on the first token."""
        return self.pooler_activation(self.pooler(hidden_BTD[:, 0]))

    def predict(self, hidden_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Compute the head's logits: (B, labels) for a sequence, (B, T, labels) or (B, T, V) for tokens.

        Of question answering they are (B, T, 2): whether an answer starts there, and whether it ends.

        Args:
            hidden_BTD: Last state (B, T, D).
            mask_BT: Which tokens are real, (B, T), where config.head_pooling is "mean"; None: all.
        """
        if self.config.head != "sequence":
            return self.head(hidden_BTD)
        # The first token's state is what most heads are trained on.
        if self.config.head_pooling == "cls":
            return self.head(hidden_BTD[:, 0])
        mask_BT = hidden_BTD.new_ones(hidden_BTD.shape[:2]) if mask_BT is None else mask_BT
        return self.head(POOLINGS["mean"](hidden_BTD, mask_BT))
