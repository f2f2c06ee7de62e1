"""The ways to quantize an op: one a file, listed in `registry`."""
