"""A model and its optimizer set up in one call: `prepare`."""

import weakref
from typing import Any, NamedTuple

import torch
from torch import nn

from torchnorm import checks
from torchnorm.conversion.convert import convert, revert
from torchnorm.conversion.report import Report
from torchnorm.modules.registry import MARK
from torchnorm.optim.in_neuron_coordinates import in_neuron_coordinates
from torchnorm.optim.refusals import check_optimizer
from torchnorm.rule import Rule


class _Pair(NamedTuple):
    model: nn.Module
    optimizer: torch.optim.Optimizer


class Prepared(_Pair):
    """What `prepare` returns: the pair (model, optimizer), with the report.

    Attributes:
        model: that was given.
        optimizer: that was given, in neuron coordinates.
        report: what `convert` decided for each layer; it is what prints.

    Raises:
        Nothing of its own.

    Example:
        >>> import torch, torchnorm
        >>> model = torch.nn.Linear(3, 1)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> prepared = torchnorm.prepare(model, sgd, torch.ones(2, 3))
        >>> model, optimizer = prepared
        >>> len(prepared.report.converted)
        1
    """

    report: Report

    def __str__(self) -> str:
        return str(self.report)


#: What models were converted with, by `prepare`, and the report of it.
_PREPARED: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()


def prepare(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    example_input: Any = None,
    *,
    gates: Any = "auto",
    skip: Any = (),
    rule: Rule = Rule(),
    process_group: Any = None,
    recurrent: bool = False,
    record_in_eval: bool = False,
) -> Prepared:
    """Set up a model and its optimizer: `convert` and `optim.in_neuron_coordinates` in one call.

    Forward (exact):      the model's own, to the last bit
    Backward (default):   the model's own; the optimizer steps in the neurons' coordinates

    Both are changed in place, and all of a training loop stays as it is. Call it before whatever
    wraps the model or the optimizer: torch.compile, DDP, FSDP2, accelerate, a `Trainer`.

    Args:
        model: any module, as `convert` takes it.
        optimizer: of the model's parameters, without steps so far, as `in_neuron_coordinates` takes
            it.
        example_input: a tensor, a tuple of positional or a dict of keyword arguments of the model;
            see `convert`.
        gates: see `convert`.
        skip: see `convert`.
        rule: see `Rule`.
        process_group: processes over which the batch is spread. None: all.
        recurrent: see `convert`.
        record_in_eval: see `in_neuron_coordinates`.

    Returns:
        `Prepared`: the pair (model, optimizer) of the same two objects, with ``.report``, which is
        what it prints as. Look at it: a layer that was left alone is stepped as before.

    Raises:
        TypeError: as `convert` and `in_neuron_coordinates`.
        ValueError: as those; among others for a model that is converted already, an optimizer that
            has made steps, or that is in neuron coordinates. Whatever is raised, the model and the
            optimizer are as they were.

    Behavior: a model that an earlier call has prepared in the same way goes on with another
    optimizer: a second one for other parameters, or, when training begins anew (a second
    ``Trainer.fit``), one in the place of the first.

    Transformations: those of `convert`.

    Example:
        >>> import torch, torchnorm
        >>> x = torch.randn(64, 3) + 20
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        >>> print(torchnorm.prepare(model, optimizer, x))
        layer  kind    gate  reason
        0      Linear  relu  direct
        2      Linear  None  no activation follows: the output
        2 of 2 layers with a matrix are converted; Rule()
        >>> model(x).square().mean().backward()
        >>> optimizer.step()
    """
    check_optimizer(optimizer, "prepare")
    checks.check_rule(rule)
    options = {"gates": gates, "skip": skip, "rule": rule, "process_group": process_group}
    options["recurrent"] = recurrent
    report = _report_of(model, options)
    goes_on = report is not None
    if report is None:
        report = convert(model, example_input, **options)
    try:
        settings: Any = {"process_group": process_group, "record_in_eval": record_in_eval}
        in_neuron_coordinates(optimizer, model, **settings)
    except BaseException:
        if not goes_on and report.converted:
            revert(model)
        raise
    _PREPARED[model] = options, report
    prepared = Prepared(model, optimizer)
    prepared.report = report
    return prepared


def _report_of(model: Any, options: dict[str, Any]) -> Report | None:
    """That of an earlier call with the same options, of a model that is converted still."""
    if not isinstance(model, nn.Module) or model not in _PREPARED:
        return None
    before, report = _PREPARED[model]
    converted = any(MARK in vars(module) for module in model.modules())
    return report if converted and before == options else None
