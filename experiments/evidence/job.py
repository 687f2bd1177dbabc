"""`python -m experiments sweep`: train, or time."""

from experiments.evidence import seconds
from experiments.evidence.options import SweepOptions
from experiments.evidence.sweep import Sweep


def run(options: SweepOptions) -> int:
    """Follow the protocol's stages 2 and 3, or stage 5."""
    return seconds.measure(options) if options.seconds else Sweep.main(options)
