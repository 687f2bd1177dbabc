"""The modules of PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np

import torchnorm
from parity_tests.implementations.torch import to_numpy, to_tensor
from parity_tests.normalizers.case import Case, Result
from parity_tests.normalizers.implementations import Normalizer
from parity_tests.oracle import Array

#: What modules count that the other package does not.
COUNTER = "num_batches_tracked"


class Torch(Normalizer):
    """`torchnorm.normalizers`."""

    name = "torch module"

    def run(self, case: Case) -> list[Result]:
        """All calls on one module."""
        family = case.family
        kind = getattr(torchnorm.normalizers, family.name)
        arguments = family.torch_arguments(case.knobs)
        layer = family.torch_layer(kind, case.calls[0]["x"].shape[-1], arguments)
        layer = layer.to(to_tensor(case.wide(np.zeros(1))).dtype)
        given = {**case.params, **case.state}
        tensors = {
            _name(case, k): to_tensor(_there(case, k, case.wide(v))) for k, v in given.items()
        }
        counter = {COUNTER: layer.state_dict()[COUNTER]} if COUNTER in layer.state_dict() else {}
        layer.load_state_dict({**counter, **tensors})
        results = []
        for call, delta, train in zip(case.calls, case.deltas, case.modes(), strict=True):
            layer.train(train)
            results.append(self._call(case, layer, call, delta))
        return results

    def _call(self, case: Case, layer: Any, call: dict[str, Array], delta: Array) -> Result:
        arrays = {name: to_tensor(case.cast(value)) for name, value in call.items()}
        x = arrays.pop("x").requires_grad_()
        for parameter in layer.parameters():
            parameter.grad = None
        channels = case.family.torch_channels
        y = layer(x.movedim(-1, channels), **arrays).movedim(channels, -1)
        y.backward(to_tensor(case.cast(delta)).to(y.dtype))
        parameters, buffers = dict(layer.named_parameters()), dict(layer.named_buffers())
        gradients = {"x": to_numpy(x.grad)}
        for name in case.params:
            gradient = parameters.pop(_name(case, name)).grad
            gradients[name] = _back(case, name, to_numpy(gradient))
        assert not parameters, f"parameters that the other package does not have: {parameters}"
        # Copied: the next call writes into the buffers.
        state = {
            name: _back(case, name, to_numpy(buffers[_name(case, name)])).copy()
            for name in case.state
        }
        return Result(to_numpy(y), gradients, state)


def _name(case: Case, name: str) -> str:
    """What PyTorch calls an entry; levels are separated by dots."""
    return case.family.torch_names.get(name, name.replace("/", "."))


def _there(case: Case, name: str, array: Array) -> Array:
    layouts = case.family.torch_layouts
    return np.ascontiguousarray(layouts[name][0](array)) if name in layouts else array


def _back(case: Case, name: str, array: Array) -> Array:
    layouts = case.family.torch_layouts
    return layouts[name][1](array) if name in layouts else array


NORMALIZERS = (Torch,)
