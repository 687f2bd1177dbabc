"""The job: every step compiled for every target, then tables and JSON."""

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.bench.methods import METHODS
from experiments.bench.networks import NETWORKS, Network
from experiments.bench.steps_jax import interval_of
from experiments.errors import ExperimentError
from experiments.records.files import prepare_folder, write_text
from experiments.records.provenance import provenance
from experiments.report.progress import make_console
from experiments.tpu import exporting, tables, targets
from experiments.tpu.apart import Crashed, apart
from experiments.tpu.cells import Cell
from experiments.tpu.options import TpuOptions, TpuPlan
from experiments.tpu.programs import compile_for, compile_parts

SIZES = {
    "bench": {
        "mlp": NETWORKS["mlp-1024"],
        "transformer": NETWORKS["transformer"],
        "resnet": NETWORKS["resnet"],
    },
    "large": {
        "mlp": Network("mlp", 4096, 4096),
        "transformer": Network("transformer", 16, 1024, 512),
        "resnet": Network("resnet", 128, 128, 16),
    },
}
"""The networks by scale and kind."""


def run(options: TpuOptions, console: Console | None = None) -> int:
    """Compile what was asked for, print the tables, and write them and all numbers.

    Args:
        options: see `TpuOptions`.
        console: where to print; None: the terminal.

    Returns:
        The exit status: 0, or 130 after an interruption; the results have what was compiled.

    Raises:
        ConfigError: for a folder that cannot be written to, and TPUs that there are not.
        ExperimentError: without libtpu; without flatbuffers where steps are to be exported.
    """
    console, plan, status = make_console(console), options.resolved(), 0
    prepare_folder(plan.out)
    if plan.export is not None:
        if importlib.util.find_spec("flatbuffers") is None:
            raise ExperimentError("--export needs flatbuffers: pip install flatbuffers")
        prepare_folder(plan.export, "--export")
    with targets.quiet_libtpu():
        names = plan.targets or targets.default_names()
        each = dict.fromkeys(map(targets.full_name, names))
        job = _Job(plan, [targets.find(name) for name in each], console)
        try:
            if plan.export is not None:
                job.export(plan.export)
            job.compile_all()
        except KeyboardInterrupt:
            status = 130
        finally:
            job.finish(status)
    return status


class _Job:
    """What has been compiled so far, and what is to be."""

    def __init__(self, plan: TpuPlan, found: list[targets.Target], console: Console) -> None:
        self.plan, self.targets, self.console = plan, found, console
        self.cells: list[Cell] = []
        self.exported: dict[str, float] = {}

    @property
    def networks(self) -> list[Network]:
        """Those asked for, in their size."""
        return [SIZES[self.plan.scale][kind] for kind in self.plan.networks]

    def compile_all(self) -> None:
        """Every step for every target."""
        for target in self.targets:
            for sharding in self.plan.sharding:
                for network in self.networks:
                    for method in self.plan.methods:
                        self._compile(target, sharding, network, method)
                        self.console.print(tables.line(self.cells[-1]), highlight=False)
                        self.write()

    def _compile(
        self, target: targets.Target, sharding: str, network: Network, method: str
    ) -> None:
        cell = Cell(target.name, sharding, network, method)
        self.cells.append(cell)
        devices = len(target.devices)
        if sharding != "one" and network.batch % devices:
            cell.problem = f"a batch of {network.batch} cannot be sharded over {devices} devices"
            return
        given = METHODS[method]
        cell.every = interval_of(given)
        about = network, given, self.plan.dtype
        try:
            if target.runs:
                cell.programs, cell.problem = compile_parts(*about, target, sharding)
            else:
                found = apart(compile_for, *about, target.name, sharding)
                cell.programs, cell.problem = found
        except Crashed as error:
            cell.problem = f"XLA's compiler has crashed: {error}"

    def export(self, folder: Path) -> None:
        """Write every step, and compare what is read."""
        for kind, network in zip(self.plan.networks, self.networks, strict=True):
            for method in self.plan.methods:
                path = folder / f"{kind}-{method}.jaxexport"
                difference = exporting.export(network, METHODS[method], self.plan.dtype, path)
                self.exported[path.name] = difference
                words = f"{path}: read again and run, it differs by {difference:.1g}"
                self.console.print(words, highlight=False)

    def finish(self, status: int) -> None:
        """Print and write what there is."""
        if status:
            self.console.print("Stopped; the tables and files have what was compiled until then.")
        shown = self.write()
        for table in shown.tables():
            self.console.print(table)
        for note in shown.notes():
            self.console.print(f"- {note}", highlight=False)
        self.console.print(f"written to {self.plan.out}: table.md, tpu.json", highlight=False)

    def write(self) -> tables.Shown:
        """Write what there is so far: a cell may take minutes."""
        devices = {target.name: len(target.devices) for target in self.targets}
        shown = tables.Shown(self.cells, devices, self.plan.dtype, self.exported)
        write_text(self.plan.out / "table.md", shown.markdown())
        text = json.dumps(self.to_json(devices), indent=1) + "\n"
        write_text(self.plan.out / "tpu.json", text)
        return shown

    def to_json(self, devices: dict[str, int]) -> dict[str, Any]:
        """All numbers, and where they come from."""
        options = asdict(self.plan)
        options = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
        return {
            "origin": provenance(),
            "options": options,
            "devices": devices,
            "exported": self.exported,
            "cells": [cell.to_json() for cell in self.cells],
        }
