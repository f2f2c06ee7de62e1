"""What encoders predict with: labels of a sequence, labels of tokens, where an answer is, or masked tokens."""

from torch import Tensor, nn

from .activations import make_activation
from .config import TransformerConfig
from .norms import make_norm


class LabelHead(nn.Module):
    """Logits of labels: one linear layer, or two with an activation between, and perhaps a norm behind that."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        two = config.head_activation is not None
        self.hidden = nn.Linear(config.d_model, config.d_model, bias=config.head_hidden_bias) if two else None
        self.activation = make_activation(config.head_activation) if config.head_activation is not None else None
        self.norm = make_norm(config) if config.head_norm else None
        self.output = nn.Linear(config.d_model, config.num_labels)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, labels)."""
        if self.hidden is not None and self.activation is not None:
            x = self.activation(self.hidden(x))
        return self.output(x if self.norm is None else self.norm(x))


class MaskedLMHead(nn.Module):
    """Logits of tokens: linear, activation, norm, and a projection that may be the token embedding."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        size = config.d_model if config.embedding_size is None else config.embedding_size
        self.hidden = nn.Linear(config.d_model, size, bias=config.head_hidden_bias)
        self.activation = make_activation(config.head_activation or config.activation)
        self.norm = make_norm(config, size)
        self.output = nn.Linear(size, config.vocab_size, bias=config.has_head_bias)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """(B, S, D) → (B, S, V)."""
        return self.output(self.norm(self.activation(self.hidden(x_BSD))))
