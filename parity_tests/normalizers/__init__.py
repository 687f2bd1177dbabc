"""The normalizers in Flax linen, nnx and PyTorch against NumPy: rows of `python -m parity_tests`.

family.py        what one method is: its oracle, its parameters and states, its layers
case.py          one layer, a few batches, cotangents; what is right for them
implementations  linen, nnx, PyTorch: NumPy in, NumPy out
compare.py       every output, gradient and state against its gate
families/        one file per method
"""
