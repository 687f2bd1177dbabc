"""The layers of linen and nnx."""

from __future__ import annotations

from typing import Any

import flax.traverse_util as paths
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxnorm
from parity_tests.normalizers.case import Case, Result
from parity_tests.normalizers.implementations import Normalizer


class Linen(Normalizer):
    """`jaxnorm.linen.normalizers`."""

    name = "linen"

    def run(self, case: Case) -> list[Result]:
        """One compiled program for all calls that train, one for the last."""
        calls: dict[bool, Any] = {train: jax.jit(self.call(case, train)) for train in (True, False)}
        params = _nested({k: jnp.asarray(case.wide(v)) for k, v in case.params.items()})
        state = _nested({k: jnp.asarray(case.wide(v)) for k, v in case.state.items()})
        results = []
        for call, delta, train in zip(case.calls, case.deltas, case.modes(), strict=True):
            arrays = {name: jnp.asarray(case.cast(value)) for name, value in call.items()}
            x = arrays.pop("x")
            cotangent = jnp.asarray(case.cast(delta))
            y, gradients, g_x, state = calls[train](params, state, x, arrays, cotangent)
            every = {"x": np.asarray(g_x), **_flat(gradients)}
            results.append(Result(np.asarray(y), every, _flat(state)))
        return results

    def call(self, case: Case, train: bool) -> Any:
        """One call with its gradients: parameters, state, x, more arguments, cotangent."""

        def gradients(params: Any, state: Any, x: Any, more: Any, delta: Any) -> Any:
            def run(params: Any, x: Any, beside: Any) -> Any:
                return self.apply(case, params, {**state, **beside}, x, more, train)

            beside = {name: state[name] for name in case.family.backward_stats}
            y, pull, new = jax.vjp(run, params, x, beside, has_aux=True)
            *gradients, added = pull(delta.astype(y.dtype))
            return y, *gradients, {**new, **jax.tree.map(jnp.add, beside, added)}

        return gradients

    def apply(self, case: Case, params: Any, state: Any, x: Any, more: Any, train: bool) -> Any:
        """Output and new state."""
        family = case.family
        layer = getattr(jaxnorm.linen.normalizers, family.name)(
            **family.linen_arguments(case.knobs)
        )
        if family.modes:
            more = {**more, "use_running_average": not train}
        beside = {name: state.pop(name) for name in family.backward_stats}
        variables = {"params": params, "batch_stats": state, "backward_stats": beside}
        y, new = layer.apply(variables, x, **more, mutable=["batch_stats"])
        return y, new.get("batch_stats", {})


class Nnx(Linen):
    """`jaxnorm.nnx.normalizers`."""

    name = "nnx"

    def apply(self, case: Case, params: Any, state: Any, x: Any, more: Any, train: bool) -> Any:
        """Output and new state."""
        family = case.family
        layer = getattr(jaxnorm.nnx.normalizers, family.name)(
            x.shape[-1], **family.linen_arguments(case.knobs), rngs=nnx.Rngs(0)
        )
        given = {**_flat_leaves(params), **_flat_leaves(state)}
        graph, random, variables = nnx.split(layer, nnx.RngState, ...)
        found = {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(variables)}
        assert found.keys() == given.keys(), f"the layer has {sorted(found)}, not {sorted(given)}"
        for name, leaf in found.items():
            leaf.set_value(given[name])
        layer = nnx.merge(graph, random, variables)
        if family.modes:
            layer.set_attributes(use_running_average=not train, raise_if_not_found=False)
        y = layer(x, **more)
        new = nnx.to_pure_dict(nnx.state(layer, nnx.BatchStat))
        return y, new


def _nested(arrays: dict[str, Any]) -> dict[str, Any]:
    return paths.unflatten_dict(arrays, sep="/")


def _flat_leaves(tree: Any) -> dict[str, Any]:
    return paths.flatten_dict(tree, sep="/") if tree else {}


def _flat(tree: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in _flat_leaves(dict(tree)).items()}


NORMALIZERS = (Linen, Nnx)
