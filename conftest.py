"""How the tests run fast, before anything imports a framework.

One thread a worker, for the workers share the cores. The programs of the tests are small and run
once or twice, so XLA does not optimize them, and each is compiled once: the next test that needs
it, in this worker or another, and the next run, read it from the folder of pytest's cache.
"""

import gc
import os
from pathlib import Path
from typing import Any

import pytest

#: As many workers as cores, but not more than this: each holds both frameworks in its memory.
MOST_WORKERS = 8

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# The older emitters compile in a third of the time (jaxlib 0.8 to 0.12 have them). How they round
# depends on what else a program computes: a test that compares two programs bit for bit compiles
# them with compiler_options={"xla_cpu_use_fusion_emitters": True}. And in one part: one thread has
# nothing of the others, and each repeats what is common to all.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Of all workers. JAX does not lock its files: what is read while another worker writes it is taken
# for broken, and compiled anew with a warning.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent / ".pytest_cache" / "programs")
)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """What `-n auto` means."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # xdist reads it
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, MOST_WORKERS)


# Nothing is garbage while the frameworks are imported.
gc.disable()


class Collector:
    """Garbage is looked for among what the running module has made.

    Not among the million objects of the frameworks, nor what earlier modules have left, JAX's
    caches above all: that would take an eighth of the time.
    """

    path: Path | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Before the fixtures of a module."""
        if item.path != self.path:
            self.path = item.path
            gc.collect()
            gc.freeze()


#: The state of each module's `RNG` when its tests begin.
STATES: dict[str, Any] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test draws the same numbers whichever tests of its module ran before it in this worker."""
    module: Any = getattr(item, "module", None)
    if hasattr(module, "RNG"):
        bits = module.RNG.bit_generator
        bits.state = STATES.setdefault(module.__name__, bits.state)


def pytest_collection_finish(session: pytest.Session) -> None:
    """The tests begin."""
    gc.enable()
    gc.set_threshold(10_000, 10, 10)
    session.config.pluginmanager.register(Collector())
