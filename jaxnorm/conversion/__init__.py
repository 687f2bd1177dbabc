"""What linen and nnx share to convert whole models: from a traced program to each layer's gate.

The steps, in the order in which data flows:
choices.py      what the user says of which layer
trace.py        the traced program, its layers marked, laid out flat
foreign.py      objects that JAX cannot see into
elementwise.py  which operations act elementwise
pointwise.py    programs of them, for arrays of any shape
region.py       runs of elementwise operations on a value
extract.py      such a run as a function: the activation, recognized
search.py       each layer's output, followed to its activation
decisions.py    what was found: a gate, `Deferred` to a module, a `Product` of two, `LEAVE`
wiring.py       handles on their way to where an activation is seen
report.py       the table
alterations.py  what was changed in a model since, as a warning
"""
