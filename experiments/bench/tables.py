"""The tables of the bench."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from experiments.bench import schedule
from experiments.bench.cells import Cell, Results
from experiments.bench.methods import METHODS
from experiments.bench.networks import NETWORKS, Network
from experiments.bench.options import BenchPlan
from experiments.bench.steps import Counts
from experiments.report.tables import Table

NOTHING = "-"

SETTINGS = {
    "jax": "JAX, jit",
    "jax-two-programs": "JAX, two programs",
    "torch": "PyTorch, eager",
    "torch-compiled": "PyTorch, compiled",
    "torch-cudagraphs": "PyTorch, CUDA graphs",
}
"""Every setting as tables and plot have it, by its name on the command line."""

DETAILED = "neuronwise"
"""The method whose kinds of steps have rows of their own."""

DETAILS = {
    schedule.WITHOUT: "step without statistics",
    schedule.WITH: "step with statistics",
    "long run": "in the long run",
}


def swept(settings: Iterable[str]) -> list[str]:
    """The settings of the sweep: to compile every size would take longer than all the rest."""
    return [setting for setting in settings if setting in ("jax", "torch", "torch-cudagraphs")]


def line(results: Results, network: Network, setting: str) -> str:
    """What was found of one network in one setting, in a line."""
    found = []
    for cell in results:
        if (cell.network, cell.setting) == (network, setting) and cell.method != "plain":
            found.append(f"{METHODS[cell.method].title} {_ratio(results, cell, 'run', short=True)}")
    return "; ".join(found) or _plain(results.get(network, setting, "plain"))


@dataclass(frozen=True)
class Shown:
    """Everything that is shown.

    Attributes:
        results: all cells.
        plan: the options.
        devices: the name of the device by setting.
        missing: why a setting is left out.
        load: of the machine before and after, as `os.getloadavg` has it: about so many busy cores.
    """

    results: Results
    plan: BenchPlan
    devices: dict[str, str]
    missing: dict[str, str]
    load: tuple[float, float]

    def tables(self) -> list[Table]:
        """The time, what was counted in each setting, and the sweep."""
        counted = [self.counted(setting) for setting in self.devices]
        return [t for t in (self.time(), *counted, self.sweep()) if t.rows]

    def markdown(self) -> str:
        """All of it, for a file."""
        parts = [f"**{table.title}**\n\n{table.markdown()}" for table in self.tables()]
        return "\n".join([*parts, "".join(f"- {note}\n" for note in self.notes())])

    def time(self) -> Table:
        """Ratios to the plain step: a row for each method, a column for each setting."""
        rows = []
        for network in self._networks():
            for method in self.plan.methods:
                cells = [self.results.get(network, setting, method) for setting in self.devices]
                if any(cells):
                    texts = [self._time_of(cell) for cell in cells]
                    rows.append([f"{network.title}: {METHODS[method].title}", *texts])
                if method == DETAILED:
                    rows += self._details(network, cells)
        title = f"time of a training step, plain = 1, {self.plan.dtype}"
        return Table(
            ["network: method", *(SETTINGS[setting] for setting in self.devices)], rows, title
        )

    def counted(self, setting: str) -> Table:
        """What does not depend on the clock, and the seconds of compiling."""
        headings = ["network: method", "compile (s)", "transient memory", "state", "FLOPs"]
        headings += ["bytes", *(["operators"] if setting == "torch" else [])]
        rows = []
        for network in self._networks():
            plain = self.results.get(network, setting, "plain")
            for method in self.plan.methods:
                cell = self.results.get(network, setting, method)
                if cell is None or cell.counted is None or plain is None or plain.counted is None:
                    continue
                texts = [
                    f"{cell.compile_seconds:.1f}" if setting != "torch" else NOTHING,
                    _by_parts(cell, plain, "transient_bytes"),
                    _beside(cell.counted.state_bytes, plain.counted.state_bytes, cell is plain),
                    _by_parts(cell, plain, "flops"),
                    _by_parts(cell, plain, "bytes_accessed"),
                    _by_parts(cell, plain, "operators"),
                ]
                rows.append(
                    [f"{network.title}: {METHODS[method].title}", *texts[: len(headings) - 1]]
                )
        return Table(headings, rows, f"{SETTINGS[setting]}: counted, plain = 1")

    def sweep(self) -> Table:
        """The numbers of the plot."""
        methods = ("batchnorm", "neuronwise", "full")
        headings = [
            f"{SETTINGS[s]}: {METHODS[m].title}" for s in swept(self.devices) for m in methods
        ]
        rows = []
        for network in sorted(set(self._swept()), key=lambda n: (n.width, n.batch)):
            cells = [
                self.results.get(network, setting, method)
                for setting in swept(self.devices)
                for method in methods
            ]
            rows.append([network.title, *map(self._time_of, cells)])
        return Table(["network", *headings], rows, "over batch and width, plain = 1")

    def notes(self) -> Iterator[str]:
        """What a reader has to know."""
        plan = self.plan
        yield (
            f"Median over {plan.rounds} rounds of the ratio to the plain step of the same round "
            "(quartiles), all methods of a network taking turns; "
            f"{plan.threads} thread{'s' * (plan.threads > 1)}. "
            + "; ".join(
                f"{SETTINGS[setting]}: {device}" for setting, device in self.devices.items()
            )
            + f". Load of the machine: {self.load[0]:.1f} before, {self.load[1]:.1f} after."
        )
        yield (
            f"Where statistics are taken in some steps only, the ratio is the average over the "
            f"first {schedule.RUN} steps of a run; in the long run it is that of all later ones."
        )
        yield (
            "Counted: two numbers are of the step with and without statistics; of JAX the larger. "
            "FLOPs, bytes and memory are XLA's for JAX (memory: its temporary buffers); for "
            "PyTorch those of the operators that are dispatched, and the most that its allocator "
            "has given out beside what stays. State: parameters, optimizer, statistics."
        )
        for setting, problem in self.missing.items():
            yield f"{setting} is left out: {problem}."
        problems: dict[str, list[str]] = {}
        for cell in self.results:
            for text in [*([cell.problem] if cell.problem else []), *cell.notes]:
                where = f"{METHODS[cell.method].title} in {cell.network.title} ({cell.setting})"
                problems.setdefault(text, []).append(where)
        for text, cells in problems.items():
            yield f"{', '.join(cells)}: {text}."

    def _networks(self) -> list[Network]:
        return [NETWORKS[name] for name in self.plan.networks]

    def _swept(self) -> Iterator[Network]:
        others = self._networks()
        for cell in self.results:
            if cell.network not in others:
                yield cell.network

    def _time_of(self, cell: Cell | None) -> str:
        if cell is not None and cell.method == "plain":
            return _plain(cell)
        return NOTHING if cell is None else _ratio(self.results, cell, "run")

    def _details(self, network: Network, cells: list[Cell | None]) -> list[list[str]]:
        if not any(cell is not None and cell.timed and cell.every > 1 for cell in cells):
            return []
        return [
            [
                f"{network.title}: {METHODS[DETAILED].title}, {title}",
                *(_ratio(self.results, c, name) if c is not None else NOTHING for c in cells),
            ]
            for name, title in DETAILS.items()
        ]


def _plain(cell: Cell | None) -> str:
    if cell is None or not cell.timed:
        return _no_number(cell)
    seconds = sorted(cell.seconds[schedule.ALIKE])
    return f"{seconds[len(seconds) // 2] * 1e3:.3g} ms"


def _ratio(results: Results, cell: Cell, name: str, *, short: bool = False) -> str:
    spread = results.ratios(cell).get(name)
    if spread is None:
        return _no_number(cell)
    return f"{spread.median:.2f}" if short else str(spread)


def _no_number(cell: Cell | None) -> str:
    """Out of memory is said in the cell, what takes more words below the table."""
    return "out of memory" if cell is not None and cell.problem == "out of memory" else NOTHING


def _by_parts(cell: Cell, plain: Cell, name: str) -> str:
    assert cell.counted is not None
    assert plain.counted is not None
    (unit,) = (getattr(counts, name) for counts in plain.counted.parts.values())
    values = [_value(counts, name) for counts in cell.counted.parts.values()]
    return " / ".join(_beside(value, unit, cell is plain) for value in values)


def _value(counts: Counts, name: str) -> float | None:
    return getattr(counts, name)


def _beside(value: float | None, unit: float | None, is_plain: bool) -> str:
    if value is None or not unit:
        return NOTHING
    if not is_plain:
        return f"{value / unit:.2f}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:g}"
