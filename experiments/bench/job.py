"""The job: every network in every setting, then tables, plot and JSON."""

import gc
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.bench import figures, tables
from experiments.bench.cells import Cell, Results
from experiments.bench.devices import find_devices, fresh_compilers, limited, name_of
from experiments.bench.methods import METHODS
from experiments.bench.networks import NETWORKS, Network, sweep
from experiments.bench.options import BenchOptions, BenchPlan
from experiments.bench.problems import why_left_out
from experiments.bench.steps import Step
from experiments.bench.timing import block_size, time_round
from experiments.records.files import prepare_folder, write_text
from experiments.records.provenance import provenance
from experiments.report.progress import Progress, make_console

SWEPT = ("plain", "batchnorm", "neuronwise", "full")
"""The methods of the plot."""

BUILD_SECONDS = {
    "jax": 3.0,
    "jax-two-programs": 6.0,
    "torch": 0.5,
    "torch-compiled": 20.0,
    "torch-cudagraphs": 2.0,
}
"""About as long a method takes before it can be timed; for the time left only."""

OPERATIONS_PER_SECOND = 4e10
"""Likewise."""


def run(options: BenchOptions, console: Console | None = None) -> int:
    """Time what was asked for, print the tables, and write them, the plot and all numbers.

    Args:
        options: see `BenchOptions`.
        console: where to print; None: the terminal.

    Returns:
        The exit status: 0, or 130 after an interruption; the results have what was timed.

    Raises:
        ConfigError: for a folder that cannot be written to.
        ExperimentError: for a device that is not there.
    """
    console, plan, status = make_console(console), options.resolved(), 0
    prepare_folder(plan.out)
    with limited(plan.threads), fresh_compilers():
        devices, missing = find_devices(plan.device, plan.frameworks)
        bench = _Bench(plan, devices, missing, console)
        try:
            bench.time_all()
        except KeyboardInterrupt:
            status = 130
        finally:
            bench.finish(status)
    return status


class _Bench:
    """What has been measured so far, and what is to be."""

    def __init__(
        self,
        plan: BenchPlan,
        devices: dict[str, Any],
        missing: dict[str, str],
        console: Console,
    ) -> None:
        self.plan, self.devices, self.missing, self.console = plan, devices, missing, console
        self.results, self.load = Results(), os.getloadavg()
        self.sweep = sweep(quick=plan.quick) if plan.sweep else {}
        for setting, problem in missing.items():
            console.print(f"{setting} is left out: {problem}", highlight=False)

    def groups(self) -> dict[tuple[Network, str], tuple[str, ...]]:
        """The methods to be timed together, by network and setting; those of the sweep last."""
        found: dict[tuple[Network, str], tuple[str, ...]] = {}
        networks = [NETWORKS[name] for name in self.plan.networks]
        for network in networks:
            for setting in self.devices:
                found[network, setting] = self.plan.methods
        for setting in tables.swept(self.devices):
            for network in (n for sizes in self.sweep.values() for n in sizes):
                before = found.get((network, setting), ())
                found[network, setting] = tuple(dict.fromkeys((*before, *SWEPT)))
        return found

    def time_all(self) -> None:
        """Everything, with the time left."""
        groups = self.groups()
        seconds = {
            (network, setting): len(methods) * self._seconds(network, setting)
            for (network, setting), methods in groups.items()
        }
        with Progress(sum(seconds.values()), self.console) as progress:
            for group, methods in groups.items():
                network, setting = group
                progress.describe(f"{network.title}, {setting}")
                _Group(self, network, setting, methods).time(progress, seconds[group])
                line = tables.line(self.results, network, setting)
                self.console.print(f"{network.title}, {setting}: {line}", highlight=False)

    def _seconds(self, network: Network, setting: str) -> float:
        block = max(0.1, network.operations / OPERATIONS_PER_SECOND)
        return BUILD_SECONDS[setting] + 2 * self.plan.rounds * block

    def finish(self, status: int) -> None:
        """Print and write what there is."""
        if status:
            self.console.print("Stopped; the tables and files have what was timed until then.")
        plan, out = self.plan, self.plan.out
        load = self.load[0], os.getloadavg()[0]
        shown = tables.Shown(self.results, plan, self.describe_devices(), self.missing, load)
        for table in shown.tables():
            self.console.print(table)
        for note in shown.notes():
            self.console.print(f"- {note}", highlight=False)
        write_text(out / "table.md", shown.markdown())
        write_text(out / "bench.json", json.dumps(self.to_json(), indent=1) + "\n")
        files = [out / "table.md", out / "bench.json"]
        if any(cell.timed for cell in self.results) and self.sweep:
            files += figures.plot(self.results, self.sweep, out / "cost", plan.dtype)
        names = ", ".join(file.name for file in files)
        self.console.print(f"written to {out}: {names}", highlight=False)

    def describe_devices(self) -> dict[str, str]:
        """The name of each setting's device."""
        return {setting: name_of(device) for setting, device in self.devices.items()}

    def to_json(self) -> dict[str, Any]:
        """All numbers, and where they come from."""
        origin = provenance()
        origin["versions"] |= _version("torch")
        options = asdict(self.plan)
        options = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
        return {
            "origin": origin,
            "options": options,
            "devices": self.describe_devices(),
            "left_out": self.missing,
            "threads": self.plan.threads,
            "load": {"begin": self.load, "end": os.getloadavg()},
            "cells": self.results.to_json(),
        }


class _Group:
    """The methods of one network in one setting, which take turns."""

    def __init__(
        self, bench: _Bench, network: Network, setting: str, methods: tuple[str, ...]
    ) -> None:
        self.plan, self.device = bench.plan, bench.devices[setting]
        self.network, self.setting = network, setting
        self.cells: dict[str, Cell] = {
            method: bench.results.begin(network, setting, method) for method in methods
        }
        self.steps: dict[str, Step] = {}

    def time(self, progress: Progress, seconds: float) -> None:
        """Build, count and time, and say how much of the seconds is done."""
        build = len(self.cells) * BUILD_SECONDS[self.setting]
        for method in self.cells:
            self._guarded(method, self._begin)
            progress.advance(build / len(self.cells))
        if "plain" in self.steps:
            size = block_size(self.steps["plain"])
            timed: Mapping[str, Any] = {name: cell.seconds for name, cell in self.cells.items()}
            for number in range(self.plan.rounds):
                time_round(self.steps, size, number, timed, self._drop)
                progress.advance((seconds - build) / self.plan.rounds)
        self.steps.clear()
        self._forget()

    def _begin(self, method: str) -> None:
        framework, cell = self.setting.split("-")[0], self.cells[method]
        cell.problem = METHODS[method].reason_against(self.network, framework)
        if cell.problem is not None:
            return
        step = self._make(method)
        cell.every, cell.compile_seconds, cell.notes = step.every, step.compile_seconds, step.notes
        cell.counted = step.count()
        self.steps[method] = step

    def _make(self, method: str) -> Step:
        given = self.network, METHODS[method], self.device, self.plan.dtype
        if self.setting.startswith("jax"):
            from experiments.bench import steps_jax as steps
        else:
            from experiments.bench import steps_torch as steps
        return steps.CLASSES[self.setting](*given)

    def _guarded(self, method: str, act: Any) -> None:
        try:
            act(method)
        except Exception as error:
            self._drop(method, error)

    def _drop(self, method: str, error: Exception) -> None:
        """Go on without a method that has no place, or cannot be compiled; raise the rest."""
        self.cells[method].problem = why_left_out(error, self.setting)
        if self.cells[method].problem is None:
            raise error
        self.steps.pop(method, None)
        gc.collect()

    def _forget(self) -> None:
        gc.collect()
        if self.setting.startswith("jax"):
            return
        import torch

        torch.compiler.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _version(package: str) -> dict[str, str]:
    try:
        return {package: version(package)}
    except PackageNotFoundError:
        return {}
