"""The rule in any JAX function: its traced program, run as it is, with statistics beside it.

The steps, in the order in which data flows (`jaxnorm.conversion` lays the program out flat):
neuronwise.py   `neuronwise`, `find_gates`, `init_statistics`: one trace, one plan, one run
axes.py         labels of axes, followed through reshapes and transpositions
lineage.py      which parameter a value is, and all that reads it
operations.py   a product or a convolution as a linear operation on flat axes
sites.py        the layers: products with a parameter, and their biases
readers.py      what the readers of a value are together: a normalization, a softmax, a loss
ways.py         from each layer's output to its activation
plan.py         what is recorded and told where, and the report
evaluate.py     the program, run, with handles beside its values
"""
