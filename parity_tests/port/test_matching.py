"""Which layer is which, from names, shapes, wiring and orders; and where its numbers go."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from parity_tests.port import CannotCompare
from parity_tests.port.links import BY_NAME, BY_ORDER, GIVEN, ONLY, TRIED, WIRED
from parity_tests.port.matching import Orders, pair
from parity_tests.port.units import normalized


def side(shapes: dict[str, Any], kinds: dict[str, str] | None = None, **fields: Any) -> Any:
    """A model of which only the arrays are known."""
    generator = np.random.default_rng(0)
    arrays = {name: generator.normal(size=shape) for name, shape in shapes.items()}
    states = {n: a for n, a in arrays.items() if n.endswith(("mean", "var"))}
    parameters = {n: a for n, a in arrays.items() if n not in states}
    kinds, framework = kinds or {}, "nnx" if any("/" in n for n in shapes) else "PyTorch"
    return SimpleNamespace(
        framework=framework,
        parameters=parameters,
        states=states,
        kinds=kinds,
        fields=fields,
        frozen={name for name in shapes if "fixed" in name},
    )


def told(pairing: Any) -> dict[str, tuple[str, str]]:
    """Path in Flax -> (name in PyTorch, sureness)."""
    return {p.flax.name: (p.torch.name, p.sureness) for p in pairing.pairs}


def there_and_back(pairing: Any, flax: Any, torch: Any) -> None:
    """The numbers go to Flax and come back, entry by entry."""
    for state in (False, True):
        before = torch.states if state else torch.parameters
        new = pairing.to_flax(flax, before, state=state)
        for name, array in pairing.to_torch(torch, new, state=state).items():
            np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_by_name_and_by_shape():
    flax = side({"a/kernel": (3, 4), "a/bias": (4,), "x/kernel": (3, 3, 4, 5), "n/scale": (5,),
                 "n/bias": (5,), "n/mean": (5,), "n/var": (5,)})  # fmt: skip
    torch = side({"a.weight": (4, 3), "a.bias": (4,), "conv.weight": (5, 4, 3, 3),
                  "bn.weight": (5,), "bn.bias": (5,), "bn.running_mean": (5,),
                  "bn.running_var": (5,)})  # fmt: skip
    pairing = pair(flax, torch)
    assert told(pairing) == {"a": ("a", BY_NAME), "x": ("conv", ONLY), "n": ("bn", ONLY)}
    there_and_back(pairing, flax, torch)
    assert not pairing.spare_flax
    assert not pairing.spare_torch
    assert normalized("layers_0/attn/query") == normalized("layers.0.attn.query")


def test_by_wiring_then_by_order():
    flax = side({f"{n}/{leaf}": s for n in ("c1", "c2") for leaf, s in (("kernel", (4, 4)),)}
                | {f"{n}/scale": (4,) for n in ("p", "q")})  # fmt: skip
    torch = side({"b.weight": (4, 4), "a.weight": (4, 4), "m.weight": (4,), "n.weight": (4,)})
    orders = Orders(("c1", "c2", "p", "q"), ("a", "b", "n", "m"))
    by_calls = {"c1": ("a", BY_ORDER), "c2": ("b", BY_ORDER)}
    assert told(pair(flax, torch, orders=orders)) == {
        **by_calls, "p": ("n", BY_ORDER), "q": ("m", BY_ORDER)
    }  # fmt: skip
    # p reads what c2 returns, as m reads what b returns: the order of p and q is not asked.
    wired = Orders(*(orders.flax, orders.torch), {"p": {"c2"}}, {"m": {"b"}})
    pairing = pair(flax, torch, orders=wired)
    assert told(pairing) == {**by_calls, "p": ("m", WIRED), "q": ("n", ONLY)}
    (group,) = pairing.groups
    exchanged = pairing.exchanged(*group)
    assert told(exchanged)["c1"] == ("b", TRIED)
    there_and_back(exchanged, flax, torch)


def test_given_names():
    flax = side({"x/kernel": (4, 4), "y/kernel": (4, 4), "pos/": (1, 3, 4)})
    torch = side({"a.weight": (4, 4), "b.weight": (4, 4), "where": (3, 4)})
    pairing = pair(flax, torch, names={"x": "b"})
    assert told(pairing)["x"] == ("b", GIVEN)
    assert told(pairing)["y"] == ("a", ONLY)
    assert pairing.to_flax(flax, torch.parameters, state=False)["pos/"].shape == (1, 3, 4)
    with pytest.raises(CannotCompare, match="got 'c' for 'x', expected a layer of the PyTorch"):
        pair(flax, torch, names={"x": "c"})
    flax = side({"x/kernel": (4, 5), "y/kernel": (4, 4)})
    torch = side({"a.weight": (5, 4), "b.weight": (4, 4)})
    with pytest.raises(CannotCompare, match="got 'b' for 'x', whose shapes are weight"):
        pair(flax, torch, names={"x": "b"})


HEADS = {f"m/{n}/kernel": (4, 2, 2) for n in ("query", "key", "value")} | {
    "m/out/kernel": (2, 2, 4)
}
FUSED = {"m.in_proj_weight": (12, 4), "m.out_proj.weight": (4, 4)}


@pytest.mark.parametrize(
    ("ours", "theirs", "wanted"),
    [
        (HEADS, FUSED, {"m/query": "m[query]", "m/value": "m[value]", "m/out": "m.out_proj"}),
        ({"m/qkv/kernel": (4, 12), "m/out/kernel": (4, 4)}, FUSED, {"m/qkv": "m[in_proj]"}),
        (
            {f"m/{n}/kernel": (4, 4) for n in "qkvo"},
            {"m.qkv.weight": (12, 4), "m.o.weight": (4, 4)},
            {"m/q": "m.qkv[query]", "m/v": "m.qkv[value]", "m/o": "m.o"},
        ),
        (
            {"m/qkv/kernel": (4, 12), "m/qkv/bias": (12,), "m/o/kernel": (4, 4)},
            {f"m.{n}.weight": (4, 4) for n in "qkvo"} | {f"m.{n}.bias": (4,) for n in "qkv"},
            {"m/qkv[query]": "m.q", "m/qkv[value]": "m.v", "m/o": "m.o"},
        ),
    ],
)
def test_fused_projections(ours, theirs, wanted):
    flax, torch = side(ours), side(theirs)
    order = [name.rpartition("/")[0] for name in ours]
    pairing = pair(
        flax, torch, orders=Orders(order, ("m.qkv", "m", "m.out_proj", "m.q", "m.k", "m.v", "m.o"))
    )
    assert {path: told(pairing)[path][0] for path in wanted} == wanted
    there_and_back(pairing, flax, torch)


def recurrent(gates: str, size: int = 3, inputs: int = 2) -> tuple[Any, Any]:
    count = len(gates)
    ours = {f"r/i{g}/kernel": (inputs, size) for g in gates}
    ours |= {f"r/h{g}/kernel": (size, size) for g in gates}
    biased = [f"h{g}" for g in gates] if count == 4 else ["ir", "iz", "in", "hn"]
    ours |= {f"r/{name}/bias": (size,) for name in biased}
    ends = {"weight_ih": inputs, "weight_hh": size}
    theirs = {f"r.{name}_l0": (count * size, n) for name, n in ends.items()}
    theirs |= {f"r.bias_{end}_l0": (count * size,) for end in ("ih", "hh")}
    return side(ours), side(theirs)


@pytest.mark.parametrize("gates", ["ifgo", "rzn"])
def test_gates_and_the_sum_of_two_biases(gates):
    flax, torch = recurrent(gates)
    pairing = pair(flax, torch)
    new = pairing.to_flax(flax, torch.parameters, state=False)
    one, two = (torch.parameters[f"r.bias_{end}_l0"] for end in ("ih", "hh"))
    first = "h" if gates == "ifgo" else "i"
    np.testing.assert_allclose(new[f"r/{first}{gates[0]}/bias"], (one + two)[:3])
    weight = torch.parameters["r.weight_ih_l0"]
    np.testing.assert_array_equal(new[f"r/i{gates[1]}/kernel"], weight[3:6].T)
    if gates == "rzn":  # the reset gate stands between these two
        np.testing.assert_array_equal(new["r/hn/bias"], two[6:])
        np.testing.assert_array_equal(new["r/in/bias"], one[6:])
    second = "ih" if gates == "ifgo" else "hh"
    assert {name for name, _ in pairing.fixed} == {f"r.bias_{second}_l0"}
    back = pairing.to_torch(torch, new, state=False)
    again = pairing.to_flax(flax, back, state=False)
    for path, array in new.items():
        np.testing.assert_array_equal(again[path], array, err_msg=path)


def test_transposed_convolutions_lie_as_they_were_made():
    shapes = {"u/kernel": (2, 2, 4, 4)}
    torch = side({"up.weight": (4, 4, 2, 2)}, {"up": "ConvTranspose2d"})
    kinds = {"u": "ConvTranspose"}
    weight = torch.parameters["up.weight"]
    plain, swapped = (side(shapes, kinds, u={"transpose_kernel": k}) for k in (False, True))
    kernel = pair(plain, torch).to_flax(plain, torch.parameters, state=False)["u/kernel"]
    np.testing.assert_array_equal(kernel, weight.transpose(2, 3, 0, 1)[::-1, ::-1])
    kernel = pair(swapped, torch).to_flax(swapped, torch.parameters, state=False)["u/kernel"]
    np.testing.assert_array_equal(kernel, weight.transpose(2, 3, 1, 0))


def test_a_bias_that_one_side_has_not_is_spare_and_layers_are_not():
    flax = side({"a/kernel": (3, 4), "b/kernel": (4, 5), "b/bias": (5,)})
    torch = side({"a.weight": (4, 3), "a.bias": (4,), "b.weight": (5, 4)})
    pairing = pair(flax, torch)
    assert pairing.spare_torch == {"a.bias": (4,)}
    assert pairing.spare_flax == {"b/bias": (5,)}
    # Nor are buffers that stand alone, and what is not trained.
    more = {"frequencies.mean": (7,), "fixed.table": (9, 2)}
    torch = side({name: a.shape for name, a in torch.parameters.items()} | more)
    (note,) = pair(flax, torch).notes
    assert note.endswith("left as they are: fixed.table, frequencies.mean")
    flax = side({"a/kernel": (3, 4), "c/kernel": (4, 9)})
    with pytest.raises(CannotCompare) as error:
        pair(flax, torch)
    assert "left in Flax: c weight (4, 9) · in PyTorch: b weight (5, 4)" in str(error.value)
