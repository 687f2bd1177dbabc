"""A bias, or a scale, that only one side has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from parity_tests.port.causes.base import Case, Cause, Function, Hypothesis, only
from parity_tests.port.functions import CONVOLUTIONS, NORMALIZATIONS, TRANSPOSED

_WITH_BIAS = (F.linear, *CONVOLUTIONS, *TRANSPOSED, *NORMALIZATIONS)


class BiasMissing(Cause):
    """One side adds a bias or multiplies with a scale that the other has not."""

    name = "bias missing"
    mend = "use_bias= (use_scale=) in Flax is bias= (elementwise_affine=, affine=) in PyTorch"

    def hypotheses(self, case: Case) -> Iterator[Hypothesis]:
        """Without what Flax has not; with what only Flax has."""
        pairing = case.setting.pairing
        for leaf in ("bias", "weight"):
            name = f"{case.torch_path}.{leaf}".lstrip(".")
            word = "bias missing" if leaf == "bias" else "scale missing"
            functions = _WITH_BIAS if leaf == "bias" else NORMALIZATIONS
            if name in pairing.spare_torch:
                text = f"PyTorch has {name} {pairing.spare_torch[name]}, Flax has none"

                def without(function: Function, leaf: str = leaf) -> Any:
                    return function.again(**{leaf: None})

                yield Hypothesis(text, only(functions, without), word)
        for leaf in ("bias", "scale"):
            name = f"{case.flax_path}/{leaf}".lstrip("/")
            word = f"{leaf} missing"
            if name in pairing.spare_flax:
                value = torch.tensor(case.setting.parameters[0][name]).flatten()
                text = f"Flax has {name} {pairing.spare_flax[name]}, PyTorch has none"

                def added(function: Function, leaf: str = leaf, value: Any = value) -> Any:
                    result = function.again()
                    shape = [1] * result.ndim
                    first = function.function in (*CONVOLUTIONS, *TRANSPOSED, F.batch_norm)
                    shape[1 if first else -1] = -1
                    value = value.reshape(shape)
                    return result + value if leaf == "bias" else result * value

                yield Hypothesis(text, only(_WITH_BIAS, added), word)
        if any(f.values.get("bias") is not None for f in case.calls(*_WITH_BIAS)):

            def unused(function: Function) -> Any:
                return function.again(bias=None)

            yield Hypothesis("both have a bias, Flax does not add it", only(_WITH_BIAS, unused))
