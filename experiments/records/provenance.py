"""Where a result comes from: code, versions, machine."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")


def provenance() -> dict[str, Any]:
    """Git commit (None outside a checkout), versions, and the device JAX computes on."""
    import jax

    import jaxnorm

    versions = {"python": platform.python_version(), "jaxnorm": jaxnorm.__version__}
    versions |= {package: version(package) for package in PACKAGES}
    device = jax.devices()[0]
    return {
        "git_sha": _git("rev-parse", "HEAD"),
        "git_dirty": None if (status := _git("status", "--porcelain")) is None else bool(status),
        "versions": versions,
        "device": f"{device.platform}: {device.device_kind}",
        "cpu_cores": os.cpu_count(),
    }


def _git(*arguments: str) -> str | None:
    """What git says about the folder this file is in; None where it has nothing to say."""
    try:
        result = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
