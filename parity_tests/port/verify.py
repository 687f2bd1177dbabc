"""`verify`: whether a Flax model and a PyTorch model are the same, and if not, where and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import jax

from jaxnorm.checkpoints.names import Names
from parity_tests.numerics import exact
from parity_tests.port import arranging, checks
from parity_tests.port import inputs as reading
from parity_tests.port.causes.dropout import dropouts
from parity_tests.port.checks import Setting
from parity_tests.port.diagnose import diagnose, list_layers
from parity_tests.port.errors import CannotCompare, called
from parity_tests.port.matching import Orders, pair
from parity_tests.port.report import Paired, Report
from parity_tests.port.sides.attention import exact_attention
from parity_tests.port.sides.base import Inputs, Side
from parity_tests.port.weights import randomized
from parity_tests.tolerances import PORT, PORT_FLOOR


def verify(
    flax_model: Any,
    torch_model: Any,
    inputs: Any,
    weights: Literal["auto", "given"] | Names = "auto",
    *,
    reference: Literal["torch", "flax"] = "torch",
    variables: Any = None,
    states: Literal["auto", "given"] = "auto",
    flax_inputs: Any = None,
    layout: str | Mapping[str, str] = "auto",
    outputs: Sequence[str] | None = None,
    flattened: Mapping[str, Sequence[int]] | None = None,
    modes: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None,
    rngs: Mapping[str, Any] | None = None,
    dtype: Literal["auto", "float64", "float32"] = "auto",
    randomize: bool = True,
    train_steps: int = 3,
    strict: bool = False,
    seed: int = 0,
) -> Report:
    r"""Compare a Flax model with a PyTorch model.

    Parameters and states are paired and the reference's are copied to the other side, with layouts
    converted. Then, for random cotangents c and the loss :math:`\langle c, f(x) \rangle`: outputs,
    the gradient of every parameter and of every float input, in train and in eval mode; states
    after `train_steps` passes; and `train_steps` steps of SGD and of Adam with each framework's own
    optimizer. An array departs where ``||a - b|| > gate ||b||``, with the gates of
    `parity_tests.tolerances` (1e-9 in float64, 1e-4 in float32). If something departs, every layer
    is fed with what the reference's layer reads, and the known causes are tested.

    Dropout is left out of both modes' numbers; where it is at work is compared.

    Args:
        flax_model: a `flax.linen.Module` or a `flax.nnx.Module`. It is only read.
        torch_model: a `torch.nn.Module`. It is copied.
        inputs: as PyTorch takes them: an array; a tuple of positional ones; a dict of named ones.
            Floats are cast to the dtype of the comparison. Booleans, numbers, strings and None go
            to the models as they are.
        weights: "auto"; "given": each side has its numbers already, which are compared, too; or the
            PyTorch name of layers by their path in Flax, as `names` of `jaxnorm.from_torch` (of
            some of them is enough).
        reference: whose weights are copied, and whose layers' inputs are fed to both.
        variables: of linen; None: of the shapes that it would be initialised with.
        states: "auto": the reference's are copied; "given": each side has its own.
        flax_inputs: as Flax takes them; None: `inputs`, images with channels last.
        layout: where the channels of the inputs are, see `parity_tests.port.inputs`: "auto",
            "channels" ([N, C, \*] in PyTorch is [N, \*, C] in Flax), "same", or {name: one of
            these}; positional inputs are called "0", "1".
        outputs: names of those that are compared; None: all.
        flattened: path of a dense layer in Flax -> the image ``(*space, channels)`` that is
            flattened before it, if its weights are to be reordered, as in `jaxnorm.from_torch`.
        modes: arguments of the Flax model in train and in eval mode; None: recognised by name
            (``train``, ``training``, ``is_training``, ``deterministic``, ``use_running_average``,
            ``eval``, ``inference``).
        rngs: keys of a linen model that draws; None: one for "dropout".
        dtype: "auto": float64 if both sides compute in it, else float32.
        randomize: whether parameters and statistics that are constant (biases of zero, scales of
            one) get random numbers, for they would hide departures.
        train_steps: how many.
        strict: whether a departure that is a convention of the frameworks (PyTorch's unbiased
            running variance) counts as one.
        seed: of everything that is drawn.

    Returns:
        What was found; ``report.agree`` says whether all is equal, ``str(report)`` tells it.

    Raises:
        CannotCompare: for models that cannot be paired, outputs of other structure, numbers that
            are not finite, a model without a key that it needs, and wrong arguments.

    Transformations: none; this is for concrete arrays.

    Example:
        >>> import flax.linen as nn, numpy as np, torch
        >>> from parity_tests.port import verify
        >>> report = verify(nn.Dense(3), torch.nn.Linear(5, 3), np.ones((2, 5)))
        >>> report.agree
        True
    """
    _check_arguments(weights, reference, states, dtype, train_steps)
    with _arithmetic() as notes:
        options = {
            "variables": variables,
            "layout": layout,
            "outputs": outputs,
            "flattened": flattened,
            "modes": modes,
            "rngs": rngs,
            "seed": seed,
        }
        wanted = "float32" if dtype == "float32" else "float64"
        prepared = _prepare(
            flax_model, torch_model, inputs, flax_inputs, weights, reference, wanted, options
        )
        if dtype == "auto" and not _computes_in(prepared, wanted):
            wanted = "float32"
            prepared = _prepare(
                flax_model, torch_model, inputs, flax_inputs, weights, reference, wanted, options
            )
            prepared[1].notes.append(
                "float32: not a layer of one of the models computes in float64"
            )
        setting, report = prepared
        report.strict = strict
        _copy(setting, report, weights, states, randomize, seed)
        _compare(setting, report, train_steps)
        report.notes += notes
        return report


@contextmanager
def _arithmetic() -> Iterator[list[str]]:
    """Full products and 64 bits, whatever the caller has set for itself, and all put back."""
    with ExitStack() as stack:
        stack.enter_context(exact())
        stack.enter_context(jax.enable_x64(True))
        stack.enter_context(jax.default_matmul_precision("highest"))
        stack.enter_context(jax.numpy_rank_promotion("allow"))
        yield stack.enter_context(exact_attention())


def _check_arguments(
    weights: Any, reference: str, states: str, dtype: str, train_steps: int
) -> None:
    """Raise for a value that an argument cannot have."""
    if isinstance(weights, str) and weights not in ("auto", "given"):
        raise CannotCompare(
            f"weights: got {weights!r}, expected 'auto', 'given' or {{path in Flax: name}}"
        )
    for name, value, allowed in (
        ("reference", reference, ("torch", "flax")),
        ("states", states, ("auto", "given")),
        ("dtype", dtype, ("auto", "float64", "float32")),
    ):
        if value not in allowed:
            raise CannotCompare(f"{name}: got {value!r}, expected one of {', '.join(allowed)}")
    if train_steps < 1:
        raise CannotCompare(f"train_steps: got {train_steps}, expected 1 or more")


def _prepare(
    flax_model: Any,
    torch_model: Any,
    inputs: Any,
    flax_inputs: Any,
    weights: Any,
    reference: str,
    dtype: str,
    options: dict[str, Any],
) -> tuple[Setting, Report]:
    """Both sides with their inputs, and what belongs together."""
    torch_side = _torch_side(torch_model, dtype, options["seed"])
    theirs = reading.read(inputs, dtype)
    run = called(
        "torch_model",
        lambda: torch_side.run(torch_side.parameters, torch_side.states, theirs, train=False),
    )
    layouts = reading.images(theirs, run, options["layout"])
    if flax_inputs is None:
        ours = reading.for_flax(theirs, layouts)
    else:
        ours = reading.read(flax_inputs, dtype, "flax_inputs")
        layouts = reading.compared(theirs, ours)
    flax_side = _flax_side(flax_model, ours, dtype, options)
    shapes = called("flax_model", lambda: flax_side.shapes(ours, train=False))
    flax_places, torch_places, names = checks.match_outputs(shapes, run, options["outputs"])
    orders = Orders(shapes.order, run.order, shapes.wires, run.wires)
    pairing = pair(
        flax_side,
        torch_side,
        names=None if isinstance(weights, str) else weights,
        flattened=options["flattened"],
        orders=orders,
    )
    setting = Setting(
        flax_side,
        torch_side,
        reference,
        pairing,
        (ours, theirs),
        layouts,
        PORT[dtype],
        PORT_FLOOR[dtype],
        dtype,
        names=names,
        selected=(flax_places, torch_places),
        seed=options["seed"],
        images={path: tuple(image) for path, image in (options["flattened"] or {}).items()},
        plain=(shapes, run),
    )
    checks.align_outputs(setting, shapes, run)
    report = Report(flax_side.framework, reference, dtype)
    report.notes += _said(layouts)
    return setting, report


def _torch_side(model: Any, dtype: str, seed: int) -> Side:
    import torch

    from parity_tests.port.sides.torch import TorchSide

    if not isinstance(model, torch.nn.Module):
        raise CannotCompare(
            f"torch_model: got {type(model).__name__}, expected an instance of torch.nn.Module"
        )
    return TorchSide(model, dtype=dtype, seed=seed)


def _flax_side(model: Any, inputs: Inputs, dtype: str, options: dict[str, Any]) -> Any:
    from flax import linen, nnx

    from parity_tests.port.sides.linen import LinenSide
    from parity_tests.port.sides.nnx import NnxSide

    modes = options["modes"]
    if isinstance(model, linen.Module):
        return called(
            "flax_model",
            lambda: LinenSide(
                model,
                inputs,
                variables=options["variables"],
                rngs=options["rngs"],
                dtype=dtype,
                modes=modes,
                seed=options["seed"],
            ),
        )
    if isinstance(model, nnx.Module):
        return NnxSide(model, inputs, dtype=dtype, modes=modes)
    raise CannotCompare(
        f"flax_model: got {type(model).__name__}, expected an instance of flax.linen.Module or "
        "flax.nnx.Module"
    )


def _computes_in(prepared: tuple[Setting, Report], dtype: str) -> bool:
    """Whether some layer of Flax with parameters returns this dtype."""
    setting, _ = prepared
    run = setting.plain[0]
    floats = [a for call in run.calls for a in call.results.values() if a.dtype.kind in "fV"]
    return any(a.dtype == dtype for a in floats) or not floats


def _row(each: Any) -> Paired:
    shapes = ", ".join(
        f"{'.'.join(filter(None, leaf)) if isinstance(leaf, tuple) else leaf} {entry.shape}".strip()
        for leaf, entry in each.flax.entries.items()
    )
    return Paired(each.flax.name, each.torch.name, each.sureness, shapes)


def _said(layouts: Mapping[str, str]) -> list[str]:
    moved = [name for name, kind in layouts.items() if kind == "channels"]
    if not moved:
        return []
    return [f"inputs {', '.join(moved)}: images, [N, C, *space] in PyTorch, [N, *space, C] in Flax"]


def _copy(
    setting: Setting, report: Report, weights: Any, states: str, randomize: bool, seed: int
) -> None:
    """The reference's numbers on both sides."""
    found, findings = checks.initial_states(setting)
    report.checks += found
    report.findings += findings
    source = setting.torch if setting.reference == "torch" else setting.flax
    parameters, statistics = source.parameters, source.states
    if randomize and weights != "given":
        parameters, changed = randomized(parameters, seed)
        if changed:
            report.notes.append(
                f"parameters that were constant got random numbers, for they hide departures: "
                f"{changed} of them (randomize=False leaves them)"
            )
    if randomize and states == "auto":
        statistics, _ = randomized(statistics, seed + 1, statistics=True)
    given = (weights == "given", states == "given")
    numbers = arranging.Numbers(parameters, statistics, *given)
    arranging.copy(setting, numbers)
    if weights == "given":
        report.checks += checks.given_weights(setting)
    else:
        tried = arranging.arrange(setting, numbers)
        if tried:
            report.notes.append(
                f"pairs: {tried} layers of the same shapes are called in another order; the "
                "pairing was found by trying, and is one that agrees"
            )
    report.pairs = [_row(each) for each in setting.pairing.pairs]
    report.notes += setting.pairing.notes


def _compare(setting: Setting, report: Report, steps: int) -> None:
    """All comparisons of whole models."""
    report.checks += checks.spare(setting)
    for mode in ("eval", "train"):
        report.checks += checks.one_mode(setting, mode)
        found, findings = dropouts(setting, mode)
        report.checks += found
        report.findings += findings
    report.checks += checks.several_passes(setting, steps)
    for optimizer in ("SGD", "Adam"):
        report.checks += checks.lock_step(setting, optimizer, steps)
    list_layers(setting, report)
    if not report.agree or any(check.convention for check in report.checks):
        diagnose(setting, report)
