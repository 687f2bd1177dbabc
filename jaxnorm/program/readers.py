"""What the readers of a value are together: a normalization, a softmax, a loss."""

from collections.abc import Iterable

from jaxnorm.conversion.region import Region
from jaxnorm.conversion.trace import Step, Value


def sums(ends: list[Value], readers: list[Step]) -> list[Step]:
    """The readers, if all of them sum."""
    sums = [step for step in readers if step.name == "reduce_sum"]
    return sums if len(sums) == len(readers) and not any(end.output for end in ends) else []


def is_loss(region: Region, ends: list[Value], readers: list[Step]) -> bool:
    """Whether all that is left to come is a sum, and no product."""
    reached = reached_from(sums(ends, readers))
    names = {step.name for value in reached for step in value.users}
    return bool(reached) and names.isdisjoint(
        {"dot_general", "conv_general_dilated", "scan", "cond", "while"}
    )


def statistics_of(region: Region) -> list[Step]:
    """Sums over the value that come back to it, as the mean in a normalization does."""
    sums = [step for step in region.readers if step.name in ("reduce_sum", "psum")]
    reached = reached_from(sums)
    rest = [step for step in region.readers if step not in sums]
    back = any(v in reached for step in rest for v in step.inputs)
    return sums if back else []


def is_softmax(region: Region) -> bool:
    """Whether the largest entry is taken, and subtracted again."""
    largest = [step for step in region.readers if step.name == "reduce_max"]
    reached = reached_from(largest)
    rest = [step for step in region.readers if step not in largest]
    return any(v in reached for step in rest for v in step.inputs)


def reached_from(steps: Iterable[Step]) -> set[Value]:
    """All that depends on what these steps make."""
    waiting = [value for step in steps for value in step.outputs]
    seen: set[Value] = set()
    while waiting:
        value = waiting.pop()
        if value not in seen:
            seen.add(value)
            waiting += [result for step in value.users for result in step.outputs]
    return seen
