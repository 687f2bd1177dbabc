"""Training steps in JAX, compiled, with a donated state."""

import functools
import importlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.training import train_state

import jaxnorm
from experiments.bench import schedule
from experiments.bench.methods import SOAP, Method
from experiments.bench.networks import Network
from experiments.bench.networks_jax import build
from experiments.bench.steps import RATE, WARM, Counted, Counts
from jaxnorm.statistics.tracked import Statistics


class TrainState(train_state.TrainState):
    """Flax's, with the running moments of BatchNorm."""

    batch_stats: Any = None


class JaxStep:
    """A step of one method on one network; see `Step`."""

    def __init__(self, network: Network, method: Method, device: Any, dtype: str) -> None:
        self.every, self.notes = 1, []
        with jax.default_device(device):
            keys = jax.random.split(jax.random.key(0), 3)
            shapes = network.input_shape, network.output_shape
            data = tuple(map(jax.random.normal, keys, shapes))
            self._data = jax.device_put(data, device)
            state = make_state(network, method, dtype, keys[2], self._data[0])
            self._state = jax.device_put(state, device)
            self.every = interval_of(method)
            begin = time.perf_counter()
            self._compile()
            self.compile_seconds = time.perf_counter() - begin
            for _ in range(WARM):
                self()
            self.wait()

    def _compile(self) -> None:
        self._program = self._compiled()

    def _compiled(self, statistics: bool | None = None) -> Any:
        step = functools.partial(train_step, statistics=statistics)
        return jax.jit(step, donate_argnums=0).lower(self._state, *self._data).compile()

    def __call__(self) -> None:
        """Begin one step."""
        self._state, self._loss = self._program(self._state, *self._data)

    def wait(self) -> None:
        """Until all steps are done."""
        jax.block_until_ready((self._state.params, self._loss))

    def go_to(self, part: str) -> None:
        """Set what the statistics have counted."""
        self._state = _at(self._state, *schedule.before(part, self.every))
        jax.block_until_ready(self._state)

    def count(self) -> Counted:
        """From XLA, which counts the larger branch of a condition: the step with statistics."""
        state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self._state) if leaf.ndim)
        return Counted(state_bytes, {schedule.parts(self.every)[0]: _counts(self._program)})


class TwoProgramsStep(JaxStep):
    """The same, of two compiled programs, one of which takes statistics: the loop knows when.

    A program needs no branch for it then, and on a GPU each of them waits for the processor. A
    method whose steps are all alike has one program.
    """

    def _compile(self) -> None:
        if self.every == 1:
            super()._compile()
            return
        programs = {
            part: self._compiled(part == schedule.WITH) for part in schedule.parts(self.every)
        }
        self._programs, self._program = programs, programs[schedule.WITH]

    def go_to(self, part: str) -> None:
        """Set what the statistics have counted, and which program runs."""
        super().go_to(part)
        self._program = self._programs[part]

    def count(self) -> Counted:
        """Of both programs."""
        if self.every == 1:
            return super().count()
        counts = {part: _counts(program) for part, program in self._programs.items()}
        return Counted(super().count().state_bytes, counts)


CLASSES = {"jax": JaxStep, "jax-two-programs": TwoProgramsStep}
"""The kind of step by the setting's name on the command line."""


def make_state(network: Network, method: Method, dtype: str, key: Any, x: Any) -> Any:
    """A new state of a method; `jax.eval_shape` takes it too."""
    model = build(network, method.normalizer, dtype)
    variables = model.init(key, x)
    params, tx = variables["params"], make_optimizer(method.optimizer)
    rule = method.make_rule(jaxnorm)
    if rule is None:
        stats = variables.get("batch_stats")
        return TrainState.create(apply_fn=model.apply, params=params, tx=tx, batch_stats=stats)
    if rule.gradient == "preconditioned":
        apply = jaxnorm.linen.neuronwise(model, rule=rule)
        return TrainState.create(apply_fn=apply, params=params, tx=tx)
    return jaxnorm.linen.TrainState.prepare(model, params, tx, x, rule=rule)


def interval_of(method: Method) -> int:
    """See `Rule.interval`; 1 where all steps are alike."""
    rule = method.make_rule(jaxnorm)
    return 1 if rule is None or rule.gradient == "preconditioned" else rule.interval


def train_step(state: Any, x: jax.Array, y: jax.Array, statistics: bool | None = None) -> Any:
    """A step of any of the states: the next state and the loss.

    `statistics`, for a rule that takes them in some steps only: whether this is one; None: as the
    state says when it runs.
    """

    def loss(params: Any) -> Any:
        changes: Any = {}
        if state.batch_stats is None:
            z = state.apply_fn({"params": params}, x)
        else:
            variables = {"params": params, "batch_stats": state.batch_stats}
            z, changes = state.apply_fn(variables, x, mutable=["batch_stats"])
        return jnp.mean((z.astype(jnp.float32) - y) ** 2), changes

    differentiate: Callable[..., Any] = getattr(state, "value_and_grad", jax.value_and_grad)
    if statistics is not None:
        differentiate = functools.partial(differentiate, statistics=statistics)
    (value, changes), grads = differentiate(loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, **changes), value


@functools.partial(jax.jit, donate_argnums=0)
def _at(state: Any, steps: int, age: int) -> Any:
    """The state after so many steps, with statistics that are so old."""

    def is_statistics(node: Any) -> bool:
        return isinstance(node, Statistics)

    def counted(node: Any) -> Any:
        numbers = {"steps": steps, "rounds": 0, "age": age}
        return node.with_scalars(**{k: jnp.full_like(node.age, n) for k, n in numbers.items()})

    stats = jax.tree.map(counted, state.neuron_stats, is_leaf=is_statistics)
    return state.replace(neuron_stats=stats)


def make_optimizer(name: str) -> optax.GradientTransformation:
    """Adam, Muon with Adam for what is no matrix, or SOAP."""
    if name == "soap":
        return importlib.import_module(SOAP["jax"]).soap(RATE)
    return optax.contrib.muon(RATE) if name == "muon" else optax.adam(RATE)


def _counts(compiled: Any) -> Counts:
    """What XLA says of a program; not every backend says everything."""
    costs, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    costs = costs[0] if isinstance(costs, list) else costs
    sizes = {} if memory is None else {
        "transient_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
    }  # fmt: skip
    return Counts(costs.get("flops"), costs.get("bytes accessed"), **sizes)
