"""What linen and nnx share to convert whole models: from a traced program to each layer's gate.

program.py          the traced program, laid out flat
gate_search.py      layer -> gate; extracted_gate.py: activations cut out of the program
handover.py         handles on their way to where an activation is seen
report.py           the table, and how to name a gate that is seen elsewhere
"""
