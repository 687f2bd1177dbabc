"""The same training in JAX and in PyTorch: networks, weights, minibatches, optimizer."""
