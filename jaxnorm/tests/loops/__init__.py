"""Training loops as they are written for Flax, and what has to change in them.

`NAME_plain.py` is the loop as it is found, `NAME.py` the same with the rule.
"""
