"""Each operation as a user of JAX, linen or nnx writes it, with our layers or the framework's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxnorm
from parity_tests.cases import Case
from parity_tests.oracle import Convolution, ConvTranspose, Dense, Einsum, TorchConvTranspose


def gate(name: str | None) -> Any:
    """The gate of a case as a user writes it."""
    return jaxnorm.JointGate(swiglu) if name == "swiglu" else name


def swiglu(z: Any) -> Any:
    """The first half of the neurons gates the second."""
    a, b = jnp.split(z, 2, axis=-1)
    return jax.nn.silu(a) * b


def deferred(case: Case, out: Any) -> Any:
    """What a layer returns, told of its gate if it waits for that."""
    if not case.deferred:
        return out
    z, handle = out
    return jaxnorm.tell_gate(z, handle, gate(case.gate))


def functional(case: Case, parameters: dict[str, Any], x: Any, options: dict[str, Any]) -> Any:
    """The function for the operation."""
    kernel, bias = parameters["kernel"], parameters.get("bias")
    match case.op:
        case Dense():
            return jaxnorm.neuronwise_dense(x, kernel, bias, **options)
        case Convolution():
            more = vars(case.op) | options
            return jaxnorm.neuronwise_conv(x, kernel, bias, mask=case.mask, **more)
        case ConvTranspose():
            more = vars(case.op) | options
            return jaxnorm.neuronwise_conv_transpose(x, kernel, bias, mask=case.mask, **more)
        case TorchConvTranspose():
            return _as_torch(case.op, x, kernel, bias, options)
        case Einsum():
            return jaxnorm.neuronwise_einsum(case.op.equation, x, kernel, bias, **options)


def _as_torch(
    op: TorchConvTranspose, x: Any, kernel: Any, bias: Any, options: dict[str, Any]
) -> Any:
    """PyTorch's transposed convolution is one with a dilated input and a flipped window."""
    channels, outputs, *window = kernel.shape
    kernel = kernel.reshape(op.groups, channels // op.groups, outputs, *window)
    kernel = jnp.moveaxis(kernel, (1, 0, 2), (-3, -2, -1))  # [*window, C / groups, groups, O]
    kernel = jnp.flip(kernel, range(len(window)))
    kernel = kernel.reshape(*window, channels // op.groups, op.groups * outputs)
    fields = (op.dilation, op.padding, op.output_padding)
    every = ([f] * len(window) if isinstance(f, int) else f for f in fields)
    pads = [
        (d * (k - 1) - p, d * (k - 1) - p + extra)
        for k, d, p, extra in zip(window, *every, strict=True)
    ]
    return jaxnorm.neuronwise_conv(
        x,
        kernel,
        bias,
        padding=pads,
        input_dilation=op.stride,
        kernel_dilation=op.dilation,
        feature_group_count=op.groups,
        **options,
    )


def linen(case: Case, package: Any, options: dict[str, Any]) -> Any:
    """The linen layer for the operation, from `jaxnorm.linen` or `flax.linen`."""
    shape = case.kernel.shape
    options = {"use_bias": case.bias is not None, "param_dtype": case.x.dtype, **options}
    match case.op:
        case Dense():
            return package.Dense(shape[1], **options)
        case Convolution():
            options |= {"mask": _mask(case), **vars(case.op)}
            return package.Conv(shape[-1], shape[:-2], **options)
        case ConvTranspose():
            # None, not 1, and no int: what the framework's annotations say.
            rank = len(shape) - 2
            every = {name: _each(value, rank) for name, value in vars(case.op).items()}
            features = shape[-2] if case.op.transpose_kernel else shape[-1]
            options |= {"mask": _mask(case), **every}
            return package.ConvTranspose(features, shape[:-2], **options)
        case Einsum(equation, None):
            return package.Einsum(shape, equation, **options)
        case Einsum(_, (axis, batch)):
            features = shape[len(axis) + len(batch) :]
            return package.DenseGeneral(features, axis=axis, batch_dims=batch, **options)
    raise NotImplementedError(case.op)


def nnx_layer(case: Case, package: Any, options: dict[str, Any]) -> Any:
    """The nnx layer for the operation, from `jaxnorm.nnx` or `flax.nnx`."""
    shape = case.kernel.shape
    bias = case.bias is not None
    # Zeros compile faster than random numbers; the parameters of the case replace them.
    options = {"param_dtype": case.x.dtype, "rngs": nnx.Rngs(0), "kernel_init": _zeros, **options}
    match case.op:
        case Dense():
            return package.Linear(*shape, use_bias=bias, **options)
        case Convolution():
            channels = shape[-2] * case.op.feature_group_count
            options |= {"use_bias": bias, "mask": _mask(case), **vars(case.op)}
            return package.Conv(channels, shape[-1], shape[:-2], **options)
        case ConvTranspose():
            ends = shape[:-3:-1] if case.op.transpose_kernel else shape[-2:]
            options |= {"use_bias": bias, "mask": _mask(case), **vars(case.op)}
            return package.ConvTranspose(*ends, shape[:-2], **options)
        case Einsum(equation, None):
            bias_shape = None if case.bias is None else case.bias.shape
            return package.Einsum(equation, shape, bias_shape, **options)
        case Einsum(_, (axis, batch)):
            inputs = shape[len(batch) : len(batch) + len(axis)]
            sizes = {a: case.x.shape[a] for a in batch}
            features = shape[len(batch) + len(axis) :]
            options |= {"axis": axis, "batch_axis": sizes, "use_bias": bias}
            return package.LinearGeneral(inputs, features, **options)
    raise NotImplementedError(case.op)


def call_nnx(layer: Any, parameters: dict[str, Any], x: Any) -> Any:
    """An nnx layer on given parameters."""
    definition, state = nnx.split(layer)
    nnx.replace_by_pure_dict(state, parameters)
    return nnx.merge(definition, state)(x)


def _zeros(key: Any, shape: Any, dtype: Any) -> Any:
    del key
    return jnp.zeros(shape, dtype)


def _mask(case: Case) -> Any:
    return None if case.mask is None else jnp.asarray(case.mask, case.x.dtype)


def _each(value: Any, rank: int) -> Any:
    return (value,) * rank if type(value) is int else value


def gradients(run: Any, case: Case, parameters: dict[str, Any], x: Any) -> list[Any]:
    """(z, g_x, g_kernel, g_bias): the forward pass and its vector-Jacobian product."""
    z, pull = jax.vjp(run, parameters, x)
    g, g_x = pull(jnp.asarray(case.delta))
    g_bias = np.asarray(g["bias"]) if "bias" in g else None
    return [np.asarray(z), np.asarray(g_x), np.asarray(g["kernel"]), g_bias]


def wrapped(layer: Any, case: Case, parameters: dict[str, Any], x: Any) -> list[Any]:
    """`gradients` of a linen layer that records, as minus the step of SGD in the coordinates."""
    variables = {"params": parameters}
    stats = jaxnorm.linen.init_statistics(layer, variables, x)
    tx = jaxnorm.in_neuron_coordinates(optax.sgd(1.0))

    def run(parameters: dict[str, Any], stats: Any, x: Any) -> Any:
        out = layer.apply({"params": parameters, "neuron_stats": stats}, x)
        return deferred(case, out)

    @jax.jit  # one program; op by op, each call of Optax would compile all of its own anew
    def step(parameters: dict[str, Any], stats: Any, x: Any, delta: Any) -> Any:
        z, pull = jax.vjp(run, parameters, stats, x)
        g, batch, g_x = pull(delta)
        if case.family == "large_mean":  # about the mean of the data, as from the second step on
            g, batch, g_x = jax.vjp(run, parameters, batch, x)[1](delta)
        stats = jaxnorm.update_statistics(stats, batch)
        updates, _ = tx.update(g, tx.init(parameters), parameters, neuron_stats=stats)
        return z, g_x, jax.tree.map(jnp.negative, updates)

    z, g_x, learned = step(parameters, stats, x, jnp.asarray(case.delta))
    bias = np.asarray(learned["bias"]) if "bias" in learned else None
    return [np.asarray(z), np.asarray(g_x), np.asarray(learned["kernel"]), bias]
