"""Run a model once to watch it: `watch`."""

import contextlib
import itertools
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from torchnorm.conversion.trace import Tape, tensors
from torchnorm.conversion.untouched import reachable, untouched


def arguments_of(model: nn.Module, example: Any) -> tuple[tuple, dict]:
    """The positional and keyword arguments of an example; its own if the model has one."""
    if example is None:
        example = getattr(model, "dummy_inputs", None)
        if not isinstance(example, Mapping):
            raise ValueError(
                "example_input: got None, expected an input to watch the model with: a tensor, a "
                "tuple of positional or a dict of keyword arguments; or name the gates in gates="
            )
        device = next(model.parameters()).device
        example = {
            k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in example.items()
        }
    if isinstance(example, Mapping):
        return (), dict(example)
    return tuple(example) if isinstance(example, tuple | list) else (example,), {}


@contextlib.contextmanager
def watch(
    model: nn.Module, layers: list[nn.Module], args: tuple, kwargs: dict
) -> Iterator[list[Tape]]:
    """One pass in train mode, and one in eval mode if that fails or leaves a layer out.

    What was recorded is forgotten at the end. A pass that fails without a graph's content (of a
    model that runs a backward pass within its own) is tried with it.
    """
    tapes: list[Tape] = []
    try:
        for mode in (True, False):
            if tapes and all(layer in tapes[0].calls for layer in layers):
                break
            # (With an empty graph nothing that runs backward within the pass works.)
            for full in (False, True):
                with untouched(model, args, kwargs):
                    model.train(mode)
                    tape = Tape()
                    tape.weights.begin(p for p in model.parameters() if p.requires_grad)
                    try:
                        _record_pass(tape, model, args, kwargs, full=full)
                    except Exception as error:
                        tape.forget()
                        if full and not mode and not tapes:
                            raise _no_pass(error, model, args, kwargs) from error
                    else:
                        tapes.append(tape)
                        break
        yield tapes
    finally:
        for tape in reversed(tapes):  # the first knows what was there before
            tape.forget()


def _no_pass(error: Exception, model: nn.Module, args: tuple, kwargs: dict) -> ValueError:
    """What is to be said of a model that does not run on its example."""
    given = tensors((args, kwargs))
    got = f"tensors of shapes {[tuple(tensor.shape) for tensor in given]}"
    right = f"an input that {type(model).__name__} runs on"
    raised = f"it raised {type(error).__name__}: {error}"
    remedy = "pass a batch as in training"
    if any(
        t.is_meta or hasattr(t, "fake_mode")
        for t in (*given, *model.parameters(), *model.buffers())
    ):
        got = f"{got} without data (meta or fake)"
        right = f"{right} without looking at any number"
        remedy = (
            "pass a model and an example input on a real device if it decides by what it computes, "
            "or name the gates in gates="
        )
    return ValueError(f"example_input: got {got}, expected {right}, but {raised}; {remedy}")


def _nothing(tensor: torch.Tensor) -> None:
    """What a watched graph keeps of a tensor for its backward pass, which never comes."""


def _gone(nothing: None) -> torch.Tensor:
    raise RuntimeError("the graph of a watched pass holds nothing")


def _record_pass(tape: Tape, model: nn.Module, args: tuple, kwargs: dict, *, full: bool) -> None:
    """One pass; unless `full`, with a graph that holds no tensors."""
    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            before = module.register_forward_pre_hook(
                lambda module, args, kwargs, name=name: tape.enter(module, name, args, kwargs),
                prepend=True,
                with_kwargs=True,
            )
            # First, as the hooks of a converted model: what those of the user do comes after it.
            after = module.register_forward_hook(
                lambda module, args, output: tape.leave(output), prepend=True
            )
            stack.callback(before.remove)
            stack.callback(after.remove)
        try:
            if not full:
                hooks = torch.autograd.graph.saved_tensors_hooks(_nothing, _gone)
                stack.enter_context(hooks)
            with torch.enable_grad(), tape:
                output = model(*args, **kwargs)
                if isinstance(output, types.GeneratorType):
                    output = list(itertools.islice(output, 100))
        finally:
            tape.put_back()
    plain = {id(tensor) for tensor in tensors(output)}
    found = [v for v in reachable((output,), modules=False) if isinstance(v, torch.Tensor)]
    for tensor in found:
        value = tape.value(tensor)
        value.is_output, value.in_object = True, id(tensor) not in plain
    if not found:
        tape.returned = type(output).__name__
