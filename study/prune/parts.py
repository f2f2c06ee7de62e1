"""What can be cut in a model, by the names of its modules."""

from tfm.model import CrossAttention, FeedForward, SelfAttention, Transformer


def attentions(model: Transformer) -> dict[str, SelfAttention | CrossAttention]:
    """List the attentions, such as "decoder.layers.0.cross_attn", in the order of the model."""
    return {name: part for name, part in model.named_modules() if isinstance(part, SelfAttention | CrossAttention)}


def feed_forwards(model: Transformer) -> dict[str, FeedForward]:
    """List the feed-forward blocks, such as "encoder.layers.0.feed_forward", in the order of the model."""
    return {name: part for name, part in model.named_modules() if isinstance(part, FeedForward)}
