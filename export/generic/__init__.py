"""Any `torch.nn.Module`, as the one graph that it is."""
