"""What a model multiplies with by functions of PyTorch: its weights that are no layer's."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from torchnorm.activations import JointGate
from torchnorm.compat import with_data
from torchnorm.conversion.choices import reported, why_no_layer, why_no_parameter, why_shared
from torchnorm.conversion.decisions import Decision, Deferred, Direct, Factor, Left, Several
from torchnorm.conversion.elementwise import VIEWS
from torchnorm.conversion.region import users
from torchnorm.conversion.search import follow, opaque_in
from torchnorm.conversion.trace import Call, Tape, Value
from torchnorm.conversion.weights import Chain, Use, Uses
from torchnorm.operations.convolution import TransposedConvolution
from torchnorm.operations.layout import Layout

UNUSED = "not used on example_input, or by what PyTorch does not show (a custom function)"
"""Why a weight is left alone of which nothing was seen."""


@dataclass(frozen=True)
class Weight:
    """One parameter that is multiplied with.

    Attributes:
        module: that has it.
        name: of the weight, in that module.
        bias: the module and the name of the bias, or None.
        layout: how the weight lies.
        added: whether the bias is added by another call.
        hosts: the modules in whose forward passes this happens.
    """

    module: nn.Module
    name: str
    bias: tuple[nn.Module, str] | None
    layout: Layout
    added: bool
    hosts: tuple[nn.Module, ...]


def find(
    tape: Tape, module: nn.Module, name: str, opaque: Callable[[nn.Module], bool]
) -> tuple[Decision, Weight | None]:
    """What the products with one parameter of a module meet.

    Args:
        tape: the watched pass.
        module: that has the parameter.
        name: of the parameter, there.
        opaque: see `follow`.
    """
    parameter = module._parameters[name]
    assert parameter is not None
    uses = tape.weights.uses.get(id(parameter), Uses())
    layouts = [_layout(use) for use in uses.products]
    reason = why_no_parameter(module, parameter) or _why_not(uses, layouts)
    if reason is not None:
        return Left(reason), None
    hosts = tuple(dict.fromkeys(_host(use) for use in uses.products))
    reason = next((why for host in hosts if (why := _why_no_host(host)) is not None), None)
    if reason is not None:
        return Left(reason), None
    (layout, *_) = [each for each in layouts if each is not None]
    bias, added = _bias(tape, tuple(dict.fromkeys((module, *hosts))), uses.products)
    decision = _gate(tape, uses.products, added, opaque)
    return decision, Weight(module, name, bias, layout, bool(added), hosts)


def _why_not(uses: Uses, layouts: list[Layout | None]) -> str | None:
    """Why a parameter is no weight with which is multiplied."""
    if not uses.products and not uses.others and not uses.sums:
        return UNUSED
    scales = {id(v) for use in uses.products for v in use.chain.factors}
    others = [each for each in uses.others if not _only_scales(each.outs, scales)]
    if others:
        names = ", ".join(dict.fromkeys(each.name.strip("_") for each in others))
        return f"its weight goes into {names}, which is no product that is linear in it"
    through = {id(value) for use in uses.products for value in use.chain.sums}
    if not uses.products or any(id(each.out) not in through for each in uses.sums):
        return "its weight is added to something"
    if None in layouts:
        return f"its weight is multiplied with by {uses.products[0].name} in an unknown layout"
    if len(set(layouts)) > 1:
        return "its weight is multiplied with in several layouts"
    for use in uses.products:
        calls = _common(use)
        if not calls:
            return "it is multiplied with outside of the forward pass of a module"
        if calls[-1].saving != use.saving:
            return "it is multiplied with inside of a checkpoint that its module makes itself"
    return None


def _only_scales(outs: list[Value], scales: set[int]) -> bool:
    """Whether all that comes of these values is a number by which the weight is scaled."""
    queue, seen = list(outs), set()
    for value in queue:
        if id(value) in scales or id(value) in seen:
            continue
        seen.add(id(value))
        following = [out for op in value.users for out in op.outs if out is not value]
        if not following or len(seen) > 50 or value.is_output:
            return False
        queue += following
    return True


def _layout(use: Use) -> Layout | None:
    """How the weight lies for this product, parts first."""
    chain, product = use.chain, use.contraction
    layout = chain.layout
    if product is None:
        if chain.parts:
            return None
        swapped = isinstance(use.operation, TransposedConvolution)
        groups = use.operation.groups
        return replace(layout, shape=layout.now(), groups=groups, swapped=swapped)
    parts, neurons, summed = product.weight
    if chain.parts:
        if parts != ((0,) if chain.gathered else ()):
            return None
        shift = 0 if chain.gathered else 1
        axes = (0, *(axis + shift for axis in (*neurons, *summed)))
        parts = (0,)
        neurons, summed = (tuple(a + shift for a in group) for group in (neurons, summed))
    else:
        axes = (*parts, *neurons, *summed)
    now = layout.now()
    sizes = [torch.Size(now[axis] for axis in group).numel() for group in (parts, neurons, summed)]
    shape = tuple(sizes) if parts else tuple(sizes[1:])
    return replace(layout.permuted(axes), shape=shape, parts=sizes[0] if parts else 0)


def _common(use: Use) -> list[Call]:
    """The modules that were running all the way from the parameter to the product."""
    stacks = [*use.chain.calls, use.calls]
    found = []
    for calls in zip(*stacks, strict=False):
        if any(call is not calls[0] for call in calls):
            break
        found.append(calls[0])
    return found


def _host(use: Use) -> nn.Module:
    return _common(use)[-1].module


def _why_no_host(module: nn.Module) -> str | None:
    """Why nothing can be seen in the calls of a module."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is multiplied with in a scripted part"
    return None


def _behind(use: Use, z: Any) -> Any:
    """Where the axes of size 1 behind the neurons are gone, if nothing else was done."""
    if use.contraction is None or len(use.contraction.z[2]) != 1:
        return z
    (axis,) = use.contraction.z[2]
    neurons = use.z.shape[axis]
    if use.z.shape[axis + 1 :].numel() != 1:
        return z
    while z.shape[-1:] != (neurons,) or z.shape[:-1].numel() == 1 or 1 in z.shape[:-1]:
        found = users(z)
        if len(found) != 1 or z.is_output or found[0].name not in VIEWS:
            break
        (op,) = found
        if len(op.outs) != 1 or op.outs[0].shape.numel() != z.shape.numel():
            break
        z = op.outs[0]
    return z


def _follow(tape: Tape, use: Use, z: Value, opaque: Callable) -> Decision:
    """What a value meets, as the output of a layer."""
    call = use.calls[-1]
    index = call.start if z.maker is None else z.maker.index
    spatial = use.contraction is None
    this = Call(nn.Module(), call.name, index, [], index, [z], True, spatial=spatial)
    with with_data():
        decision = follow(tape, this, opaque)
    return decision.otherwise if isinstance(decision, Factor) else decision


def _bias(
    tape: Tape, modules: tuple[nn.Module, ...], products: list[Use]
) -> tuple[tuple[nn.Module, str] | None, dict[int, Value]]:
    """(The bias's module and name, by each use the sum with it); (None, {}) if there is none."""
    for module in modules:
        for name, parameter in module._parameters.items():
            sums = None if parameter is None else _sums(tape, parameter, products)
            if sums is not None:
                return (module, name), sums
    return None, {}


def _sums(tape: Tape, parameter: nn.Parameter, products: list[Use]) -> dict[int, Value] | None:
    """By each use the sum with its bias, none if the call itself adds it; None if it is none."""
    uses, layout = tape.weights.uses.get(id(parameter)), _layout(products[0])
    if uses is None or layout is None:
        return None
    # What is made of the sum with it is not made of it alone.
    if any(not each.chain.sums for each in (*uses.others, *uses.products)):
        return None
    if parameter.numel() != layout.shape[0] * (layout.shape[1] if layout.parts else 1):
        return None
    added = [each for each in uses.sums if not each.chain.sums]
    within = [use.bias is not None and use.bias.root == id(parameter) for use in products]
    if all(within) and not added:
        return {} if all(_as_it_is(use.bias) for use in products) else None
    sums = {}
    for each in added:
        use = _product_of(each.other, products)
        if use is not None and _fits(each.chain, use) and not each.chain.scaled:
            sums[id(use)] = each.out
    whole = not any(within) and len(sums) == len(products) == len(added)
    return sums if whole else None


def _as_it_is(chain: Chain | None) -> bool:
    return chain is not None and not chain.scaled


def _fits(bias: Chain, use: Use) -> bool:
    """Whether it is the bias of the same part, one number for each neuron."""
    return bool(bias.parts) == bool(use.chain.parts) or bool(bias.gathered)


def _product_of(value: Value, products: list[Use]) -> Use | None:
    """Which product's result a value is, but for its layout."""
    while True:
        use = next((use for use in products if use.z is value), None)
        maker = value.maker
        if use is not None or maker is None or maker.name not in VIEWS:
            return use
        value = maker.ins[0]


def _gate(tape: Tape, products: list[Use], added: dict[int, Value], opaque: Callable) -> Decision:
    """What the results meet: the same for all of them, or none."""
    found: list[Decision] = []
    for use in products:
        end = _behind(use, added.get(id(use), use.z))
        decision = _follow(tape, use, end, opaque)
        if isinstance(decision, Deferred | Several) and end is not use.z:
            # What is told is laid out as the product, to which the bias may have been added in
            # another layout.
            decision = _follow(tape, use, use.z, opaque)
        found.append(decision)
    gates = {_same(each.gate) for each in found}
    if len(gates) > 1:
        return Direct(None, "its products meet several activations", unresolved=True)
    (first, *others) = found
    flattened = products[0].contraction is not None and len(products[0].contraction.z[2]) > 1
    joint = isinstance(first.gate, JointGate) or first.gate == "glu"
    if (first.deferred and others) or (joint and flattened):
        return Direct(None, f"{first.reason}, which several products meet", unresolved=True)
    if not isinstance(first, Direct | Deferred | Several):
        return Direct(None, first.reason, unresolved=True)
    return first


def _same(gate: Any) -> Any:
    """What is the same for the same activation."""
    return gate if isinstance(gate, str | nn.Module) or gate is None else str(gate)


@dataclass(frozen=True)
class Found:
    """One row of a report: a parameter, or all of a module's that are left alone alike.

    Attributes:
        module: that has the parameter.
        decision: what was found for it.
        weight: the parameter; None if it is left alone.
        suffix: what its name has behind that of the module.
    """

    module: nn.Module
    decision: Decision
    weight: Weight | None = None
    suffix: str = ""


def find_all(
    model: nn.Module,
    tapes: list[Tape],
    left: Callable[[str], Decision | None],
    owned: dict[int, list[str]],
    recorded: bool,
) -> dict[str, Found]:
    """By the names of their rows: what becomes of the weights that are no layer's.

    Args:
        model: what was watched.
        tapes: the recorded passes.
        left: of a module's name, what was decided about it; None if nothing was.
        owned: the names of the modules that have each parameter, by its id.
        recorded: whether the statistics are, and the gradient is not changed.
    """
    opaque, found = opaque_in(model), {}
    for name in reported(model):
        decision = left(name)
        if decision is not None:
            continue
        module = model.get_submodule(name)
        for each in _of_module(tapes, name, module, opaque):
            reason = None
            if each.weight is not None:
                weight = module._parameters.get(each.weight.name)
                # (One of a parametrization is that module's.)
                reason = None if weight is None else why_shared(name, weight, owned)
            if each.weight is not None and not recorded:
                reason = "multiplied with by a function, which no gradient but PyTorch's goes with"
            if reason is not None:
                each = replace(each, decision=Left(reason), weight=None)
            found[f"{name}.{each.suffix}".strip(".") if each.suffix else name] = each
    return found


def _of_module(tapes: list[Tape], name: str, module: nn.Module, opaque: Callable) -> list[Found]:
    """One row for each matrix that the module has, or one for all of them."""
    known = why_no_layer(module)
    if known is not None:
        return [Found(module, Left(known))]
    places = [(module, n) for n, p in module._parameters.items() if p is not None and p.ndim > 1]
    if nn.utils.parametrize.is_parametrized(module):
        lists = vars(module)["_modules"]["parametrizations"].values()
        for each in lists:
            names = [n for n, p in each._parameters.items() if p is not None and p.ndim > 1]
            places += [(each, n) for n in names]
    results = [(owner, n, *_in_tapes(tapes, owner, n, opaque)) for owner, n in places]
    biases = {(id(w.bias[0]), w.bias[1]) for *_, w in results if w is not None and w.bias}
    results = [each for each in results if (id(each[0]), each[1]) not in biases]
    if len(results) == 1 and results[0][3] is not None:
        ((owner, _, decision, weight),) = results
        return [Found(owner, decision, weight)]
    if not any(weight for *_, weight in results):
        reasons = dict.fromkeys(decision.reason for _, _, decision, _ in results)
        return [Found(module, Left("; ".join(reasons) or "its weight is computed"))]
    return [Found(owner, decision, weight, n) for owner, n, decision, weight in results]


def _in_tapes(
    tapes: list[Tape], owner: nn.Module, name: str, opaque: Callable
) -> tuple[Decision, Weight | None]:
    found: tuple[Decision, Weight | None] = Left("not watched"), None
    for tape in tapes:
        found = find(tape, owner, name, opaque)
        if found[1] is not None:
            break
    return found
