"""Padding: a batch with a mask records what the batch without these rows does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxnorm
from jaxnorm import Rule, neuronwise_conv, neuronwise_dense, neuronwise_einsum
from jaxnorm.operations.convolution import convolution
from jaxnorm.operations.einsum import parse
from jaxnorm.operations.linear import dense
from jaxnorm.statistics import merging, tracked
from jaxnorm.tests.nets import error
from parity_tests.tolerances import GATE, VISIBLE

RULES = [
    Rule(),
    Rule(weighting="gate_squared", step_size="standardized"),
    Rule(weighting="signed", scale="layer"),
    Rule(weighting="uniform"),
    Rule(weighting="error", decay=0.9),
    Rule(scale="none"),
    Rule(statistics_rows=4),
]
KEEP = np.array([1, 0, 1, 0, 1, 1, 1, 1, 1, 1], bool)
WINDOW = {"strides": (2, 2), "padding": "SAME", "kernel_dilation": (1, 1)}


def product(x, kernel, bias, **settings):
    return neuronwise_dense(x, kernel, bias, gate="gelu", **settings)


def groups(x, kernel, bias, **settings):
    return neuronwise_einsum("gni,gio->gno", x, kernel, bias, gate="gelu", **settings)


def images(x, kernel, bias, **settings):
    return neuronwise_conv(
        x, kernel, bias, gate="gelu", feature_group_count=2, **WINDOW, **settings
    )


def operation_of(layer, x, kernel):
    if layer == "groups":
        return parse("gni,gio->gno", x.shape, kernel.shape).operation(
            lambda x, k: jnp.einsum("gni,gio->gno", x, k), placed=False
        )
    if layer == "images":
        window = {**WINDOW, "input_dilation": (1, 1), "groups": 2}
        return convolution(x.shape, kernel.shape[:-2], **window)[0]
    return dense()


#: function, shape of x, of the kernel, of the bias, axis of the batch.
LAYERS = {
    "dense": (product, (10, 4), (4, 3), (3,), 0),
    "groups": (groups, (2, 10, 4), (2, 4, 3), (2, 3), 1),
    "images": (images, (10, 5, 6, 4), (3, 3, 2, 6), (6,), 0),
}


def make(layer):
    """(f, x, (kernel, bias), g_z, axis); what does not count is something far off, or NaN."""
    apply, x, kernel, bias, axis = LAYERS[layer]
    rng = np.random.default_rng(0)
    x, kernel, bias = (rng.normal(size=shape) for shape in (x, kernel, bias))
    x = np.moveaxis(2 * x + 3, axis, 0)
    x[~KEEP] = np.nan if layer != "groups" else 1e3
    x = np.moveaxis(x, 0, axis)
    g_z = rng.normal(size=jax.eval_shape(apply, x, kernel, bias).shape)
    np.moveaxis(g_z, axis, 0)[~KEEP] = 0
    return apply, x, (kernel, bias), g_z, axis


def record(layer, x, params, g_z, rule, **settings):
    """The statistics of two batches: the second about the mean that the first has left."""
    apply, kernel = LAYERS[layer][0], params[0]
    operation = operation_of(layer, x, kernel)
    empty = tracked.empty(operation, x, kernel, jnp.asarray(g_z), rule, gated=True, centered=True)

    def loss(stats, shift):
        z = apply(x + shift, *params, rule=rule, statistics=stats, **settings)
        return jnp.sum(jnp.where(g_z == 0, 0, z * g_z))

    @jax.jit
    def both():
        first = jax.grad(loss)(empty, 0.0)
        merged = merging.merge(empty, first)
        return merged, merging.merge(merged, jax.grad(loss)(merged, 0.25))

    return both()


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert jnp.allclose(a.scalars, b.scalars, rtol=1e-12)
        a, b = merging.moments(a), merging.moments(b)
        assert error((a.mean, a.sigma), (b.mean, b.sigma)) <= GATE["float64"]


QUICK = {("dense", 0), ("dense", 4), ("dense", 6), ("groups", 1), ("images", 0)}


@pytest.mark.parametrize(
    ("layer", "rule"),
    [
        pytest.param(layer, rule, marks=() if (layer, k) in QUICK else pytest.mark.slow)
        for layer in LAYERS
        for k, rule in enumerate(RULES)
    ],
    ids=str,
)
def test_what_does_not_count_is_not_there(layer, rule):
    _, x, params, g_z, axis = make(layer)
    found = record(layer, x, params, g_z, rule, neuron_mask=jnp.asarray(KEEP))
    kept = (np.compress(KEEP, a, axis) for a in (x, g_z))
    x, g_z = kept
    assert_same(found, record(layer, x, params, g_z, rule))


def test_a_weight_of_two_is_a_row_twice():
    _, x, params, g_z, _ = make("dense")
    weights = np.where(KEEP, np.arange(10) % 3 + 1, 0)
    found = record("dense", x, params, g_z, RULES[3], neuron_mask=weights)
    again = [np.repeat(a, weights, 0) for a in (x, g_z)]
    assert_same(found, record("dense", again[0], params, again[1], RULES[3]))
    with pytest.raises(AssertionError):
        assert_same(found, record("dense", x[KEEP], params, g_z[KEEP], RULES[3]))


@pytest.mark.parametrize("layer", LAYERS)
def test_without_state(layer):
    """The gradient is the sum that it was, in the coordinates of what counts."""
    apply, x, params, g_z, axis = make(layer)
    x = np.where(np.isnan(x), 7.0, x)  # the gradient itself is JAX's, and 0 NaN is NaN

    def gradient(x, g_z, **settings):
        return jax.jit(jax.grad(lambda p: jnp.sum(apply(x, *p, **settings) * g_z)))(params)

    found = gradient(x, g_z, neuron_mask=KEEP)
    expected = gradient(*(np.compress(KEEP, a, axis) for a in (x, g_z)))
    assert error(found, expected) <= GATE["float64"]
    assert error(gradient(x, g_z), expected) > VISIBLE


def test_without_state_a_single_sample_is_an_error():
    apply, x, params, g_z, _ = make("dense")
    one = np.arange(10) == 2
    with pytest.raises(ValueError, match="statistics: got 1 sample, expected at least 2"):
        jax.grad(lambda p: jnp.sum(apply(x, *p, neuron_mask=one) * g_z))(params)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_samples_make_no_step(count):
    _, x, params, g_z, _ = make("dense")
    mask = np.arange(10) < count
    merged, _ = record(
        "dense", x, params, np.where(mask[:, None], g_z, 0), Rule(), neuron_mask=mask
    )
    assert not merging.usable(merged)
    assert int(merged.skipped) == 1
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(merged))


class Net(nn.Module):
    """Per token, pooled, and on the two axes as one."""

    @nn.compact
    def __call__(self, x):  # noqa: D102
        layer = lambda n, gate: jaxnorm.linen.Dense(n, gate=gate, param_dtype=float)  # noqa: E731
        x = nn.silu(layer(6, "silu")(x))
        flat = layer(2, None)(x.reshape(-1, 6)).reshape(*x.shape[:2], 2)
        return layer(1, None)(x[:, 0]), flat


def tokens():
    rng = np.random.default_rng(1)
    lengths = np.array([5, 3, 0, 1])
    return rng.normal(size=(4, 5, 3)), np.arange(5) < lengths[:, None]


def test_the_mask_of_a_model():
    x, mask = tokens()
    net = Net()
    variables = net.init(jax.random.key(0), x)
    stats = jaxnorm.linen.init_statistics(net, variables, x)

    @jax.jit
    def found(mask):
        def loss(stats):
            with jaxnorm.neuron_mask(mask):
                out, flat = net.apply({**variables, "neuron_stats": stats}, x)
            return jnp.sum(out) + jnp.sum(flat)

        return jax.grad(loss)(stats)

    for each in (mask, jnp.roll(mask, 1, axis=0)):  # in one program
        counts = {name: float(s["statistics"].counted().samples) for name, s in found(each).items()}
        assert counts == {"Dense_0": 9.0, "Dense_1": 9.0, "Dense_2": 3.0}
    assert (
        jax.grad(lambda s: jnp.sum(net.apply({**variables, "neuron_stats": s}, x)[0]))(stats)[
            "Dense_0"
        ]["statistics"].samples
        == 20.0
    )


def test_the_keyword_of_a_converted_model():
    x, mask = tokens()
    net = nn.Sequential([nn.Dense(6, param_dtype=float), nn.relu, nn.Dense(1, param_dtype=float)])
    variables = net.init(jax.random.key(0), x)
    apply = jaxnorm.linen.neuronwise(net)
    stats = jaxnorm.linen.init_statistics(apply, variables, x)

    @jax.jit
    def found(mask):
        run = lambda s: jnp.sum(apply({**variables, "neuron_stats": s}, x, neuron_mask=mask))  # noqa: E731
        return jax.grad(run)(stats)

    assert float(found(mask)["layers_0"]["statistics"].counted().samples) == 9.0
    assert float(found(None)["layers_0"]["statistics"].counted().samples) == 20.0


def test_under_vmap_the_mask_is_mapped_too():
    x, mask = tokens()
    kernel, bias = np.ones((3, 2)), np.zeros(2)
    rule = Rule()
    empty = tracked.empty(dense(), x, kernel, x[..., :2], rule, gated=False, centered=True)

    @jax.jit
    def run(x, mask):
        def loss(stats):
            each = lambda x, m: neuronwise_dense(  # noqa: E731
                x, kernel, bias, gate=None, rule=rule, statistics=stats, neuron_mask=m
            )
            return jnp.sum(jax.vmap(each)(x, mask))

        return merging.merge(empty, jax.grad(loss)(empty))

    assert_same([run(x, mask)], [run(x[mask][:, None], np.ones((9, 1)))])


def test_masks_that_do_not_fit():
    x, mask = tokens()
    params = np.ones((3, 2)), np.zeros(2)
    with pytest.raises(ValueError, match=r"neuron_mask: got shape \(5, 4\), expected the axes of"):
        neuronwise_dense(x, *params, gate=None, neuron_mask=mask.T)
    with pytest.raises(TypeError, match="neuron_mask: got dtype complex64, expected bool or real"):
        neuronwise_dense(x, *params, gate=None, neuron_mask=mask.astype("complex64"))
    with jaxnorm.neuron_mask(mask), jaxnorm.neuron_mask(None):
        neuronwise_dense(x[:3], *params, gate=None)


def test_a_mask_is_never_built_into_a_program():
    x, mask = tokens()
    run = jax.jit(lambda x: neuronwise_dense(x, np.ones((3, 2)), gate=None))
    with jaxnorm.neuron_mask(mask), pytest.raises(ValueError, match="from outside of the function"):
        run(x)
