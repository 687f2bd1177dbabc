"""PyTorch modules: PyTorch's own layers, with the rule in their backward pass."""
