"""The rule in any function of parameters: `neuronwise`, `find_gates`, `init_statistics`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm import checks
from jaxnorm.activations import DEFERRED
from jaxnorm.backward.linear_operation import record
from jaxnorm.conversion.foreign import arrays_in, is_array, is_opaque, without_leaks
from jaxnorm.conversion.report import Report
from jaxnorm.conversion.trace import Traced
from jaxnorm.optim.layers import Path, names_of
from jaxnorm.program.axes import count
from jaxnorm.program.evaluate import Run
from jaxnorm.program.plan import make_plan
from jaxnorm.program.sites import PRODUCTS, Site
from jaxnorm.rule import Rule
from jaxnorm.statistics import tracked
from jaxnorm.statistics.tracked import Statistics


def neuronwise(fn: Callable[..., Any], gates: Any = "auto", *, rule: Rule = Rule()) -> "Neuronwise":
    """The neuron-wise rule in any function of parameters: Equinox, Haiku, Flax, or JAX alone.

    Forward (exact):      fn's own equations, one by one
    Backward (default):   JAX's, with the statistics recorded for `in_neuron_coordinates`

    `fn` is traced. Every product or convolution one operand of which is a parameter (transposed,
    reshaped, cast, multiplied by a number, or an entry of a stack) is a layer, with any order of
    axes and under any name; the parameter that is added to it, one entry for each neuron, is its
    bias. What its output meets is followed through the program, to the activation: through sums,
    normalizations, dropout, splits, concatenations, pooling. The slope is told there, and comes
    back as a gradient would; dropout is looked through, and where a normalization or a constant
    scales on the way, its factor is left out; another factor (a gated unit) belongs to the slope.
    Then the program is run as it is, with the statistics recorded beside it.

    So a layer that is called twice has the statistics of all calls, each with its own activation;
    one that `jax.lax.scan` stacks has them stacked; a `vmap` over examples inside of fn makes a
    batch; the cells of recurrent networks have their own gates.

    Args:
        fn: (params, *args, **kwargs) -> a pytree. All arrays among its first argument are
            parameters, whatever tree they are in (an `equinox.Module` too).
        gates: ``"auto"``, or {pattern: gate}, a callable (name, None) -> gate, or a `Report`, as in
            `jaxnorm.linen.neuronwise`, where a layer's name is the path of its kernel, such as
            ``"layers/0/weight"``; of `LEAVE` nothing is recorded.
        rule: see `jaxnorm.Rule`; with ``gradient="plain_with_statistics"`` or the default.
            `statistics_rows` counts along the first axis of a product that is not the kernel's.

    Returns:
        A function as fn, with one more keyword, ``neuron_stats``: differentiate by it and by the
        parameters. Without it, fn itself.

    Raises:
        TypeError: for gates or a rule of another type, an output that is no pytree.
        ValueError: for an unknown gate, a pattern that matches no layer, a `Rule` with another
            gradient, statistics of another function; where it is called.

    Transformations: jit, grad (in both modes, any order), vmap, scan, remat, and shard_map (with
    ``check_vma=False``; with it no gate is recognized there) around it; inside jit, scan, cond,
    remat, vmap. Layers inside of ``while_loop``, ``shard_map`` and of
    functions with a derivative of their own are left alone, and reported. Call it under `jax.jit`:
    without, fn is traced anew in every call. There outputs and gradients are fn's to the last bit,
    unless XLA sums in another order within a loop or a function that is compiled by itself.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> import jaxnorm
        >>> def fn(params, x):
        ...     h = jax.nn.relu(x @ params["in"]["w"].T + params["in"]["b"])  # [O, I] or [I, O]
        ...     return h @ params["out"]
        >>> keys, x = jax.random.split(jax.random.key(0)), jnp.ones((32, 5))
        >>> params = {
        ...     "in": {"w": jax.random.normal(keys[0], (16, 5)), "b": jnp.zeros(16)},
        ...     "out": jax.random.normal(keys[1], (16, 3))}
        >>> print(jaxnorm.find_gates(fn, params, x))  # doctest: +ELLIPSIS
        layer  kind     gate  reason
        in/w   product  relu  direct
        out    product  None  no activation follows: the output
        ...
        >>> predict = jaxnorm.neuronwise(fn)
        >>> stats = jaxnorm.init_statistics(predict, params, x)
        >>> tx = jaxnorm.in_neuron_coordinates(optax.adam(0.01))
        >>> state = tx.init(params)
        >>> def loss(params, stats):
        ...     return jnp.mean((predict(params, x, neuron_stats=stats) - 1) ** 2)
        >>> grads, batch = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, stats)
        >>> stats = jaxnorm.update_statistics(stats, batch)
        >>> updates, state = tx.update(grads, state, params, neuron_stats=stats)
        >>> params = optax.apply_updates(params, updates)
    """
    checks.check_rule(rule)
    if rule.gradient not in (None, "plain_with_statistics"):
        raise ValueError(
            f"rule: got gradient={rule.gradient!r}, expected 'plain_with_statistics' or None: a "
            "function of parameters records statistics; use neuronwise_dense and its like"
        )
    return Neuronwise(fn, gates, rule)


class Neuronwise:
    """A function with the rule in it; see `neuronwise`."""

    def __init__(self, fn: Callable[..., Any], gates: Any, rule: Rule) -> None:
        if not callable(fn):
            raise TypeError(f"fn: got {fn!r}, expected a function of parameters")
        self.fn, self.gates, self.rule = fn, gates, rule
        functools.update_wrapper(self, fn, updated=())

    def __call__(self, params: Any, *args: Any, neuron_stats: Any = None, **kwargs: Any) -> Any:
        """fn(params, *args, **kwargs)."""
        if neuron_stats is None:
            return self.fn(params, *args, **kwargs)
        return _Trace(self, params, args, kwargs).run(neuron_stats)


def find_gates(fn: Callable[..., Any], params: Any, *args: Any, **kwargs: Any) -> Report:
    """The activation that follows each layer of a function of parameters; see `neuronwise`.

    Args:
        fn: as in `neuronwise`, or what that returned.
        params: arrays or `jax.ShapeDtypeStruct`, as the other arguments. Nothing is computed.
        *args: as fn takes them; the batch may have any size.
        **kwargs: as fn takes them.

    Returns:
        A `Report` with a row for every layer, by the path of its kernel, and for every other
        parameter with two axes or more: why it is none.

    Raises:
        TypeError, ValueError: as `neuronwise`; fn's own errors.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxnorm
        >>> def fn(params, tokens):  # an embedding and a layer
        ...     return jax.nn.gelu(params["table"][tokens] @ params["w"])
        >>> params = {"table": jnp.ones((7, 4)), "w": jnp.ones((4, 3))}
        >>> report = jaxnorm.find_gates(fn, params, jnp.zeros(5, int))
        >>> report["w"].gate, report["table"].reason
        ('gelu', 'no product with it: read by gather')
    """
    fn = fn if isinstance(fn, Neuronwise) else neuronwise(fn)
    return _Trace(fn, params, args, kwargs).plan.report


def init_statistics(
    fn: Callable[..., Any], params: Any, *args: Any, **kwargs: Any
) -> dict[str, Statistics]:
    """The statistics of a function of parameters before its first step: zeros.

    Args:
        fn: what `neuronwise` returned, or a function, for its defaults.
        params: as in `find_gates`, like the rest.
        *args: as fn takes them.
        **kwargs: as fn takes them.

    Returns:
        {path of a kernel: `jaxnorm.statistics.tracked.Statistics`}; the gradient with respect to
        it is that of the batch, see `update_statistics`. A layer that is taken out trains plainly.

    Raises:
        ValueError: for a function without a layer.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxnorm
        >>> predict = jaxnorm.neuronwise(lambda params, x: jnp.tanh(params["w"] @ x))
        >>> params, x = {"w": jnp.ones((3, 5))}, jnp.ones((5, 16))
        >>> stats = jaxnorm.init_statistics(predict, params, x)
        >>> stats["w"].second.shape  # [I, O], whatever the layout of w
        (5, 3)
    """
    fn = fn if isinstance(fn, Neuronwise) else neuronwise(fn)
    trace = _Trace(fn, params, args, kwargs)
    found = {}
    for sites in trace.plan.sites.values():
        for name, site, gated in sites:
            found[name] = trace.empty(name, site, gated)
    if not found:
        raise ValueError(
            "init_statistics: got a function without a layer, expected at least one product of a "
            f"parameter ({', '.join(PRODUCTS.values())}); see jaxnorm.find_gates(fn, params, ...)"
        )
    return found


class _Trace:
    """One trace of a function, with its plan."""

    def __init__(self, of: Neuronwise, params: Any, args: tuple, kwargs: dict) -> None:
        self.rule = of.rule
        leaves, structure = jax.tree.flatten((params, args, kwargs))
        self.paths: dict[str, Path] = {}
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
            if is_array(leaf):
                names = names_of(path)
                if "/".join(names) in self.paths:
                    raise ValueError(
                        f"params: got two arrays at {'/'.join(names)!r}, expected one; rename one"
                    )
                self.paths["/".join(names)] = names
        self.arrays = [leaf for leaf in leaves if is_array(leaf)]
        seen: dict[str, Any] = {}

        def run(*arrays):
            given = iter(arrays)
            full = [next(given) if is_array(leaf) else leaf for leaf in leaves]
            params, args, kwargs = jax.tree.unflatten(structure, full)
            results, seen["structure"] = jax.tree.flatten(of.fn(params, *args, **kwargs))
            for leaf in results:
                if is_opaque(leaf) and arrays_in(leaf):
                    raise TypeError(
                        f"fn: got an output of type {type(leaf).__name__}, which is no pytree, "
                        "expected one; return its arrays, and make the object outside"
                    )
            seen["results"] = [None if is_array(leaf) else leaf for leaf in results]
            return [leaf for leaf in results if is_array(leaf)]

        with without_leaks(of.fn, args, kwargs):
            self.program = jax.make_jaxpr(run)(*self.arrays)
        self.structure, self.results = seen["structure"], seen["results"]
        traced = Traced(self.program, len(self.program.out_avals), ())
        self.plan = make_plan(traced, list(self.paths), of.gates, of.rule)

    def run(self, neuron_stats: dict[str, Statistics]) -> Any:
        """The results, with the statistics of this call as the gradient of those given."""
        self._check(neuron_stats)
        run = Run(self.plan, self._record)
        program = self.program
        arrays = iter(run(program.jaxpr, program.consts, self.arrays, neuron_stats))
        results = [next(arrays) if leaf is None else leaf for leaf in self.results]
        return jax.tree.unflatten(self.structure, results)

    def _check(self, neuron_stats: dict[str, Statistics]) -> None:
        """Raise a ValueError unless the statistics are those of this function."""
        known = {
            name: (site, gated) for sites in self.plan.sites.values() for name, site, gated in sites
        }
        for name, statistics in neuron_stats.items():
            if name not in known:
                raise ValueError(
                    f"neuron_stats: got statistics of {name!r}, expected only of "
                    f"{', '.join(map(repr, known))}; make new ones with init_statistics"
                )
            empty = functools.partial(self.empty, name, *known[name])
            checks.check_statistics(statistics, jax.eval_shape(empty))

    def _record(
        self, name: str, site: Site, x: Any, gated: bool, z: Any, statistics: dict[str, Any]
    ) -> tuple[Any, Any]:
        given = statistics.get(name)
        if given is None:
            return z, None
        for entry in site.entries:
            given = jax.tree.map(lambda a, entry=entry: a[entry], given)
        x, kernel = _operands(site, x)
        bias = None if site.bias is None else kernel
        settings = {"rule": self.rule, "statistics": given}
        if gated:
            return record(site.operation, z, x, kernel, bias, gate=DEFERRED, **settings)
        return record(site.operation, z, x, kernel, bias, gate=None, **settings), None

    def empty(self, name: str, site: Site, gated: bool) -> Statistics:
        """The statistics of one layer before the first step."""
        avals = (each.aval for each in (site.step.inputs[1 - site.side], site.step.outputs[0]))
        x, z = (jax.eval_shape(functools.partial(jnp.zeros, a.shape, a.dtype)) for a in avals)
        x, kernel = jax.eval_shape(functools.partial(_operands, site), x)
        centered = site.bias is not None
        empty = tracked.empty(
            site.operation, x, kernel, z, self.rule, gated=gated, centered=centered
        )
        stack = site.kernel.root.aval.shape[: len(site.kernel.mapped)]
        empty = jax.tree.map(lambda a: jnp.zeros((*stack, *a.shape), a.dtype), empty)
        bias = None if site.bias is None else self.paths[self.plan.name_of[site.bias.root]]
        return empty.replace(kernel_path=self.paths[name], bias_path=bias)


def _operands(site: Site, x: Any) -> tuple[Any, Any]:
    """(What the parameter itself is multiplied by, zeros in the parameter's shape)."""
    scale = site.kernel.scale
    x = x if scale == 1 else x * jnp.asarray(scale, x.dtype)
    return x, jnp.zeros([count(axis) for axis in site.kernel.leaf], x.dtype)
