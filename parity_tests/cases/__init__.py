"""The inputs of the comparison: families that make mistakes visible, and every geometry."""

from parity_tests.cases.case import Case, Layer
from parity_tests.cases.draw import DTYPES, FAMILIES, FEW, KINKS, SHAPES, make
from parity_tests.cases.standard import every_knob

__all__ = ["DTYPES", "FAMILIES", "FEW", "KINKS", "SHAPES", "Case", "Layer", "every_knob", "make"]
