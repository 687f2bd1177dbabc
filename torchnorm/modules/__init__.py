"""PyTorch modules: PyTorch's, with the rule in their backward pass.

base.py          what the layers share
linear.py        Linear
conv.py          Conv1d to ConvTranspose3d
registry.py      which of them takes the place of which of PyTorch's
neuron_stats.py  the statistics of a layer
"""
