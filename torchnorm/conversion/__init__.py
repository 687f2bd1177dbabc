"""A whole model at once: from a watched forward pass to each layer's gate.

convert.py      `convert` and `revert`, which take these steps, in the order in which data flows:
choices.py      which layers may be converted, what the user says of them, why others are left
trace.py        the watched pass: which operation consumed which tensor, in which module
untouched.py    what it may change, put back, and nothing of it left behind
elementwise.py  tables of operations
region.py       runs of elementwise operations on a value
extract.py      such a run as a function: the activation, recognized
search.py       each layer's output, followed to its activation
weights.py      what is done to each parameter in the watched pass
products.py     those that are multiplied with by functions, and what their results meet
consumers.py    what it meets where there is none, in words
decisions.py    what was found: `Direct`, `Deferred` to a module, a `Product` of two, `Left`
wiring.py       hooks that carry a layer's handle to where its activation is seen
alterations.py  what was done to the model afterwards: put right, or told once
report.py       the table
"""
