"""The configuration of a Transformer: one frozen dataclass, saved as JSON, that cannot contradict itself."""

import dataclasses
import difflib
import types
import typing
from typing import Any, Literal, get_args

from tfm.errors import ConfigError

from .activations import check_activation

Kind = Literal["encoder", "decoder", "encoder-decoder"]
Positions = Literal["sinusoidal", "learned"]
Pooling = Literal["mean", "cls"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes and options of a `Transformer`; names are those of torch.nn.Transformer or Hugging Face.

    The defaults are the base model of "Attention Is All You Need" (Vaswani et al. 2017, table 3).

    Attributes:
        kind: Which halves there are: "encoder", "decoder" (causal LM) or "encoder-decoder".
        vocab_size: Size V of the vocabulary of the source (or of the only) side.
        tgt_vocab_size: The target side's V; None: the same vocabulary as the source.
        d_model: Model size D.
        nhead: Number of heads N; each has size D / N.
        num_encoder_layers: Depth of the encoder; unused by a decoder.
        num_decoder_layers: Depth of the decoder; unused by an encoder.
        dim_feedforward: Feed-forward size F; a gated activation projects to 2F first.
        dropout: Probability of dropping, in training only.
        activation: A name of `tfm.model.ACTIVATIONS` or `tfm.model.GATED`.
        norm_first: Layer norm before each sub-layer (and after the last layer) instead of after each.
        layer_norm_eps: ε of every layer norm.
        positions: "sinusoidal" (fixed) or "learned".
        max_positions: Longest sequence, in tokens.
        scale_embeddings: Multiply token embeddings by √D, as the paper does.
        tie_embeddings: The output projection is the target embedding; with one vocabulary, the source's too.
        type_vocab_size: Number of segment embeddings (BERT's token types); 0 for none.
        embedding_norm: Layer norm on the sum of the embeddings (BERT).
        pooler: A tanh layer on the first token (BERT's `pooler_output`).
        pooling: Sentence embedding as sentence-transformers pools it: "mean" or "cls"; None for none.
        normalize: Scale the sentence embedding to unit length.
        pad_token_id: Padding id; its embedding row is zero in a fresh model.
        bos_token_id: Id that starts a generated sequence.
        eos_token_id: Id that ends it.
    """

    kind: Kind = "encoder-decoder"
    vocab_size: int
    tgt_vocab_size: int | None = None
    d_model: int = 512
    nhead: int = 8
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    dim_feedforward: int = 2048
    dropout: float = 0.1
    activation: str = "relu"
    norm_first: bool = False
    layer_norm_eps: float = 1e-5
    positions: Positions = "sinusoidal"
    max_positions: int = 512
    scale_embeddings: bool = True
    tie_embeddings: bool = False
    type_vocab_size: int = 0
    embedding_norm: bool = False
    pooler: bool = False
    pooling: Pooling | None = None
    normalize: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is mistyped or contradicts itself."""
        for name, expected in typing.get_type_hints(type(self)).items():
            _check_type(name, getattr(self, name), expected)
        check_activation(self.activation)
        sizes = ["vocab_size", "d_model", "nhead", "dim_feedforward", "max_positions"]
        sizes += ["num_encoder_layers"] if self.has_encoder else []
        sizes += ["num_decoder_layers"] if self.has_decoder else []
        sizes += ["tgt_vocab_size"] if self.tgt_vocab_size is not None else []
        for name in sizes:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, but is {getattr(self, name)}")
        if self.d_model % self.nhead:
            raise ConfigError(
                f"d_model must be a multiple of nhead, but {self.d_model} % {self.nhead} is {self.d_model % self.nhead}"
            )
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise ConfigError(
                f"sinusoidal positions pair sines with cosines: d_model must be even, but is {self.d_model}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout must be in [0, 1), but is {self.dropout}")
        if not self.layer_norm_eps > 0.0:
            raise ConfigError(f"layer_norm_eps must be positive, but is {self.layer_norm_eps}")
        if self.type_vocab_size < 0:
            raise ConfigError(f"type_vocab_size must not be negative, but is {self.type_vocab_size}")
        if self.kind != "encoder-decoder" and self.tgt_vocab_size is not None:
            raise ConfigError(f"tgt_vocab_size is for an encoder-decoder, but kind is {self.kind!r}")
        if self.kind != "encoder":
            for option in ("type_vocab_size", "pooler", "pooling"):
                if getattr(self, option):
                    raise ConfigError(f"{option} is for an encoder, but kind is {self.kind!r}")
        if self.normalize and self.pooling is None:
            raise ConfigError("normalize scales the sentence embedding, but pooling is None: there is none")
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            token, size = getattr(self, name), min(self.vocab_size, self.target_vocab_size)
            if token is not None and not 0 <= token < size:
                raise ConfigError(f"{name} must be in [0, {size}), but is {token}")

    @property
    def has_encoder(self) -> bool:
        """Whether there is an encoder."""
        return self.kind != "decoder"

    @property
    def has_decoder(self) -> bool:
        """Whether there is a decoder."""
        return self.kind != "encoder"

    @property
    def target_vocab_size(self) -> int:
        """Size of the vocabulary that a decoder reads and writes."""
        return self.vocab_size if self.tgt_vocab_size is None else self.tgt_vocab_size

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TransformerConfig":
        """Read a configuration from JSON values; ConfigError names an unknown key's nearest known one."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
                raise ConfigError(f"unknown configuration key {key!r}; the nearest known one is {near!r}")
        if "vocab_size" not in values:
            raise ConfigError("the configuration has no vocab_size, the one key without a default")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Give all fields as JSON values."""
        return dataclasses.asdict(self)


def _check_type(name: str, value: object, expected: Any) -> None:
    is_union = typing.get_origin(expected) in (types.UnionType, typing.Union)
    options = get_args(expected) if is_union else (expected,)
    for option in options:
        if typing.get_origin(option) is Literal:
            if value in get_args(option):
                return
        elif option is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return
        elif type(value) is option:
            return
    wanted = " or ".join(_describe(option) for option in options)
    raise ConfigError(f"{name} must be {wanted}, but is {value!r}")


def _describe(option: Any) -> str:
    if typing.get_origin(option) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(option))
    return "null" if option is type(None) else str(option.__name__)
