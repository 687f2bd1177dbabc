"""How the tests run fast, before anything imports a framework.

One thread a worker, for the workers share the cores. The programs of the tests are small and run
once or twice, so XLA does not optimize them, and each is compiled once: the next test that needs
it, in this worker or another, and the next run, read it from the folder of pytest's cache.
"""

import os
from pathlib import Path

import pytest

#: As many workers as cores, but not more than this: each holds both frameworks in its memory.
MOST_WORKERS = 8

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# The older emitters compile in a third of the time. (Known to jaxlib 0.8 to 0.12.)
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent / ".pytest_cache" / "programs")
)
if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # JAX does not lock its files
    os.environ["JAX_COMPILATION_CACHE_DIR"] += f"/{worker}"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """What `-n auto` means."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # xdist reads it
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, MOST_WORKERS)
