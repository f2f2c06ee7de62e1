"""Whether a machine computes what it should: canaries, saturation, and the advice."""
