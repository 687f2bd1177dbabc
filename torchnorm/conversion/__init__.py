"""A whole model at once: watch a forward pass, follow each layer's output to its activation.

watch.py        one forward pass, recorded
follow.py       layer -> gate, with region.py (runs of elementwise operations) and elementwise.py
hosts.py        which class of ours for which of PyTorch's; eligible.py: why a layer is left
handover.py     hooks that carry a layer's handle to where its activation is seen
report.py       the table
convert.py      `convert` and `revert`
"""
