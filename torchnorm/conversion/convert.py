"""A whole model at once: `convert`, and `revert`, which takes it back."""

import functools
from collections.abc import Mapping
from typing import Any

from torch import nn

from torchnorm import checks
from torchnorm.activations import DEFERRED
from torchnorm.conversion.choices import (
    ATTRIBUTES,
    RECURRENT,
    check_model,
    check_skip,
    may_be_product,
    named_gates,
    owners,
    records,
    reported,
    skipped,
    why_no_cell,
    why_no_layer,
    why_not,
)
from torchnorm.conversion.decisions import Decision, Left, Recurrent
from torchnorm.conversion.products import UNUSED, Found, find_all
from torchnorm.conversion.report import Report, Row
from torchnorm.conversion.search import search
from torchnorm.conversion.watch import arguments_of, watch
from torchnorm.conversion.wiring import unwire, wire
from torchnorm.modules.base import Neuronwise
from torchnorm.modules.hosting import PRODUCTS, USED, host
from torchnorm.modules.made import Made
from torchnorm.modules.product import Product
from torchnorm.modules.registered import CHECKED
from torchnorm.modules.registry import MARK, NAMES, ours
from torchnorm.recurrent.products import RecurrentProduct, Unfused, add_products
from torchnorm.rule import Rule


def convert(
    model: nn.Module,
    example_input: Any = None,
    gates: Any = "auto",
    skip: Any = (),
    rule: Rule = Rule(),
    process_group: Any = None,
    recurrent: bool = False,
) -> Report:
    """Give the neuron-wise rule to every dense and convolutional layer of a model, in place.

    Forward (exact):      the model's own, to the last bit
    Backward (default):   the model's own; its layers record for `optim.in_neuron_coordinates`
    Backward (modified):  with ``Rule(gradient="preconditioned")``: of each converted layer the
                          weight and bias gradient by the rule; all other gradients are true

    A layer is converted by changing its class (`torch.nn.Linear` -> `torchnorm.Linear`): the
    parameters stay the same objects, and names, hooks, device, dtype and mode stay, so optimizers
    and checkpoints go on. Convert before torch.compile and before DDP. What counts as a layer:

    - PyTorch's Linear, Conv1d to ConvTranspose3d and the Conv1D of transformers; their subclasses
      that compute the same, which stay instances of their class;
    - classes that were registered, see `register`;
    - with ``gates="auto"`` any other parameter with which a module multiplies by a function of
      PyTorch (linear, matmul, @, einsum, addmm, bmm, convolutions, grouped_mm), as it is,
      transposed, reshaped, cast, times a number or a mask of zeros and ones, or beside something
      that is added to it; so it is with a parametrization that does no more (spectral_norm with
      its sigma held constant). A bias that is added to the product counts as the layer's. Of
      several weights in one (experts [E, I, O], by number, in a loop, gathered, by bmm or
      grouped_mm) each has moments of the tokens that are sent to it; in a buffer of a fixed
      capacity a row to which no gradient comes back is no token.

    With ``gates="auto"`` one forward pass on `example_input` is watched, in train mode with
    gradients on (in eval mode if that fails, and for layers that train mode did not call), and each
    layer's output is followed to what consumes it:

    - an elementwise activation, as a module, a function or written out, behind changes of layout,
      casts and dropout: the gate is its name, the module itself, or the recorded operations;
    - a normalization or a sum and then an activation (conv-BN-ReLU, residual blocks): the layer is
      told at run time what the activation sees, by a hook on the module that returns or receives it
      (see `tell_gate`); where no module does, the gate is None and the row is `unresolved`;
    - a gated unit of two layers (SwiGLU): each is told the other's value; of one layer (GLU, z in
      chunks), or pooling before the activation: a `JointGate` (a pooled sample counts as much as it
      reaches the activation). Pooling behind the activation changes nothing;
    - several that read one output: the gate, if all are the same activation (each block's silu of
      one embedding), else the sum of what each of them tells (DenseNet, a residual stream that
      every block normalizes and activates); if some of them are no activation, `unresolved`;
    - anything else, attention, a residual sum, another layer, a loss, the output: None, so the
      layer's own, uniformly weighted moments.

    What is told behind slices, concatenations, padding, upsampling or pooling comes back as the
    derivative of these operations brings it: s is what each entry of z contributes to, spread over
    what was averaged, 0 for what was cut away. Dropout is looked through: a sample that is dropped
    counts as if it were not, which has the same mean. So are scalings of whole neurons, whose
    moments do not depend on them.

    A layer that is called several times has the statistics of all its calls, with the gate that
    follows each of them, if that is the same; with another after each, it is `unresolved`. (Left
    alone with ``gradient="preconditioned"``, where each call would have its own.)

    Left alone, with the reason in the report: layers that were never called, whose weight is
    shared, computed in a way that is not linear in its parameter (weight_norm,
    standardized), frozen (unfreeze before converting) or of another type, what is multiplied with
    where PyTorch does not show it (custom functions: `register` the class), and whatever is no such
    layer (embeddings, recurrent layers, fused attention).

    Args:
        model: any module; changed in place.
        example_input: a tensor, a tuple of positional or a dict of keyword arguments of the model,
            as in training (two samples or more if there is a BatchNorm). None: `model.dummy_inputs`
            where the model has them (transformers). Not used if `gates` is a dict.
        gates: ``"auto"``, or ``{pattern: gate}`` with glob patterns of layer names, of which the
            first match counts; a layer that is named so is converted even if it is called twice,
            shared or frozen, and the others are left alone. Nothing is watched then.
        skip: names, glob patterns or types of modules; they and all below them are left alone.
        rule: see `Rule`.
        process_group: as in `Linear`.
        recurrent: whether PyTorch's LSTM, GRU, RNN and their cells become those of
            `torchnorm.recurrent`, which run step by step where something is recorded: their outputs
            are the model's own to rounding then, and slower. False: left alone.

    Returns:
        A `Report`, which prints as a table.

    Raises:
        TypeError: for a model, rule, gate or skip of another type.
        ValueError: for a model without such a layer, that is converted already, compiled, scripted,
            wrapped or lazy; an example that the model does not take, or none; a pattern that
            matches nothing. Nothing is changed then.

    Behavior: the watched pass leaves nothing behind. It holds none of its tensors (a billion
    parameters on the meta device: seconds, and no memory), unless the model runs a backward pass of
    its own, and runs the model's own hooks; then parameters, gradients, buffers, modes,
    random state, the example, and whatever the model, its hooks and the example hold (caches,
    lists, counters, objects) are as before, and a tensor of it that was stored elsewhere has no
    graph. Numbers in an activation that is written out are those of the watched pass.
    What a layer meets is decided once: a model whose forward pass branches has the gates of the
    branch that was watched. A fused inference path of PyTorch that calls no module
    (nn.TransformerEncoderLayer) goes on as it was.

    After the conversion: modules are found by their names at each forward pass of the model with
    gradients. What is replaced between a layer and its activation (SyncBatchNorm, GroupNorm,
    wrappers for checkpoints) is wired again; an activation that is another one (a module, or a
    function in an attribute of one), a converted layer that is a plain one again, and a deferred
    layer whose activation was not reached in a pass (another branch, a reentrant checkpoint that
    holds one without the other), which has its own, uniformly weighted moments then, are reported
    once, by a UserWarning. A compiled forward pass looks for nothing: replace before a pass that
    is not compiled, or convert last. An activation that is written into a forward method is not
    looked at again, nor is any where the model is an nn.TransformerEncoderLayer itself.

    Hooks on a module see what they saw before the conversion; global ones
    (register_module_forward_hook) run earlier, so that of a deferred layer they see (z, handle).

    Transformations: deepcopy, pickle, state_dict, torch.func.functional_call, torch.compile,
    checkpointing, autocast and DDP work on the converted model; nn.DataParallel, whose threads
    would share the hooks, does not, nor do torch.jit.trace, torch.jit.script and
    torch.fx.symbolic_trace. `revert` a copy for them, and before what looks for PyTorch's very
    classes and passes over ours in silence: torch.ao.quantization, exporters of other packages.
    A checkpoint with use_reentrant=False may part a layer from its activation, if the module that
    tells it does nothing else in that pass.

    Example:
        >>> import torch, torchnorm
        >>> from torch import nn
        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
        >>> print(torchnorm.convert(model, torch.randn(2, 3, 8, 8)))
        layer  kind    gate  reason
        0      Conv2d  relu  deferred to 1
        4      Linear  None  no activation follows: the output
        2 of 2 layers with a matrix are converted; Rule()
        >>> model[0]
        Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), gate=DEFERRED, rule=Rule())
        >>> torchnorm.revert(model)
        >>> model[0]
        Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
    """
    checks.check_rule(rule)
    check_model(model)
    skip = check_skip(model, skip)
    layers = {name: m for name, m in model.named_modules() if ours(type(m)) is not None}
    cells = {
        name: m
        for name, m in (model.named_modules() if recurrent else ())
        if type(m) in RECURRENT and not skipped(model, name, skip)
    }
    owned = owners(model)
    weights = [name for name in reported(model) if not why_no_layer(model.get_submodule(name))]
    if not (layers or cells) and (isinstance(gates, Mapping) or not weights):
        other = "" if isinstance(gates, Mapping) else ", or a weight of two or more axes"
        raise ValueError(
            f"model: got {type(model).__name__} without a layer to convert, expected at least one "
            f"of {NAMES}{other}"
        )
    decisions: dict[str, Decision] = {
        name: Left("skipped") for name in layers if skipped(model, name, skip)
    }
    products: dict[str, Found] = {}
    if isinstance(gates, Mapping):
        decisions |= named_gates(layers, gates, decisions)
    elif isinstance(gates, str) and gates == "auto":
        args, kwargs = arguments_of(model, example_input)
        decisions |= {
            name: Left(reason)
            for name, layer in layers.items()
            if name not in decisions and (reason := why_not(name, layer, owned)) is not None
        }
        wanted = {name: layer for name, layer in layers.items() if name not in decisions}
        with watch(model, list(wanted.values()), args, kwargs) as tapes:
            decisions |= search(model, tapes, wanted, recorded=records(rule))
            left = functools.partial(_left, model, skip=skip, decisions=decisions)
            products = find_all(model, tapes, left, owned, records(rule))
    else:
        raise TypeError(f"gates: got {gates!r}, expected 'auto' or a dict {{pattern: gate}}")
    for name, decision in decisions.items():
        if decision.converted and name not in products:
            _become_ours(layers[name], decision, rule, process_group)
    settings = {"rule": rule, "process_group": process_group}
    made = {
        name: _multiplied(found, **settings)
        for name, found in products.items()
        if found.weight is not None
    }
    for name, found in products.items():
        if found.decision.reason != UNUSED or name not in decisions:
            decisions[name] = found.decision
    wire(model, {name: each for name, each in decisions.items() if each.converted}, made)
    for name, layer in cells.items():
        reason = why_no_cell(name, layer, owned)
        if reason is not None:
            decisions[name] = Left(reason)
            continue
        decisions[name] = Recurrent(getattr(layer, "nonlinearity", ("sigmoid", "tanh")))
        vars(layer).update(gate=DEFERRED, **{MARK: type(layer)})
        layer.__class__ = RECURRENT[type(layer)]
        add_products(layer, rule, process_group)
    rows = []
    for name in _rows(model, products):
        behind = len(products[name].suffix) if name in products else 0
        path = name[: len(name) - behind].rstrip(".")
        module = model.get_submodule(path)
        reason = why_no_layer(module) or "not named in gates"
        reason = "skipped" if skipped(model, path, skip) else reason
        found = decisions.get(name) or Left(reason)
        kind = vars(module).get(MARK, type(module)).__name__
        flags = (found.converted, found.deferred, found.unresolved)
        rows.append(Row(name, kind, found.gate, found.reason, *flags, way=tuple(found.way)))
    return Report(tuple(rows), rule)


def _rows(model: nn.Module, products: Mapping[str, Found]) -> list[str]:
    """The names of the rows, in the order of the modules."""
    rows: list[str] = []
    for name in reported(model):
        parts = [
            n for n, f in products.items() if f.suffix and n == f"{name}.{f.suffix}".strip(".")
        ]
        rows += parts or [name]
    return rows


def _multiplied(found: Found, *, rule: Rule, process_group: Any) -> Product:
    """The layer that a parameter is from now on."""
    weight, decision = found.weight, found.decision
    assert weight is not None
    product = Product(
        weight.module,
        weight.name,
        weight.bias,
        layout=weight.layout,
        added=weight.added,
        suffix=found.suffix,
        gate=DEFERRED if decision.deferred else decision.gate,
        rule=rule,
        process_group=process_group,
    )
    return host(weight.module, product, weight.hosts, MARK)


def _left(
    model: nn.Module, name: str, *, skip: tuple, decisions: Mapping[str, Decision]
) -> Decision | None:
    """What is decided about a module; None if its weights may be multiplied with elsewhere."""
    if skipped(model, name, skip):
        return Left("skipped")
    decision = decisions.get(name)
    return None if decision is None or may_be_product(decision.reason) else decision


def revert(model: nn.Module) -> None:
    """Take `convert` back: PyTorch's classes, and no hook or attribute of ours.

    Forward, backward:    PyTorch's

    Args:
        model: a converted model (or a copy of one); changed in place. Parameters stay as trained.

    Raises:
        TypeError: for a model that is no module.
        ValueError: for one that is not converted.

    Behavior: layers of torchnorm that the user made are left alone.

    Example:
        >>> import torch, torchnorm
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
        >>> _ = torchnorm.convert(model, torch.ones(2, 3))
        >>> torchnorm.revert(model)
        >>> model[0]
        Linear(in_features=3, out_features=4, bias=True)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    converted = [module for module in model.modules() if MARK in vars(module)]
    # Hooks are all that is left where the parts were taken back one by one.
    if not unwire(model) and not converted:
        raise ValueError(
            f"model: got {type(model).__name__} without a converted layer, expected a model that "
            "torchnorm.convert has converted"
        )
    for module in converted:
        cells = [n for n, child in module.named_children() if isinstance(child, RecurrentProduct)]
        for name in cells:
            delattr(module, name)
        # (A module that multiplies may have such attributes of its own.)
        is_ours = isinstance(module, Neuronwise | Unfused)
        ours_only = (*ATTRIBUTES, CHECKED, "neuron_stats") if is_ours else ()
        module.__class__ = _their_class(type(module), vars(module)[MARK])
        for name in (*ours_only, MARK, PRODUCTS, USED):
            vars(module).pop(name, None)


def _their_class(kind: type, original: type) -> type:
    """PyTorch's class for a layer of this class of ours, or of one that was laid over it since.

    A parametrization makes a class of its own for the layer, with the weight as a property.
    """
    our_kind = next((each for each in kind.__mro__ if Made in each.__bases__), ours(original))
    if our_kind not in kind.__bases__:
        return original
    bases = tuple(original if base is our_kind else base for base in kind.__bases__)
    hidden = ("__dict__", "__weakref__")
    return type(kind.__name__, bases, {k: v for k, v in vars(kind).items() if k not in hidden})


def _become_ours(layer: nn.Module, decision: Decision, rule: Rule, process_group: Any) -> None:
    kind = ours(type(layer))
    assert kind is not None
    gate = DEFERRED if decision.deferred else decision.gate
    added = (gate, rule, process_group, type(layer))
    vars(layer).update(zip((*ATTRIBUTES, MARK), added, strict=True))
    layer.__class__ = kind
