"""Whole networks that nobody here wrote, converted and compared with the oracle, layer by layer.

`python -m parity_tests.models`. `torch_networks` and `flax_networks` are the networks, `torch` and
`jax` measure them.
"""
