"""The configuration of a Transformer: one frozen dataclass, saved as JSON, that cannot contradict itself."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

from tfm.errors import ConfigError
from tfm.ops import is_gated

from .activations import check_activation
from .fields import MOST_LAYERS, MOST_SIZE, MOST_TOKENS, shown

Kind = Literal["encoder", "decoder", "encoder-decoder"]
Positions = Literal["sinusoidal", "learned", "rotary", "relative", "alibi", "none"]
Norm = Literal["layer", "rms"]
Residuals = Literal["identity", "projected"]
Pooling = Literal["mean", "cls", "max", "mean_sqrt_len", "weightedmean", "lasttoken"]
Head = Literal["masked-lm", "sequence", "token", "question-answering"]
NormSpan = Literal["head", "all"]
Scaling = Literal["linear", "dynamic", "yarn", "llama3", "longrope"]
Part = Literal["encoder", "decoder", "cross"]

_MOST = {
    "vocab_size": MOST_TOKENS,
    "tgt_vocab_size": MOST_TOKENS,
    "sliding_window": MOST_TOKENS,
    "nhead": 1 << 16,
    "num_kv_heads": 1 << 16,
    "head_dim": 1 << 16,
    "num_encoder_layers": MOST_LAYERS,
    "num_decoder_layers": MOST_LAYERS,
    "relative_buckets": 1 << 16,
    "image_size": 1 << 16,
    "patch_size": 1 << 12,
    "num_channels": 1 << 12,
}
"""Field → its greatest value, where it is not MOST_SIZE: no matrix of such sizes has more bytes than 64 bits count."""

_MOST_NUMBERS = {
    "layer_norm_eps": 1.0,
    "rotary_base": 1e18,
    "attention_scale": 1e6,
    "attention_softcap": 1e9,
    "embedding_scale": 1e6,
    "residual_scale": 1e6,
    "local_rotary_base": 1e18,
    "logit_scale": 1e6,
    "logit_softcap": 1e9,
}
"""Numbers that must be positive → the greatest that float32 computes with to any purpose."""

_LEAST_NUMBER = 1e-30
"""Of them: what is smaller is zero to float32, or near it."""

_MOST_FACTOR = 1_000_000
"""Of rotary scaling: how many times longer, or any other of its factors."""

_LARGEST_TABLE = 1 << 25
"""Entries of a table of positions that is computed, not read: 128 MiB."""

_PER_LAYER: dict[str, tuple[Part, Literal["nhead", "dim_feedforward"]]] = {
    "encoder_heads": ("encoder", "nhead"),
    "decoder_heads": ("decoder", "nhead"),
    "cross_heads": ("cross", "nhead"),
    "encoder_feedforward": ("encoder", "dim_feedforward"),
    "decoder_feedforward": ("decoder", "dim_feedforward"),
}
"""Fields with a number for each layer → of what, and up to which other field."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotaryScaling:
    """How rotary positions are stretched beyond the length a model was trained at; names follow the papers.

    Attributes:
        kind: "linear", "dynamic" (NTK-aware), "yarn", "llama3" or "longrope".
        factor: How many times longer.
        original_max_positions: The trained length, in tokens.
        low_frequency_factor: llama3: wavelengths above trained length / this are stretched in full.
        high_frequency_factor: llama3: wavelengths below trained length / this are left alone.
        beta_fast: yarn: pairs that turn more often than this over the trained length are left alone.
        beta_slow: yarn: pairs that turn less often are stretched in full.
        attention_factor: yarn, longrope: factor on cosines and sines; None: 0.1 ln(factor) + 1, and of longrope
            √(1 + ln(factor) / ln(trained length)).
        short_factors: longrope: how much slower each pair turns up to the trained length.
        long_factors: longrope: the same once the longest sequence is longer.
    """

    kind: Scaling
    factor: float
    original_max_positions: int
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    short_factors: tuple[float, ...] | None = None
    long_factors: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse what is mistyped."""
        _check_types(self)
        if not (1.0 <= self.factor <= _MOST_FACTOR and 1 <= self.original_max_positions <= MOST_SIZE):
            raise ConfigError(
                f"rotary scaling needs a factor from 1 to {_MOST_FACTOR} and a length from 1 to {MOST_SIZE}, but has "
                f"{shown(self.factor)} and {shown(self.original_max_positions)}"
            )
        for name in ("low_frequency_factor", "high_frequency_factor", "beta_fast", "beta_slow", "attention_factor"):
            value = getattr(self, name)
            if value is not None and not _LEAST_NUMBER <= value <= _MOST_FACTOR:
                raise ConfigError(f"rotary scaling needs a {name} up to {_MOST_FACTOR}, but has {shown(value)}")
        self._check_factors()
        if self.kind == "llama3" and not self.low_frequency_factor < self.high_frequency_factor:
            raise ConfigError(
                "rotary scaling 'llama3' needs a low_frequency_factor below its high_frequency_factor, but they are "
                f"{self.low_frequency_factor} and {self.high_frequency_factor}"
            )

    def _check_factors(self) -> None:
        # One factor a pair; how many pairs there are, only the model's configuration knows.
        for name in ("short_factors", "long_factors"):
            factors = getattr(self, name)
            if (factors is None) != (self.kind != "longrope"):
                raise ConfigError(f"rotary scaling 'longrope', and no other, has {name}, but kind is {self.kind!r}")
            if not all(_LEAST_NUMBER <= factor <= _MOST_FACTOR for factor in factors or ()):
                raise ConfigError(f"rotary scaling needs {name} that are positive and up to {_MOST_FACTOR}")
        if self.kind == "longrope" and self.original_max_positions < 2:
            raise ConfigError("rotary scaling 'longrope' needs an original_max_positions of at least 2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes and options of a `Transformer`; names are those of torch.nn.Transformer or Hugging Face.

    The defaults are the base model of "Attention Is All You Need" (Vaswani et al. 2017, table 3).

    Attributes:
        kind: Which halves there are: "encoder", "decoder" (causal LM) or "encoder-decoder".
        vocab_size: Size V of the vocabulary of the source (or of the only) side; 0: the model reads vectors of size D
            in place of tokens, which no table of positions is added to, and gives its last state in place of logits.
        tgt_vocab_size: The target side's V; None: the same vocabulary as the source.
        d_model: Model size D.
        nhead: Number of heads N.
        num_kv_heads: Number of key/value heads K, a divisor of N; None: N.
        head_dim: Head size H; None: D / N.
        num_encoder_layers: Depth of the encoder; unused by a decoder.
        num_decoder_layers: Depth of the decoder; unused by an encoder.
        dim_feedforward: Feed-forward size F; a gated activation projects to 2F first.
        encoder_heads: Heads of each encoder layer, at most N; None: N in each. With key/value heads in common, each
            layer has as many queries per key/value head as N / K says. Not for relative or ALiBi positions.
        decoder_heads: The same of the decoder's attention over itself.
        cross_heads: The same of its attention over the encoder's states.
        encoder_feedforward: Feed-forward size of each encoder layer, at most F; None: F in each.
        decoder_feedforward: The same of the decoder.
        dropout: Probability of dropping, in training only.
        activation: A name of `tfm.ops.ACTIVATIONS` or `tfm.ops.GATED`.
        norm: "layer" or "rms".
        norm_first: Norm before each sub-layer (and after the last layer) instead of after each.
        sandwich_norm: With norm_first, a norm on each sub-layer's result too (Gemma 2).
        input_norm: With sandwich_norm, the norm on what each sub-layer reads; without it, its result alone has one
            (OLMo 2).
        first_norm: With norm_first, the norm before the first layer's attention; without it, that reads the embeddings
            as they are (ModernBERT).
        parallel_blocks: With norm_first, attention and feed-forward both read the same input (GPT-J).
        parallel_norms: With parallel_blocks, each has a norm of its own on it (GPT-NeoX), instead of one for both.
        final_norm: A norm after the last layer; None: as norm_first.
        residual: "identity", x + F(x), or "projected", act(Wx + b + F(x)) with a W and b of each sub-layer's own.
        residual_activation: That act, a name of `tfm.ops.ACTIVATIONS`; None: relu.
        residual_scale: Factor on each sub-layer's result before it is added (Granite).
        shared_layers: All layers of a half are one, run as often as there are layers (ALBERT).
        layer_norm_eps: ε of every norm.
        norm_bias: Layer norms have a bias.
        qkv_bias: The projections to queries, keys and values have biases.
        out_bias: The attention's output projection has a bias.
        feed_forward_bias: The feed-forward's projections have biases.
        qk_norm: RMS norm on queries and keys, before they turn (Qwen 3).
        qk_norm_span: What that is over: each "head" by itself, or "all" of them (OLMo 2).
        attention_scale: Factor on QKᵀ; None: 1/√H.
        attention_softcap: c of scores c · tanh(s / c) (Gemma 2); None for none.
        causal: Tokens of an encoder see earlier ones only, as a decoder's do: what is left of a decoder without its
            output projection, whose last state is wanted (Qwen 3 Embedding).
        sliding_window: A token sees this many of the last, itself included, in the layers of `sliding_layers`; in an
            encoder that is not causal as many to either side.
        sliding_layers: Numbers of the layers that slide; None: all.
        positions: "sinusoidal" (fixed), "learned", "rotary", "relative" (T5), "alibi" or "none".
        position_table: Learned positions besides relative ones (MPNet).
        max_positions: Longest sequence, in tokens.
        position_noise: Standard deviation of the noise on sinusoidal positions, in training only.
        count_tokens: An encoder's learned positions count the tokens that are not pad_token_id, from 1 on (RoBERTa);
            position 0, a row more of the table, is that of padding.
        rotary_base: θ of rotary positions.
        local_rotary_base: θ in the layers that slide, which rotary_scaling leaves alone (Gemma 3); None: as in all.
        rotary_layers: Numbers of the layers in which queries and keys turn (SmolLM 3); None: all.
        rotary_dim: How many of a head's H entries turn; None: all.
        rotary_scaling: Stretching of rotary positions, or None.
        relative_buckets: Number of T5's buckets of distance.
        relative_max_distance: Distance from which on all share the last bucket.
        scale_embeddings: Multiply token embeddings by √D, as the paper does.
        embedding_scale: Another factor on token embeddings (Granite); None: what scale_embeddings says.
        embedding_size: Size of the embeddings, projected to D where it differs (ELECTRA); None: D.
        tie_embeddings: The output projection is the target embedding; with one vocabulary, the source's too.
        head_bias: The output projection has a bias; None: where it is not tied.
        logit_scale: Factor on the decoder's last state before the output projection (T5).
        logit_softcap: c of logits c · tanh(z / c) (Gemma 2); None for none.
        type_vocab_size: Number of segment embeddings (BERT's token types); 0 for none.
        embedding_norm: Norm on the sum of the embeddings (BERT, BART).
        image_size: Side of the image in pixels, where an encoder reads images (ViT); None: it reads tokens.
        patch_size: Side of a patch in pixels.
        num_channels: Number of the image's channels.
        pooler: A tanh layer on the first token (BERT's `pooler_output`).
        pooling: Sentence embedding as sentence-transformers pools it, one of `POOLINGS`, or several, one beside the
            other; None for none.
        dense_sizes: Sizes of the linear layers that the pooled embedding goes through; None: it does not.
        dense_activation: After each of them, a name of `tfm.ops.ACTIVATIONS`; None for none.
        dense_bias: They have biases.
        normalize: Scale the sentence embedding to unit length.
        head: What an encoder predicts: "masked-lm", "sequence" or "token" labels, or, for "question-answering", whether
            an answer starts and whether it ends at a token; None: nothing.
        head_activation: Activation between the two layers of a head, a name of `tfm.ops.ACTIVATIONS`; None: a head of
            labels is one layer, and masked-lm takes `activation`'s, or that of its gate.
        head_norm: A norm behind that activation of a head of labels (ModernBERT).
        head_hidden_bias: The first of a head's two layers has a bias.
        head_pooling: The state that a "sequence" head reads: the first token's, "cls", or the "mean" of all.
        labels: Names of the labels of a "sequence" or "token" head, in the order of its logits.
        pad_token_id: Padding id; its embedding row is zero in a fresh model.
        bos_token_id: Id that starts a generated sequence.
        eos_token_id: Id that ends it.
    """

    kind: Kind = "encoder-decoder"
    vocab_size: int
    tgt_vocab_size: int | None = None
    d_model: int = 512
    nhead: int = 8
    num_kv_heads: int | None = None
    head_dim: int | None = None
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    dim_feedforward: int = 2048
    encoder_heads: tuple[int, ...] | None = None
    decoder_heads: tuple[int, ...] | None = None
    cross_heads: tuple[int, ...] | None = None
    encoder_feedforward: tuple[int, ...] | None = None
    decoder_feedforward: tuple[int, ...] | None = None
    dropout: float = 0.1
    activation: str = "relu"
    norm: Norm = "layer"
    norm_first: bool = False
    sandwich_norm: bool = False
    input_norm: bool = True
    first_norm: bool = True
    parallel_blocks: bool = False
    parallel_norms: bool = False
    final_norm: bool | None = None
    residual: Residuals = "identity"
    residual_activation: str | None = None
    residual_scale: float = 1.0
    shared_layers: bool = False
    layer_norm_eps: float = 1e-5
    norm_bias: bool = True
    qkv_bias: bool = True
    out_bias: bool = True
    feed_forward_bias: bool = True
    qk_norm: bool = False
    qk_norm_span: NormSpan = "head"
    attention_scale: float | None = None
    attention_softcap: float | None = None
    causal: bool = False
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] | None = None
    positions: Positions = "sinusoidal"
    position_table: bool = False
    max_positions: int = 512
    position_noise: float = 0.0
    count_tokens: bool = False
    rotary_base: float = 10000.0
    local_rotary_base: float | None = None
    rotary_layers: tuple[int, ...] | None = None
    rotary_dim: int | None = None
    rotary_scaling: RotaryScaling | None = None
    relative_buckets: int = 32
    relative_max_distance: int = 128
    scale_embeddings: bool = True
    embedding_scale: float | None = None
    embedding_size: int | None = None
    tie_embeddings: bool = False
    head_bias: bool | None = None
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    type_vocab_size: int = 0
    embedding_norm: bool = False
    image_size: int | None = None
    patch_size: int = 16
    num_channels: int = 3
    pooler: bool = False
    pooling: Pooling | tuple[str, ...] | None = None
    dense_sizes: tuple[int, ...] | None = None
    dense_activation: str | None = "tanh"
    dense_bias: bool = True
    normalize: bool = False
    head: Head | None = None
    head_activation: str | None = None
    head_norm: bool = False
    head_hidden_bias: bool = True
    head_pooling: Literal["cls", "mean"] = "cls"
    labels: tuple[str, ...] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is mistyped or contradicts itself."""
        _check_types(self)
        # In this order: sizes are computed with once they are known to be positive integers.
        self._check_sizes()
        self._check_numbers()
        self._check_layers()
        self._check_positions()
        self._check_reads()
        self._check_blocks()
        self._check_kind()
        self._check_outputs()
        self._check_activations()
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            # One id serves both sides.
            token, size = getattr(self, name), min(self.vocab_size, self.target_vocab_size)
            if token is not None and not 0 <= token < size:
                raise ConfigError(f"{name} must be in [0, {size}), but is {shown(token)}")

    def _counted(self) -> Iterator[str]:
        """Names of the fields that must be at least 1."""
        # 0 stands for vectors, to which no table of positions is added. With a table it is a
        # mistake.
        if not self.reads_vectors or self.positions in ("sinusoidal", "learned"):
            yield "vocab_size"
        yield from ("d_model", "nhead", "dim_feedforward", "max_positions", "patch_size", "num_channels")
        yield from ("relative_buckets", "relative_max_distance")
        if self.has_encoder:
            yield "num_encoder_layers"
        if self.has_decoder:
            yield "num_decoder_layers"
        options = ("tgt_vocab_size", "num_kv_heads", "head_dim", "sliding_window", "rotary_dim", "embedding_size")
        yield from (name for name in (*options, "image_size") if getattr(self, name) is not None)

    def _check_sizes(self) -> None:
        sizes = list(self._counted())
        for name in sizes:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, but is {shown(getattr(self, name))}")
        for name in [*sizes, "vocab_size", "type_vocab_size"]:
            if getattr(self, name) > (most := _MOST.get(name, MOST_SIZE)):
                raise ConfigError(f"{name} must be at most {most}, but is {shown(getattr(self, name))}")
        if self.head_dim is None and self.d_model % self.nhead:
            raise ConfigError(
                f"d_model must be a multiple of nhead, but {self.d_model} % {self.nhead} is {self.d_model % self.nhead}"
            )
        if self.nhead % self.kv_heads:
            raise ConfigError(
                f"nhead must be a multiple of num_kv_heads, but they are {self.nhead} and {self.kv_heads}"
            )
        if self.image_size is not None and self.image_size % self.patch_size:
            raise ConfigError(
                f"image_size must be a multiple of patch_size, but they are {self.image_size} and {self.patch_size}"
            )

    def _check_numbers(self) -> None:
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout must be in [0, 1), but is {shown(self.dropout)}")
        for name, most_number in _MOST_NUMBERS.items():
            value = getattr(self, name)
            # `not >=` refuses NaN, which `<` would let through.
            if value is not None and not value >= _LEAST_NUMBER:
                raise ConfigError(f"{name} must be positive, but is {shown(value)}")
            if value is not None and value > most_number:
                raise ConfigError(f"{name} must be at most {most_number:g}, but is {shown(value)}")
        if self.type_vocab_size < 0 or self.vocab_size < 0:
            name = "vocab_size" if self.vocab_size < 0 else "type_vocab_size"
            raise ConfigError(f"{name} must not be negative, but is {shown(getattr(self, name))}")

    def _check_layers(self) -> None:
        for name, (part, limit) in _PER_LAYER.items():
            counts = getattr(self, name)
            if counts is None:
                continue
            sides = {"encoder": self.has_encoder, "decoder": self.has_decoder}
            if not sides.get(part, self.kind == "encoder-decoder"):
                raise ConfigError(f"{name} is for a model with what it counts, but kind is {self.kind!r}")
            depth = self.num_encoder_layers if part == "encoder" else self.num_decoder_layers
            if len(counts) != depth:
                raise ConfigError(f"{name} needs one number for each of {depth} layers, but has {len(counts)}")
            self._check_counts(name, counts, limit)
            if name in ("encoder_heads", "decoder_heads") and self.positions in ("relative", "alibi"):
                raise ConfigError(f"{name} does not go with {self.positions} positions: all layers share their heads")

    def _check_counts(self, name: str, counts: Sequence[int], limit: str) -> None:
        most = getattr(self, limit)
        # Queries that share a key/value head can only be left out together with it.
        group = self.nhead // self.kv_heads if limit == "nhead" else 1
        for count in counts:
            if not 1 <= count <= most:
                raise ConfigError(f"{name} must be in [1, {most}], up to {limit}, but has {shown(count)}")
            if count % group:
                raise ConfigError(
                    f"{name} must be multiples of the {group} heads that share a key/value head, but has {count}"
                )

    def _check_positions(self) -> None:
        self._check_counted()
        self._check_sinusoidal()
        self._check_rotary()
        self._check_distances()
        if self.image_size is not None and self.positions != "learned":
            raise ConfigError(f"patches have learned positions, but positions are {self.positions!r}")
        # `softcapped_attention` takes boolean masks, and these positions are added to the scores.
        if self.attention_softcap is not None and self.positions in ("relative", "alibi"):
            raise ConfigError(f"attention_softcap does not go with {self.positions} positions")
        if self.position_table and self.positions != "relative":
            raise ConfigError(f"position_table goes with relative positions, but positions are {self.positions!r}")
        self._check_layer_numbers()

    def _check_layer_numbers(self) -> None:
        if self.sliding_layers is not None and self.sliding_window is None:
            raise ConfigError("sliding_layers says which layers slide, but sliding_window is None: none does")
        # An encoder-decoder's windows are the decoder's: its encoder sees all of the source.
        depth = self.num_encoder_layers if self.kind == "encoder" else self.num_decoder_layers
        for name in ("sliding_layers", "rotary_layers"):
            for layer in getattr(self, name) or ():
                if not 0 <= layer < depth:
                    raise ConfigError(f"{name} must be in [0, {depth}), but has {shown(layer)}")

    def _check_counted(self) -> None:
        has_table = self.positions == "learned" or self.position_table
        if self.count_tokens and (self.kind != "encoder" or not has_table or self.pad_token_id is None):
            raise ConfigError("count_tokens is for an encoder with learned positions and a pad_token_id")
        if self.count_tokens and (self.image_size is not None or self.reads_vectors):
            raise ConfigError("count_tokens counts tokens, which a model of images or vectors does not read")

    def _check_sinusoidal(self) -> None:
        name = "d_model" if self.embedding_size is None else "embedding_size"
        width = getattr(self, name)
        if self.positions == "sinusoidal":
            if width % 2:
                raise ConfigError(f"sinusoidal positions pair sines with cosines: {name} must be even, but is {width}")
            check_table(self.max_positions, width)
        if not 0.0 <= self.position_noise <= _MOST_NUMBERS["logit_scale"]:
            raise ConfigError(f"position_noise must be at least 0 and finite, but is {shown(self.position_noise)}")
        if self.position_noise and self.positions != "sinusoidal":
            raise ConfigError(f"position_noise is for sinusoidal positions, but positions are {self.positions!r}")

    def _check_rotary(self) -> None:
        if self.positions != "rotary":
            # Said, and of no effect: the mistake is in either of the two.
            for name in ("rotary_scaling", "rotary_layers", "local_rotary_base"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"{name} is for rotary positions, but positions are {self.positions!r}")
            return
        if self.local_rotary_base is not None and self.sliding_window is None:
            raise ConfigError("local_rotary_base is for layers that slide, but sliding_window is None: none does")
        if self.rotary_size % 2 or self.rotary_size > self.head_size:
            raise ConfigError(
                f"rotary positions pair entries of a head: {self.rotary_size} of {self.head_size} cannot be turned"
            )
        self._check_scaling()

    def _check_scaling(self) -> None:
        for name in ("rotary_base", "local_rotary_base"):
            if (base := getattr(self, name)) is not None and base <= 1.0:
                raise ConfigError(f"{name} must be above 1, but is {base}")
        scaling = self.rotary_scaling
        if scaling is None:
            return
        # Its base has the exponent size / (size - 2).
        if scaling.kind == "dynamic" and self.rotary_size < 4:
            raise ConfigError(f"dynamic rotary scaling needs heads of at least 4 entries, but {self.rotary_size} turn")
        for factors in (scaling.short_factors, scaling.long_factors):
            if factors is not None and len(factors) != self.rotary_size // 2:
                raise ConfigError(
                    f"rotary scaling 'longrope' needs a factor for each of {self.rotary_size // 2} pairs, but has "
                    f"{len(factors)}"
                )

    def _check_distances(self) -> None:
        if self.positions != "relative":
            return
        # `RelativeBias` divides by ln(max_distance / near), where `near` is a quarter or a half.
        # An encoder has other buckets for what comes after.
        shares = [4] * self.has_encoder + [2] * self.has_decoder
        if self.relative_buckets < max(shares) or self.relative_max_distance <= self.relative_buckets // min(shares):
            raise ConfigError(
                f"relative positions need at least {max(shares)} relative_buckets and a relative_max_distance above "
                f"{self.relative_buckets // min(shares)}, that of buckets of their own, but have "
                f"{self.relative_buckets} and {self.relative_max_distance}"
            )

    def _check_reads(self) -> None:
        if not self.reads_vectors:
            return
        options = ("tgt_vocab_size", "type_vocab_size", "embedding_size", "embedding_norm", "tie_embeddings")
        for option in (*options, "image_size"):
            if getattr(self, option):
                raise ConfigError(f"{option} is for a model that reads tokens, but vocab_size is 0")
        if self.head == "masked-lm":
            raise ConfigError("a masked-lm head predicts tokens, but vocab_size is 0")

    def _check_blocks(self) -> None:
        if (self.sandwich_norm or self.parallel_blocks) and not self.norm_first:
            raise ConfigError("sandwich_norm and parallel_blocks go with norm_first, which is false")
        if self.sandwich_norm and self.parallel_blocks:
            raise ConfigError("sandwich_norm does not go with parallel_blocks")
        if self.parallel_norms and not self.parallel_blocks:
            raise ConfigError("parallel_norms goes with parallel_blocks, which is false")
        # Each of these is a rule of its own, told in the order in which a reader would ask.
        self._check_norms()
        self._check_shared()
        # `Layer` has no place for cross-attention between two blocks at once.
        if self.kind == "encoder-decoder" and self.parallel_blocks:
            raise ConfigError("parallel_blocks is for an encoder or a decoder, not for both")

    def _check_norms(self) -> None:
        if not self.input_norm and not self.sandwich_norm:
            raise ConfigError("a layer without input_norm needs sandwich_norm, which is false: it would have no norm")
        if not self.first_norm and (not self.norm_first or self.parallel_blocks):
            raise ConfigError("first_norm can be left out with norm_first, and without parallel_blocks")
        if self.qk_norm_span == "all" and (self.encoder_heads or self.decoder_heads):
            raise ConfigError("a norm over all heads, qk_norm_span = 'all', needs all of them in each layer")

    def _check_shared(self) -> None:
        """Refuse layers that are one and yet differ, and an activation of residuals that have none."""
        if self.residual_activation is not None and self.residual == "identity":
            raise ConfigError("residual_activation is for residual 'projected', but residual is 'identity'")
        if not self.shared_layers:
            return
        differs = [name for name in (*_PER_LAYER, "sliding_layers", "rotary_layers") if getattr(self, name) is not None]
        if differs or not self.first_norm:
            raise ConfigError(
                f"shared_layers makes all layers one, but {(differs or ['first_norm'])[0]} says they differ"
            )

    def _check_activations(self) -> None:
        for name in ("activation", "head_activation", "residual_activation", "dense_activation"):
            activation = getattr(self, name)
            if activation is None:
                continue
            check_activation(activation)
            if name != "activation" and is_gated(activation):
                raise ConfigError(f"{name} must be plain, but {activation!r} is gated: it halves what it reads")

    def _check_kind(self) -> None:
        if self.kind != "encoder-decoder" and self.tgt_vocab_size is not None:
            raise ConfigError(f"tgt_vocab_size is for an encoder-decoder, but kind is {self.kind!r}")
        if self.kind != "encoder":
            for option in ("type_vocab_size", "pooler", "pooling", "head", "image_size", "causal"):
                if getattr(self, option):
                    raise ConfigError(f"{option} is for an encoder, but kind is {self.kind!r}")

    def _check_outputs(self) -> None:
        if self.head in ("sequence", "token") and not self.labels:
            raise ConfigError(f"a {self.head!r} head needs labels, the names of what it predicts")
        reads_text = self.type_vocab_size or self.pooling or self.head in ("masked-lm", "token", "question-answering")
        if self.image_size is not None and reads_text:
            raise ConfigError("type_vocab_size, pooling and heads on tokens are for text, but image_size says images")
        self._check_label_head()
        self._check_embedding()

    def _check_label_head(self) -> None:
        two = self.head in ("sequence", "token") and self.head_activation is not None
        if self.head_norm and not two:
            raise ConfigError("head_norm is for a head of labels with two layers, which head_activation makes it")
        if self.head_pooling == "mean" and (self.head != "sequence" or self.image_size is not None):
            raise ConfigError("head_pooling 'mean' is for a 'sequence' head over tokens")

    def _check_embedding(self) -> None:
        for name in self.poolings:
            if name not in get_args(Pooling):
                raise ConfigError(f"pooling must be of {', '.join(get_args(Pooling))}, but has {shown(name)}")
        if self.dense_sizes is not None and self.pooling is None:
            raise ConfigError("dense_sizes are for the sentence embedding, but pooling is None: there is none")
        for size in self.dense_sizes or ():
            if not 1 <= size <= MOST_SIZE:
                raise ConfigError(f"dense_sizes must be from 1 to {MOST_SIZE}, but have {shown(size)}")
        if self.normalize and self.pooling is None:
            raise ConfigError("normalize scales the sentence embedding, but pooling is None: there is none")

    @property
    def poolings(self) -> tuple[str, ...]:
        """The ways of pooling that make the sentence embedding, in their order; none where there is none."""
        return (self.pooling,) if isinstance(self.pooling, str) else self.pooling or ()

    @property
    def pooled_sizes(self) -> tuple[int, ...]:
        """Sizes of the sentence embedding: as it is pooled, then after each dense layer."""
        return (self.d_model * len(self.poolings), *(self.dense_sizes or ()))

    @property
    def reads_vectors(self) -> bool:
        """Whether vectors come in where other models read tokens."""
        return self.vocab_size == 0

    @property
    def has_encoder(self) -> bool:
        """Whether there is an encoder."""
        return self.kind != "decoder"

    @property
    def has_decoder(self) -> bool:
        """Whether there is a decoder."""
        return self.kind != "encoder"

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads K."""
        return self.nhead if self.num_kv_heads is None else self.num_kv_heads

    def layer_heads(self, part: Part) -> tuple[int, ...]:
        """Number of heads of each layer: of the encoder, of the decoder over itself, or of its cross-attention."""
        given = {"encoder": self.encoder_heads, "decoder": self.decoder_heads, "cross": self.cross_heads}[part]
        depth = self.num_encoder_layers if part == "encoder" else self.num_decoder_layers
        return (self.nhead,) * depth if given is None else given

    def kv_heads_of(self, heads: int) -> int:
        """Number of key/value heads that so many heads share."""
        return heads * self.kv_heads // self.nhead

    def layer_feedforward(self, part: Literal["encoder", "decoder"]) -> tuple[int, ...]:
        """Feed-forward size of each layer of the encoder or the decoder."""
        given, depth = self.decoder_feedforward, self.num_decoder_layers
        if part == "encoder":
            given, depth = self.encoder_feedforward, self.num_encoder_layers
        return (self.dim_feedforward,) * depth if given is None else given

    @property
    def head_size(self) -> int:
        """Size H of a head."""
        return self.d_model // self.nhead if self.head_dim is None else self.head_dim

    @property
    def rotary_size(self) -> int:
        """How many entries of a head turn."""
        return self.head_size if self.rotary_dim is None else self.rotary_dim

    @property
    def has_final_norm(self) -> bool:
        """Whether a norm follows the last layer."""
        return self.norm_first if self.final_norm is None else self.final_norm

    @property
    def has_head_bias(self) -> bool:
        """Whether the output projection has a bias."""
        return not self.tie_embeddings if self.head_bias is None else self.head_bias

    @property
    def num_labels(self) -> int:
        """Number of labels of a "sequence" or "token" head; of "question-answering" two, start and end."""
        return 2 if self.head == "question-answering" else len(self.labels or ())

    @property
    def target_vocab_size(self) -> int:
        """Size of the vocabulary that a decoder reads and writes."""
        return self.vocab_size if self.tgt_vocab_size is None else self.tgt_vocab_size

    @classmethod
    def from_terms(
        cls, ntoken: int, nhead: int, nhid: int, num_layers: int, dropout: float = 0.1
    ) -> "TransformerConfig":
        """Read the terms of the textbook constructor: an encoder-decoder with this class's defaults for the rest.

        Args:
            ntoken: Size V of the vocabulary, of source and target.
            nhead: Number of heads N, a divisor of nhid.
            nhid: Size of what is hidden between the layers: the model size D. As in the paper's models, the
                feed-forward is four times as wide, F = 4 D.
            num_layers: Depth of the encoder, and of the decoder.
            dropout: Probability of dropping, in training only.

        Raises:
            ConfigError: They are mistyped or contradict each other.
        """
        try:
            config = cls(
                vocab_size=ntoken,
                d_model=nhid,
                nhead=nhead,
                num_encoder_layers=num_layers,
                num_decoder_layers=num_layers,
                dropout=dropout,
            )
        except ConfigError as error:
            terms = "vocab_size is ntoken, d_model is nhid, num_encoder_layers and num_decoder_layers are num_layers"
            raise ConfigError(f"{error} ({terms})") from error
        # Only once nhid is known to be an integer: four times a text is a text.
        return dataclasses.replace(config, dim_feedforward=4 * nhid)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TransformerConfig":
        """Read a configuration from JSON values; ConfigError names an unknown key's nearest known one."""
        _check_keys(cls, values)
        if "vocab_size" not in values:
            raise ConfigError("the configuration has no vocab_size, the one key without a default")
        values = dict(values)
        if isinstance(values.get("rotary_scaling"), dict):
            _check_keys(RotaryScaling, values["rotary_scaling"])
            # JSON has no tuples, here and below.
            scaling: dict[str, Any]
            scaling = {n: tuple(v) if isinstance(v, list) else v for n, v in values["rotary_scaling"].items()}
            try:
                values["rotary_scaling"] = RotaryScaling(**scaling)
            except TypeError as error:
                raise ConfigError(f"rotary_scaling is incomplete: {error}") from error
        for name in ("sliding_layers", "rotary_layers", "labels", "pooling", "dense_sizes", *_PER_LAYER):
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Give all fields as JSON values."""
        return dataclasses.asdict(self)


def check_table(positions: int, size: int) -> None:
    """Refuse a table of positions that would be computed and is absurdly large."""
    if positions * size > _LARGEST_TABLE:
        raise ConfigError(
            f"a table of {positions} positions of size {size} would be computed, but it may have {_LARGEST_TABLE} "
            "entries; lower the longest sequence"
        )


def _check_keys(cls: type, values: dict[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in known:
            name = key if isinstance(key, str) else shown(key)
            near = difflib.get_close_matches(name[:100], known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"unknown configuration key {shown(key)}; the nearest known one is {near!r}")


def _check_types(values: Any) -> None:
    for name, expected in typing.get_type_hints(type(values)).items():
        _check_type(name, getattr(values, name), expected)


def _check_type(name: str, value: object, expected: Any) -> None:
    is_union = typing.get_origin(expected) in (types.UnionType, typing.Union)
    options = get_args(expected) if is_union else (expected,)
    if not any(_is_of(value, option) for option in options):
        wanted = " or ".join(_describe(option) for option in options)
        raise ConfigError(f"{name} must be {wanted}, but is {shown(value)}")


def _is_of(value: object, option: Any) -> bool:
    origin = typing.get_origin(option)
    if origin is Literal:
        return value in get_args(option)
    if origin is tuple:
        return isinstance(value, tuple) and all(type(item) is get_args(option)[0] for item in value)
    if option is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    # `type`: to isinstance, true is an integer.
    return type(value) is option


def _describe(option: Any) -> str:
    if typing.get_origin(option) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(option))
    if typing.get_origin(option) is tuple:
        return f"a list of {get_args(option)[0].__name__}"
    return "null" if option is type(None) else str(option.__name__)
