"""Every example in a docstring runs and prints what it says; every public name has one."""

import doctest
import importlib
import pkgutil
import re

import pytest

import jaxnorm
import torchnorm

MODULES = sorted(
    module.name
    for package in (jaxnorm, torchnorm)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if ".tests" not in module.name
)
PUBLIC = [
    f"{package.__name__}.{name}"
    for package in (jaxnorm, torchnorm)
    for name in package.__all__
    if callable(getattr(package, name))
]
PUBLIC += [
    f"{module.__name__}.{name}"
    for module in (jaxnorm.linen, jaxnorm.nnx, torchnorm.functional)
    for name, value in vars(module).items()
    if str(getattr(value, "__module__", "")).startswith(module.__name__) and name[0] != "_"
]


@pytest.fixture(autouse=True)
def _as_a_user(monkeypatch):
    """The frameworks as they come, in float32."""
    import jax

    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS).failed == 0


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_names_are_documented(name):
    module, _, attribute = name.rpartition(".")
    text = getattr(importlib.import_module(module), attribute).__doc__ or ""
    if "Rule(" not in text.splitlines()[0]:  # presets share the class's text
        assert "Example:\n        >>> " in text
        # "As `Conv2d`, for [N, C, L]": the rest stands there.
        while (sibling := re.search(r"\bAs `(\w+)`", text)) and "Raises:" not in text:
            text = getattr(importlib.import_module(module), sibling[1]).__doc__
        assert "Raises:" in text
