"""What a result depends on, as a key: the same key, the same numbers."""

import ast
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import jaxnorm
from experiments.workloads import Workload

TRAINING = (
    "methods.py",
    "networks",
    "studies/grid.py",
    "studies/tasks.py",
    "training",
    "workloads",
)
"""The files and folders of the experiments whose code a trained number depends on."""


def content_key(
    origin: dict[str, Any],
    workload: Workload | None,
    content: dict[str, Any],
    code: tuple[str, ...] = (),
) -> str:
    """The key of a result: a digest of everything that determines it.

    Args:
        origin: see `experiments.records.provenance`; versions and device count, the commit does
            not, because `code_digest` knows better.
        workload: its data counts; None: there are none.
        content: options, seeds, sizes: whatever JSON can hold.
        code: further files and folders like those in `TRAINING`.
    """
    parts = {
        "content": content,
        "data": None if workload is None else data_digest(workload),
        "code": code_digest(*code),
        "versions": origin["versions"],
        "device": origin["device"],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def data_digest(workload: Workload) -> str:
    """Of all samples."""
    digest = hashlib.sha256()
    for samples in (workload.train, workload.test):
        for array in (samples.inputs, samples.targets):
            digest.update(f"{array.shape}{array.dtype}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


@functools.cache
def code_digest(*further: str) -> str:
    """Of jaxnorm, `TRAINING` and further files; comments and line breaks do not count."""
    package, here = Path(jaxnorm.__file__).parent, Path(__file__).parent.parent
    files = [path for path in package.rglob("*.py") if "tests" not in path.parts]
    for name in (*TRAINING, *further):
        files += [here / name] if name.endswith(".py") else (here / name).rglob("*.py")
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(ast.dump(ast.parse(path.read_text(encoding="utf-8"))).encode())
    return digest.hexdigest()
