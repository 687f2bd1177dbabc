"""nnx's `Optimizer`, which merges the statistics of a model at each step."""

from collections.abc import Mapping
from typing import Any

import jax
import optax
from flax import nnx

from jaxnorm.compat import as_pure
from jaxnorm.nnx.changes import Witness
from jaxnorm.nnx.neuron_stats import NeuronStats
from jaxnorm.optim.layers import check_wrapped, leaves_of, shown
from jaxnorm.optim.update_statistics import skip_statistics, update_statistics


class Optimizer(nnx.Optimizer):
    """`flax.nnx.Optimizer` that merges the statistics and hands them to the transformation.

    Args:
        model: with statistics, see `init_statistics`.
        tx: made by `jaxnorm.in_neuron_coordinates`, or containing it; an optimizer that would
            ignore the statistics is refused.
        wrt: as Flax's; `nnx.Param` by default. Layers whose kernels it leaves out are not
            trained; those whose biases it leaves out have second moments about zero.
        **kwargs: the other arguments of `flax.nnx.Optimizer`.

    Raises:
        ValueError: for a model without statistics, or another transformation; where `wrt` leaves
            out all kernels of layers with statistics.

    Warns:
        UserWarning: at a step, if a module or an activation of the model was replaced.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from flax import nnx
        >>> import jaxnorm
        >>> x, y = jnp.eye(5), jnp.ones((5, 3))
        >>> model = jaxnorm.nnx.Linear(5, 3, gate=None, rngs=nnx.Rngs(0))
        >>> jaxnorm.nnx.init_statistics(model, x)
        >>> tx = jaxnorm.in_neuron_coordinates(optax.adam(0.1))
        >>> optimizer = jaxnorm.nnx.Optimizer(model, tx)
        >>> by = nnx.DiffState(0, jaxnorm.nnx.PARAMS_AND_STATISTICS)
        >>> @nnx.jit
        ... def step(model, optimizer):
        ...     loss, grads = nnx.value_and_grad(
        ...         lambda model: jnp.mean((model(x) - y) ** 2), argnums=by)(model)
        ...     optimizer.update(model, grads)
        ...     return loss
        >>> bool(step(model, optimizer) > step(model, optimizer))
        True
    """

    def __init__(self, model: Any, tx: Any, *, wrt: Any = nnx.Param, **kwargs: Any) -> None:
        if not jax.tree.leaves(nnx.state(model, NeuronStats)):
            raise ValueError(
                "model: got one without statistics, expected NeuronStats in its layers; call "
                "jaxnorm.nnx.init_statistics(model, x) first"
            )
        params = as_pure(nnx.state(model, wrt))
        if not _trained(as_pure(nnx.state(model, NeuronStats)), params):
            names = list(map(shown, leaves_of(params)[0])) or ["nothing"]
            names = ", ".join([*names[:3], "..."] if len(names) > 3 else names)
            raise ValueError(
                f"wrt: got a filter of {names}, expected the kernel of at least one layer with "
                "statistics; use flax.nnx.Optimizer for a model whose layers are not trained"
            )
        super().__init__(model, tx, wrt=wrt, **kwargs)
        check_wrapped(as_pure(self.opt_state))
        self._witness = Witness(model)

    def update(
        self, model: Any, grads: Any, /, *, statistics: bool | None = None, **kwargs: Any
    ) -> optax.Updates:
        """One step; grads with respect to `PARAMS_AND_STATISTICS`.

        Args:
            model: which the optimizer was made with.
            grads: from `value_and_grad` or `grad`.
            statistics: False where these were told that there are none in this step.
            **kwargs: for the transformation.
        """
        self._witness.look(model)
        old = as_pure(nnx.state(model, NeuronStats))
        if statistics is False:
            merged = skip_statistics(old)
        else:
            merged = update_statistics(old, as_pure(nnx.state(grads, NeuronStats)))
        trained = _trained(merged, as_pure(nnx.state(model, self.wrt)))
        updates = super().update(model, grads, neuron_stats=trained, **kwargs)
        nnx.update(model, merged)
        return updates


def _trained(statistics: Mapping[Any, Any], params: Mapping[Any, Any]) -> dict[Any, Any]:
    """The statistics of the layers whose kernels are among the parameters."""
    found = {}
    for name, branch in statistics.items():
        if name != "neuron_stats":
            branch = _trained(branch, params.get(name, {}))
        elif "kernel" not in params:
            branch = None
        if branch:
            found[name] = branch
    return found
