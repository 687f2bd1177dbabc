"""Tensors are as the user's are, whatever PyTorch's defaults are."""

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("defaults.py")


def test_numbers_do_not_depend_on_the_default_device_or_dtype() -> None:
    programs = [
        subprocess.Popen([sys.executable, PROGRAM, *defaults], stdout=subprocess.PIPE, text=True)
        for defaults in (("cpu", "float32"), ("meta", "float32"), ("cpu", "bfloat16"))
    ]
    expected, device, dtype = (program.communicate()[0] for program in programs)
    assert device == expected
    assert dtype == expected
    assert len(expected.splitlines()) == 5
