"""Curvature and spectra of both packages against dense matrices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.flatten_util import ravel_pytree

import jaxnorm
import torchnorm
from jaxnorm import analysis as in_jax
from torchnorm import analysis as in_torch

RNG = np.random.default_rng(0)
INPUTS, WIDTH, OUTPUTS = 3, 4, 2
X = RNG.normal(size=(24, INPUTS)) * [1.0, 0.1, 5.0] + [3.0, 1.0, -2.0]
Y = RNG.normal(size=(24, OUTPUTS))
#: By layer: kernel [I, O] and bias.
WEIGHTS = {
    "a": (RNG.normal(size=(INPUTS, WIDTH)), RNG.normal(size=WIDTH)),
    "b": (RNG.normal(size=(WIDTH, OUTPUTS)), RNG.normal(size=OUTPUTS)),
}
#: Entries of a flat vector in the order of JAX: by name, bias before kernel.
ORDER = [("a", "bias"), ("a", "kernel"), ("b", "bias"), ("b", "kernel")]


def _jax_layers() -> Any:
    return (
        jaxnorm.linen.Dense(WIDTH, gate="tanh", param_dtype=jnp.float64),
        jaxnorm.linen.Dense(OUTPUTS, gate=None, param_dtype=jnp.float64),
    )


def _params() -> Any:
    """Made when 64 bits are on."""
    return {n: {"kernel": jnp.asarray(k), "bias": jnp.asarray(b)} for n, (k, b) in WEIGHTS.items()}


def _apply(params: Any, stats: Any = None) -> Any:
    first, second = _jax_layers()

    def variables(name: str) -> Any:
        return {"params": params[name], **({} if stats is None else {"neuron_stats": stats[name]})}

    hidden = jnp.tanh(first.apply(variables("a"), jnp.asarray(X)))
    return second.apply(variables("b"), hidden)


def _plain(params: Any) -> Any:
    hidden = jnp.tanh(jnp.asarray(X) @ params["a"]["kernel"] + params["a"]["bias"][None])
    return hidden @ params["b"]["kernel"] + params["b"]["bias"][None]


def _squared(y: Any) -> Any:
    return ((y - jnp.asarray(Y)) ** 2).sum() / 2


def _dense(product: Any, params: Any) -> np.ndarray:
    flat, unravel = ravel_pytree(params)
    columns = jax.jit(jax.vmap(lambda v: ravel_pytree(product(unravel(v)))[0]))
    return np.asarray(columns(jnp.eye(flat.size)))


def _torch_model() -> Any:
    model = torch.nn.Sequential(
        torchnorm.Linear(INPUTS, WIDTH, gate="tanh"),
        torch.nn.Tanh(),
        torchnorm.Linear(WIDTH, OUTPUTS, gate=None),
    ).double()
    with torch.no_grad():
        for layer, (kernel, bias) in zip((model[0], model[2]), WEIGHTS.values(), strict=True):
            layer.weight.copy_(torch.tensor(kernel.T))
            layer.bias.copy_(torch.tensor(bias))
    return model


def _torch_plain(params: Any) -> Any:
    hidden = torch.tanh(torch.tensor(X) @ params["0.weight"].T + params["0.bias"])
    return hidden @ params["2.weight"].T + params["2.bias"]


def _torch_squared(y: Any) -> Any:
    return ((y - torch.tensor(Y)) ** 2).sum() / 2


def _torch_dense(product: Any, params: Any) -> np.ndarray:
    """In the order and layout of JAX."""
    names = {"a": "0", "b": "2"}
    columns = []
    for layer, kind in ORDER:
        shape = WEIGHTS[layer][kind == "bias"].shape
        for index in np.ndindex(shape):
            v = {name: torch.zeros_like(p) for name, p in params.items()}
            if kind == "bias":
                v[f"{names[layer]}.bias"][index] = 1
            else:
                v[f"{names[layer]}.weight"][index[::-1]] = 1
            image = product(v)
            parts = [
                image[f"{names[each]}.bias"] if what == "bias" else image[f"{names[each]}.weight"].T
                for each, what in ORDER
            ]
            columns.append(np.concatenate([part.detach().numpy().ravel() for part in parts]))
    return np.stack(columns)


def _torch_params(model: Any) -> Any:
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def hessian() -> np.ndarray:
    return np.asarray(_hessian_of(lambda p: _squared(_plain(p))))


def _hessian_of(loss: Any) -> Any:
    flat, unravel = ravel_pytree(_params())
    return jax.jit(jax.jacrev(jax.grad(lambda v: loss(unravel(v)))))(flat)


def test_the_hessian(hessian: np.ndarray) -> None:
    ours = _dense(in_jax.hessian_product(lambda p: _squared(_plain(p)), _params()), _params())
    np.testing.assert_allclose(ours, hessian, atol=1e-12 * abs(hessian).max())
    params = _torch_params(_torch_model())
    product = in_torch.hessian_product(lambda p: _torch_squared(_torch_plain(p)), params)
    np.testing.assert_allclose(
        _torch_dense(product, params), hessian, atol=1e-12 * abs(hessian).max()
    )


def test_the_gauss_newton_matrix_is_that_of_the_jacobian() -> None:
    flat, unravel = ravel_pytree(_params())
    jacobian = np.asarray(jax.jit(jax.jacrev(lambda v: _plain(unravel(v)).ravel()))(flat))
    expected = jacobian.T @ jacobian
    ours = _dense(in_jax.gauss_newton_product(_plain, _squared, _params()), _params())
    np.testing.assert_allclose(ours, expected, atol=1e-12 * expected.max())
    params = _torch_params(_torch_model())
    product = in_torch.gauss_newton_product(_torch_plain, _torch_squared, params)
    np.testing.assert_allclose(_torch_dense(product, params), expected, atol=1e-12 * expected.max())


def test_in_coordinates_it_is_what_the_preconditioned_gradient_sees() -> None:
    """P P^T H has the eigenvalues of P^T H P: P P^T g is a step of SGD in the coordinates."""
    first, second = _jax_layers()
    params = _params()
    stats = {
        "a": jaxnorm.linen.init_statistics(first, {"params": params["a"]}, jnp.asarray(X)),
        "b": jaxnorm.linen.init_statistics(second, {"params": params["b"]}, jnp.ones((24, WIDTH))),
    }
    batch = jax.grad(lambda s: _squared(_apply(params, s)))(stats)
    stats = jaxnorm.update_statistics(stats, batch)
    product = in_jax.gauss_newton_product(_plain, _squared, params)
    plain = _dense(product, params)
    ours = _dense(in_jax.in_coordinates(product, stats, params), params)
    np.testing.assert_allclose(ours, ours.T, atol=1e-12 * abs(ours).max())
    tx = jaxnorm.in_neuron_coordinates(optax.identity())
    state = tx.init(params)
    flat, unravel = ravel_pytree(params)

    def preconditioned(g: Any) -> Any:
        return ravel_pytree(tx.update(unravel(g), state, params, neuron_stats=stats)[0])[0]

    # A basis without zeros: what has none in its gradient does not learn.
    some = np.random.default_rng(1).normal(size=(flat.size, flat.size))
    images = np.asarray(jax.jit(jax.vmap(preconditioned))(jnp.asarray(some)))
    p_pt = np.linalg.solve(some, images).T
    expected = np.sort(np.linalg.eigvals(p_pt @ plain).real)
    np.testing.assert_allclose(
        np.sort(np.linalg.eigvalsh(ours)), expected, atol=1e-10 * expected.max()
    )

    model = _torch_model()
    optimizer = torch.optim.SGD(model.parameters(), 1e-300)
    torchnorm.optim.in_neuron_coordinates(optimizer, model)
    _torch_squared(model(torch.tensor(X))).backward()
    optimizer.step()
    params = _torch_params(model)
    other = in_torch.gauss_newton_product(_torch_plain, _torch_squared, params)
    theirs = _torch_dense(in_torch.in_coordinates(other, model), params)
    np.testing.assert_allclose(theirs, ours, atol=1e-11 * abs(ours).max())


def test_lanczos_finds_the_ends_and_the_trace(hessian: np.ndarray) -> None:
    size = len(hessian)
    matrix, start = jnp.asarray(hessian), jnp.zeros(size)
    tensor, params = torch.tensor(hessian), {"w": torch.zeros(size, dtype=torch.float64)}
    values = np.linalg.eigvalsh(hessian)
    for found in (
        in_jax.lanczos(lambda v: matrix @ v, start, size),
        in_torch.lanczos(lambda v: {"w": tensor @ v["w"]}, params, size),
    ):
        np.testing.assert_allclose(found.values, values, atol=1e-9 * abs(values).max())
        assert abs(float(found.weights.sum()) - 1) < 1e-12
    for density in (
        in_jax.spectral_density(lambda v: matrix @ v, start, 6, probes=200),
        in_torch.spectral_density(lambda v: {"w": tensor @ v["w"]}, params, 6, probes=200),
    ):
        for power in (1, 2):
            off = density.moment(power) - (values**power).mean()
            assert abs(off) < 0.15 * (abs(values) ** power).mean()


def test_lanczos_stops_in_an_invariant_subspace() -> None:
    """Three different eigenvalues: three steps, no ghosts."""
    diagonal = np.repeat([1.0, 2.0, 5.0], 10)
    one = in_jax.lanczos(lambda v: jnp.asarray(diagonal) * v, jnp.zeros(30), 20)
    tensor = torch.tensor(diagonal)
    params = {"w": torch.zeros(30, dtype=torch.float64)}
    other = in_torch.lanczos(lambda v: {"w": tensor * v["w"]}, params, 20)
    for found in (one, other):
        np.testing.assert_allclose(found.values, [1, 2, 5], atol=1e-12)


def test_blocks_are_those_of_the_gauss_newton_matrix() -> None:
    z = X @ WEIGHTS["a"][0] + WEIGHTS["a"][1]
    weight = (1 - np.tanh(z) ** 2) ** 2
    mean, sigma = RNG.normal(size=(INPUTS, WIDTH)), RNG.uniform(0.5, 2, (INPUTS, WIDTH))
    for at in ((None, None), (mean, sigma)):
        expected = []
        for o in range(WIDTH):
            moved = X if at[0] is None else (X - mean[:, o]) / sigma[:, o]
            u = np.concatenate([np.ones((len(X), 1)), moved], axis=1)
            expected.append((u * weight[:, o : o + 1]).T @ u / len(X))
        one = in_jax.neuron_blocks(jnp.asarray(X), jnp.asarray(weight), *at)
        turned = [None if a is None else torch.tensor(a.T) for a in at]
        other = in_torch.neuron_blocks(torch.tensor(X), torch.tensor(weight), *turned)
        np.testing.assert_allclose(one, expected, rtol=1e-12)
        np.testing.assert_allclose(other.numpy(), expected, rtol=1e-12)
        numbers = [np.linalg.cond(block) for block in np.asarray(expected)]
        np.testing.assert_allclose(in_jax.condition_numbers(one), numbers, rtol=1e-8)
        np.testing.assert_allclose(in_torch.condition_numbers(other), numbers, rtol=1e-8)


def test_a_block_without_rank_has_no_finite_condition() -> None:
    blocks = np.array([[[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    for found in (
        in_jax.condition_numbers(jnp.asarray(blocks)),
        in_torch.condition_numbers(torch.tensor(blocks)).numpy(),
    ):
        assert np.isinf(found[0])
        assert np.isnan(found[1])


def test_bad_input_is_said_in_the_same_words() -> None:
    zeros = {"w": torch.zeros(2)}
    for make, other in (
        (
            lambda: in_jax.lanczos(lambda v: v, jnp.zeros(2), 0),
            lambda: in_torch.lanczos(lambda v: v, zeros, 0),
        ),
        (
            lambda: in_jax.spectral_density(lambda v: v, jnp.zeros(2), 1, probes=0),
            lambda: in_torch.spectral_density(lambda v: v, zeros, 1, probes=0),
        ),
        (
            lambda: in_jax.lanczos(lambda v: v * jnp.nan, jnp.zeros(2), 1),
            lambda: in_torch.lanczos(lambda v: {"w": v["w"] * torch.nan}, zeros, 1),
        ),
        (
            lambda: in_jax.neuron_blocks(jnp.zeros((3, 2)), jnp.zeros(3)),
            lambda: in_torch.neuron_blocks(torch.zeros(3, 2), torch.zeros(3)),
        ),
    ):
        with pytest.raises(ValueError, match="got") as one:
            make()
        with pytest.raises(ValueError, match="got") as two:
            other()
        assert str(one.value) == str(two.value)
    with pytest.raises(ValueError, match="model: got one without statistics, expected"):
        in_torch.in_coordinates(lambda v: v, _torch_model())
