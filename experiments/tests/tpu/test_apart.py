"""Work in a process of its own: its result, its error, its end."""

import os

import pytest

from experiments.tpu.apart import Crashed, apart


def test_it_is_another_process() -> None:
    """And its result comes back."""
    assert apart(os.getpid) != os.getpid()


def test_its_error_comes_back() -> None:
    """As it is."""
    with pytest.raises(ValueError, match="invalid literal"):
        apart(int, "x")


def test_its_end_is_an_error_with_its_last_words() -> None:
    """An assertion of C++ that fails, say."""
    with pytest.raises(Crashed, match="said nothing"):
        apart(os.abort)
    with pytest.raises(Crashed, match=r"^Check failed: 1 == 2$"):
        apart(
            exec, "import os; os.write(2, b'F1 x.cc:1] Check failed: 1 == 2\\n@ 0x1'); os.abort()"
        )
