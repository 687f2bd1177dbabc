"""The normalizers in NumPy, float64, channels last: one file per method.

Each has ``forward(x, params, state, *, train, **knobs) -> (y, new_state)`` with dicts of arrays
under the names that Flax gives them ("/" between levels). It also computes for complex `x` and
`params`, so that `parity_tests.oracle.complex_step` gives its gradients.
"""
