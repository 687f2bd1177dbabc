"""PyTorch modules: PyTorch's, with the rule in their backward pass.

recording.py     what records: a weight, its bias, their statistics
base.py          what the layers share
linear.py        Linear
conv.py          Conv1d to ConvTranspose3d
registry.py      which of them takes the place of which of PyTorch's
registered.py    `register`: what a class of another library computes
made.py          classes made at run time, for modules that stay of their class
product.py       a parameter that a module multiplies with by a function of PyTorch
hosting.py       such a module, and what sees its products
neuron_stats.py  the statistics of a layer
"""
