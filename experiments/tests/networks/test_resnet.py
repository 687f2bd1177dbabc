"""The residual network: the same under a rule, which is told what each activation finally sees."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
from experiments.networks.convnet import patch_convolution, unit_patch_convolution
from experiments.networks.resnet import ResNet

X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8 * 8 * 2)), jnp.float32)


@pytest.mark.parametrize(("stride", "own"), [(1, unit_patch_convolution), (2, patch_convolution)])
def test_convolutions_by_patches(stride, own) -> None:
    x = X.reshape(3, 8, 8, 2)
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 2, 4))
    dimensions = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=dimensions
    )
    np.testing.assert_allclose(own(x, kernel), expected, atol=1e-5)


def test_a_gate_is_what_the_activation_sees_of_the_sum() -> None:
    plain, ours = (ResNet((4, 8), 3, rule, image=(8, 2)) for rule in (None, jaxnorm.NEURONWISE))
    variables = jax.jit(partial(plain.init, train=False))(jax.random.key(0), X)
    stats = jaxnorm.linen.init_statistics(ours, variables, X, train=False)

    @jax.jit
    def both(stats):
        out, seen = plain.apply(variables, X, train=False, capture_intermediates=True)
        given = {**variables, "neuron_stats": stats}
        loss = lambda stats: jnp.sum(ours.apply(given | {"neuron_stats": stats}, X, train=False))  # noqa: E731
        return out, *jax.value_and_grad(loss)(stats), seen["intermediates"]

    out, total, recorded, seen = both(stats)
    np.testing.assert_allclose(total, np.sum(out), rtol=1e-5)
    z = {name: np.asarray(of["__call__"][0]) for name, of in seen.items() if isinstance(of, dict)}
    sums = {
        "Conv_0": z["Conv_0"],
        "Conv_1": z["Conv_1"],
        "Conv_2": z["Conv_2"] + np.maximum(z["Conv_0"], 0),
        "Conv_3": z["Conv_3"],
        "Conv_4": z["Conv_4"] + z["Dense_0"],
        "Dense_0": z["Conv_4"] + z["Dense_0"],
    }
    for name, u in sums.items():
        active = (u > 0).sum(axis=(0, 1, 2))
        np.testing.assert_array_equal(np.ravel(recorded[name]["statistics"].mass), active, name)
