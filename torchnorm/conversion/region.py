"""Runs of elementwise operations in a recorded pass, from one value to one other."""

import heapq
from dataclasses import dataclass

from torchnorm.conversion.elementwise import (
    AXIS_ARGUMENT,
    ELEMENTWISE,
    MIXTURES,
    NONLINEAR,
    POOLS,
    PRODUCTS,
    SPLITS,
    TESTS,
    WITHOUT_GRADIENT,
)
from torchnorm.conversion.extract import Step, make_step
from torchnorm.conversion.trace import Call, Op, Value


@dataclass
class Region:
    """Operations that depend on one value only, from which one value leaves."""

    end: Value
    ops: list[Op]
    steps: list[Step]
    count: int  # how many values there are then, see `find_region`
    nonlinear: bool  # more than a scaling or a shift by constants
    joint: bool  # it splits or pools


def silent(op: Op, value: Value, depth: int = 3) -> bool:
    """Whether no gradient flows back through the operation: logging, a mask.

    Or nothing goes on with what would carry it: ``z.sum() > 0``. Under reentrant checkpointing
    nothing is recorded for the backward pass at first.
    """
    if value.requires_grad:
        return not any(out.requires_grad and not _only_looked_at(out, depth) for out in op.outs)
    return not any(out.live and not _only_looked_at(out, depth) for out in op.outs)


def _only_looked_at(value: Value, depth: int) -> bool:
    """Whether numbers are read off a value, or it is compared, and no more than that is done."""
    if value.is_output or depth == 0 or not (value.users or value.read):
        return False
    return all(
        op.name in TESTS | WITHOUT_GRADIENT
        or all(_only_looked_at(out, depth - 1) for out in op.outs)
        for op in value.users
    )


def users(value: Value) -> list[Op]:
    """The operations on the value that gradient flows back through."""
    return [op for op in value.users if not silent(op, value)]


def is_nonlinear(op: Op, inside: set[Value]) -> bool:
    """Whether the operation is nonlinear in the values inside."""
    both = sum(value in inside for value in op.ins) > 1
    if op.name in NONLINEAR or op.name == "__setitem__" or _of_two(op):
        return True
    return op.name in PRODUCTS | MIXTURES and both


def acts_elementwise(op: Op) -> bool:
    """Whether an entry of the result is a function of one entry of each tensor."""
    if op.name == "__setitem__":  # z[z < 0] = 0
        z, where = op.args[0], op.args[1]
        masked = isinstance(where, Value) and where.shape == z.shape and _is_test(where)
        return masked and (not isinstance(op.args[2], Value) or op.args[2].numel == 1)
    return op.name in ELEMENTWISE or _of_two(op)


def _of_two(op: Op) -> bool:
    """Whether it is the larger or smaller of two tensors, and not of one along an axis."""
    others = (*op.args[1:2], op.kwargs.get("other"))
    return op.name in ("max", "min") and any(isinstance(other, Value) for other in others)


def _is_test(value: Value) -> bool:
    return value.maker is not None and value.maker.name in TESTS


def carries(value: Value) -> bool:
    """Whether a gradient may come back through a value."""
    return value.requires_grad or value.live


def find_region(
    start: Value, consumers: list[Op], count: int, *, joint: bool, laid_out: bool, spatial: bool
) -> Region | None:
    """The longest run of elementwise operations on a value that one other value leaves.

    It ends with a nonlinear operation if there is one (behind splitting and pooling, with the
    first).

    Args:
        start: the value.
        consumers: the operations on it that count.
        count: how many values the steps before have made; start is the last of them.
        joint: whether they split or pool.
        laid_out: whether the axes are no longer the layer's: then nothing may be split or pooled.
        spatial: whether the layer is a convolution. The leading axes of others may be laid in one.
    """
    slots = {start: count - 1}
    inside: set[Value] = {start}
    waiting: dict[Value, int] = {start: _awaited(start, start)}
    heap = [(op.index, op) for op in start.users]
    if len(consumers) < len(users(start)):
        waiting, heap = {start: len(consumers)}, [(op.index, op) for op in consumers]
    heapq.heapify(heap)
    seen: set[Op] = set()
    ops: list[Op] = []
    steps: list[Step] = []
    nonlinear = fresh = False
    best: Region | None = None
    while heap and len(steps) < 64:
        _, op = heapq.heappop(heap)
        if op in seen:
            continue
        seen.add(op)
        whole = not laid_out and not (best is not None and best.nonlinear)
        if not _allowed(op, inside, start, whole=whole, joint=joint, spatial=spatial):
            within = [value for value in op.ins if value in inside]
            if silent(op, start) or not any(carries(v) or v is start for v in within):
                continue
            break
        ops.append(op)
        steps.append(make_step(op, slots))
        fresh |= is_nonlinear(op, inside)
        nonlinear |= fresh
        joint |= op.name in SPLITS | POOLS
        for value in () if silent(op, start) else set(op.ins) & inside:
            waiting[value] -= 1
        for out in op.outs:
            slots[out], count = count, count + 1
            inside.add(out)
            waiting[out] = _awaited(out, start)
            for user in out.users:
                heapq.heappush(heap, (user.index, user))
        # What no gradient comes back through (a mask, a detached copy) leaves nothing to follow.
        left = [
            v
            for v in inside
            if (carries(v) or v is start) and (waiting[v] > 0 or (v.is_output and v is not start))
        ]
        # What a module makes of it, a custom function, is not seen.
        left += [v for v in op.outs if v.given_to and not users(v) and v not in left]
        left += [start] if start.is_output and len(consumers) == len(users(start)) else []
        if len(op.outs) == 1 and left == op.outs and (fresh or best is None):
            best = Region(op.outs[0], list(ops), list(steps), count, nonlinear, joint)
            fresh = False
            if nonlinear and joint:
                break
    return best


def _awaited(value: Value, start: Value) -> int:
    """How many operations on the value count: not those that only look at it."""
    return sum(not silent(op, start) for op in set(value.users))


def _allowed(
    op: Op, inside: set[Value], start: Value, *, whole: bool, joint: bool, spatial: bool
) -> bool:
    """Whether a region may contain the operation."""
    name = op.name
    if op.func is None:
        return False
    for value in op.ins:
        if value not in inside and not _is_number(value):
            return False
    if name in SPLITS and not _splits_samples_apart(op, start, spatial):
        return False
    if name in SPLITS or name in POOLS:
        return whole and not any(isinstance(arg, Value) for arg in op.args[1:])
    if acts_elementwise(op):
        shapes = {value.shape for value in op.ins if value in inside} if joint else {start.shape}
        return all(out.shape in shapes for out in op.outs)
    if name == "contiguous":
        return joint and whole
    fixed = spatial or len(start.shape) <= 2
    return joint and whole and fixed and name in ("flatten", "transpose", "permute", "squeeze")


def _splits_samples_apart(op: Op, start: Value, spatial: bool) -> bool:
    """Whether every sample is split in the same way, and not the batch: that has another size."""
    rank = len(start.shape)
    if not op.ins or len(op.ins[0].shape) != rank:
        return False
    if op.name != "__getitem__":
        place = AXIS_ARGUMENT[op.name]
        last = -1 if op.name == "glu" else 0
        axis = op.kwargs.get("dim", op.args[place] if len(op.args) > place else last)
        axes = {axis % rank} if isinstance(axis, int) else {0}
    else:
        index = op.args[1] if isinstance(op.args[1], tuple) else (op.args[1],)
        if any(entry is None or isinstance(entry, Value) for entry in index):
            return False
        places = [k for k, entry in enumerate(index) if entry is Ellipsis]
        if places:
            full = (slice(None),) * (rank - len(index) + 1)
            index = (*index[: places[0]], *full, *index[places[0] + 1 :])
        axes = {axis for axis, entry in enumerate(index) if entry != slice(None)}
    return 0 not in axes if spatial else axes <= {rank - 1} and rank > 1


_MAKERS = frozenset("tensor scalar_tensor full zeros ones".split())
_MAKERS_LIKE = frozenset(
    "full_like zeros_like ones_like new_tensor new_full new_zeros new_ones".split()
)


def _is_number(value: Value) -> bool:
    """Whether a tensor of one entry was made in the forward pass, out of Python numbers only.

    Any other may be another one in the next pass: a statistic of the batch, a buffer that anneals.
    """
    op = value.maker
    if value.number is None or value.requires_grad or op is None or op.func is None:
        return False
    if op.name in _MAKERS:
        return not op.ins
    if op.name in _MAKERS_LIKE:
        return len(op.ins) == 1
    return op.name in ELEMENTWISE and bool(op.ins) and all(map(_is_number, op.ins))


def groups(value: Value, consumers: list[Op], calls: list[Call]) -> list[list[Op]]:
    """The operations on a value, together those whose results meet in an elementwise one.

    And those that one of these calls of modules runs, as a normalization that is written out.
    """
    roots: dict[Op, set[int]] = {op: {n} for n, op in enumerate(consumers)}
    made = {out: roots[op] for op in consumers for out in op.outs if op.name in ELEMENTWISE}
    heap = [(op.index, op) for out in made for op in out.users]
    heapq.heapify(heap)
    merged = list(range(len(consumers)))
    for _ in range(64 * len(consumers)):
        if not heap:
            break
        _, op = heapq.heappop(heap)
        inputs = [v for v in op.ins if not _is_number(v)]
        if op.name not in ELEMENTWISE or any(v is not value and v not in made for v in inputs):
            continue
        sources = {n for v in inputs if v in made for n in made[v]} | roots.get(op, set())
        for out in op.outs:
            if out not in made:
                made[out] = sources
                for user in out.users:
                    heapq.heappush(heap, (user.index, user))
        least = min(merged[n] for n in sources)
        joined = {merged[n] for n in sources}
        merged = [least if m in joined else m for m in merged]
    for call in calls:
        joined = {merged[n] for n, op in enumerate(consumers) if call in op.stack}
        merged = [min(joined) if m in joined else m for m in merged]
    return [[op for n, op in enumerate(consumers) if merged[n] == m] for m in dict.fromkeys(merged)]
