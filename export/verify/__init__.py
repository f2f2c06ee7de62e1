"""The proof: every op on its own, in place, in the graph that onnxruntime makes, and against the checkpoint."""
