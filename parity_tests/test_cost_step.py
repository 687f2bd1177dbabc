"""The cost of a whole training step, counted: what the default form adds to the plain one."""

import re
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import jaxnorm
import torchnorm
from jaxnorm.rule import due_steps

SAMPLES, WIDTH, LAYERS = 256, 128, 4
ENTRIES = WIDTH**2


class MLP(nn.Module):
    """Hidden layers of one width, and an output as wide."""

    @nn.compact
    def __call__(self, x):
        """[N, WIDTH] -> [N, WIDTH]."""
        for _ in range(LAYERS - 1):
            x = nn.relu(nn.Dense(WIDTH)(x))
        return nn.Dense(WIDTH)(x)


def inputs():
    return np.random.default_rng(0).standard_normal((SAMPLES, WIDTH)).astype(np.float32) + 1


@pytest.fixture(scope="module")
def programs():
    """The optimized program of a step: plain; with statistics; without, if so told; by default.

    And "packed": without, where they are in bfloat16.
    """
    x = jnp.asarray(inputs())
    params = MLP().init(jax.random.key(0), x)["params"]
    tx = optax.adam(1e-3)
    state = jaxnorm.linen.TrainState.prepare(MLP(), params, tx, x)

    def plain(params, memory):
        grads = jax.grad(lambda p: jnp.mean(MLP().apply({"params": p}, x) ** 2))(params)
        updates, memory = tx.update(grads, memory, params)
        return optax.apply_updates(params, updates), memory

    def step(state, statistics):
        loss = lambda p: jnp.mean(state.apply_fn({"params": p}, x) ** 2)  # noqa: E731
        grads = state.grad(loss, statistics=statistics)(state.params)
        return state.apply_gradients(grads=grads)

    found = {"plain": jax.jit(plain, donate_argnums=(0, 1)).lower(params, tx.init(params))}
    for statistics in (True, False, None):
        lowered = jax.jit(lambda s, statistics=statistics: step(s, statistics), donate_argnums=0)
        found[statistics] = lowered.lower(state)
    packed = jaxnorm.Rule(statistics_dtype="bfloat16")
    state = jaxnorm.linen.TrainState.prepare(MLP(), params, tx, x, rule=packed)
    found["packed"] = jax.jit(lambda s: step(s, False), donate_argnums=0).lower(state)
    return {name: lowered.compile() for name, lowered in found.items()}


def counted(programs, what):
    """Of each program, over the plain one's."""
    found = {name: program.cost_analysis()[what] for name, program in programs.items()}
    return {name: value / found["plain"] for name, value in found.items()}


def test_flops_in_jax(programs):
    """Without statistics those of the plain step; with them at most two products more, of three."""
    flops = counted(programs, "flops")
    assert flops[False] <= 1.05
    assert 1.4 <= flops[True] <= 1 + 2 / 3 + 0.05  # (the first and the last layer save some)
    share = sum(due_steps(1000)) / 1000
    # (With the branch for biases that are frozen, which is hardly ever taken.)
    assert share * flops[True] + (1 - share) * flops[False] <= 1.1


def test_bytes_in_jax(programs):
    moved = counted(programs, "bytes accessed")
    assert moved[False] <= 1.5
    share = sum(due_steps(1000)) / 1000
    assert share * moved[True] + (1 - share) * moved[False] <= 1.66


def test_memory_in_jax(programs):
    """Parameters, Adam's moments, mean and scale of each weight: five arrays instead of three."""
    state = {n: p.memory_analysis().argument_size_in_bytes for n, p in programs.items()}
    assert state[None] / state["plain"] <= 1.54
    transient = {n: p.memory_analysis().temp_size_in_bytes for n, p in programs.items()}
    assert transient[False] / transient["plain"] <= 1.02
    assert transient["packed"] / transient["plain"] <= 1.02
    assert transient[None] / transient["plain"] <= 1.23


@pytest.mark.parametrize(("dtype", "most"), [(None, 1.56), ("bfloat16", 1.29)])
def test_what_is_kept(dtype, most):
    """In both packages, beside parameters and Adam's moments."""
    x, rule = jnp.asarray(inputs()), {"statistics_dtype": dtype}
    params = MLP().init(jax.random.key(0), x)["params"]
    make = jaxnorm.linen.TrainState.prepare
    state = make(MLP(), params, optax.adam(1e-3), x, rule=jaxnorm.Rule(**rule))
    plain = 3 * sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(state.neuron_stats))
    assert 1.2 < (plain + kept) / plain <= most

    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    torchnorm.prepare(model, optimizer, torch.tensor(inputs()), rule=torchnorm.Rule(**rule))
    kept = sum(
        value.nbytes
        for layer in optimizer._neuronwise.layers.values()
        for value in layer.stats.values.present().values()
    )
    assert 1.2 < (plain + kept) / plain <= most


def test_branches_in_jax(programs):
    """Two ask for biases that do not learn, and two in these; a step twice a layer what is due."""
    branches = {name: text.as_text().count(" conditional(") for name, text in programs.items()}
    # (In a step with statistics each layer asks about what they are summed at first.)
    assert branches["plain"] == 0
    assert branches[False] == 4
    assert branches[True] == 4 + LAYERS
    assert branches[None] == 4 + 3 * LAYERS


def test_size_of_the_program(programs):
    """What compiling takes its time for: kernels, equal ones once, and instructions in them."""
    kernels = {
        name: len(different_kernels(program.as_text())) for name, program in programs.items()
    }
    assert kernels[False] - kernels["plain"] <= 38
    assert kernels[None] - kernels["plain"] <= 116
    instructions = {name: program.as_text().count(" = ") for name, program in programs.items()}
    assert instructions[False] <= 2700
    assert instructions[None] <= 11300


def different_kernels(text):
    """The fusions of a program, but for the names of what is in them."""
    bodies = dict(re.findall(r"^%(\S+) \(.*?\{\n(.*?)^\}", text, re.M | re.S))

    def unnamed(name):
        body = re.sub(r", (metadata|backend_config)=.*", "", bodies[name])
        numbers = {}
        return re.sub(
            r"%[\w.\-]+", lambda found: str(numbers.setdefault(found[0], len(numbers))), body
        )

    return {unnamed(name) for name in re.findall(r" fusion\(.*?calls=%([\w.\-]+)", text)}


class Counts(TorchDispatchMode):
    """Counts operators, and the tensors as large as a weight that they make or write."""

    def __init__(self):
        super().__init__()
        self.all = self.large = self.branches = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.all += 1
        if not func.is_view:
            made = result if result is not None else args[0]  # of lists, in place
            made = made if isinstance(made, list | tuple) else [made]
            sizes = [each.numel() for each in made if isinstance(each, torch.Tensor)]
            self.large += sizes.count(ENTRIES)
            slow = func.overloadpacket in SLOW or any(
                isinstance(each, torch.Tensor) and each.dtype == torch.bool for each in made
            )
            self.branches += sizes.count(ENTRIES) if slow else 0
        return result


#: What takes many times as long as arithmetic on a CPU, because it has branches.
SLOW = (torch.ops.aten.where, torch.ops.aten.masked_fill, torch.ops.aten.masked_fill_)


def network():
    """The same in PyTorch."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]
    model = torch.nn.Sequential(*(m for each in layers[:-1] for m in (each, torch.nn.ReLU())))
    return model.append(layers[-1])


def operators(rule, count=(1000, 1)):
    """(Of forward and backward pass, of the optimizer's step); without a rule the plain ones."""
    model = network()
    optimizer, x = torch.optim.Adam(model.parameters()), torch.tensor(inputs())
    if rule is not None:
        torchnorm.prepare(model, optimizer, x, rule=rule)
    for late in (False, False, True, True):  # (the first of a kind has something to prepare)
        if late and rule is not None:
            for layer in optimizer._neuronwise.layers.values():
                layer.stats.set_count(*count)
        optimizer.zero_grad()
        with Counts() as passes:
            model(x).square().mean().backward()
        with Counts() as step:
            optimizer.step()
    return passes, step


def beyond_plain(count):
    """For each layer and kind of operator, what the default rule adds: of passes, of the step."""
    kinds = ("all", "large", "branches")
    both = zip(operators(torchnorm.Rule(), count), operators(None), strict=True)
    return [
        {kind: (getattr(ours, kind) - getattr(plain, kind)) / LAYERS for kind in kinds}
        for ours, plain in both
    ]


def test_operators_in_torch():
    """A step without statistics has the plain passes; its own part is a few operators a layer."""
    passes, step = beyond_plain((1000, 1))
    assert passes == dict.fromkeys(passes, 0)
    assert step["all"] <= 22
    assert step["large"] <= 11
    assert step["branches"] == 0


def test_operators_with_statistics_in_torch():
    passes, step = beyond_plain((1000, 16))
    assert passes["all"] <= 70
    assert step["all"] <= 186
    assert step["large"] <= 37
    assert passes["branches"] == step["branches"] == 0


def test_operators_on_a_device(monkeypatch):
    """Where nothing can be read without waiting, what is rare is computed in every step."""
    for name, module in list(sys.modules.items()):
        if name.startswith("torchnorm.") and hasattr(module, "at_hand"):
            monkeypatch.setattr(module, "at_hand", lambda values: False)
    passes, step = beyond_plain((1000, 1))
    assert passes["all"] == 0
    assert step["all"] <= 41
    assert step["large"] <= 24
    assert step["branches"] <= 2
    _, step = beyond_plain((1000, 16))
    assert step["all"] <= 282
