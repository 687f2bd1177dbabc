"""The layers of a program: products and convolutions with a parameter, and the biases they meet."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from jaxnorm.conversion.elementwise import CUSTOM
from jaxnorm.conversion.trace import Program, Step, Value
from jaxnorm.program.axes import SAME_PLACE, Axes, Axis, align, atoms, count, every, moved, order
from jaxnorm.program.lineage import Family, Lineage
from jaxnorm.program.operations import FoundOperation, NoLayer, operation_of
from jaxnorm.program.ways import ENTERED

MOVES = SAME_PLACE | {"transpose", "reshape", "squeeze", "expand_dims", "broadcast_in_dim"}
PRODUCTS = {"dot_general": "product", "conv_general_dilated": "convolution"}


@dataclass(eq=False)
class Site:
    """A product with a parameter.

    Attributes:
        program: in which it is.
        step: the product itself.
        side: which operand the parameter is.
        kernel: that parameter.
        operation: see `FoundOperation`.
        output: the product, with its bias if it has one.
        bias: the parameter that is added, or None.
        lost: parameters that are added, and are not taken for its bias.
    """

    program: Program
    step: Step
    side: int
    kernel: Lineage
    operation: FoundOperation
    output: Value
    neurons: Axis
    z: Axes
    bias: Lineage | None = None
    adds: list[Step] = field(default_factory=list)
    lost: set[Value] = field(default_factory=set)

    @property
    def entries(self) -> tuple[int, ...]:
        """Which of a stack of layers it is."""
        return tuple(each for each in self.kernel.mapped if isinstance(each, int))

    @property
    def place(self) -> tuple[Any, int]:
        """Where the product is."""
        return self.step.scope, self.step.index


def find_sites(program: Program, family: Family) -> tuple[list[Site], dict[Value, str]]:
    """(The sites, parameter -> why it is none, of those that meet a product)."""
    sites: list[Site] = []
    reasons: dict[Value, str] = {}
    for each in program.all():
        for step in each.steps:
            if step.name not in PRODUCTS:
                continue
            for side, value in enumerate(step.inputs):
                for kernel in family.lineages(value):
                    try:
                        if family.lineage(step.inputs[1 - side]) is not None:
                            raise NoLayer("it is multiplied by another parameter")
                        sites.append(_site(each, step, side, kernel))
                    except NoLayer as error:
                        reasons.setdefault(kernel.root, str(error))
    for site in sites:
        _add_bias(site, family)
        if site.bias is None:
            site.lost = _added(site, family)
    _drop_shared(sites, family, reasons)
    return [site for site in sites if site.kernel.root not in reasons], reasons


def _site(program: Program, step: Step, side: int, kernel: Lineage) -> Site:
    if "while" in step.around:
        raise NoLayer("in a while loop, through which no gradient goes")
    if any(name in CUSTOM for name in step.around):
        raise NoLayer("inside of a function with a derivative of its own")
    for name in step.around:
        if name not in ENTERED:
            raise NoLayer(f"inside of a {name}; call the function with the rule in there")
    operation, z, neurons = operation_of(step.eqn, side, kernel)
    return Site(program, step, side, kernel, operation, step.outputs[0], neurons, z)


def _add_bias(site: Site, family: Family) -> None:
    """Find the parameter that is added to the product, and to nothing else before."""
    value, axes = site.step.outputs[0], site.z
    while not value.output and len(value.users) == 1:
        step = value.users[0]
        if step.name in ("add", "add_any") and len(set(step.inputs)) == 2:
            other = step.inputs[1 - step.inputs.index(value)]
            found = (b for b in family.lineages(other) if _begins(b) == _begins(site.kernel))
            bias = next(found, None)
            fits = None if bias is None else _bias_axes(site, axes, bias)
            if fits is not None and step.outputs[0].aval.shape == value.aval.shape:
                site.bias, site.operation = bias, replace(site.operation, bias_axes=fits)
                site.output = step.outputs[0]
                site.adds.append(step)
            return
        moved_axes = moved(step, axes) if len(step.outputs) == 1 == len(step.inputs) else None
        if moved_axes is None:
            return
        value, axes = step.outputs[0], moved_axes


def _added(site: Site, family: Family) -> set[Value]:
    """The parameters that are added further on, in some other way than a bias is."""
    value = site.step.outputs[0]
    while not value.output and len(value.users) == 1 and len(value.users[0].outputs) == 1:
        step = value.users[0]
        others = [each for each in step.inputs if each is not value]
        if step.name in ("add", "add_any", "sub") and others:
            found = family.made_of(others[0])
            if found:
                return found
        elif len(step.inputs) > 1 and step.name not in ("mul", "div"):
            return set()
        elif not others and step.name != "neg" and step.name not in MOVES:
            return set()
        value = step.outputs[0]
    return set()


def _bias_axes(site: Site, axes: Axes, bias: Lineage) -> tuple[int, ...] | None:
    """The order of a bias's axes, if it has one entry for each neuron."""
    if bias.mapped != site.kernel.mapped or bias.scale != 1 or len(axes) != len(bias.axes):
        return None
    pairs = list(zip(axes, bias.axes, strict=True))
    if not all(align(mine, other) for mine, other in pairs if other):
        return None
    # Not before all are aligned: that splits labels.
    neurons, entries = set(atoms(site.neurons)), {label: label for label in every(bias.leaf)}
    if bias.part is not None:
        entries[bias.part.whole] = bias.part.label
    entry_of: dict[Any, Any] = {}
    for mine, other in pairs:
        if not other and not neurons.isdisjoint(atoms(mine)):
            return None
        for label, entry in zip(atoms(mine) if other else (), atoms(other), strict=True):
            if (label in neurons) != (entry in entries):
                return None
            entry_of[label] = entries.get(entry)
    if not neurons <= entry_of.keys():
        return None
    return order(bias.leaf, tuple(entry_of[label] for label in atoms(site.neurons)))


def _begins(lineage: Lineage) -> int | None:
    """Where it begins among those that it was joined with."""
    return None if lineage.part is None else lineage.part.start


def _roles(site: Site) -> tuple[int, tuple[int, ...]]:
    """Into how many groups the kernel falls, and into what inputs and neurons."""
    lengths = [count(axis) for axis in site.kernel.leaf]
    leaf = jax.ShapeDtypeStruct(lengths, np.float32)
    return site.operation.groups, jax.eval_shape(site.operation.flatten_kernel, leaf).shape


def _drop_shared(sites: list[Site], family: Family, reasons: dict[Value, str]) -> None:
    """Leave alone what is read by something else too, and biases that several layers share."""
    by_kernel: dict[Value, list[Site]] = {}
    for site in sites:
        by_kernel.setdefault(site.kernel.root, []).append(site)
    for root, mine in by_kernel.items():
        products = {(site.step, site.side) for site in mine}
        for step, _ in family.readers(root):
            if step is None:
                reasons.setdefault(root, "it is part of the output too")
            elif not any(step is each for each, _ in products):
                reasons.setdefault(root, f"it is read by {step.name} too")
        if len({len(site.kernel.mapped) for site in mine}) > 1:
            reasons.setdefault(root, "it is used as a stack of layers, and as one")
        orders = {site.operation.kernel_axes for site in mine}
        if len(orders) > 1 and len({site.operation.groups for site in mine}) == 1:
            reasons.setdefault(root, "it is used both ways round: as weights and transposed")
        elif len(mine) > 1 and (len(orders) > 1 or len(set(map(_roles, mine))) > 1):
            reasons.setdefault(root, "its axes are inputs in one product, and neurons in another")
        biases = {
            (site.bias.root if site.bias else None, site.operation.bias_axes) for site in mine
        }
        shared = len(biases) > 1
        adds = {step for site in mine for step in site.adds}
        for site in mine:
            readers = [] if site.bias is None else list(family.readers(site.bias.root))
            shared = shared or any(step is None or step not in adds for step, _ in readers)
        if shared:
            for site in mine:
                site.lost |= set() if site.bias is None else {site.bias.root}
                site.bias, site.operation = None, replace(site.operation, bias_axes=None)
