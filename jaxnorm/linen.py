"""Flax linen layers: the host's, with the rule in their backward pass."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from jaxnorm import checks
from jaxnorm.conversion.gate_search import search, signature, trace
from jaxnorm.conversion.intercept import Converting, Kind, Marking, context
from jaxnorm.conversion.report import LEAVE as LEAVE
from jaxnorm.conversion.report import Choices, Row, no_layers
from jaxnorm.conversion.report import Observed as Observed
from jaxnorm.conversion.report import Product as Product
from jaxnorm.conversion.report import Report as Report
from jaxnorm.convolution import broadcast
from jaxnorm.custom_gradient import linear_operation
from jaxnorm.einsum import dense_general, parse
from jaxnorm.functional import neuronwise_conv, neuronwise_conv_transpose, neuronwise_einsum
from jaxnorm.gates import Gate
from jaxnorm.operations import dense
from jaxnorm.rule import Rule
from jaxnorm.statistics import AxisName


class Dense(nn.Dense):
    """`flax.linen.Dense` with the neuron-wise rule; see `jaxnorm.neuronwise_dense`.

    Forward (exact):      z = x kernel + bias, the host's to the last bit
    Backward (modified):  g_x true; g_W and g_b by the rule

    A subclass of the host's layer with its name, its parameters (``kernel`` [I, O], ``bias`` [O]),
    its initial values and every one of its arguments: checkpoints move both ways. It has no state.

    Attributes:
        gate: (required, keyword) the activation that follows the layer: a name of `jax.nn`, an
            elementwise callable, or None if none follows. It is not applied. With
            `jaxnorm.OBSERVED` the layer returns (z, probe), see `jaxnorm.observe`.
        rule: (keyword) see `jaxnorm.Rule`.
        axis_name: (keyword) mapped axes over which the batch is spread. Not needed under `jax.jit`.

    Raises:
        TypeError, ValueError: as `jaxnorm.neuronwise_dense`; integer inputs are refused.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> class MLP(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x):
        ...         x = nn.relu(jaxnorm.linen.Dense(16, gate="relu")(x))
        ...         return jaxnorm.linen.Dense(3, gate=None)(x)
        >>> variables = MLP().init(jax.random.key(0), jnp.ones((2, 5)))
        >>> jax.tree.map(jnp.shape, variables["params"]["Dense_0"])
        {'bias': (16,), 'kernel': (5, 16)}
    """

    gate: Gate = dataclasses.field(kw_only=True)
    rule: Rule = dataclasses.field(default=Rule(), kw_only=True)
    axis_name: AxisName | None = dataclasses.field(default=None, kw_only=True)

    @nn.compact
    def __call__(self, inputs: jax.Array) -> Any:
        """Apply the layer to the last axis of inputs [..., I]; returns z [..., O]."""
        checks.check_floating("x", inputs)
        parameters = _parameters(self, *_dense_shapes(self, inputs))
        return _dense(self, inputs, *parameters, **_rule_of(self))


class DenseGeneral(nn.DenseGeneral):
    """`flax.linen.DenseGeneral` with the neuron-wise rule; see `jaxnorm.neuronwise_einsum`.

    Forward (exact):      z = x kernel + bias over any axes, the host's to the last bit
    Backward (modified):  g_x true; g_W and g_b by the rule, with groups along `batch_dims`

    A subclass of the host's layer: its name, arguments, parameters and initial values. No state.

    Attributes:
        gate: (required, keyword) as in `Dense`.
        rule: (keyword) see `jaxnorm.Rule`.
        axis_name: (keyword) as in `Dense`.

    Raises:
        TypeError, ValueError: as `jaxnorm.neuronwise_einsum`; integer inputs are refused.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> heads = jaxnorm.linen.DenseGeneral((4, 16), gate=None)
        >>> variables = heads.init(jax.random.key(0), jnp.ones((2, 5, 8)))
        >>> heads.apply(variables, jnp.ones((2, 5, 8))).shape
        (2, 5, 4, 16)
    """

    gate: Gate = dataclasses.field(kw_only=True)
    rule: Rule = dataclasses.field(default=Rule(), kw_only=True)
    axis_name: AxisName | None = dataclasses.field(default=None, kw_only=True)

    @nn.compact
    def __call__(self, inputs: jax.Array) -> Any:
        """Apply the layer to the axes `axis` of inputs; returns z [batch..., samples..., O...]."""
        checks.check_floating("x", inputs)
        kernel_shape, bias_shape = _dense_general_shapes(self, inputs)
        split = len(kernel_shape) - len(_general_axes(self, inputs)[0])

        def kernel_init(key, shape, dtype):
            flat = (math.prod(shape[:split]), math.prod(shape[split:]))
            return _reshaped(self.kernel_init(key, flat, dtype), shape)

        def bias_init(key, shape, dtype):
            return _reshaped(self.bias_init(key, (math.prod(shape),), dtype), shape)

        parameters = _parameters(
            self, kernel_shape, bias_shape, kernel_init=kernel_init, bias_init=bias_init
        )
        return _dense_general(self, inputs, *parameters, **_rule_of(self))


class Einsum(nn.Einsum):
    """`flax.linen.Einsum` with the neuron-wise rule; see `jaxnorm.neuronwise_einsum`.

    Forward (exact):      z = einsum(x, kernel) + bias, the host's to the last bit
    Backward (modified):  g_x true; g_W and g_b by the rule

    A subclass of the host's layer: its name, arguments, parameters and initial values. No state.

    Attributes:
        gate: (required, keyword) as in `Dense`.
        rule: (keyword) see `jaxnorm.Rule`.
        axis_name: (keyword) as in `Dense`.

    Raises:
        TypeError, ValueError: as `jaxnorm.neuronwise_einsum`; integer inputs are refused.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.Einsum((8, 4, 16), "btd,dhk->bthk", gate="relu")
        >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 5, 8)))[0].shape
        (2, 5, 4, 16)
    """

    gate: Gate = dataclasses.field(kw_only=True)
    rule: Rule = dataclasses.field(default=Rule(), kw_only=True)
    axis_name: AxisName | None = dataclasses.field(default=None, kw_only=True)

    @nn.compact
    def __call__(self, inputs: jax.Array, einsum_str: str | None = None) -> Any:
        """Apply the layer; `einsum_str` here or in the constructor."""
        checks.check_floating("x", inputs)
        parameters = _parameters(self, *_einsum_shapes(self, inputs, einsum_str))
        return _einsum(self, inputs, *parameters, einsum_str=einsum_str, **_rule_of(self))


class Conv(nn.Conv):
    """`flax.linen.Conv` with the neuron-wise rule; see `jaxnorm.neuronwise_conv`.

    Forward (exact):      z = conv(x, kernel) + bias, the host's to the last bit
    Backward (modified):  g_x true; g_W and g_b by the rule, a sample being an image and a position

    A subclass of the host's layer: its name, arguments, parameters and initial values. No state.

    Attributes:
        gate: (required, keyword) as in `Dense`.
        rule: (keyword) see `jaxnorm.Rule`; `statistics_rows` counts whole images.
        axis_name: (keyword) as in `Dense`.

    Raises:
        TypeError, ValueError: as `jaxnorm.neuronwise_conv`; integer inputs are refused.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.Conv(16, (3, 3), strides=2, gate="relu")
        >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 8, 8, 3)))[0].shape
        (2, 4, 4, 16)
    """

    gate: Gate = dataclasses.field(kw_only=True)
    rule: Rule = dataclasses.field(default=Rule(), kw_only=True)
    axis_name: AxisName | None = dataclasses.field(default=None, kw_only=True)

    @nn.compact
    def __call__(self, inputs: jax.Array) -> Any:
        """Apply the layer to inputs [..., *space, C]; returns z [..., *space', O]."""
        checks.check_floating("x", inputs)
        parameters = _parameters(self, *_conv_shapes(self, inputs))
        return _conv(self, inputs, *parameters, **_rule_of(self))


class ConvTranspose(nn.ConvTranspose):
    """`flax.linen.ConvTranspose` with the rule; see `jaxnorm.neuronwise_conv_transpose`.

    Forward (exact):      z = conv_transpose(x, kernel) + bias, the host's to the last bit
    Backward (modified):  g_x true; g_W and g_b by the rule

    A subclass of the host's layer: its name, arguments, parameters and initial values. No state.

    Attributes:
        gate: (required, keyword) as in `Dense`.
        rule: (keyword) see `jaxnorm.Rule`; `statistics_rows` counts whole images.
        axis_name: (keyword) as in `Dense`.

    Raises:
        TypeError, ValueError: as `jaxnorm.neuronwise_conv_transpose`; integer inputs are refused.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> layer = jaxnorm.linen.ConvTranspose(16, (3, 3), strides=(2, 2), gate="relu")
        >>> layer.init_with_output(jax.random.key(0), jnp.ones((2, 4, 4, 3)))[0].shape
        (2, 8, 8, 16)
    """

    gate: Gate = dataclasses.field(kw_only=True)
    rule: Rule = dataclasses.field(default=Rule(), kw_only=True)
    axis_name: AxisName | None = dataclasses.field(default=None, kw_only=True)

    @nn.compact
    def __call__(self, inputs: jax.Array) -> Any:
        """Apply the layer to inputs [..., *space, C]; returns z [..., *space', O]."""
        checks.check_floating("x", inputs)
        parameters = _parameters(self, *_conv_transpose_shapes(self, inputs))
        return _conv_transpose(self, inputs, *parameters, **_rule_of(self))


def _dense(layer, inputs, kernel, bias, **how) -> Any:
    """The forward pass of a linen Dense on given parameters, ours or the host's."""
    inputs, kernel, bias = layer.promote_dtype(inputs, kernel, bias, dtype=layer.dtype)
    operation = dense(_product(layer, "dot_general", lax.dot_general), precision=layer.precision)
    return linear_operation(operation, inputs, kernel, bias, **how)


def _dense_general(layer, inputs, kernel, bias, **how) -> Any:
    inputs, kernel, bias = layer.promote_dtype(inputs, kernel, bias, dtype=layer.dtype)
    features, axis, batch_dims = _general_axes(layer, inputs)
    product = _product(layer, "dot_general", lax.dot_general)
    equation, op = dense_general(inputs.ndim, axis, batch_dims, len(features), product)
    return neuronwise_einsum(
        equation, inputs, kernel, bias, einsum_op=op, precision=layer.precision, **how
    )


def _einsum(layer, inputs, kernel, bias, einsum_str=None, **how) -> Any:
    inputs, kernel, bias = layer.promote_dtype(inputs, kernel, bias, dtype=layer.dtype)
    return neuronwise_einsum(
        nn.merge_param("einsum_str", layer.einsum_str, einsum_str),
        inputs,
        kernel,
        bias,
        precision=layer.precision,
        preferred_element_type=layer.preferred_element_type,
        **how,
    )


def _conv(layer, inputs, kernel, bias, **how) -> Any:
    inputs, kernel, bias = layer.promote_dtype(inputs, kernel, bias, dtype=layer.dtype)
    return neuronwise_conv(
        inputs,
        kernel,
        bias,
        strides=_per_axis(layer, "strides"),
        padding=layer.padding,
        input_dilation=_per_axis(layer, "input_dilation"),
        kernel_dilation=_per_axis(layer, "kernel_dilation"),
        feature_group_count=layer.feature_group_count,
        mask=layer.mask,
        conv_general_dilated=_product(layer, "conv_general_dilated", lax.conv_general_dilated),
        precision=layer.precision,
        **how,
    )


def _conv_transpose(layer, inputs, kernel, bias, **how) -> Any:
    inputs, kernel, bias = layer.promote_dtype(inputs, kernel, bias, dtype=layer.dtype)
    return neuronwise_conv_transpose(
        inputs,
        kernel,
        bias,
        strides=_per_axis(layer, "strides"),
        padding=layer.padding,
        kernel_dilation=_per_axis(layer, "kernel_dilation"),
        transpose_kernel=layer.transpose_kernel,
        mask=layer.mask,
        precision=layer.precision,
        preferred_element_type=layer.preferred_element_type,
        **how,
    )


def _dense_shapes(layer, inputs) -> tuple[Any, Any]:
    """(kernel's shape, bias's shape) that the host expects for these inputs."""
    features = jnp.shape(inputs)[-1] if jnp.ndim(inputs) else 1
    checks.check_inputs(jnp.shape(inputs), features)
    return (features, layer.features), (layer.features,)


def _dense_general_shapes(layer, inputs) -> tuple[Any, Any]:
    features, axis, batch_dims = _general_axes(layer, inputs)
    batch = tuple(inputs.shape[a] for a in batch_dims)
    return (*batch, *(inputs.shape[a] for a in axis), *features), (*batch, *features)


def _einsum_shapes(layer, inputs, einsum_str=None) -> tuple[Any, Any]:
    equation = nn.merge_param("einsum_str", layer.einsum_str, einsum_str)
    axes = parse(equation, jnp.shape(inputs), tuple(layer.shape))
    return layer.shape, [axes.size[a] for a in axes.z if a in axes.kernel]


def _conv_shapes(layer, inputs) -> tuple[Any, Any]:
    window = _window(layer)
    checks.check_space(jnp.shape(inputs), len(window))
    channels, groups = jnp.shape(inputs)[-1], layer.feature_group_count
    checks.check_groups(groups, channels, layer.features)
    return (*window, channels // groups, layer.features), (layer.features,)


def _conv_transpose_shapes(layer, inputs) -> tuple[Any, Any]:
    window = _window(layer)
    checks.check_space(jnp.shape(inputs), len(window))
    ends = (jnp.shape(inputs)[-1], layer.features)
    return (*window, *(reversed(ends) if layer.transpose_kernel else ends)), (layer.features,)


def _parameters(layer, kernel_shape, bias_shape, kernel_init=None, bias_init=None) -> Any:
    """(kernel, bias) as the host creates and checks them."""
    kernel_init, bias_init = kernel_init or layer.kernel_init, bias_init or layer.bias_init
    kernel = layer.param("kernel", kernel_init, kernel_shape, layer.param_dtype)
    if not layer.use_bias:
        return kernel, None
    return kernel, layer.param("bias", bias_init, bias_shape, layer.param_dtype)


def _rule_of(layer) -> dict[str, Any]:
    axis_name = None if layer.is_initializing() else layer.axis_name
    return {"gate": layer.gate, "rule": layer.rule, "axis_name": axis_name}


def _product(layer, name: str, default: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The host's injectable product, which must be a function."""
    make = getattr(layer, f"{name}_cls")
    if make is None:
        return getattr(layer, name) or default
    product = make()
    if isinstance(product, nn.Module):
        raise TypeError(
            f"{name}_cls: got the module {type(product).__name__}, expected a class of plain "
            "functions; a product with state cannot run again on statistics"
        )
    return product


def _general_axes(layer, inputs) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(features, axis, batch_dims) of a DenseGeneral, none negative, the axes in order."""

    def several(value):
        return (value,) if isinstance(value, int) else tuple(value)

    # Sorted, as the host does: the kernel's axes follow those of the inputs.
    axis, batch_dims = (
        tuple(sorted(a % inputs.ndim for a in several(axes)))
        for axes in (layer.axis, layer.batch_dims)
    )
    if batch_dims and set(batch_dims) != set(range(max(batch_dims) + 1)):
        raise ValueError(
            f"batch_dims: got {batch_dims}, expected consecutive leading axes from 0 on"
        )
    return several(layer.features), axis, batch_dims


def _reshaped(array: Any, shape: tuple[int, ...]) -> Any:
    """Reshape an initial value, boxed or not."""
    if isinstance(array, nn.meta.AxisMetadata):
        return nn.meta.replace_boxed(array, jnp.reshape(array.unbox(), shape))
    return jnp.reshape(array, shape)


def _window(layer) -> tuple[int, ...]:
    size = layer.kernel_size
    return (size,) if isinstance(size, int) else tuple(size)


def _per_axis(layer, name: str) -> tuple[int, ...]:
    return broadcast(name, getattr(layer, name), len(_window(layer)))


_KINDS = {
    nn.Dense: Kind(_dense_shapes, _dense),
    nn.DenseGeneral: Kind(_dense_general_shapes, _dense_general),
    nn.Einsum: Kind(_einsum_shapes, _einsum),
    nn.Conv: Kind(_conv_shapes, _conv),
    nn.ConvTranspose: Kind(_conv_transpose_shapes, _conv_transpose),
}


def neuronwise(
    model: Any,
    gates: Any = "auto",
    *,
    rule: Rule = Rule(),
    axis_name: AxisName | None = None,
) -> Callable[..., Any]:
    """The apply function of a whole model, with the neuron-wise rule in every layer.

    Forward (exact):      the model's own, to the last bit; its code is not touched
    Backward (modified):  g_W and g_b of the layers with a gate by the rule, all else unchanged

    Every call of exactly `flax.linen.Dense`, `DenseGeneral`, `Einsum`, `Conv` or `ConvTranspose`
    (subclasses are left alone) runs as the layer of that name in `jaxnorm.linen` would, on its own
    parameters, through `flax.linen.intercept_methods`. Interceptors that were set outside do not
    see these calls. `model.init` is used as before.

    Args:
        model: a module, or a function that calls one (``model.apply``, ``state.apply_fn``, one
            that binds).
        gates: which activation follows which layer. ``"auto"``: found in the traced program, see
            `find_gates`. {pattern: gate}: glob patterns on paths such as ``"encoder/Dense_0"``, the
            first that matches counts, layers without a match are left alone. A callable
            (path, module) -> gate. A `Report` of `find_gates`. In place of a gate: `LEAVE`,
            `Observed`, `Product`.
        rule: see `jaxnorm.Rule`.
        axis_name: as in `Dense`.

    Returns:
        A function with the signature of ``model.apply``, for `TrainState.create` too.

    Raises:
        TypeError: for gates or a rule of another type.
        ValueError: for an unknown gate; and, at the first call without ``method=``, for a model
            without such a layer or a pattern that matches none.

    Transformations: jit, grad, scan, vmap, remat, shard_map, around the model and lifted inside.
    With ``"auto"``, a layer that is called twice, or in every round of a loop with the same
    weights, is left alone: its gradients would each use the statistics of their own call. Modules
    under `flax.linen.jit` in one parent that differ in nothing but their name share one trace, of
    which Flax shows the first name only: "auto" leaves them alone, and what `gates` says of the
    first holds for all. An exception leaves no interceptor behind; any number of threads may call.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> model = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(3)])
        >>> variables = model.init(jax.random.key(0), jnp.ones((2, 5)))
        >>> apply = jaxnorm.linen.neuronwise(model)
        >>> same = apply(variables, jnp.ones((2, 5))) == model.apply(variables, jnp.ones((2, 5)))
        >>> bool(same.all())
        True
        >>> apply = jaxnorm.linen.neuronwise(model, {"layers_0": "relu", "layers_*": None})
    """
    checks.check_rule(rule)
    apply, checked = _apply_of(model), gates == "auto"
    if gates == "auto":
        found: dict[Any, Choices] = {}

        def choose(args, kwargs):
            key = signature(args, kwargs)
            chosen = None if key is None else found.get(key)
            if chosen is None:
                chosen = Choices("neuronwise", find_gates(apply, *args, **kwargs))
                found[key] = chosen
            return chosen

    else:
        choices = Choices("neuronwise", gates)

        def choose(args, kwargs):
            del args, kwargs
            return choices

    @functools.wraps(apply)
    def neuronwise_apply(*args, **kwargs):
        nonlocal checked
        chosen = choose(args, kwargs)
        interceptor = Converting(_KINDS, chosen, rule, axis_name)
        with context(interceptor.key), nn.intercept_methods(interceptor):
            out = apply(*args, **kwargs)
        # Once: what `flax.linen.jit` has cached is not seen again.
        if not checked and kwargs.get("method") is None:
            if not interceptor.seen:
                raise no_layers("neuronwise", (kind.__name__ for kind in _KINDS))
            chosen.check_used(interceptor.seen)
            checked = True
        return out

    return neuronwise_apply


def find_gates(model: Any, *args: Any, **kwargs: Any) -> Report:
    """The activation that follows each layer of a model, read from its traced program.

    The model is traced, not run. From the output of every layer whatever is an elementwise function
    of it is followed, through reshapes, casts and dropout: the function where that ends is the
    gate. It is compared with those of `jax.nn` by its slope, not by its name; any other is cut out
    of the program. Behind a normalisation it is `Observed`; the product of two layers' activations
    is a `Product`, a function of parts of one layer's output (SwiGLU in one layer) a `JointGate`.
    Where a sum (a residual connection), a product, a reduction or the output of the model comes
    first the gate is None; where different functions read the output too, and the table says so.

    Args:
        model: as in `neuronwise`.
        *args: the arguments of ``model.apply``: variables and example inputs, arrays or
            `jax.ShapeDtypeStruct`; the batch may have any size above 1.
        **kwargs: as ``model.apply`` takes them (``rngs``, ``mutable``, ``train``, ``method``).

    Returns:
        A `Report`: print it, edit its ``gates``, or hand it to `neuronwise`.

    Raises:
        ValueError: for a model without a layer to convert; the model's own errors.

    Transformations: may be called inside any; nothing is computed.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> model = nn.Sequential([nn.Conv(8, (3, 3)), nn.GroupNorm(4), nn.gelu, nn.Dense(3)])
        >>> variables = model.init(jax.random.key(0), jnp.ones((2, 8, 8, 3)))
        >>> print(jaxnorm.linen.find_gates(model, variables, jnp.ones((2, 8, 8, 3))))
        layer     kind   gate  how
        layers_0  Conv   gelu  observed at layers_1
        layers_3  Dense  None  no activation follows: the output
        2 layers converted (1 observed, 0 unresolved), 0 left alone
    """
    apply, marking = _apply_of(model), Marking(_KINDS)
    # With a context of its own, so that nothing under `flax.linen.jit` comes from a cache.
    with context(marking), nn.intercept_methods(marking):
        program = trace(apply, args, kwargs)
    if not marking.seen and kwargs.get("method") is None:
        raise no_layers("find_gates", (kind.__name__ for kind in _KINDS))
    rows = search(program, marking.layers, marking.normalisers, marking.modules)
    rows += [Row(path, kind, LEAVE, why) for path, (kind, why) in marking.others.items()]
    return Report(tuple(rows))


def _apply_of(model: Any) -> Callable[..., Any]:
    if isinstance(model, nn.Module):
        return model.apply
    if not callable(model):
        raise TypeError(f"model: got {model!r}, expected a module or a function that calls one")
    return model
