"""Both packages against one oracle, and against each other: `python -m parity_tests`.

oracle           what is right, in NumPy
golden           files with inputs and expected outputs, for other implementations too
cases            the inputs of the comparison
implementations  everything that claims to compute the rule, behind one interface
normalizers      the other normalizers: their cases and implementations
matrix           cases times implementations, and the command that prints it
differences      where the frameworks themselves differ, measured
models           whole networks, and the command that prints their table
port             whether any Flax model and PyTorch model are the same; where they depart, and why
steps            several steps of an optimizer, for tests
"""
