"""Attention: its scale and its causal mask."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parity_tests.port.causes.base import Case, Cause, Function, Hypothesis, only, with_values
from parity_tests.port.functions import MATRIX_PRODUCTS, PRODUCTS, SOFTMAX

_SDPA, _MHA = F.scaled_dot_product_attention, F.multi_head_attention_forward
_MASKING = (torch.masked_fill, Tensor.masked_fill, Tensor.masked_fill_)


class AttentionScale(Cause):
    """What the products of queries and keys are divided by; a root of the size of a head."""

    name = "attention scale"
    mend = "scale by 1 / sqrt(size of a head) on both sides, once"

    def hypotheses(self, case: Case) -> Iterator[Hypothesis]:
        """None, the square, the root of the whole width."""
        for call in case.calls(_SDPA)[:1]:
            query = call.values["query"]
            size, heads = query.shape[-1], query.shape[1] if query.ndim > 3 else 1
            mine = call.kwargs.get("scale") or size**-0.5
            for name, new in _scales(size, heads).items():
                if not math.isclose(new, mine):
                    text = f"PyTorch scales by {mine:.6g}, Flax by {new:.6g} ({name})"
                    yield Hypothesis(text, with_values((_SDPA,), scale=new))
        for call in case.calls(_MHA)[:1]:
            width, heads = call.values["embed_dim_to_check"], call.values["num_heads"]
            mine = (width / heads) ** -0.5
            for name, new in _scales(width // heads, heads).items():
                if not math.isclose(new, mine):
                    text = f"PyTorch scales by {mine:.6g}, Flax by {new:.6g} ({name})"
                    yield Hypothesis(text, only((_MHA,), _scaled_queries(new / mine)))
        if not case.calls(*SOFTMAX):
            return
        factors = {
            float(f.values["other"])
            for f in case.calls(*PRODUCTS)
            if isinstance(f.values.get("other"), (int, float))
        }
        scales = [scale for each in _sizes(case) for scale in _scales(*each).values()]
        for old in factors:
            likely = [1.0, old * old, math.sqrt(abs(old)), 1 / old if old else 1.0]
            for new in dict.fromkeys([*likely, *scales]):
                text = f"PyTorch scales by {old:.6g}, Flax by {new:.6g}"
                yield Hypothesis(text, only(PRODUCTS, _exchange(old, new)))
        if not factors:
            for factor in scales:
                if factor != 1:
                    text = f"PyTorch does not scale, Flax by {factor:.6g}"
                    yield Hypothesis(text, only(SOFTMAX, _scaled_logits(factor)))


def _sizes(case: Case) -> list[tuple[int, int]]:
    """(size of a head, number of heads) of what may be the queries; the heads come second."""
    queries = [f.args[0] for f in case.calls(*MATRIX_PRODUCTS) if f.args[0].ndim > 2]
    return [(q.shape[-1], q.shape[1] if q.ndim > 3 else 1) for q in queries[:1]]


def _scales(size: int, heads: int) -> dict[str, float]:
    return {
        "none": 1.0,
        "1 / the size of a head": 1 / size,
        "1 / the root of the width": (size * heads) ** -0.5,
        "1 / the root of the size of a head": size**-0.5,
        "the root of the size of a head": size**0.5,
    }


def _exchange(old: float, new: float) -> Any:
    def change(function: Function) -> Any:
        if function.values.get("other") == old:
            return function.again(other=new)
        return function.again()

    return change


def _scaled_logits(factor: float) -> Any:
    return lambda function: function.again(input=function.values["input"] * factor)


def _scaled_queries(factor: float) -> Any:
    def change(function: Function) -> Any:
        values = function.values
        width = values["embed_dim_to_check"]
        new = {}
        for name in ("in_proj_weight", "in_proj_bias"):
            array = values.get(name)
            if array is not None:
                new[name] = torch.cat([array[:width] * factor, array[width:]])
        return function.again(**new)

    return change


class CausalMask(Cause):
    """One side hides what comes later, the other does not."""

    name = "causal mask"
    mend = "mask=nn.make_causal_mask(...) in Flax is is_causal=True in PyTorch"

    def hypotheses(self, case: Case) -> Iterator[Hypothesis]:
        """The other way."""
        for call in case.calls(_SDPA)[:1]:
            causal = bool(call.values.get("is_causal")) or call.values.get("attn_mask") is not None
            new = {"is_causal": not causal} | ({"attn_mask": None} if causal else {})
            yield Hypothesis(_words(causal), with_values((_SDPA,), **new))
            if causal:
                for places in (1, -1):
                    yield Hypothesis(_shifted(places), only((_SDPA,), _shows(places)))
        for call in case.calls(_MHA)[:1]:
            mask = call.values.get("attn_mask")

            def change(function: Function, mask: Any = mask) -> Any:
                length = function.values["query"].shape[0]
                new = None if mask is not None else torch.ones(length, length).triu(1).bool()
                return function.again(attn_mask=new, is_causal=False)

            yield Hypothesis(_words(mask is not None), only((_MHA,), change))
        if case.calls(*_MASKING) or case.calls(torch.where, Tensor.where):
            functions = _MASKING if case.calls(*_MASKING) else (torch.where,)
            place = 0 if functions is _MASKING else 1
            yield Hypothesis(_words(True), only(functions, lambda f: f.args[place]))
        if case.calls(*SOFTMAX):

            def hide(function: Function) -> Any:
                logits = function.values["input"]
                later = torch.ones(logits.shape[-2:]).triu(1).bool()
                return function.again(input=logits.masked_fill(later, float("-inf")))

            yield Hypothesis(_words(False), only(SOFTMAX, hide))


def _shows(places: int) -> Any:
    def change(function: Function) -> Any:
        query, key = function.values["query"], function.values["key"]
        seen = torch.ones(query.shape[-2], key.shape[-2]).tril(places).bool()
        return function.again(attn_mask=seen, is_causal=False)

    return change


def _shifted(places: int) -> str:
    shown = "the next place, too" if places > 0 else "not even the place itself"
    return f"PyTorch shows what came before and the place itself, Flax {shown}"


def _words(mine: bool) -> str:
    sides = ("PyTorch", "Flax") if mine else ("Flax", "PyTorch")
    return f"{sides[0]} hides what comes later, {sides[1]} does not"
