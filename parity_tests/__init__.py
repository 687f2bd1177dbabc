"""Both packages against one oracle, and against each other: `python -m parity_tests`."""
