"""Parameters and statistics from PyTorch to Flax and back.

names.py    which entry of a Flax tree is which of a state_dict
layout.py   where the numbers of an entry go
convert.py  `from_torch`, `to_torch`
"""
