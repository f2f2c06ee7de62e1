"""What an activation function costs and buys: each of the registry by itself, and a study that trains with each."""

__all__: list[str] = []
