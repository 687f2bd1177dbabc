"""What ``python -m experiments`` can do."""

from experiments.options import (
    BenchOptions,
    CompareConfig,
    DecayOptions,
    Options,
    RatesOptions,
    ReportOptions,
    SensitivityOptions,
    StatisticsEveryOptions,
    SweepOptions,
    TheoryOptions,
    TpuOptions,
    TwinsOptions,
)
from experiments.reinforcement.options import PpoOptions

JOBS: dict[str, type[Options]] = {
    "compare": CompareConfig,
    "rates": RatesOptions,
    "sweep": SweepOptions,
    "report": ReportOptions,
    "decay": DecayOptions,
    "statistics-every": StatisticsEveryOptions,
    "sensitivity": SensitivityOptions,
    "bench": BenchOptions,
    "tpu": TpuOptions,
    "theory": TheoryOptions,
    "twins": TwinsOptions,
    "ppo": PpoOptions,
}
"""Every job by its name on the command line."""
