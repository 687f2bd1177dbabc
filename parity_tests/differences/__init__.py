"""Where Flax and PyTorch truly differ, measured: `python -m parity_tests.differences`.

row.py          what a row is, and how it is printed
normalizers.py  BatchNorm to WeightNorm
layers.py       dense layers, convolutions, pooling, recurrence, attention, embeddings
functions.py    activations, losses, optimizers, arrays
command.py      the page `parity_tests/DIFFERENCES.md`
"""
