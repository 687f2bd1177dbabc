"""What ``python -m experiments`` can do."""

from experiments.bench.options import BenchOptions
from experiments.evidence.options import ReportOptions, SweepOptions
from experiments.options import CompareConfig, Options
from experiments.reinforcement.options import PpoOptions
from experiments.studies.options import (
    DecayOptions,
    PartsOptions,
    RatesOptions,
    SensitivityOptions,
    StatisticsEveryOptions,
)
from experiments.theory.options import TheoryOptions
from experiments.tpu.options import TpuOptions
from experiments.twins.options import TwinsOptions

JOBS: dict[str, type[Options]] = {
    "compare": CompareConfig,
    "rates": RatesOptions,
    "sweep": SweepOptions,
    "report": ReportOptions,
    "decay": DecayOptions,
    "statistics-every": StatisticsEveryOptions,
    "sensitivity": SensitivityOptions,
    "parts": PartsOptions,
    "bench": BenchOptions,
    "tpu": TpuOptions,
    "theory": TheoryOptions,
    "twins": TwinsOptions,
    "ppo": PpoOptions,
}
"""Every job by its name on the command line."""
