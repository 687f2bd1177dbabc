"""Warnings that our own lines cause fail a test; those of a framework do not (pyproject.toml)."""

import warnings

import pytest


@pytest.mark.parametrize("module", ["jaxnorm.optim.bnp", "torchnorm", "experiments.compare"])
def test_of_our_modules(module):
    with pytest.raises(UserWarning, match="planted"):
        warnings.warn_explicit("planted", UserWarning, "file.py", 1, module=module)


def test_of_this_module():
    with pytest.raises(RuntimeWarning, match="planted"):
        warnings.warn("planted", RuntimeWarning, stacklevel=1)


@pytest.mark.parametrize(
    ("category", "module"),
    [
        (UserWarning, "jax._src.core"),
        (UserWarning, "torch.jit"),
        (UserWarning, "jaxnorm_of_others"),
        (DeprecationWarning, "jaxnorm.rule"),
        (FutureWarning, "torchnorm.optim"),
    ],
)
def test_of_a_framework(category, module):
    with warnings.catch_warnings(record=True) as seen:  # pytest.warns would hide the errors
        warnings.warn_explicit("planted", category, "file.py", 1, module=module)
    assert len(seen) == 1
