"""Training steps compiled for devices, from shapes alone."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.bench import schedule
from experiments.bench.devices import variables
from experiments.bench.methods import Method
from experiments.bench.networks import Network
from experiments.bench.problems import first_line, is_out_of_memory
from experiments.bench.steps_jax import interval_of, make_state, train_step
from experiments.tpu import collectives
from experiments.tpu.targets import QUIET, Target, find

AXIS = "devices"

SMALLEST = 1024
"""Elements of an array that FSDP shards; smaller ones are not worth a collective."""

BLOCKS, BLOCK = 5, 10
"""How often so many steps are timed, where there are devices to run them."""


@dataclass(frozen=True)
class Program:
    """What is known of one compiled program, on each device.

    Attributes:
        flops: floating point operations; None where the compiler does not say.
        bytes_accessed: by all fusions, what stays in the vector memory too.
        peak_bytes: arguments, results and what is between, at the worst moment.
        collectives: see there.
        compile_seconds: of XLA.
        seconds: of a step, where it could be run.
    """

    flops: float | None
    bytes_accessed: float | None
    peak_bytes: int | None
    collectives: collectives.Range
    compile_seconds: float
    seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """All numbers."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return found | {"collectives": self.collectives.to_json()}


def parts_of(method: Method) -> tuple[str, ...]:
    """The programs of a method: the one that is run; then, if it has both, each kind of step."""
    every = interval_of(method)
    return (schedule.ALIKE,) if every == 1 else (schedule.ALIKE, *schedule.parts(every))


Compiled = tuple[dict[str, Program], str | None]
"""The programs by part, and why there are no more of them."""


def compile_for(
    network: Network, method: Method, dtype: str, target: str, sharding: str
) -> Compiled:
    """As `compile_parts`, for a target by its name: for a process of its own."""
    jax.config.update("jax_platforms", "cpu")  # TPUs, if there are some, are the other process's
    with variables(**QUIET):
        return compile_parts(network, method, dtype, find(target), sharding)


def compile_parts(
    network: Network, method: Method, dtype: str, target: Target, sharding: str
) -> Compiled:
    """Compile all programs of a method, see `compile_step`."""
    found: dict[str, Program] = {}
    try:
        for part in parts_of(method):
            found[part] = compile_step(network, method, dtype, target, sharding, part)
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        return found, "out of memory" if is_out_of_memory(error) else first_line(error)
    return found, None


def compile_step(
    network: Network, method: Method, dtype: str, target: Target, sharding: str, part: str
) -> Program:
    """Compile one program of a method, and run it if the target is here.

    Args:
        network: see there.
        method: see there.
        dtype: in which the network computes.
        target: see there.
        sharding: ``"one"``: one device. ``"data"``: the batch is sharded. ``"fsdp"``: parameters,
            optimizer state and statistics too.
        part: one of `parts_of`.
    """
    devices = target.devices[:1] if sharding == "one" else target.devices
    mesh = Mesh(np.array(devices), (AXIS,))
    key = jax.eval_shape(lambda: jax.random.key(0))
    data = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in (network.input_shape, network.output_shape)
    ]
    make = functools.partial(make_state, network, method, dtype)
    state = jax.eval_shape(make, key, data[0])
    place = _sharded if sharding == "fsdp" else _replicated
    state_at = jax.tree.map(lambda leaf: NamedSharding(mesh, place(leaf.shape, mesh.size)), state)
    data_at, alone = NamedSharding(mesh, P(AXIS)), NamedSharding(mesh, P())
    step = jax.jit(
        _step_of(part),
        donate_argnums=0,
        in_shardings=(state_at, data_at, data_at),
        out_shardings=(state_at, alone),
    )
    lowered = step.lower(state, *data)
    begin = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - begin
    timed = None
    if target.runs and part in schedule.parts(interval_of(method)):
        timed = _time(compiled, make, state_at, data, data_at)
    return _known(compiled, seconds, timed)


def _step_of(part: str) -> Callable[..., Any]:
    """The step; of one kind only, if the part says so: then the other is not in the program."""
    if part == schedule.ALIKE:
        return train_step
    return functools.partial(train_step, statistics=part == schedule.WITH)


def _replicated(shape: tuple[int, ...], devices: int) -> P:
    """For an array that all devices have."""
    del shape, devices
    return P()


def _sharded(shape: tuple[int, ...], devices: int) -> P:
    """For an array of which each device has a part: of the last axis that can be divided."""
    if np.prod(shape) >= SMALLEST:
        for axis in reversed(range(len(shape))):
            if shape[axis] % devices == 0:
                return P(*[None] * axis, AXIS)
    return P()


def _known(compiled: Any, compile_seconds: float, seconds: float | None) -> Program:
    costs, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    costs = costs[0] if isinstance(costs, list) else costs
    peak = None
    if memory is not None:
        # (What is given away is an argument and a result.)
        peak = memory.argument_size_in_bytes + memory.output_size_in_bytes
        peak += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    return Program(
        costs.get("flops"),
        costs.get("bytes accessed"),
        peak,
        collectives.read(compiled.as_text()),
        compile_seconds,
        seconds,
    )


def _time(compiled: Any, make: Any, state_at: Any, data: Any, data_at: Any) -> float:
    """Seconds of a step on devices that are there: the median over blocks."""

    def arrays() -> list[jax.Array]:
        keys = jax.random.split(jax.random.key(0), 3)
        x, y = (jax.random.normal(k, a.shape) for k, a in zip(keys, data, strict=False))
        return jax.tree.leaves((make(keys[2], x), x, y))

    # Flat: another state has another optimizer, which is not equal.
    places, tree = jax.tree.flatten((state_at, data_at, data_at))
    state, x, y = jax.tree.unflatten(tree, jax.jit(arrays, out_shardings=places)())
    found = []
    for _ in range(1 + BLOCKS):  # the first to warm up
        begin = time.perf_counter()
        for _ in range(BLOCK):
            state, loss = compiled(state, x, y)
        jax.block_until_ready((state, loss))
        found.append((time.perf_counter() - begin) / BLOCK)
    return sorted(found[1:])[BLOCKS // 2]
