"""Every layer is its framework's: name, arguments, parameters, initial values, errors."""

import copy
import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from flax.linen.dtypes import promote_dtype as promote_linen
from flax.nnx.nn.dtypes import promote_dtype as promote_nnx
from jax import lax

import jaxnorm
import torchnorm
from jaxnorm.compat import as_pure
from jaxnorm.statistics import tracked
from parity_tests.tolerances import GATE, slice_error

PRECONDITIONED = jaxnorm.Rule(gradient="preconditioned")
PRECONDITIONED_TORCH = torchnorm.Rule(gradient="preconditioned")
NORMAL, ONES = nn.initializers.normal(), nn.initializers.ones_init()


def dot(*args, **kwargs):
    """A product that is not the framework's own."""
    return 2 * lax.dot_general(*args, **kwargs)


def conv(*args, **kwargs):
    """A convolution that is not the framework's own."""
    return 2 * lax.conv_general_dilated(*args, **kwargs)


def einsum(*args, **kwargs):
    """An einsum that is not the framework's own."""
    return 2 * jnp.einsum(*args, **kwargs)


COMMON = {
    "use_bias": True,
    "dtype": jnp.bfloat16,
    "param_dtype": jnp.float32,
    "precision": "highest",
    "kernel_init": NORMAL,
    "bias_init": ONES,
}
MASK = np.ones((3, 2, 2, 6), "float32")
MASK[0] = 0
WINDOW = {"strides": (2, 1), "kernel_dilation": (1, 2), "padding": ((1, 2), (0, 1)), "mask": MASK}
CONV = {"input_dilation": (1, 2), "feature_group_count": 2, **WINDOW}
TRANSPOSED = {"transpose_kernel": True, **WINDOW}
IMAGES, ROWS = (2, 7, 6, 4), (8, 5)
SWAPPED = np.ones((3, 2, 6, 4), "float32")
SWAPPED[0] = 0

#: Every argument of the framework's layer with another value than its default, and the shape of x.
LINEN = {
    "Dense": ({"features": 6, "dot_general": dot}, ROWS),
    "DenseGeneral": (
        {"features": (2, 3), "axis": (1, -1), "batch_dims": (0,), "dot_general": dot},
        (2, 3, 9, 4),
    ),
    "Einsum": (
        {"shape": (5, 2, 3), "einsum_str": "bd,dhk->bhk", "preferred_element_type": jnp.float32},
        ROWS,
    ),
    "Conv": (
        {"features": 6, "kernel_size": (3, 2), "conv_general_dilated": conv, **CONV},
        IMAGES,
    ),
    "ConvTranspose": (
        {
            "features": 6,
            "kernel_size": (3, 2),
            "preferred_element_type": jnp.float32,
            **TRANSPOSED,
            "mask": SWAPPED,
        },
        IMAGES,
    ),
}
#: linen's own, and classes that take the place of an argument above (see `test_classes`).
EXEMPT = {"name", "parent", "dot_general_cls", "conv_general_dilated_cls"}
METADATA = {"kernel_metadata": {"note": 1}, "bias_metadata": {"note": 2}}
NNX = {
    "Linear": ({"in_features": 5, "out_features": 6, "dot_general": dot}, ROWS),
    "LinearGeneral": (
        {
            "in_features": (3, 4),
            "out_features": (2, 3),
            "axis": (1, -1),
            "batch_axis": {0: 2},
            "dot_general": dot,
        },
        (2, 3, 9, 4),
    ),
    "Einsum": (
        {
            "einsum_str": "bd,dhk->bhk",
            "kernel_shape": (5, 2, 3),
            "bias_shape": (2, 3),
            "einsum_op": einsum,
        },
        ROWS,
    ),
    "Conv": (
        {
            "in_features": 4,
            "out_features": 6,
            "kernel_size": (3, 2),
            "conv_general_dilated": conv,
            **CONV,
        },
        IMAGES,
    ),
    "ConvTranspose": (
        {
            "in_features": 4,
            "out_features": 6,
            "kernel_size": (3, 2),
            **TRANSPOSED,
            "mask": SWAPPED,
        },
        IMAGES,
    ),
}
TORCH = {"bias": False, "device": "cpu", "dtype": torch.float64}
CONV_TORCH = {
    "in_channels": 4,
    "out_channels": 6,
    "kernel_size": 3,
    "stride": 2,
    "padding": 1,
    "dilation": 2,
    "groups": 2,
    **TORCH,
}
MODULES = {
    "Linear": ({"in_features": 5, "out_features": 6, **TORCH}, ROWS),
    **{
        f"Conv{d}d": ({**CONV_TORCH, "padding_mode": "circular"}, (2, 4, *(7, 6, 5)[:d]))
        for d in (1, 2, 3)
    },
    **{
        f"ConvTranspose{d}d": (
            {**CONV_TORCH, "output_padding": 1, "padding_mode": "zeros"},
            (2, 4, *(7, 6, 5)[:d]),
        )
        for d in (1, 2, 3)
    },
}


def data(shape):
    """Inputs."""
    return jnp.asarray(np.random.default_rng(0).normal(size=shape) + 1, "float32")


def same(ours, theirs):
    """Equal trees, bit for bit, dtypes included."""
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y, strict=True), ours, theirs)


def initial(module, x):
    """Its initial variables, in one program."""
    return jax.jit(module.init)(jax.random.key(0), x)


def outputs(run, x):
    """The forward pass and the input gradient, compiled (test_bitwise_layers.py has them eager)."""

    @jax.jit
    def both(x):
        z, pull = jax.vjp(run, x)
        return z, pull(jnp.cos(jnp.arange(z.size, dtype=z.dtype)).reshape(z.shape))

    return both(x)


@pytest.mark.parametrize("name", LINEN)
def test_linen(name):
    own, shape = LINEN[name]
    ours, theirs = getattr(jaxnorm.linen, name), getattr(nn, name)
    arguments = {**COMMON, "promote_dtype": promote_linen, **own}
    assert theirs.__dataclass_fields__.keys() == arguments.keys() | (
        EXEMPT & theirs.__dataclass_fields__.keys()
    ), "the framework has another argument"
    assert theirs.__dataclass_fields__.keys() <= ours.__dataclass_fields__.keys()
    assert issubclass(ours, theirs)
    assert ours.__name__ == name  # by which linen names the parameters
    parameters = inspect.signature(theirs.__call__).parameters
    assert list(inspect.signature(ours.__call__).parameters) == list(parameters)

    layer, reference = ours(**arguments, gate="silu", rule=PRECONDITIONED), theirs(**arguments)
    x = data(shape)
    variables = initial(reference, x)
    same(initial(layer, x), variables)
    results = (outputs(lambda x, m=m: m.apply(variables, x), x) for m in (layer, reference))
    same(*results)
    assert variables.keys() == {"params"}  # no state


@pytest.mark.parametrize("name", NNX)
def test_nnx(name):
    own, shape = NNX[name]
    ours, theirs = getattr(jaxnorm.nnx, name), getattr(nnx, name)
    arguments = {**COMMON, "promote_dtype": promote_nnx, **METADATA, **own}
    arguments["preferred_element_type"] = jnp.float32
    known = inspect.signature(theirs.__init__).parameters.keys()
    if name == "Einsum":
        del arguments["use_bias"]  # there it is bias_shape
    assert known - {"self", "rngs"} - EXEMPT == arguments.keys(), (
        "the framework has another argument"
    )
    assert issubclass(ours, theirs)
    call = inspect.signature(theirs.__call__).parameters
    assert list(inspect.signature(ours.__call__).parameters) == list(call)
    by_keyword = ["gate", "rule", "axis_name"]
    assert list(inspect.signature(ours.__init__).parameters) == [*known, *by_keyword]

    x = data(shape)
    layer = ours(**arguments, gate="silu", rule=PRECONDITIONED, rngs=nnx.Rngs(0))
    reference = theirs(**arguments, rngs=nnx.Rngs(0))
    states = [nnx.to_pure_dict(nnx.state(m)) for m in (layer, reference)]
    same(*states)
    nnx.update(layer, nnx.state(reference))  # checkpoints move both ways
    nnx.update(reference, nnx.state(layer))
    same(*(outputs(m, x) for m in (layer, reference)))


# By default: the framework's training to the last bit, whether or not statistics are recorded.


def backward(run, *trees):
    """z, and the gradients at all trees, compiled.

    For float32: between two operations in bfloat16 that it has fused, XLA does not round, and what
    it fuses depends on the rest of the program.
    """

    @jax.jit
    def both(*trees):
        z, pull = jax.vjp(run, *trees)
        return z, pull(jnp.cos(jnp.arange(z.size, dtype=z.dtype)).reshape(z.shape))

    return both(*trees)


def check_recorded(batch, z, params):
    """One call, as many samples as each neuron has, none of the sums missing or zero."""
    assert batch.calls == 1
    assert batch.samples == z.size / params["bias"].size
    for name in set(tracked.SUMS) - {"square_large", "spread", *tracked.ROWS}:
        assert np.all(np.isfinite(getattr(batch, name)))
        assert np.any(getattr(batch, name) != 0)


@pytest.mark.parametrize("name", LINEN)
def test_linen_by_default(name):
    own, shape = LINEN[name]
    arguments = {**COMMON, "promote_dtype": promote_linen, **own, "dtype": jnp.float32}
    reference, x = getattr(nn, name)(**arguments), data(shape)
    layer = getattr(jaxnorm.linen, name)(**arguments, gate="silu")
    variables = initial(reference, x)
    same(initial(layer, x), variables)
    expected = backward(reference.apply, variables, x)
    for apply in (layer.apply, jaxnorm.linen.neuronwise(reference, {"*": "silu"})):
        same(backward(apply, variables, x), expected)
        stats = jaxnorm.linen.init_statistics(apply, variables, x)
        with_stats = {**variables, "neuron_stats": stats}
        z, (gradients, g_x) = backward(apply, with_stats, x)
        check_recorded(gradients.pop("neuron_stats")["statistics"], z, variables["params"])
        same((z, (gradients, g_x)), expected)


@pytest.mark.parametrize("name", NNX)
def test_nnx_by_default(name):
    own, shape = NNX[name]
    arguments = {**COMMON, "promote_dtype": promote_nnx, **METADATA, **own, "dtype": jnp.float32}
    arguments.pop("mask", None)  # under `nnx.split` an array, so traced: refused
    if name == "Einsum":
        del arguments["use_bias"]
    x = data(shape)

    def run(layer):
        graph, params, stats, rest = nnx.split(layer, nnx.Param, jaxnorm.nnx.NeuronStats, ...)
        pure = lambda params, stats, x: nnx.merge(graph, params, stats, rest)(x)  # noqa: E731
        z, (params, stats, g_x) = backward(pure, *map(as_pure, (params, stats)), x)
        return (z, params, g_x), stats

    def make(package, **kwargs):
        return getattr(package, name)(**arguments, **kwargs, rngs=nnx.Rngs(0))

    expected, nothing = run(make(nnx))
    assert not jax.tree.leaves(nothing)
    converted = make(nnx)
    jaxnorm.nnx.convert(converted, {"*": "silu"})
    for layer in (make(jaxnorm.nnx, gate="silu"), converted):
        found, nothing = run(layer)
        assert not jax.tree.leaves(nothing)
        same(found, expected)
        jaxnorm.nnx.init_statistics(layer, x)
        found, stats = run(layer)
        same(found, expected)
        check_recorded(stats["neuron_stats"], found[0], found[1])


@pytest.mark.parametrize("name", MODULES)
def test_torch_by_default(name):
    arguments, shape = MODULES[name]
    arguments = {**arguments, "bias": True}
    reference = getattr(torch.nn, name)(**arguments)
    layer = getattr(torchnorm, name)(**arguments, gate="silu")
    layer.load_state_dict(reference.state_dict(), strict=True)
    converted = copy.deepcopy(reference)
    torchnorm.convert(converted, gates={"": "silu"})

    def gradients(module):
        module.zero_grad()
        x = torch.tensor(np.asarray(data(shape)), dtype=torch.float64, requires_grad=True)
        z = module(x)
        z.backward(torch.arange(z.numel(), dtype=z.dtype).cos().reshape(z.shape))
        return z.detach(), x.grad, module.weight.grad.clone(), module.bias.grad.clone()

    expected = gradients(reference)
    for module in (layer, converted):
        assert all(map(torch.equal, gradients(module), expected))
        assert not list(module.buffers())
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        torchnorm.optim.in_neuron_coordinates(optimizer, module)
        assert all(map(torch.equal, gradients(module), expected))
        assert module.state_dict().keys() == reference.state_dict().keys()
        gathered = module.neuron_stats.gathered()
        assert gathered.calls == 1
        assert gathered.samples == expected[0].numel() / reference.bias.numel()


def test_a_linen_model_has_the_frameworks_variables():
    class Net(nn.Module):
        dense: object

        @nn.compact
        def __call__(self, x):
            return self.dense(2, name="head")(nn.BatchNorm(False)(self.dense(3, name="first")(x)))

    def ours(*args, **kwargs):
        return jaxnorm.linen.Dense(*args, **kwargs, gate=None)

    reference, model, key = Net(nn.Dense), Net(ours), jax.random.key(0)
    variables = initial(reference, data(ROWS))
    same(initial(model, data(ROWS)), variables)
    same(jax.jit(model.init_with_output)(key, data(ROWS))[1], variables)
    run = functools.partial(model.apply, mutable=["batch_stats"])
    state = jax.eval_shape(run, variables, data(ROWS))[1]
    assert state.keys() == {"batch_stats"}  # nothing is written that was not asked for


FUNCTIONS = {
    "dense": (jaxnorm.neuronwise_dense, ROWS, (5, 6)),
    "conv": (jaxnorm.neuronwise_conv, IMAGES, (3, 3, 4, 6)),
    "conv_transpose": (jaxnorm.neuronwise_conv_transpose, IMAGES, (3, 3, 4, 6)),
    "einsum": (functools.partial(jaxnorm.neuronwise_einsum, "bi,io->bo"), ROWS, (5, 6)),
    "op": (functools.partial(jaxnorm.neuronwise_op, jnp.matmul), ROWS, (5, 6)),
}
TORCH_FUNCTIONS = {
    "linear": (torchnorm.functional.neuronwise_linear, ROWS, (6, 5)),
    "conv2d": (torchnorm.functional.neuronwise_conv2d, IMAGES, (6, 7, 3, 3)),
    "conv_transpose2d": (
        torchnorm.functional.neuronwise_conv_transpose2d,
        IMAGES,
        (7, 6, 3, 3),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_preconditioned_by_default(name):
    function, shape, kernel_shape = FUNCTIONS[name]
    x, kernel, bias = data(shape), data(kernel_shape), jnp.zeros(kernel_shape[-1], "float32")

    def gradients(**kwargs):
        return backward(lambda *a: function(*a, gate="silu", **kwargs), x, kernel, bias)[1]

    for knobs in ({}, {"weighting": "uniform", "scale": "layer"}):
        expected = gradients(rule=jaxnorm.Rule(gradient="preconditioned", **knobs))
        same(gradients(**({"rule": jaxnorm.Rule(**knobs)} if knobs else {})), expected)
    plain = gradients(rule=jaxnorm.PLAIN)
    same(expected[0], plain[0])
    assert not np.array_equal(expected[1], plain[1])
    assert not np.array_equal(expected[2], plain[2])


@pytest.mark.parametrize("name", TORCH_FUNCTIONS)
def test_torch_functions_are_preconditioned_by_default(name):
    function, shape, kernel_shape = TORCH_FUNCTIONS[name]
    arrays = data(shape), data(kernel_shape), np.zeros(6, "float32")

    def gradients(**kwargs):
        leaves = [torch.tensor(np.asarray(a), requires_grad=True) for a in arrays]
        z = function(*leaves, gate="silu", **kwargs)
        z.backward(torch.arange(z.numel(), dtype=z.dtype).cos().reshape(z.shape))
        return [leaf.grad for leaf in leaves]

    for knobs in ({}, {"weighting": "uniform", "scale": "layer"}):
        expected = gradients(rule=torchnorm.Rule(gradient="preconditioned", **knobs))
        found = gradients(**({"rule": torchnorm.Rule(**knobs)} if knobs else {}))
        assert all(map(torch.equal, found, expected))
    plain = gradients(rule=torchnorm.PLAIN)
    assert [torch.equal(a, b) for a, b in zip(expected, plain, strict=True)] == [True, False, False]


def test_every_layer_is_listed():
    for package, table in ((jaxnorm.linen, LINEN), (jaxnorm.nnx, NNX)):
        classes = {name: value for name, value in vars(package).items() if inspect.isclass(value)}
        base = package.base.Neuronwise
        assert {name for name, value in classes.items() if issubclass(value, base)} == set(table)
    modules = {name for name in torchnorm.__all__ if hasattr(torch.nn, name)}
    assert modules == set(MODULES)


@pytest.mark.parametrize("cls", ["dot_general_cls", "conv_general_dilated_cls"])
def test_classes(cls):
    # The framework makes a function of them, or a module with state, which cannot run again.
    make = (lambda: conv) if cls.startswith("conv") else (lambda: dot)
    name, shape = ("Conv", IMAGES) if cls.startswith("conv") else ("Dense", ROWS)
    size = {"kernel_size": (3, 3)} if name == "Conv" else {}
    kwargs = {cls: make, "gate": "relu", "rule": PRECONDITIONED}
    layer = getattr(jaxnorm.linen, name)(6, **size, **kwargs)
    reference = getattr(nn, name)(6, **size, **{cls: make})
    key = jax.random.key(0)
    same(*(jax.jit(m.init_with_output)(key, data(shape)) for m in (layer, reference)))
    with pytest.raises(TypeError, match="expected a class of plain functions"):
        layer.clone(**{cls: lambda: nn.Dense(3)}).init(jax.random.key(0), data(shape))


@pytest.mark.parametrize("name", MODULES)
def test_torch(name):
    arguments, shape = MODULES[name]
    ours, theirs = getattr(torchnorm, name), getattr(torch.nn, name)
    known = inspect.signature(theirs.__init__).parameters.keys() - {"self"}
    assert known == arguments.keys(), "the framework has another argument"
    assert issubclass(ours, theirs)
    modules = []
    for make, kwargs in ((ours, {"gate": "silu", "rule": PRECONDITIONED_TORCH}), (theirs, {})):
        torch.manual_seed(0)
        modules.append(make(**arguments, **kwargs))
    layer, reference = modules
    assert list(inspect.signature(layer.forward).parameters) == list(
        inspect.signature(reference.forward).parameters
    )
    state = reference.state_dict()
    assert layer.state_dict().keys() == state.keys()
    assert all(torch.equal(layer.state_dict()[key], value) for key, value in state.items())
    layer.load_state_dict(state, strict=True)
    reference.load_state_dict(layer.state_dict(), strict=True)
    results = []
    for module in (layer, reference):
        x = torch.tensor(np.asarray(data(shape)), dtype=torch.float64, requires_grad=True)
        z = module(x)
        z.backward(torch.arange(z.numel(), dtype=z.dtype).cos().reshape(z.shape))
        results.append((z, x.grad))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*results, strict=True))
    assert layer.weight.grad is not None
    assert not torch.equal(layer.weight.grad, reference.weight.grad)


def test_output_size_of_transposed_modules():
    x = torch.randn(2, 4, 5, 5)
    torch.manual_seed(0)
    kwargs = {"gate": "relu", "rule": PRECONDITIONED_TORCH}
    layer = torchnorm.ConvTranspose2d(4, 6, 3, stride=2, padding=1, **kwargs)
    torch.manual_seed(0)
    reference = torch.nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1)
    for size in ([9, 9], [10, 9]):
        assert torch.equal(layer(x, size), reference(x, size))


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padding_modes_are_real_samples(mode):
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64) + 3
    kwargs = {"gate": "silu", "rule": PRECONDITIONED_TORCH, "dtype": torch.float64}
    layer = torchnorm.Conv2d(4, 6, 3, padding=1, padding_mode=mode, **kwargs)
    z = layer(x)
    errors = torch.randn_like(z)
    z.backward(errors)
    assert layer.bias is not None
    weight, bias = (p.detach().clone().requires_grad_() for p in (layer.weight, layer.bias))
    padded = F.pad(x, (1, 1, 1, 1), mode)
    torchnorm.functional.neuronwise_conv2d(padded, weight, bias, gate="silu").backward(errors)
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad, weight.grad)
    assert torch.equal(layer.bias.grad, bias.grad)


def test_memory_formats():
    x = torch.randn(4, 4, 7, 6, dtype=torch.float64) + 3
    kwargs = {"gate": "silu", "rule": PRECONDITIONED_TORCH, "dtype": torch.float64}
    layer = torchnorm.Conv2d(4, 6, 3, padding=1, **kwargs)
    grads = []
    for inputs in (x, x.to(memory_format=torch.channels_last)):
        layer.zero_grad()
        layer(inputs).square().sum().backward()
        assert layer.weight.grad is not None
        grads.append(layer.weight.grad.clone())
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("transposed", [False, True])
def test_masked_entries_learn_nothing(transposed):
    kind = jaxnorm.linen.ConvTranspose if transposed else jaxnorm.linen.Conv
    mask = np.ones((3, 3, 4, 6), "float32")
    mask[0] = 0
    layer = kind(6, (3, 3), mask=mask, gate="relu", rule=PRECONDITIONED)
    variables = initial(layer, data(IMAGES))
    loss = lambda v: (layer.apply(v, data(IMAGES)) ** 2).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(variables)["params"]
    np.testing.assert_array_equal(gradient["kernel"][0], 0)
    assert np.all(gradient["kernel"][1:] != 0)


IMAGE, KERNEL = np.ones(IMAGES, "float32"), np.ones((3, 3, 4, 6), "float32")
WEIGHT, PLANES = KERNEL.transpose(3, 2, 0, 1).copy(), IMAGE.transpose(0, 3, 1, 2).copy()


def jax_conv(x=IMAGE, kernel=KERNEL, bias=None, **kwargs):
    """The JAX function, forward only."""
    return jaxnorm.neuronwise_conv(x, kernel, bias, gate="relu", **kwargs)


def jax_transposed(x=IMAGE, kernel=KERNEL, **kwargs):
    """The transposed one."""
    return jaxnorm.neuronwise_conv_transpose(x, kernel, gate="relu", **kwargs)


def jax_einsum(equation, x=(8, 5), kernel=(5, 6), bias=None):
    """The product."""
    bias = None if bias is None else np.ones(bias)
    return jaxnorm.neuronwise_einsum(equation, np.ones(x), np.ones(kernel), bias, gate="relu")


def torch_conv(x=PLANES, weight=WEIGHT, transposed=False, **kwargs):
    """The PyTorch functions."""
    functions = torchnorm.functional
    conv = functions.neuronwise_conv_transpose2d if transposed else functions.neuronwise_conv2d
    return conv(torch.tensor(x), torch.tensor(weight), gate="relu", **kwargs)


def op(x, kernel):
    """Not linear in the kernel."""
    return x @ kernel**2


ERRORS = {
    "integers": (lambda: jax_conv(IMAGE.astype(int)), "x: got dtype int64, expected one of"),
    "channels": (lambda: jax_conv(IMAGE[..., :3]), "2 spatial axes and 4 channels for a kernel"),
    "axes": (lambda: jax_conv(IMAGE[0, 0]), "got shape (6, 4), expected 2 spatial axes"),
    "window": (lambda: jax_conv(kernel=KERNEL[0, 0]), "expected at least three axes"),
    "groups": (lambda: jax_conv(kernel=KERNEL[:, :, :1, :5], feature_group_count=4), "groups: got"),
    "padding": (lambda: jax_conv(padding="FULL"), "padding: got 'FULL', expected one of 'SAME'"),
    "pairs": (lambda: jax_conv(padding=((1, 1),)), "one int or pair for each of 2 spatial axes"),
    "causal": (lambda: jax_conv(padding="CAUSAL"), "causal padding has one direction only"),
    "strides": (lambda: jax_conv(strides=(1, 2, 3)), "strides: got (1, 2, 3), expected an int"),
    "mask": (lambda: jax_conv(mask=np.ones(3)), "mask: got shape (3,), expected the kernel's"),
    "traced mask": (lambda: jax.jit(lambda m: jax_conv(mask=m))(KERNEL), "mask: got a traced"),
    "bias": (lambda: jax_conv(bias=np.ones(5)), "bias: got shape (5,), expected (6,)"),
    "transposed": (lambda: jax_transposed(padding="REFLECT"), "padding: got 'REFLECT', expected"),
    "transposed axes": (lambda: jax_transposed(IMAGE[0, 0]), "expected 2 spatial axes"),
    "equation": (lambda: jax_einsum("bi"), "expected two operands and a result"),
    "dots": (lambda: jax_einsum("bi,...o->bo"), "expected no '...' in the kernel"),
    "labels": (lambda: jax_einsum("bij,io->bo"), "expected one axis for each label of 'bij'"),
    "lengths": (lambda: jax_einsum("bi,io->bo", kernel=(4, 6)), "got length 4 for 'i'"),
    "summed": (lambda: jax_einsum("bi,io->o"), "every label in two or three of x, kernel and z"),
    "einsum bias": (lambda: jax_einsum("bi,io->bo", bias=(5,)), "bias: got shape (5,)"),
    "op": (lambda: jaxnorm.neuronwise_op(op, np.ones((8, 5)), np.ones((5, 6)), gate=None), "op: "),
    "torch integers": (lambda: torch_conv(PLANES.astype(int)), "x: got dtype int64, expected"),
    "torch channels": (lambda: torch_conv(PLANES[:, :3]), "2 spatial axes and 4 channels"),
    "torch axes": (lambda: torch_conv(PLANES[0, 0]), "got shape (7, 6), expected 2 spatial axes"),
    "torch window": (lambda: torch_conv(weight=WEIGHT[0]), "expected 4 axes [O, C, *window]"),
    "torch groups": (lambda: torch_conv(weight=WEIGHT[:5, :1], groups=4), "groups: got 4"),
    "torch padding": (lambda: torch_conv(padding="full"), "padding: got 'full', expected 'same'"),
    "torch same": (lambda: torch_conv(padding="same", stride=2), "got 'same' with stride (2, 2)"),
    "torch stride": (lambda: torch_conv(stride=0), "stride: got 0, expected an int >= 1"),
    "torch mode": (
        lambda: torchnorm.Conv2d(4, 6, 3, padding_mode="full", gate=None),
        "padding_mode",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_was_expected(name):
    run, text = ERRORS[name]
    with pytest.raises((ValueError, TypeError)) as caught:
        run()
    assert text in str(caught.value)


@pytest.mark.parametrize("name", LINEN)
def test_flax_layers_refuse_integers(name):
    own, shape = LINEN[name]
    layer = getattr(jaxnorm.linen, name)(**own, gate="relu")
    with pytest.raises(TypeError, match="x: got dtype int"):
        layer.init(jax.random.key(0), jnp.ones(shape, int))


@pytest.mark.parametrize("name", NNX)
def test_nnx_layers_refuse_integers(name):
    own, shape = NNX[name]
    layer = getattr(jaxnorm.nnx, name)(**own, gate="relu", rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="x: got dtype int"):
        layer(jnp.ones(shape, int))


def test_a_custom_operation():
    # The example of neuronwise_op: a causal convolution, written by hand.
    def causal(x, kernel):
        back = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        return x @ kernel[1] + back @ kernel[0]

    x, kernel, bias = data((4, 6, 3)), data((2, 3, 5)), data((5,))
    ours = lambda *a: jaxnorm.neuronwise_op(causal, *a, spatial_axes=1, gate="silu")  # noqa: E731
    conv = lambda *a: jaxnorm.neuronwise_conv(*a, padding="CAUSAL", gate="silu")  # noqa: E731
    arrays = [a.astype("float64") for a in (x, kernel, bias)]
    errors = jnp.asarray(np.random.default_rng(1).normal(size=(4, 6, 5)))
    results = (jax.jit(lambda *a, f=f: jax.vjp(f, *a)[1](errors))(*arrays) for f in (ours, conv))
    for mine, right in zip(*results, strict=True):
        assert slice_error(mine, right, axes=()) <= GATE["float64"]
