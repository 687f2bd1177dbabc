"""A model in PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from parity_tests.port import structure
from parity_tests.port.errors import CannotCompare
from parity_tests.port.sides.base import (
    Arrays,
    Call,
    Dropped,
    Given,
    Inputs,
    Key,
    Run,
    Side,
    Training,
    is_float,
)

_F = torch.nn.functional
#: Functions that draw, and where their rate and whether they draw stand: (place, name, default).
DROPOUTS = {
    f: ((1, "p", 0.5), (2, "training", True))
    for f in (
        _F.dropout,
        _F.dropout1d,
        _F.dropout2d,
        _F.dropout3d,
        _F.alpha_dropout,
        _F.feature_alpha_dropout,
    )
}


class TorchSide(Side):
    """A `torch.nn.Module`; the one that is given is copied.

    Args:
        model: the module.
        dtype: floats of parameters and buffers are cast to it.
        seed: of what dropout draws.
    """

    framework = "PyTorch"
    modes = True

    def __init__(self, model: torch.nn.Module, *, dtype: str = "float64", seed: int = 0) -> None:
        try:
            self.model = copy.deepcopy(model)
        except (RuntimeError, TypeError) as error:
            raise CannotCompare(
                f"torch_model: got a module that cannot be copied ({error}), expected one whose "
                "parameters are leaves"
            ) from error
        self.model = self.model.to(torch.device("cpu"), getattr(torch, dtype))
        self._parameters = dict(self.model.named_parameters())
        self.frozen = frozenset(n for n, p in self._parameters.items() if not p.requires_grad)
        for parameter in self._parameters.values():  # frozen ones are compared as all others are
            parameter.requires_grad_(parameter.dtype.is_floating_point)
        self.modules = dict(self.model.named_modules())
        self.kinds = {path: type(m).__name__ for path, m in self.modules.items()}
        self.fields = {path: dict(vars(m)) for path, m in self.modules.items()}
        self._buffers = dict(self.model.named_buffers())
        self.parameters: Arrays = {n: _array(p) for n, p in self._parameters.items()}
        self.states: Arrays = {n: _array(b) for n, b in self._buffers.items()}
        self._seed = seed
        #: Rewritings of functions, of which `parity_tests.port.causes` are made.
        self.rewriting: list[TorchFunctionMode] = []
        #: The calls of modules that are at work, from the outside to the inside.
        self.open: list[Key] = []

    def load(self, parameters: Arrays, states: Arrays) -> None:
        """Put these numbers into the copy."""
        with torch.no_grad():
            for name, value in parameters.items():
                self._parameters[name].copy_(torch.tensor(value))
            for name, value in states.items():
                self._buffers[name].copy_(torch.tensor(value))

    def run(
        self,
        parameters: Arrays,
        states: Arrays,
        inputs: Inputs,
        *,
        train: bool,
        dropout: bool = False,
        cotangents: Sequence[np.ndarray] | None = None,
        given: Mapping[Key, Given] | None = None,
    ) -> Run:
        """See `Side`."""
        self.load(parameters, states)
        self.model.train(train)
        given = given or {}
        self.open.clear()
        record = _Record(given, cotangents is not None, self.open)
        arguments, moving = _tensors(inputs)
        silence = _Silence(dropout, self.open)
        trained = [name for name, p in self._parameters.items() if p.requires_grad]
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            torch.manual_seed(self._seed)
            for mode in [silence, *self.rewriting]:
                stack.enter_context(mode)
            stack.enter_context(record.hooks(self.modules))
            stack.enter_context(torch.set_grad_enabled(cotangents is not None))
            output = self.model(*arguments.positional, **arguments.keyword)
        flat = structure.flatten(output)
        found = Run(
            [(name, _array(t)) for name, t in flat],
            structure.named(output),
            {name: _array(b) for name, b in self._buffers.items()},
            record.calls,
            dropped=silence.dropped,
        )
        if cotangents is not None:
            floats = [t for _, t in flat if t.dtype.is_floating_point]
            pairs = list(zip(floats, cotangents, strict=True)) + record.pulled()
            pairs = [(t, c) for t, c in pairs if t.requires_grad]
            wanted = [self._parameters[n] for n in trained] + list(moving.values())
            leaves = record.leaves()
            wanted += [leaf for _, _, _, leaf in leaves]
            gradients = _gradients(pairs, wanted)
            found.parameter_gradients = dict(zip(trained, gradients, strict=False))
            gradients = gradients[len(trained) :]
            found.input_gradients = dict(zip(moving, gradients, strict=False))
            for (key, part, n, _), g in zip(leaves, gradients[len(moving) :], strict=True):
                of_call = found.given_gradients.setdefault(key, Given())
                getattr(of_call, part)[n] = g
        return found

    @torch.enable_grad()
    def train(
        self,
        parameters: Arrays,
        states: Arrays,
        inputs: Inputs,
        cotangents: Sequence[np.ndarray],
        training: Training,
    ) -> list[Arrays]:
        """See `Side`."""
        self.load(parameters, states)
        self.model.train(True)
        trained = [p for p in self._parameters.values() if p.requires_grad]
        optimizer = (
            torch.optim.SGD(trained, lr=training.rate)
            if training.optimizer == "SGD"
            else torch.optim.Adam(trained, lr=training.rate, eps=training.epsilon)
        )
        trajectory = []
        for _ in range(training.steps):
            arguments, _ = _tensors(inputs)
            self.model.zero_grad()
            with _Silence(dropout=False):
                output = self.model(*arguments.positional, **arguments.keyword)
            floats = [t for _, t in structure.flatten(output) if t.dtype.is_floating_point]
            torch.autograd.backward(
                [t for t in floats if t.requires_grad],
                [
                    torch.tensor(c, dtype=t.dtype)
                    for t, c in zip(floats, cotangents, strict=True)
                    if t.requires_grad
                ],
            )
            for name, rows in training.fixed:
                gradient = self._parameters[name].grad
                if gradient is not None:
                    gradient[slice(*rows) if rows else slice(None)] = 0
            optimizer.step()
            trajectory.append({n: _array(p) for n, p in self._parameters.items()})
        self.model.zero_grad()
        return trajectory


class _Silence(TorchFunctionMode):
    """Notes every dropout that is at work, and stops it unless it is to draw."""

    def __init__(self, dropout: bool, opened: Sequence[Key] = ()) -> None:
        super().__init__()
        self.dropout, self.open = dropout, opened
        self.dropped: list[Dropped] = []

    def path(self) -> str:
        """Of the module that is at work."""
        return self.open[-1][0] if self.open else ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in DROPOUTS:
            rate, training = (
                args[place] if len(args) > place else kwargs.get(name, default)
                for place, name, default in DROPOUTS[func]
            )
            if rate and training:
                self.dropped.append(Dropped(self.path(), float(rate)))
                if not self.dropout:
                    return args[0] if args else kwargs["input"]
        elif func is _F.scaled_dot_product_attention:
            rate = args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)
            if rate:
                self.dropped.append(Dropped(self.path(), float(rate)))
                if not self.dropout:
                    args, kwargs = args[:4] + (0.0,) * (len(args) > 4) + args[5:], kwargs
                    kwargs |= {} if len(args) > 4 else {"dropout_p": 0.0}
        elif func is _F.multi_head_attention_forward and kwargs.get("training", True):
            rate = args[10] if len(args) > 10 else kwargs.get("dropout_p", 0.0)
            if rate:
                self.dropped.append(Dropped(self.path(), float(rate)))
                if not self.dropout:
                    args = tuple(0.0 if n == 10 else a for n, a in enumerate(args))
        return func(*args, **kwargs)


class _Record:
    """Notes what submodules read and return; gives them other values."""

    def __init__(self, given: Mapping[Key, Given], differentiate: bool, opened: list[Key]) -> None:
        self.given, self.differentiate, self.open = given, differentiate, opened
        self.calls: list[Call] = []
        self._begun: dict[str, list[Call]] = {}
        self._count: dict[str, int] = {}
        self._clock = 0
        self._leaves: list[tuple[Key, str, int, torch.Tensor]] = []
        self._computed: dict[tuple[Key, str], dict[int, torch.Tensor]] = {}

    @contextmanager
    def hooks(self, modules: Mapping[str, torch.nn.Module]) -> Iterator[None]:
        """As long as this lasts, calls of these modules are noted."""
        handles = []
        for path, module in modules.items():
            handles.append(
                module.register_forward_pre_hook(self._before(path), with_kwargs=True, prepend=True)
            )
            handles.append(module.register_forward_hook(self._after(path)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, path: str) -> Any:
        def hook(module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
            number = self._count.get(path, 0)
            self._count[path] = number + 1
            call = Call((path, number), type(module).__name__, parent=_last(self.open))
            call.began, self._clock = self._clock, self._clock + 1
            self.calls.append(call)
            self._begun.setdefault(path, []).append(call)
            self.open.append(call.key)
            return self._exchange(call, "arguments", (args, kwargs))

        return hook

    def _after(self, path: str) -> Any:
        def hook(module: torch.nn.Module, args: Any, result: Any) -> Any:
            del module, args
            call = self._begun[path].pop()
            self.open.pop()
            call.ended, self._clock = self._clock, self._clock + 1
            return self._exchange(call, "results", result)

        return hook

    def _exchange(self, call: Call, part: str, tree: Any) -> Any:
        """Note the tensors in a tree; return it, with other tensors where they are given."""
        with torch._C.DisableTorchFunction():  # nothing of this is the model's
            return self._exchanged(call, part, tree)

    def _exchanged(self, call: Call, part: str, tree: Any) -> Any:
        leaves, definition = tree_flatten(tree)
        tensors = {n: leaf for n, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)}
        setattr(call, part, {n: _array(t) for n, t in tensors.items()})  # before it is overwritten
        self._computed[call.key, part] = tensors
        setattr(
            call, "read" if part == "arguments" else "returned", tuple(map(id, tensors.values()))
        )
        given = getattr(self.given.get(call.key, Given()), part)
        if not given:
            return None if part == "results" else tree
        for n, value in given.items():
            leaf = torch.tensor(value, dtype=leaves[n].dtype)
            if self.differentiate and leaf.dtype.is_floating_point:
                leaf.requires_grad_()
                self._leaves.append((call.key, part, n, leaf))
            leaves[n] = leaf.clone()  # what is done in place is not done to the leaf
        return tree_unflatten(leaves, definition)

    def leaves(self) -> list[tuple[Key, str, int, torch.Tensor]]:
        """Everything that was given and can have a gradient: (call, part, place, tensor)."""
        return self._leaves

    def pulled(self) -> list[tuple[torch.Tensor, np.ndarray]]:
        """(what a call computed, its cotangent)."""
        found = []
        for call in self.calls:
            given = self.given.get(call.key, Given())
            arguments = self._computed.get((call.key, "arguments"), {})
            results = self._computed.get((call.key, "results"), {})
            found += [(arguments[n], c) for n, c in given.argument_cotangents.items()]
            found += [(results[n], c) for n, c in given.result_cotangents.items()]
        return found


def _last(keys: Sequence[Key]) -> Key | None:
    return keys[-1] if keys else None


def _gradients(
    pairs: list[tuple[torch.Tensor, np.ndarray]], wanted: list[torch.Tensor]
) -> list[np.ndarray]:
    """Of sum <cotangent, tensor>; zero where nothing depends on what is wanted."""
    if not pairs or not wanted:
        return [np.zeros(t.shape) for t in wanted]
    found = torch.autograd.grad(
        [t for t, _ in pairs],
        wanted,
        [torch.tensor(c, dtype=t.dtype) for t, c in pairs],
        allow_unused=True,
    )
    return [
        np.zeros(t.shape) if g is None else _array(g) for t, g in zip(wanted, found, strict=True)
    ]


def _tensors(inputs: Inputs) -> tuple[Inputs, dict[str, torch.Tensor]]:
    """(the inputs as tensors, those that have a gradient by name)."""
    moving: dict[str, torch.Tensor] = {}

    def convert(value: Any, name: str) -> Any:
        if isinstance(value, np.ndarray):
            tensor = torch.tensor(value)
            if is_float(value):
                moving[name] = tensor.requires_grad_()
            return tensor
        if isinstance(value, (tuple, list)):
            return type(value)(convert(v, f"{name}.{n}") for n, v in enumerate(value))
        if isinstance(value, dict):
            return {k: convert(v, f"{name}.{k}") for k, v in value.items()}
        return value

    positional = tuple(convert(v, str(n)) for n, v in enumerate(inputs.positional))
    keyword = {k: convert(v, k) for k, v in inputs.keyword.items()}
    return Inputs(positional, keyword), moving


def _array(tensor: torch.Tensor) -> np.ndarray:
    """A new array; bfloat16, which NumPy has not, becomes float32."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return np.array(tensor.cpu().numpy())
