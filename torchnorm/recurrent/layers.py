"""`LSTM`, `GRU` and `RNN`: any number of layers and directions, packed sequences too."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from torchnorm import masks
from torchnorm.recurrent import steps
from torchnorm.recurrent.products import Unfused

#: The state of one layer: (h,), or (h, c) of an LSTM.
State = tuple[torch.Tensor, ...]


class _Layers(Unfused, nn.RNNBase):
    def forward(self, input: Any, hx: Any = None) -> Any:
        """As PyTorch's: (outputs, the state at the end)."""
        if not self.is_seen():
            return super().forward(input, hx)
        if isinstance(input, PackedSequence):
            data, sizes, order, back = input
            states = self._states(data, hx, int(sizes[0]), order)
            self.check_forward_args(data, self._hidden(states), sizes)
            counts = self._counts_of_packed(data, sizes.tolist(), order)
            out, state = self._run(data, sizes.tolist(), states, counts)
            return PackedSequence(out, sizes, order, back), self._ordered(state, back)
        batched = input.dim() == 3
        x = input.transpose(0, 1) if batched and self.batch_first else input
        x = x if batched else x.unsqueeze(1)
        time, batch = x.shape[:2]
        states = self._states(x, _with_batch(hx) if not batched else hx, batch, None)
        axis = 0 if self.batch_first else 1
        whole = input if batched else input.unsqueeze(axis)
        self.check_forward_args(whole, self._hidden(states), None)
        counts = self._counts(input, batched)
        out, state = self._run(x.flatten(0, 1), [batch] * time, states, counts)
        out = out.unflatten(0, (time, batch))
        if not batched:
            return out.squeeze(1), _mapped(lambda s: s.squeeze(1), self._ordered(state, None))
        return out.transpose(0, 1) if self.batch_first else out, self._ordered(state, None)

    def step(self, given: Any, recurrent: Any, state: State) -> State:
        """The state after one step of one layer."""
        raise NotImplementedError

    def _states(self, x: torch.Tensor, hx: Any, batch: int, order: Any) -> State:
        """Of all layers and directions, [layers, B, ...] each."""
        if hx is None:
            count = self.num_layers * (2 if self.bidirectional else 1)
            sizes = [self.proj_size or self.hidden_size, self.hidden_size]
            sizes = sizes if self.mode == "LSTM" else sizes[:1]
            return tuple(x.new_zeros(count, batch, size) for size in sizes)
        hx = hx if isinstance(hx, tuple) else (hx,)
        return tuple(s if order is None else s.index_select(1, order) for s in hx)

    def _ordered(self, state: State, back: Any) -> Any:
        return self._hidden(tuple(s if back is None else s.index_select(1, back) for s in state))

    def _hidden(self, state: State) -> Any:
        """The state as PyTorch has it."""
        return state if self.mode == "LSTM" else state[0]

    def _counts(self, input: torch.Tensor, batched: bool) -> Any:
        """How often each example counts, for each step [B]; or None."""
        mask = masks.current_mask()
        if mask is None:
            return None
        counts = masks.fitted(mask, tuple(input.shape[:-1]), input)
        counts = (counts.T if self.batch_first else counts) if batched else counts[:, None]
        return counts.unbind()

    def _counts_of_packed(self, data: torch.Tensor, sizes: list[int], order: Any) -> Any:
        """The same; there is no padding, but examples may count differently."""
        mask, (batch, time) = masks.current_mask(), (sizes[0], len(sizes))
        if mask is None:
            return None
        of_steps = mask.ndim > 1 and mask.shape[1] == batch
        if of_steps and not (self.batch_first and mask.shape[0] == batch):
            mask = mask.transpose(0, 1)
        counts = masks.fitted(mask[:, :time] if mask.ndim > 1 else mask, (batch, time), data)
        counts = counts if order is None else counts[order]
        return [counts[:size, t] for t, size in enumerate(sizes)]

    def _run(self, data: torch.Tensor, sizes: list[int], states: State, counts: Any = None) -> Any:
        """(outputs [steps, ...], states) of steps that lie one behind the other."""
        directions, ends = ("", "_reverse")[: 2 if self.bidirectional else 1], []
        for layer in range(self.num_layers):
            outputs = []
            for way, suffix in enumerate(directions):
                at = layer * len(directions) + way
                state = tuple(s[at] for s in states)
                name, backward = f"l{layer}{suffix}", bool(way)
                out, end = self._direction(name, data, sizes, state, counts, backward=backward)
                outputs.append(out)
                ends.append(end)
            data = torch.cat(outputs, -1)
            if self.dropout and self.training and layer < self.num_layers - 1:
                data = F.dropout(data, self.dropout)
        return data, tuple(torch.stack(each) for each in zip(*ends, strict=True))

    def _direction(
        self,
        name: str,
        data: torch.Tensor,
        sizes: list[int],
        first: State,
        counts: Any,
        *,
        backward: bool,
    ) -> tuple[torch.Tensor, State]:
        """One layer in one direction; its input product is one call for all steps."""
        with masks.neuron_mask(None if counts is None else torch.cat(counts)):
            z, handle = self._modules[f"ih_{name}"](data)  # type: ignore[misc]
        given = list(zip(z.split(sizes), handle.split(sizes), strict=True))
        steps_ = range(len(sizes))
        state = tuple(s[: sizes[-1] if backward else sizes[0]] for s in first)
        outputs: list[Any] = [None] * len(sizes)
        over: list[State] = []
        for t in reversed(steps_) if backward else steps_:
            size, had = sizes[t], state[0].shape[0]
            if size < had:  # some sequences have ended
                over.append(tuple(s[size:] for s in state))
                state = tuple(s[:size] for s in state)
            elif size > had:  # some begin here, from behind
                begun = (f[had:size] for f in first)
                state = tuple(torch.cat(pair) for pair in zip(state, begun, strict=True))
            with masks.neuron_mask(None if counts is None else counts[t]):
                state = self._after(name, given[t], state)
            outputs[t] = state[0]
        for ended in reversed(over):
            state = tuple(torch.cat(pair) for pair in zip(state, ended, strict=True))
        return torch.cat(outputs), state

    def _after(self, name: str, given: Any, state: State) -> State:
        state = self.step(given, self._modules[f"hh_{name}"](state[0]), state)  # type: ignore[misc]
        projection = self._modules.get(f"hr_{name}")
        if projection is None:
            return state
        return (steps.plain(projection(state[0])), *state[1:])


def _mapped(change: Any, state: Any) -> Any:
    return tuple(map(change, state)) if isinstance(state, tuple) else change(state)


def _with_batch(state: Any) -> Any:
    return None if state is None else _mapped(lambda s: s.unsqueeze(1), state)


class LSTM(_Layers, nn.LSTM):
    """`torch.nn.LSTM` with the neuron-wise rule in its input and recurrent weights.

    Forward:              PyTorch's kernel, unless its gates are to be seen (a statistic is recorded
                          or the gradient adapted): then its equations step by step, equal to
                          rounding, not to the last bit
    Backward (default):   the true gradients, with the statistics of each weight recorded for
                          `torchnorm.optim.in_neuron_coordinates`

    For z = W_ih x + b_ih + W_hh h + b_hh each weight is a dense layer of 4 H neurons, whose slope
    is that of its own gate, sigmoid' or tanh', at z, times what that gate is multiplied by, as in
    any gated unit (see `torchnorm.recurrent.steps`). Statistics add up over the steps; the input
    product is one call for all of them.
    With ``proj_size`` the projection is a layer without an activation. In a `PackedSequence` there
    is no padding to count; `torchnorm.neuron_mask` [batch, time] (in the order of the input's axes)
    says what counts of padded input, and how often an example of a packed one does.

    A subclass of PyTorch's module with its parameters, names and arguments: checkpoints move both
    ways, strictly. `unfuse` makes those of a model to such.

    Args:
        *args: the arguments of `torch.nn.LSTM`.
        rule: (keyword, default ``Rule()``) see `torchnorm.Rule`.
        process_group: (keyword, default None) as in `torchnorm.Linear`.
        **kwargs: the arguments of `torch.nn.LSTM`.

    Cost: a loop of Python over the steps, where PyTorch has one kernel.

    Example:
        >>> import torch, torchnorm
        >>> lstm = torchnorm.recurrent.LSTM(3, 4, num_layers=2, batch_first=True)
        >>> optimizer = torchnorm.optim.in_neuron_coordinates(
        ...     torch.optim.Adam(lstm.parameters()), lstm)
        >>> out, (h, c) = lstm(torch.randn(2, 5, 3))
        >>> out.shape
        torch.Size([2, 5, 4])
        >>> out.sum().backward()
        >>> optimizer.step()
    """

    def step(self, given: Any, recurrent: Any, state: State) -> State:
        """(h, c)."""
        return steps.lstm(given, recurrent, state[1])


class GRU(_Layers, nn.GRU):
    """`torch.nn.GRU` with the neuron-wise rule. As `LSTM`.

    The candidate n = tanh(x_n + r h_n) has the slope (1 - z) tanh', its recurrent half r times it.

    Example:
        >>> import torch, torchnorm
        >>> torchnorm.recurrent.GRU(3, 4, bidirectional=True)(torch.ones(5, 2, 3))[0].shape
        torch.Size([5, 2, 8])
    """

    def step(self, given: Any, recurrent: Any, state: State) -> State:
        """(h,)."""
        return (steps.gru(given, recurrent, state[0]),)


class RNN(_Layers, nn.RNN):
    """`torch.nn.RNN` with the neuron-wise rule. As `LSTM`.

    Example:
        >>> import torch, torchnorm
        >>> torchnorm.recurrent.RNN(3, 4, nonlinearity="relu")(torch.ones(5, 2, 3))[0].shape
        torch.Size([5, 2, 4])
    """

    def step(self, given: Any, recurrent: Any, state: State) -> State:
        """(h,)."""
        return (steps.rnn(given, recurrent, self.nonlinearity),)
