"""The fixture `verify_port` for pytest.

In a ``conftest.py`` at the root: ``pytest_plugins = ["parity_tests.port.fixture"]``. It is no entry
point of the package, so that nobody's tests load it, and with it two frameworks, unasked.

    def test_my_port(verify_port):
        verify_port(FlaxNet(), TorchNet(), numpy.zeros((2, 3, 32, 32)))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from parity_tests.port.report import Report


@pytest.fixture
def verify_port() -> Callable[..., Report]:
    """`parity_tests.port.verify`, which fails the test with the report if something departs.

    Models that cannot be compared fail it, too, with the reason. It returns the report.
    """
    __tracebackhide__ = True

    def verify_port(*args: Any, **kwargs: Any) -> Report:
        __tracebackhide__ = True
        from parity_tests.port import CannotCompare, verify

        try:
            report = verify(*args, **kwargs)
        except CannotCompare as error:
            pytest.fail(f"the models cannot be compared: {error}", pytrace=False)
        if not report.agree:
            pytest.fail(str(report), pytrace=False)
        return report

    return verify_port
