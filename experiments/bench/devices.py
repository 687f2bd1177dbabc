"""Where the steps run: devices, threads, and which settings there can be."""

import contextlib
import importlib.util
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.bench.problems import first_line
from experiments.errors import ExperimentError

GPUS = ("cuda", "gpu", "rocm")


@contextlib.contextmanager
def variables(**values: str) -> Iterator[None]:
    """Environment variables, for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def limited(threads: int) -> Iterator[None]:
    """Compute with so many threads; to be entered before JAX has looked for its devices."""
    single = "--xla_cpu_multi_thread_eigen=false" if threads == 1 else ""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {single}".strip()
    values = {
        "OMP_NUM_THREADS": str(threads),
        "XLA_FLAGS": flags,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # PyTorch needs some of the GPU too
        "KINETO_LOG_LEVEL": "6",  # PyTorch's profiler tells of every start
    }
    with variables(**values), _cores(threads), _torch_threads(threads):
        yield


@contextlib.contextmanager
def _cores(threads: int) -> Iterator[None]:
    """JAX has as many threads as there are cores for it, or one."""
    if threads == 1 or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    if importlib.util.find_spec("torch") is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def fresh_compilers() -> Iterator[None]:
    """Let `torch.compile` begin with nothing, and take as many programs as there are methods."""
    if importlib.util.find_spec("torch") is None:
        yield
        return
    import torch._dynamo

    config: Any = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    with tempfile.TemporaryDirectory() as folder, config.patch(**{name: 256}):
        with variables(TORCHINDUCTOR_CACHE_DIR=folder):
            yield


def find_devices(
    asked: str | None, settings: Sequence[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The device for each setting, and why the others are left out.

    Args:
        asked: cpu, cuda, cuda:1, tpu, ...; None: the one that JAX takes by itself.
        settings: which there are to be.

    Raises:
        ExperimentError: if none of them can be.
    """
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    kind = asked
    if kind is None:
        import jax

        kind = jax.devices()[0].platform
    for setting in settings:
        device, problem = (_jax if setting.startswith("jax") else _torch)(kind)
        if problem is None and setting == "torch-compiled":
            problem = _compile_problem(device)
        if problem is None and setting == "torch-cudagraphs" and device.type != "cuda":
            problem = f"CUDA graphs need --device cuda, got {device.type}"
        if problem is None:
            found[setting] = device
        else:
            missing[setting] = problem
    if not found:
        reasons = "; ".join(f"{setting}: {problem}" for setting, problem in missing.items())
        raise ExperimentError(f"--device: got {kind!r}, on which nothing can run: {reasons}")
    return found, missing


def name_of(device: Any) -> str:
    """The device as a reader knows it."""
    kind = getattr(device, "device_kind", None)
    if kind is None and device.type == "cuda":
        import torch

        kind = torch.cuda.get_device_name(device)
    if kind in (None, "cpu"):
        return f"CPU ({platform.machine()}, {os.cpu_count()} cores)"
    return kind


def _split(asked: str) -> tuple[str, int]:
    kind, colon, number = asked.partition(":")
    if not kind or (colon and not number.isdecimal()):
        expected = "a name such as cpu, cuda or cuda:1"
        raise ExperimentError(f"--device: got {asked!r}, expected {expected}")
    return kind, int(number or 0)


def _jax(asked: str) -> tuple[Any, str | None]:
    import jax

    kind, number = _split(asked)
    try:
        devices = jax.devices("cuda" if kind == "gpu" else kind)
    except RuntimeError:
        known = ", ".join(sorted({device.platform for device in jax.devices()}))
        return None, f"JAX has no such device, it has {known}"
    if number >= len(devices):
        return None, f"JAX has {len(devices)} of these devices"
    return devices[number], None


def _torch(asked: str) -> tuple[Any, str | None]:
    if importlib.util.find_spec("torch") is None:
        return None, "PyTorch is not installed; pip install 'neuronwise-norm[torch]'"
    import torch

    kind, number = _split(asked)
    if kind == "cpu":
        return torch.device("cpu"), "PyTorch has 1 of these devices" if number else None
    if kind not in GPUS or not torch.cuda.is_available():
        others = ", cuda" if torch.cuda.is_available() else ""
        return None, f"this PyTorch has no such device, it has cpu{others}"
    if number >= torch.cuda.device_count():
        return None, f"PyTorch has {torch.cuda.device_count()} of these devices"
    return torch.device("cuda", number), None


def _compile_problem(device: Any) -> str | None:
    """Why `torch.compile` does not work here; it also makes what is made only once."""
    import torch

    from experiments.bench.problems import compile_errors

    try:
        torch.compile(lambda x: x + 1)(torch.ones(2, device=device))
    except compile_errors() as error:
        return f"torch.compile does not work here: {first_line(error)}"
    return None
