"""A Flax `TrainState` that carries the statistics."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
import optax
from flax import struct
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state

from jaxnorm.conversion.report import Report
from jaxnorm.linen.prepare import with_statistics
from jaxnorm.linen.recording import Gradients, differentiated
from jaxnorm.optim.in_neuron_coordinates import wrapped
from jaxnorm.optim.layers import check_wrapped
from jaxnorm.optim.update_statistics import skip_statistics, update_statistics
from jaxnorm.rule import Rule
from jaxnorm.statistics.batch import AxisName


class TrainState(train_state.TrainState):
    """`flax.training.train_state.TrainState` with ``neuron_stats`` and ``batch_stats``.

    Attributes:
        neuron_stats: the statistics of all layers, from `init_statistics`.
        batch_stats: the collection of `flax.linen.BatchNorm`, or None.

    `prepare` makes all of it from the model, its parameters and an optimizer. `create` takes it as
    Flax's does: ``neuron_stats`` and ``batch_stats`` beside ``apply_fn``, ``params`` and ``tx``,
    which must be made by `jaxnorm.in_neuron_coordinates` (or contain it). Subclasses add fields as
    to Flax's, with defaults or without.

    `grad` and `value_and_grad` take the place of JAX's in a training step, of which all else stays:
    the loss takes the parameters and calls ``state.apply_fn`` with them.

    Raises:
        ValueError: without statistics; for an optimizer that would ignore them; and what
            `in_neuron_coordinates` raises.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
        >>> import jaxnorm
        >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(3)])
        >>> x, y = jnp.eye(5), jnp.ones((5, 3))
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> state = jaxnorm.linen.TrainState.prepare(model, params, optax.adam(0.1), x)
        >>> print(state.report)
        layer     kind   gate  reason
        layers_0  Dense  relu  direct
        layers_2  Dense  None  no activation follows: the output
        2 of 2 layers with a matrix are converted; Rule()
        >>> @jax.jit
        ... def step(state):
        ...     def loss_fn(params):
        ...         return jnp.mean((state.apply_fn({"params": params}, x) - y) ** 2)
        ...     loss, grads = state.value_and_grad(loss_fn)(state.params)
        ...     return state.apply_gradients(grads=grads), loss
        >>> state, before = step(state)
        >>> bool(step(state)[1] < before)
        True
    """

    neuron_stats: Any
    # By keyword, and not as an attribute of the class: fields without a default may follow.
    batch_stats: Any = struct.field(kw_only=True, default_factory=lambda: None)

    @classmethod
    def create(cls, *, apply_fn: Any, params: Any, tx: Any, **kwargs: Any) -> Self:
        """A new state with ``step=0``; see the class."""
        if kwargs.get("neuron_stats") is None:
            raise ValueError(
                "neuron_stats: got None, expected the statistics of the layers; make them with "
                "jaxnorm.linen.init_statistics, or all of the state with TrainState.prepare"
            )
        state = super().create(apply_fn=apply_fn, params=params, tx=tx, **kwargs)
        check_wrapped(state.opt_state)
        return state

    @classmethod
    def prepare(
        cls,
        apply_fn: Any,
        params: Any,
        tx: Any,
        example_input: Any,
        *,
        gates: Any = "auto",
        skip: Sequence[str] = (),
        rule: Rule = Rule(),
        axis_name: AxisName | None = None,
        frozen: Any | Callable[[Any], Any] = None,
        example_kwargs: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Self:
        """A state from a model, its parameters and any optimizer, in one call.

        `neuronwise`, `init_statistics`, `in_neuron_coordinates` and `create` together: as Flax's
        `create`, with an example input behind.

        Args:
            apply_fn: the model's apply function, or the model itself, as `neuronwise` takes it.
            params: as ``state.params`` is to be, and as the loss hands it to ``state.apply_fn``:
                ``variables["params"]``, or ``{"params": ...}`` as ``model.init`` returns it.
            tx: any Optax transformation that needs gradients only. It is run inside
                `in_neuron_coordinates`, unless that is in it already
                (``optax.chain(clip, jaxnorm.in_neuron_coordinates(adam))``: see there for the
                difference).
            example_input: what the model is traced with (not run): an array or
                `jax.ShapeDtypeStruct`, or a tuple of arguments.
            gates: see `neuronwise`; ``"auto"``: found once, in the example.
            skip: patterns of layers to leave alone whatever `gates` says.
            rule: see `jaxnorm.Rule`.
            axis_name: see `neuronwise`.
            frozen: see `in_neuron_coordinates`.
            example_kwargs: keywords that the model needs, as ``model.apply`` takes them (``train``,
                ``rngs``, ``method``). Collections among the fields are ``mutable`` by themselves.
            **fields: further fields of the state: ``batch_stats=variables["batch_stats"]``, those
                of a subclass.

        Returns:
            The state; print ``state.report``, and look at it: a layer that was left alone is
            stepped as before.

        Raises:
            TypeError: for gates or a rule of another type.
            ValueError: as `neuronwise`, `init_statistics` and `in_neuron_coordinates`; and for
                parameters with other collections among them.
        """
        collections = {name: each for name, each in fields.items() if isinstance(each, Mapping)}
        given = (apply_fn, params, example_input, example_kwargs, collections, gates)
        apply, stats = with_statistics(*given, skip=skip, rule=rule, axis_name=axis_name)
        tx = wrapped(tx, params, frozen)
        return cls.create(apply_fn=apply, params=params, tx=tx, neuron_stats=stats, **fields)

    @property
    def report(self) -> Report | None:
        """What was decided for each layer of the model; None where that is not known."""
        return getattr(self.apply_fn, "report", None)

    def value_and_grad(
        self,
        loss: Callable[..., Any],
        argnums: int | Sequence[int] = 0,
        has_aux: bool = False,
        *,
        using: Callable[..., Any] = jax.value_and_grad,
        statistics: bool | None = None,
        **kwargs: Any,
    ) -> Callable[..., Any]:
        """`jax.value_and_grad` of a loss, which takes along the statistics.

        The calls of ``state.apply_fn`` in the loss with the parameters that it is given, or what is
        made of them (casts, noise, a part without gradient), record; those with other ones (an
        average, a target network, the second of two critics), or without any gradient, do not.

        Args:
            loss: of the parameters, and whatever else.
            argnums: which arguments to differentiate by; the first of these are the parameters.
                With several, these must reach ``state.apply_fn`` as they are if others could.
            has_aux: as JAX's.
            using: what differentiates: ``dynamic_scale.value_and_grad``, say.
            statistics: whether they are taken in this step. None (default): the compiled step finds
                out; True or False: it is told, and has no branch (see `jaxnorm.skip_statistics`).
            **kwargs: for `using`.

        Returns:
            A function as `jax.value_and_grad` returns it; the gradient is `Gradients`, for
            `apply_gradients`.

        Raises:
            ValueError: for a state whose ``apply_fn`` is neither from `prepare` nor `neuronwise`;
                for a loss without such a call; for a call inside a transformation of the loss
                (`jax.jit`, `jax.checkpoint`) that hides whose parameters they are, or with
                parameters that are computed of one of several arguments of `argnums`.
        """
        apply, stats = self.apply_fn, self.neuron_stats
        return differentiated(
            using, loss, argnums, apply, stats, taken=statistics, has_aux=has_aux, **kwargs
        )

    def grad(
        self,
        loss: Callable[..., Any],
        argnums: int | Sequence[int] = 0,
        has_aux: bool = False,
        **kwargs: Any,
    ) -> Callable[..., Any]:
        """`jax.grad` of a loss, which takes along the statistics; see `value_and_grad`."""
        return self.value_and_grad(loss, argnums, has_aux, using=jax.grad, **kwargs)

    def apply_gradients(self, *, grads: Any, neuron_stats: Any = None, **kwargs: Any) -> Any:
        """One step.

        Args:
            grads: from `value_and_grad` or `grad`; or the gradient with respect to the parameters,
            neuron_stats: and that with respect to the statistics.
            **kwargs: further fields to replace, ``batch_stats`` for example.
        """
        skips = isinstance(grads, Gradients) and grads.neuron_stats is None
        if isinstance(grads, Gradients) and neuron_stats is None:
            grads, neuron_stats = grads
        old = self.neuron_stats
        merged = skip_statistics(old) if skips else update_statistics(old, neuron_stats)
        params, rest = self.params, {}
        if isinstance(grads, Mapping) and OVERWRITE_WITH_GRADIENT in grads:  # as Flax's
            rest = {OVERWRITE_WITH_GRADIENT: grads[OVERWRITE_WITH_GRADIENT]}
            params, grads = params["params"], grads["params"]
        tx: Any = self.tx
        updates, opt_state = tx.update(grads, self.opt_state, params, neuron_stats=merged)
        params = optax.apply_updates(params, updates)
        return self.replace(
            step=self.step + 1,
            params={"params": params, **rest} if rest else params,
            opt_state=opt_state,
            neuron_stats=merged,
            **kwargs,
        )
