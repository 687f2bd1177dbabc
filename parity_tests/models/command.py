"""The command `python -m parity_tests.models`."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated

import tyro

from parity_tests import progress, requirements
from parity_tests.models import tables
from parity_tests.models.outcome import FRAMEWORK_OF, Network, Outcome, Variant
from parity_tests.models.training import Trained, train
from parity_tests.numerics import exact

#: What measures the networks of a framework.
MODULES = {"jax": ("jax", "functions"), "torch": ("torch",)}


@dataclass(frozen=True)
class Options:
    """Convert whole networks; compare with the framework, bit for bit, and with the oracle.

    Networks of packages that are not installed are left out, which is said. Exit code 0: all within
    their gates. 1: a miss. 2: a crash, or nothing to measure. 130: interrupted.
    """

    only: tuple[str, ...] = ()
    """Only networks whose NAME begins so; with /FRAMEWORK, only those of torch, linen, nnx,
    function or jax (these three). In upper or lower case."""
    names: Annotated[bool, tyro.conf.arg(name="list")] = False
    """Print the names of the networks and stop."""
    left: bool = False
    """Also print which layers are left alone or unresolved in each network, and why."""
    markdown: bool = False
    """Print all that as the table of parity_tests/README.md."""
    train: bool = False
    """Train instead: 50 steps of AdamW, inside `in_neuron_coordinates` and plain, at two rates."""
    seeds: int = 3
    """How many runs of each; with --train."""
    rates: tuple[float, ...] = ()
    """The rates, if not the network's own and a tenth of it; with --train."""
    epsilon: float = 0.0
    """`epsilon` of the rule; with --train."""
    skip: tuple[str, ...] = ()
    """Layers (patterns) of networks in PyTorch that are left alone; with --train."""


def run(arguments: list[str] | None = None) -> int:
    """Parse, measure, print."""
    chosen = tyro.cli(Options, prog="python -m parity_tests.models", args=arguments)
    every = _networks(requirements.frameworks())
    for wanted in chosen.only:
        if not any(network.matches(wanted) for network in every):
            names = ", ".join(network.label for network in every)
            print(f"only: got {wanted!r}, expected one of {names}", file=sys.stderr)
            return 2
    some = [n for n in every if not chosen.only or any(map(n.matches, chosen.only))]
    if chosen.train:
        some = [n for n in some if n.trial is not None]
    if chosen.names:
        print("\n".join(network.label for network in some))
        return 0
    some = _installed(some)
    if not some:
        print("nothing to measure", file=sys.stderr)
        return 2
    return _train(some, chosen) if chosen.train else _measure(some, chosen)


def _measure(some: list[Network], chosen: Options) -> int:
    outcomes: list[Outcome] = []
    interrupted = False
    try:
        with closing(progress.track(some, lambda network: network.label)) as tracked:
            for network in tracked:
                outcomes.append(_measured(network))
    except KeyboardInterrupt:
        interrupted = True
    if chosen.markdown:
        tables.print_markdown(outcomes)
    else:
        tables.print_outcomes(outcomes, len(some))
    if chosen.left:
        tables.print_left(outcomes)
    if interrupted:
        return 130
    return 2 if any(o.report is None for o in outcomes) else int(any(o.miss for o in outcomes))


def _train(some: list[Network], chosen: Options) -> int:
    trained: list[Trained] = []
    variant = Variant(chosen.epsilon, chosen.skip)
    interrupted = False
    try:
        with closing(progress.track(some, lambda network: network.label)) as tracked:
            for network in tracked:
                trained.append(train(network, chosen.seeds, chosen.rates, variant))
    except KeyboardInterrupt:
        interrupted = True
    tables.print_trained(trained, len(some))
    return 130 if interrupted else 2 if any(each.error for each in trained) else 0


def _networks(frameworks: tuple[str, ...]) -> list[Network]:
    names = [name for framework in frameworks for name in MODULES[framework]]
    modules = [import_module(f"parity_tests.models.{name}") for name in names]
    return [network for module in modules for network in module.networks()]


def _installed(some: list[Network]) -> list[Network]:
    """Those whose packages can be imported; says which are left out, and why."""
    absent: dict[str, str] = {}
    for name in dict.fromkeys(need for network in some for need in network.needs):
        try:
            requirements.require(name)
            import_module(name)
        except requirements.Missing as error:
            absent[name] = str(error)
        except Exception as error:  # a package that does not fit the others says so in many ways
            absent[name] = f"import {name} raised {type(error).__name__}: {error}"
    for name, reason in absent.items():
        without = [network.label for network in some if name in network.needs]
        print(f"left out: {', '.join(without)}: {reason}", file=sys.stderr)
    return [network for network in some if not absent.keys() & set(network.needs)]


def _measured(network: Network) -> Outcome:
    """What was measured; an error is an outcome too."""
    with exact((FRAMEWORK_OF[network.library],)):
        try:
            return network.measure()
        except Exception as error:  # a table with a hole says more than a traceback
            return Outcome(network.name, network.library, None, unequal=[f"crash: {error!r}"])
