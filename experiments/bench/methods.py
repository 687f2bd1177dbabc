"""The methods whose steps are timed, by their names on the command line."""

import importlib.util
from dataclasses import dataclass, field
from typing import Any

from experiments.bench.networks import Network

SOAP = {"jax": "soap_jax", "torch": "pytorch_optimizer"}
"""The package that has SOAP, for each framework."""


@dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
        title: as tables have it.
        normalizer: the layer in the forward pass, or None.
        rule: knobs of `Rule`, the same in both packages; None: no rule.
        preset: name of a rule in both packages, instead.
        optimizer: which.
        skip: networks that it is not for, with the reason.
    """

    title: str
    normalizer: str | None = None
    rule: dict[str, Any] | None = None
    preset: str | None = None
    optimizer: str = "adam"
    skip: dict[str, str] = field(default_factory=dict)

    def make_rule(self, package: Any) -> Any:
        """The rule, of `jaxnorm` or `torchnorm`; None without one."""
        if self.preset is not None:
            return getattr(package, self.preset)
        return None if self.rule is None else package.Rule(**self.rule)

    def reason_against(self, network: Network, framework: str) -> str | None:
        """Why it is not timed on that network; None if it is."""
        if self.optimizer == "soap" and importlib.util.find_spec(SOAP[framework]) is None:
            return f"{SOAP[framework]} is not installed"
        if self.optimizer == "muon" and framework == "torch" and not _torch_has_muon():
            return "this PyTorch has no Muon"
        return self.skip.get(network.kind)


def _torch_has_muon() -> bool:
    import torch

    return hasattr(torch.optim, "Muon")


METHODS: dict[str, Method] = {
    "plain": Method("plain"),
    "batchnorm": Method("BatchNorm", normalizer="batchnorm"),
    "layernorm": Method(
        "LayerNorm",
        normalizer="layernorm",
        skip={"resnet": "not usual in it", "transformer": "the plain network has it"},
    ),
    "bnp": Method("BNP", preset="BNP"),
    "neuronwise": Method("neuron-wise", rule={}),
    "full": Method("neuron-wise, every step", rule={"statistics_every": 1}),
    "layer": Method("neuron-wise, layer's scale", rule={"scale": "layer"}),
    "bfloat16": Method("neuron-wise, kept in bfloat16", rule={"statistics_dtype": "bfloat16"}),
    "stateless": Method("neuron-wise, stateless", rule={"gradient": "preconditioned"}),
    "muon": Method("Muon", optimizer="muon", skip={"resnet": "its kernels are no matrices"}),
    "soap": Method("SOAP", optimizer="soap"),
}
