"""TPUs to compile for: none of them need be there."""

import contextlib
import glob
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from experiments.bench.devices import variables
from experiments.bench.problems import first_line
from experiments.errors import ConfigError, ExperimentError

TOPOLOGIES = {
    "v2": "2x2",
    "v3": "2x2",
    "v4": "2x2x1",
    "v5e": "2x2",
    "v5p": "2x2x1",
    "v6e": "2x2",
    "tpu7x": "2x2x1",
}
"""The generations that libtpu knows, and the chips that are meant where none are named."""

HERE = "here"
"""The target that is the machine itself."""

#: So that libtpu does not ask the network about a machine, and others may load it too.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


@dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
        name: ``generation:chips``, or `HERE`.
        devices: real ones, or such as can only be compiled for.
    """

    name: str
    devices: tuple[Any, ...]

    @property
    def runs(self) -> bool:
        """Whether what is compiled can be run."""
        return self.name == HERE


@contextlib.contextmanager
def quiet_libtpu() -> Iterator[None]:
    """Keep JAX on the CPU and libtpu from looking for TPUs, on a machine that has none."""
    if has_tpus():
        yield
        return
    import jax

    if jax.config.jax_platforms is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_platforms", "cpu")
    with variables(**QUIET):
        yield


def has_tpus() -> bool:
    """Whether there is a device file of one; asking JAX would load libtpu."""
    return bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))


def default_names() -> tuple[str, ...]:
    """The TPUs of this machine, if it has some; else four of a small kind."""
    import jax

    return (HERE,) if jax.default_backend() == "tpu" else ("v5e:2x2",)


def full_name(name: str) -> str:
    """Generation and chips.

    Raises:
        ConfigError: for a generation that is not known.
    """
    generation, _, chips = name.partition(":")
    if name == HERE:
        return name
    if generation not in TOPOLOGIES or (chips and not chips.replace("x", "").isdecimal()):
        known = ", ".join(f"{each}:{chips}" for each, chips in TOPOLOGIES.items())
        raise ConfigError(
            f"--targets: got {name!r}, expected {HERE}, or one of {known}, or another number of "
            "chips (v5e:4x4); v6e is Trillium, tpu7x Ironwood"
        )
    return f"{generation}:{chips or TOPOLOGIES[generation]}"


def find(name: str) -> Target:
    """The target of that name.

    Raises:
        ExperimentError: without libtpu.
        ConfigError: for chips that there are not.
    """
    import jax

    name = full_name(name)
    if name == HERE:
        return Target(name, tuple(jax.devices()))
    if importlib.util.find_spec("libtpu") is None:
        raise ExperimentError(
            "libtpu, which has the compiler for TPUs, is not installed (no TPU is needed): "
            "pip install 'neuronwise-norm[tpu]'; it is there for Linux on x86-64 only"
        )
    from jax.experimental import topologies

    generation, _, chips = name.partition(":")
    options: dict[str, Any] = {}
    if set(chips) <= set("1x"):  # else a host has more chips than that
        options["chips_per_host_bounds"] = [1, 1, 1]
    if generation == "v4":  # one device a chip
        options["chip_config_name"] = "megacore"
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as error:  # of whatever kind: it is libtpu's word against the name
        usual = f"{generation}:{TOPOLOGIES[generation]}"
        raise ConfigError(
            f"--targets: libtpu does not know {name}, try {usual} ({first_line(error)})"
        ) from error
    return Target(name, tuple(found.devices))
