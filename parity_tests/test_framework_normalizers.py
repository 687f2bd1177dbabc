"""GroupNorm, InstanceNorm and weight normalization: what the frameworks leave to us.

Forward, gradients and states of the layers are rows of the matrix; how the frameworks themselves
differ is `test_framework_differences`.
"""

import copy

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jaxnorm
import torchnorm
from jaxnorm import from_torch, to_torch

LINEN, NNX, TORCH = (p.normalizers for p in (jaxnorm.linen, jaxnorm.nnx, torchnorm))
RNG = np.random.default_rng(0)
EXACT = 1e-12


def close(actual, expected, gate=EXACT):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= gate * max(np.abs(expected).max(), 1e-300)


def test_group_norm_far_from_zero_in_any_memory_format():
    x = torch.tensor(RNG.normal(size=(4, 8, 3, 2)) + 1e4, dtype=torch.float32)
    layer = TORCH.GroupNorm(2, 8)
    right = torch.nn.GroupNorm(2, 8).double()(x.double()).detach()
    for form in (torch.contiguous_format, torch.channels_last):
        close(layer(x.to(memory_format=form)).detach(), right, 1e-2)


def test_instance_norm_of_one_sample_has_its_gradient_in_any_memory_format():
    x, delta = torch.tensor(RNG.normal(size=(2, 1, 4, 3, 2)))
    layer = TORCH.InstanceNorm(4, dtype=torch.float64)
    gradients = []
    for form in (torch.contiguous_format, torch.channels_last):
        inputs = x.clone().requires_grad_()
        found = torch.autograd.grad(layer(inputs), inputs, delta.to(memory_format=form))
        gradients.append(found[0])
    close(gradients[1], gradients[0])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: LINEN.GroupNorm(3).init(jax.random.key(0), jnp.ones((2, 4))), "num_groups: got 3"),
        (lambda: NNX.GroupNorm(4, 3, rngs=nnx.Rngs(0)), "num_groups: got 3"),
        (lambda: TORCH.GroupNorm(3, 4), "num_groups: got 3"),
        (lambda: NNX.GroupNorm(4, convention="torch", rngs=nnx.Rngs(0)), "num_groups: got None"),
        (lambda: TORCH.GroupNorm(4, 4)(torch.ones(2, 4)), "more than one value per group"),
        (lambda: NNX.GroupNorm(4, 4, rngs=nnx.Rngs(0))(jnp.ones((2, 4))), "one value per group"),
        (lambda: TORCH.InstanceNorm(4)(torch.ones(2, 4)), "at least 3 axes"),
        (lambda: NNX.InstanceNorm(4, rngs=nnx.Rngs(0))(jnp.ones((2, 4))), "at least 3 axes"),
        (lambda: TORCH.InstanceNorm(4, momentum=None), "momentum: got None, expected a number"),
        (lambda: NNX.InstanceNorm(4, momentum=None, rngs=nnx.Rngs(0)), "momentum: got None"),
        (lambda: TORCH.LayerNorm(4)(torch.ones(2, 3)), "expected its last axes to be"),
        (lambda: TORCH.RMSNorm(4, eps=-1.0), "eps: got -1.0, expected a finite number above 0"),
        (lambda: NNX.RMSNorm(4, epsilon=-1.0, rngs=nnx.Rngs(0)), "epsilon: got -1.0, expected"),
    ],
)
def test_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()


# Weights and states from PyTorch to Flax and back.

PAIRS = {
    "BatchNorm": (
        LINEN.BatchNorm(True, momentum=None),
        NNX.BatchNorm(4, momentum=None, use_running_average=True, rngs=nnx.Rngs(0)),
        TORCH.BatchNorm(4, momentum=None),
    ),
    "GroupNorm": (
        LINEN.GroupNorm(2, convention="torch"),
        NNX.GroupNorm(4, 2, convention="torch", rngs=nnx.Rngs(0)),
        TORCH.GroupNorm(2, 4),
    ),
    "InstanceNorm": (
        LINEN.InstanceNorm(track_running_stats=True, use_running_average=True),
        NNX.InstanceNorm(
            4, track_running_stats=True, use_running_average=True, rngs=nnx.Rngs(0)
        ),
        TORCH.InstanceNorm(4, track_running_stats=True, convention="flax"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_weights_and_states_move(name):
    layer, nnx_layer, module = PAIRS[name]
    module = module.double().eval()
    for value in module.state_dict().values():
        value.copy_(torch.tensor(7 if value.ndim == 0 else RNG.uniform(0.5, 2, value.shape)))
    x = RNG.normal(size=(3, 5, 4))
    state = module.state_dict()
    y = module(torch.tensor(x).movedim(-1, 1)).movedim(1, -1).detach()
    like = jax.eval_shape(layer.init, jax.random.key(0), x)
    if name == "InstanceNorm":  # evaluation makes no state of its own
        like["batch_stats"] = {"mean": np.zeros(4), "var": np.zeros(4)}
    variables = from_torch(state, like)
    close(layer.apply(variables, x), y)
    again = to_torch(variables, state)
    assert again.keys() == state.keys()
    counted = name == "BatchNorm"
    assert all(np.array_equal(again[k], v) for k, v in state.items() if counted or v.ndim)
    assert not counted or variables["batch_stats"]["count"] == 7
    nnx.update(nnx_layer, from_torch(state, nnx.state(nnx_layer)))
    close(nnx_layer(jnp.asarray(x)), y)


LAYERS = {
    "dense": (nn.Dense(5), nnx.Linear(4, 5, rngs=nnx.Rngs(0)), torch.nn.Linear(4, 5), (3, 4), -1),
    "conv": (
        nn.Conv(5, (3,), padding="VALID"),
        nnx.Conv(4, 5, (3,), padding="VALID", rngs=nnx.Rngs(0)),
        torch.nn.Conv1d(4, 5, 3),
        (2, 6, 4),
        -1,
    ),
    "transposed conv": (
        nn.ConvTranspose(5, (3,), padding="VALID"),
        nnx.ConvTranspose(4, 5, (3,), padding="VALID", rngs=nnx.Rngs(0)),
        torch.nn.ConvTranspose1d(4, 5, 3),
        (2, 6, 4),
        -2,
    ),
}


@pytest.mark.parametrize("convention", ["flax", "torch"])
@pytest.mark.parametrize("name", LAYERS)
def test_weight_norm_is_pytorchs(name, convention):
    """At the start, and with the gradients of both parameters, from its own state_dict."""
    linen_layer, nnx_layer, module, shape, axes = LAYERS[name]
    x, told = RNG.normal(size=shape), {"conv_transposes": ["layer_instance"] * ("transp" in name)}
    module = TORCH.weight_norm(copy.deepcopy(module).double(), convention=convention)
    moved = torch.tensor(x).movedim(-1, 1) if len(shape) > 2 else torch.tensor(x)
    y = module(moved)
    cotangent = torch.tensor(RNG.normal(size=y.shape))
    parameters = dict(module.named_parameters())
    gradients = dict(
        zip(parameters, torch.autograd.grad(y, [*parameters.values()], cotangent), strict=True)
    )
    y, cotangent = (
        (t.detach().movedim(1, -1) if len(shape) > 2 else t.detach()).numpy()
        for t in (y, cotangent)
    )
    settings = {"feature_axes": axes, "convention": convention, "param_dtype": jnp.float64}
    layer = LINEN.WeightNorm(linen_layer, **settings)
    # The start: of v alone, as wrapping does.
    plain = from_torch({n.rpartition(".")[2].replace("original1", "weight"): v.detach()
                        for n, v in parameters.items() if "original0" not in n},
                       linen_layer.init(jax.random.key(0), x),
                       conv_transposes=[""] * ("transp" in name))  # fmt: skip
    _, new = layer.apply(
        {"params": {"layer_instance": plain["params"]}}, x, rngs={"params": jax.random.key(0)},
        mutable=["params"],
    )  # fmt: skip
    variables = from_torch(module.state_dict(), new, names={"layer_instance": ""}, **told)
    scale = "layer_instance/kernel/scale"
    close(new["params"][scale], variables["params"][scale])
    found, pull = jax.vjp(lambda v: layer.apply(v, x), variables)
    close(found, y)
    back = to_torch(
        pull(jnp.asarray(cotangent))[0], gradients, names={"layer_instance": ""}, **told
    )
    for key, right in gradients.items():
        close(back[key], right)
    # nnx: the same, and a call leaves v as it was.
    normed = NNX.WeightNorm(nnx.clone(nnx_layer), **settings, rngs=nnx.Rngs(0))
    state = from_torch(
        module.state_dict(), nnx.state(normed), names={"layer_instance": "", "scales": ""}, **told
    )
    nnx.update(normed, state)
    grads = nnx.grad(lambda m: (m(jnp.asarray(x)) * cotangent).sum())(normed)
    close(normed(jnp.asarray(x)), y)
    close(normed.layer_instance.kernel[...], state["layer_instance"]["kernel"][...])
    back = to_torch(grads, gradients, names={"layer_instance": "", "scales": ""}, **told)
    for key, right in gradients.items():
        close(back[key], right)


def test_weight_norm_in_a_model_is_found_by_name_and_left_alone():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(LINEN.WeightNorm(nn.Dense(4), convention="torch")(x))
            return nn.Dense(2)(x)

    module = torch.nn.Sequential(
        TORCH.weight_norm(torch.nn.Linear(3, 4)), torch.nn.ReLU(), torch.nn.Linear(4, 2)
    ).double()
    x = RNG.normal(size=(5, 3))
    variables = Net().init(jax.random.key(0), x)
    names = {"Dense_0": "0", "Dense_1": "2"}
    for given in (names, None):
        found = from_torch(module.state_dict(), variables, names=given)
        close(Net().apply(found, x), module(torch.tensor(x)).detach())
        assert (
            to_torch(found, module.state_dict(), names=given).keys() == module.state_dict().keys()
        )
    report = jaxnorm.linen.find_gates(Net(), variables, x)
    assert [row.layer for row in report.converted] == ["Dense_1"]
    told = jaxnorm.linen.neuronwise(Net(), gates={"Dense_0": "relu", "Dense_1": None})
    with pytest.raises(ValueError, match="its kernel is a function of other parameters"):
        told(variables, x)
