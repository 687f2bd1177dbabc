"""Tensors lie where the user's do, whatever the default device is."""

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("default_device.py")


def test_numbers_do_not_depend_on_the_default_device() -> None:
    programs = [
        subprocess.Popen([sys.executable, PROGRAM, device], stdout=subprocess.PIPE, text=True)
        for device in ("cpu", "meta")
    ]
    expected, found = (program.communicate()[0] for program in programs)
    assert found == expected
    assert len(found.splitlines()) == 5
