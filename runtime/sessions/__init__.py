"""onnxruntime behind the models: from files to sessions, on a provider, with options, shared where they may be."""
