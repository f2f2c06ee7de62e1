"""Whole heads and feed-forward units removed by importance: a genuinely smaller model."""

__all__: list[str] = []
