"""What is done where, when a program is run with the rule in it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxnorm.conversion.choices import Choices
from jaxnorm.conversion.decisions import LEAVE, AsFound, Deferred, Product, Several
from jaxnorm.conversion.report import Report, Row, gate_name
from jaxnorm.conversion.trace import Traced, Value, flatten
from jaxnorm.program.lineage import Family
from jaxnorm.program.sites import PRODUCTS, Site, find_sites
from jaxnorm.program.ways import ENTERED, Edge, Tell, Way, Ways
from jaxnorm.rule import Rule

#: Where an equation is: what it is in, and its place there.
Place = tuple[tuple[Any, ...], int]


@dataclass(eq=False)
class Plan:
    """A program, and where layers record and slopes are told.

    Attributes:
        traced: the program.
        report: what was decided.
        sites: place of a product -> (name of the layer, site, whether it has a gate) there.
        edges: place -> the edges along which handles go there.
        tells: (place, which output) -> name of a layer -> what it is told there.
        name_of: parameter -> its name.
    """

    traced: Traced
    report: Report
    sites: dict[Place, list[tuple[str, Site, bool]]] = field(default_factory=dict)
    edges: dict[Place, list[Any]] = field(default_factory=dict)
    tells: dict[tuple[Place, int], dict[str, Tell]] = field(default_factory=dict)
    name_of: dict[Value, str] = field(default_factory=dict)

    def inside(self, scope: tuple[Any, ...]) -> bool:
        """Whether anything is done in a part of the program."""
        n = len(scope)
        places = [*self.sites, *self.edges, *(place for place, _ in self.tells)]
        return any(place[0][:n] == scope for place in places)


def make_plan(traced: Traced, names: list[str], gates: Any, rule: Rule) -> Plan:
    """The plan of a program whose first inputs are the parameters of these names."""
    program = flatten(traced)
    parameters = program.inputs[: len(names)]
    name_of = dict(zip(parameters, names, strict=True))
    family = Family(program, parameters)
    sites, reasons = find_sites(program, family)
    choices = None if gates == "auto" else Choices(gates)
    ways, rows = Ways(program, family), {}
    plan = Plan(traced, Report(()), name_of=name_of)
    of: dict[Value, list[tuple[Site, Way]]] = {}
    for site in reversed(sites):  # so that chains of sums are not deep
        way = _way(ways, site, name_of[site.kernel.root], choices)
        of.setdefault(site.kernel.root, []).insert(0, (site, way))
    biases = {site.bias.root for site in sites if site.bias is not None}
    for root, name in name_of.items():
        if root not in of and root not in biases:
            why = reasons.get(root) or _why_not(family, root)
            if np.ndim(root.aval) >= 2 or root in reasons:
                rows[name] = Row(name, "parameter", LEAVE, why)
        if root not in of:
            continue
        mine = of[root]
        gate = _gate(mine)
        kind = PRODUCTS[mine[0][0].step.name]
        unresolved = any(way.unresolved for _, way in mine)
        reasons_here = "; ".join(dict.fromkeys(way.reason for _, way in mine))
        if len(mine) > 1:
            reasons_here = f"{len(mine)} times: {reasons_here}"
        lost = [name_of[each] for each in name_of if any(each in site.lost for site, _ in mine)]
        if lost:
            reasons_here += (
                f"; no bias: {', '.join(lost)} is not added as x @ w + b, one entry for each "
                "neuron, to this layer alone; write it so"
            )
        shown = tuple(line for each in mine for line in _in_words(*each))
        rows[name] = Row(name, kind, gate, reasons_here, unresolved, way=shown)
        if gate is not LEAVE:
            _add(plan, name, mine)
    if choices is not None:
        choices.check_used(rows)
    plan.report = Report(tuple(rows[name] for name in names if name in rows), rule)
    return plan


def _way(ways: Ways, site: Site, name: str, choices: Choices | None) -> Way:
    """What follows the product and its bias: as it is found, or as the user says."""
    if choices is not None:
        gate = choices.choose(name, None)
        if isinstance(gate, Deferred | Product | Several):
            raise TypeError(
                f"gates[{name!r}]: got {gate!r}, expected None, the name of an activation, an "
                "elementwise callable or LEAVE; a function has no modules: gates='auto' finds them"
            )
        if not isinstance(gate, AsFound):
            tells = [] if gate is LEAVE or gate is None else [Tell(site.output, gate)]
            return Way(gate, "given", tells=tells)
    way = ways.follow(site.program, site.output)
    steps = [edge.step for edge in way.edges] + [tell.value.maker for tell in way.tells]
    if any(name not in ENTERED for step in steps for name in step.around):
        return Way(None, "it goes into a function with a derivative of its own", True)
    return way


def _gate(mine: list[tuple[Site, Way]]) -> Any:
    """The activation of the layer's own output, or the name of what was found further on."""
    gates = [way.gate for _, way in mine]
    plain = [
        way for site, way in mine if not way.found or way.tells == [Tell(site.output, way.gate)]
    ]
    if len(plain) == len(mine) and all(gate == gates[0] for gate in gates[1:]):
        return gates[0]
    names = ["z" if way.gate is None and way.found else gate_name(way.gate) for _, way in mine]
    return AsFound(" and ".join(dict.fromkeys(names)))


def _in_words(site: Site, way: Way) -> list[str]:
    """The steps of a way, each with the shape that it returns."""
    lines = [f"  its output -> {list(site.step.outputs[0].aval.shape)}"]
    for edge in [*_from_product(site), *way.edges]:
        shape = list(edge.step.outputs[edge.target].aval.shape)
        more = " (what it is multiplied by belongs to the slope)" if edge.factor else ""
        lines.append(f"  {edge.step.name}{more} -> {shape}")
    return lines + [
        f"  {gate_name(tell.gate)} of it" for tell in way.tells if tell.gate is not None
    ]


def _add(plan: Plan, name: str, mine: list[tuple[Site, Way]]) -> None:
    gated = any(way.found for _, way in mine)
    for site, way in mine:
        plan.sites.setdefault(site.place, []).append((name, site, gated))
        if not gated:
            continue
        tells, edges = way.tells, way.edges
        if not way.found:  # another call of it has a gate; here every sample counts
            tells, edges = [Tell(site.output, None)], []
        for edge in [*_from_product(site), *edges]:
            there = plan.edges.setdefault((edge.step.scope, edge.step.index), [])
            if edge not in there:
                there.append(edge)
        for tell in tells:
            maker = tell.value.maker
            at = (maker.scope, maker.index), maker.outputs.index(tell.value)
            plan.tells.setdefault(at, {})[name] = tell


def _from_product(site: Site) -> list[Any]:
    """The edges from the product to its output with the bias."""
    edges, value = [], site.output
    while value is not site.step.outputs[0]:
        step = value.maker
        source = next(
            n for n, each in enumerate(step.inputs) if _comes_from(each, site.step.outputs[0])
        )
        kind = "same" if step in site.adds else "move"
        if step.name in ("convert_element_type", "copy", "name", "stop_gradient"):
            kind = "same"
        edges.append(Edge(step, source, step.outputs.index(value), kind))
        value = step.inputs[source]
    return edges[::-1]


def _comes_from(value: Value, source: Value) -> bool:
    while value is not source:
        if value.maker is None or len(value.maker.inputs) != 1:
            return False
        value = value.maker.inputs[0]
    return True


def _why_not(family: Family, root: Value) -> str:
    """Why a parameter is not the kernel of a layer."""
    names = [None if step is None else step.name for step, _ in family.readers(root)]
    if not names:
        return "it is not used"
    if names == [None]:
        return "it is part of the output, and nothing else"
    words = ", ".join(dict.fromkeys(str(name) for name in names if name is not None))
    return f"no product with it: read by {words}"
