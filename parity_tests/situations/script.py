"""A case that fails: made as simple as it can be, and printed as a script."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from parity_tests.situations.case import Block, Case, Wrapping
from parity_tests.situations.compare import check

#: How many simpler cases are tried at most.
TRIES = 60


def script(case: Case, framework: str) -> str:
    """Python that runs the case and prints what it finds."""
    return (
        "from parity_tests.situations import *\n\n"
        f"case = {literal(case)}\n"
        f'print(check(case, "{framework}"))\n'
    )


def literal(value: Any) -> str:
    """A dataclass without what is its default."""
    if not is_dataclass(value) or isinstance(value, type):
        if isinstance(value, tuple) and value and is_dataclass(value[0]):
            return f"({', '.join(map(literal, value))},)"
        return repr(value)
    parts = [
        f"{field.name}={literal(getattr(value, field.name))}"
        for field in fields(value)
        if getattr(value, field.name) != field.default
    ]
    return f"{type(value).__name__}({', '.join(parts)})"


def simplest(case: Case, framework: str) -> Case:
    """A case that fails as well and has less in it."""
    tries, found = 0, True
    while found:
        found = False
        for other in simpler(case):
            tries += 1
            if tries > TRIES:
                return case
            if _fails(other, framework):
                case, found = other, True
                break
    return case


def _fails(case: Case, framework: str) -> bool:
    """Whether it does; what does not fit together does not count."""
    try:
        return check(case, framework).failed
    except ValueError:
        return False


def simpler(case: Case) -> Iterator[Case]:
    """Cases with one thing less each."""
    structure = case.structure
    network = structure.network
    for steps in {1, structure.steps - 1} - {0, structure.steps}:
        yield case.with_structure(network=replace(network, reached=network.reached[:steps]))
    if network.heads > 1:
        alone = replace(network, heads=1, reached=((0,),) * structure.steps)
        if structure.frozen is None or structure.frozen.layer != "head_1":
            yield case.with_structure(network=alone)
    if len(network.blocks) > 1:
        last = f"block_{len(network.blocks) - 1}"
        if structure.frozen is None or structure.frozen.layer != last:
            yield case.with_structure(network=replace(network, blocks=network.blocks[:-1]))
    if structure.frozen is not None:
        yield case.with_structure(frozen=None)
    whole = Wrapping()
    if structure.wrapping != whole:
        rows = structure.rows
        for field in fields(Wrapping):
            value = getattr(whole, field.name)
            changed = replace(structure.wrapping, **{field.name: value})
            if field.name == "batches":
                changed = replace(changed, parts=1, average=False)
            if field.name != "parts" and changed != structure.wrapping:
                yield case.with_structure(wrapping=changed, rows=rows)
    for n, block in enumerate(network.blocks):
        plain = Block(block.width, block.gate)
        for field in fields(Block)[2:] if block.normalizer != "batch" else fields(Block)[3:]:
            value = getattr(plain, field.name)
            if getattr(block, field.name) != value:
                blocks = list(network.blocks)
                blocks[n] = replace(block, **{field.name: value})
                yield case.with_structure(network=replace(network, blocks=tuple(blocks)))
    if structure.groups != "none":
        one = {"rates": case.rates[:1] * 2, "weight_decays": case.weight_decays[:1] * 2}
        yield replace(case.with_structure(groups="none"), **one)
    if structure.optimizer != "sgd":
        yield case.with_structure(optimizer="sgd")
    plain_case = Case(structure, case.seed)
    for name in ("ratio", "std", "constant", "start", "schedule", "weight_decays", "decay"):
        value = getattr(plain_case, name)
        if getattr(case, name) != value:
            yield replace(case, **{name: value})
