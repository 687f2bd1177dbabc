"""Faults planted in one side of a correct pair, one at a time: the proof that the verifier finds.

fault.py   what a planted fault is
in_*.py    those of each pair
"""

from parity_tests.port.faults import in_convnet, in_gpt, in_lstm, in_resnet, in_unet, in_vit
from parity_tests.port.faults.fault import Fault as Fault

FAULTS = (
    *in_resnet.FAULTS,
    *in_vit.FAULTS,
    *in_gpt.FAULTS,
    *in_lstm.FAULTS,
    *in_unet.FAULTS,
    *in_convnet.FAULTS,
)
