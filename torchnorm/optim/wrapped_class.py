"""The class of an optimizer in neuron coordinates: its own, with another `step`."""

import abc
import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch

from torchnorm.compiling import uncompiled_alone
from torchnorm.optim.layer_statistics import Layer, Layers

#: (optimizer, its layers, the inner optimizer's step) -> None.
TakeStep = Callable[[Any, Layers, Callable[[], Any]], None]


def wrap(optimizer: torch.optim.Optimizer, layers: Layers, take_step: TakeStep) -> None:
    """Give the optimizer the layers, and the class whose step is `take_step`."""
    _become(optimizer, _in_coordinates(type(optimizer), take_step))  # or it raises, as it was
    scheduled = vars(optimizer).pop("step", None)
    vars(optimizer)["_neuronwise"] = layers
    if scheduled is not None:
        _count_steps(optimizer)


def unwrap(optimizer: Any) -> None:
    """Undo `wrap`."""
    check_step(optimizer, "remove")
    scheduled = vars(optimizer).pop("step", None)
    layers: Layers = vars(optimizer).pop("_neuronwise")
    left = list(layers.layers.values())
    layers.stop(left)
    start_anew(optimizer, left)
    _become(optimizer, type(optimizer).__bases__[0])
    if scheduled is not None:
        _count_steps(optimizer)


def start_anew(optimizer: Any, layers: list[Layer]) -> None:
    """Drop what the optimizer has gathered for layers that were in the coordinates."""
    for layer in layers:
        for parameter, state in zip((layer.weight, layer.bias), layer.states, strict=True):
            if layer.stats.count and parameter is not None:
                optimizer.state.pop(parameter, None)
                if state is not None:
                    optimizer.state[parameter] = state


def check_step(optimizer: torch.optim.Optimizer, name: str) -> None:
    """Raise a ValueError where `step` is neither the class's nor that of a scheduler."""
    step = vars(optimizer).get("step")
    if step is not None and not hasattr(step, "_wrapped_by_lr_sched"):
        raise ValueError(
            f"optimizer: got one whose step() was replaced, expected that of its class; call "
            f"{name} before what replaces it"
        )


def _become(optimizer: torch.optim.Optimizer, kind: type) -> None:
    object.__setattr__(optimizer, "__class__", kind)
    optimizer._patch_step_function()  # the hooks, which every class of optimizers has by itself


def _count_steps(optimizer: torch.optim.Optimizer) -> None:
    """Tell a scheduler that was made before of every step, as its own wrapper of step() did."""
    step, reference = type(optimizer).step, weakref.ref(optimizer)

    @functools.wraps(step)
    def counted(*args: Any, **kwargs: Any) -> Any:
        self: Any = reference()
        self._opt_called = True
        return step(self, *args, **kwargs)

    counted._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    vars(optimizer)["step"] = counted


@functools.cache
def _in_coordinates(kind: Any, take_step: TakeStep) -> Any:
    """The optimizer's class, in neuron coordinates.

    Its only base is the class itself: with another one beside it an instance would have another
    layout, and could not change its class (an optimizer that is an ABC or Generic too). Without
    layers (as a subclass that somebody finds would make it) an instance is one of its base.
    """

    @uncompiled_alone
    def step(self: Any, closure: Callable[[], Any] | None = None) -> Any:
        layers = _layers(self)
        if layers is None:
            return inner(self).step() if closure is None else inner(self).step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Without the hooks, which this step has run: they see parameters, not coordinates.
        take = inner(self).step.__func__
        take = take.__wrapped__ if getattr(take, "hooked", False) else take
        with torch.no_grad():
            take_step(self, layers, lambda: take(self))
        return loss

    def zero_grad(self: Any, *args: Any, **kwargs: Any) -> None:
        inner(self).zero_grad(*args, **kwargs)
        layers = _layers(self)
        if layers is not None:
            layers.forget()

    def add_param_group(self: Any, param_group: dict[str, Any]) -> None:
        inner(self).add_param_group(param_group)
        layers = _layers(self)
        try:
            if layers is not None:
                layers.add(self)
        except ValueError:
            self.param_groups.pop()
            raise

    def state_dict(self: Any) -> dict[str, Any]:
        state, layers = inner(self).state_dict(), _layers(self)
        return state if layers is None else state | {"neuron_stats": layers.state_dict()}

    def load_state_dict(self: Any, state_dict: dict[str, Any]) -> None:
        layers = _layers(self)
        if layers is None:
            return inner(self).load_state_dict(state_dict)
        if "neuron_stats" not in state_dict:
            raise ValueError(
                "state_dict: got one without 'neuron_stats', expected that of an optimizer in "
                "neuron coordinates; the momentum of another one is not in the coordinates, so "
                "start anew"
            )
        rest = {name: value for name, value in state_dict.items() if name != "neuron_stats"}
        layers.check_state_dict(state_dict["neuron_stats"])
        inner(self).load_state_dict(rest)
        layers.load_state_dict(state_dict["neuron_stats"])
        return None

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        # For copy and pickle, which would not find a class that was made at run time.
        layers = _layers(self)
        added = {} if layers is None else {"_neuronwise": layers}
        return _empty, (kind, take_step), inner(self).__getstate__() | added

    methods = (step, zero_grad, add_param_group, state_dict, load_state_dict, __reduce_ex__)
    made = _subclass(kind, {method.__name__: method for method in methods})

    def inner(self: Any) -> Any:
        return super(made, self)

    return made


def _subclass(kind: Any, names: dict[str, Any]) -> Any:
    """A subclass of which neither its base's metaclass nor `__init_subclass__` is told.

    They may keep registries, which refuse what they have already, or want arguments.
    """
    metaclass, told = type(kind), vars(kind).get("__init_subclass__")
    like = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    type.__setattr__(kind, "__init_subclass__", classmethod(lambda cls: None))
    try:
        maker = abc.ABCMeta if issubclass(metaclass, abc.ABCMeta) else type
        return maker.__new__(metaclass, kind.__name__, (kind,), like | names)
    finally:
        if told is None:
            type.__delattr__(kind, "__init_subclass__")
        else:
            type.__setattr__(kind, "__init_subclass__", told)


def _layers(optimizer: Any) -> Layers | None:
    # Not from vars(): a proxy that is a subclass of this class looks it up in what it holds.
    return getattr(optimizer, "_neuronwise", None)


def _empty(kind: type, take_step: TakeStep) -> Any:
    return object.__new__(_in_coordinates(kind, take_step))
