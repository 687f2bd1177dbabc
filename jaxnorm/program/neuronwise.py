"""The rule in any function of parameters: `neuronwise`, `find_gates`, `init_statistics`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm import checks
from jaxnorm.activations import DEFERRED
from jaxnorm.backward.linear_operation import record
from jaxnorm.conversion.foreign import is_array
from jaxnorm.conversion.report import Report
from jaxnorm.conversion.trace import Traced
from jaxnorm.optim.layers import Path, _names
from jaxnorm.program.evaluate import Run
from jaxnorm.program.plan import make_plan
from jaxnorm.program.sites import Site
from jaxnorm.rule import Rule
from jaxnorm.statistics import tracked
from jaxnorm.statistics.tracked import Statistics


class Neuronwise:
    """A function with the rule in it; see `neuronwise`."""

    def __init__(self, fn: Callable[..., Any], gates: Any, rule: Rule) -> None:
        self.fn, self.gates, self.rule = fn, gates, rule
        functools.update_wrapper(self, fn, updated=())

    def __call__(self, params: Any, *args: Any, neuron_stats: Any = None, **kwargs: Any) -> Any:
        """fn(params, *args, **kwargs), which it is to the last bit."""
        if neuron_stats is None:
            return self.fn(params, *args, **kwargs)
        program = Program(self, params, args, kwargs)
        return program.run(neuron_stats)


class Program:
    """One trace of a function, with its plan."""

    def __init__(self, of: Neuronwise, params: Any, args: tuple, kwargs: dict) -> None:
        self.rule = of.rule
        leaves, structure = jax.tree.flatten((params, args, kwargs))
        paths = jax.tree_util.tree_flatten_with_path(params)[0]
        self.paths: dict[str, Path] = {}
        shown = []
        for path, leaf in paths:
            names = _names(path)
            shown.append("/".join(names) if is_array(leaf) else None)
            self.paths["/".join(names)] = names
        self.arrays = [leaf for leaf in leaves if is_array(leaf)]
        seen: dict[str, Any] = {}

        def run(*arrays):
            given = iter(arrays)
            full = [next(given) if is_array(leaf) else leaf for leaf in leaves]
            params, args, kwargs = jax.tree.unflatten(structure, full)
            results, seen["structure"] = jax.tree.flatten(of.fn(params, *args, **kwargs))
            seen["results"] = [None if is_array(leaf) else leaf for leaf in results]
            return [leaf for leaf in results if is_array(leaf)]

        closed = jax.make_jaxpr(run)(*self.arrays)
        self.structure, self.results = seen["structure"], seen["results"]
        self.closed = closed
        names = [name for name in shown if name is not None]
        self.plan = make_plan(Traced(closed, len(closed.out_avals), ()), names, of.gates, of.rule)

    def run(self, neuron_stats: dict[str, Statistics]) -> Any:
        """The results, with the statistics recorded as their gradient."""
        run = Run(self.plan, self._record)
        out = iter(run(self.closed.jaxpr, self.closed.consts, self.arrays, neuron_stats))
        results = [next(out) if leaf is None else leaf for leaf in self.results]
        return jax.tree.unflatten(self.structure, results)

    def _record(
        self, name: str, site: Site, x: Any, kernel: Any, gated: bool, z: Any, statistics: Any
    ) -> tuple[Any, Any]:
        given = statistics.get(name)
        if given is None:
            return z, None
        x, leaf = self._operands(site, x)
        del kernel
        for entry in (each for each in site.kernel.mapped if isinstance(each, int)):
            given = jax.tree.map(lambda a, entry=entry: a[entry], given)
        out = record(
            site.operation,
            z,
            x,
            leaf,
            None if site.bias is None else leaf,
            gate=DEFERRED if gated else None,
            rule=self.rule,
            statistics=given,
        )
        return out if gated else (out, None)

    def _operands(self, site: Site, x: Any) -> tuple[Any, Any]:
        scale = site.kernel.scale
        x = x if scale == 1 else x * jnp.asarray(scale, x.dtype)
        shape = tuple(int(np.prod([label.size for label in axis])) for axis in site.kernel.leaf)
        return x, jnp.zeros(shape, x.dtype)

    def init(self) -> dict[str, Statistics]:
        """The statistics before the first step."""
        found = {}
        for sites in self.plan.sites.values():
            for name, site, gated in sites:
                found[name] = self._empty(name, site, gated)
        return found

    def _empty(self, name: str, site: Site, gated: bool) -> Statistics:
        x = jnp.zeros(site.step.inputs[1 - site.side].aval.shape, site.step.inputs[0].aval.dtype)
        z = site.step.outputs[0].aval
        _, leaf = self._operands(site, x)
        z = jnp.zeros(z.shape, z.dtype)
        centered = site.bias is not None
        empty = tracked.empty(site.operation, x, leaf, z, self.rule, gated=gated, centered=centered)
        stack = site.kernel.root.aval.shape[: len(site.kernel.mapped)]
        empty = jax.tree.map(lambda a: jnp.zeros((*stack, *a.shape), a.dtype), empty)
        bias = None
        if site.bias is not None:
            bias = self.paths[self.plan.name_of[site.bias.root]]
        return empty.replace(kernel_path=self.paths[name], bias_path=bias)


def neuronwise(fn: Callable[..., Any], gates: Any = "auto", *, rule: Rule = Rule()) -> Neuronwise:
    """The rule in any function of parameters, whatever it is written with."""
    checks.check_rule(rule)
    return Neuronwise(fn, gates, rule)


def find_gates(fn: Any, params: Any, *args: Any, **kwargs: Any) -> Report:
    """The report."""
    fn = fn if isinstance(fn, Neuronwise) else neuronwise(fn)
    return Program(fn, params, args, kwargs).plan.report


def init_statistics(fn: Neuronwise, params: Any, *args: Any, **kwargs: Any) -> Any:
    """Zeros."""
    return Program(fn, params, args, kwargs).init()
