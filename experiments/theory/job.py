"""`python -m experiments theory`: check every claim, measure spectra, draw both."""

import json
import math
from collections.abc import Sequence

import jax
import numpy as np
from rich.console import Console

from experiments.evidence.problems import PROBLEMS
from experiments.methods import METHODS
from experiments.records.files import prepare_folder, write_text
from experiments.report.drawing import save
from experiments.report.progress import make_console
from experiments.report.tables import Table
from experiments.studies.tasks import TASKS, Language, Task
from experiments.theory.claims import CLAIMS, Claim
from experiments.theory.figures import draw_conditioning, draw_spectra
from experiments.theory.layers import Layer, look
from experiments.theory.options import TheoryOptions
from experiments.theory.spectra import Curvature, measure
from experiments.workloads import STUDIED, WORKLOADS

#: Steps after which each layer is looked at.
LAYERS_AT = (0, 100)


def run(options: TheoryOptions, console: Console | None = None) -> int:
    """Check, measure, print, write.

    Returns:
        0; 1 if a claim does not hold.
    """
    console = make_console(console)
    prepare_folder(options.out)
    with jax.enable_x64(True):
        values = {claim: claim.check() for claim in CLAIMS}
        claims = claims_table(values)
        console.print(claims)
        save(draw_conditioning, options.out / "conditioning", [".png", ".svg"])
        write_text(options.out / "claims.md", claims.markdown())
        found: list[Curvature] = []
        for name in options.workloads if options.spectra else ():
            workload = WORKLOADS[name].load(options.data_dir)
            for each in measure(
                workload, tuple(sorted(options.steps)), options.width, options.depth
            ):
                found.append(each)
                console.print(f"{name}: {METHODS[each.coordinates].title}, {each.step} steps")
        layers: list[Layer] = []
        for name in tasks() if options.layers else ():
            workload = STUDIED[TASKS[name].workload].load(options.data_dir)
            if TASKS[name].standardized:
                workload = workload.standardized()
            layers += look(name, workload, LAYERS_AT)
            console.print(f"{TASKS[name].title}: each layer")
    if layers:
        console.print(layers_table(layers))
        write_text(options.out / "layers.md", layers_table(layers).markdown())
        text = json.dumps([each._asdict() for each in layers], indent=1)
        write_text(options.out / "layers.json", text + "\n")
    if found:
        spectra = spectra_table(found)
        console.print(spectra)
        save(lambda: draw_spectra(found), options.out / "spectra", [".png", ".svg"])
        write_text(options.out / "spectra.md", spectra.markdown())
    return 0 if all(claim.holds(value) for claim, value in values.items()) else 1


def claims_table(values: dict[Claim, float]) -> Table:
    """A row for each claim."""
    rows = [
        [
            claim.text,
            claim.number,
            f"{value:.1e}" if claim.equality else "",
            "" if claim.equality else f"{value:.3g}",
            "yes" if claim.holds(value) else "**no**",
        ]
        for claim, value in values.items()
    ]
    return Table(("claim", "section", "error", "margin", "holds"), rows, "What the page claims")


def spectra_table(found: Sequence[Curvature]) -> Table:
    """A row for each step in each coordinates."""
    rows = [
        [
            f"{each.workload}, {METHODS[each.coordinates].title}",
            str(each.step),
            f"{each.hessian:.3g}",
            f"{each.largest:.3g}",
            f"{each.ratio:.3g}",
            ", ".join(f"{block:.1f}" for block in each.blocks),
        ]
        for each in found
    ]
    headings = ("coordinates", "steps", "Hessian", "Gauss-Newton", "over mean", "of the neurons")
    return Table(headings, rows, "Largest eigenvalues, and over the mean one")


def tasks() -> list[str]:
    """Those of the sweep whose layers each have one gate, and see samples only."""
    names = dict.fromkeys(problem.task for problem in PROBLEMS.values())
    return [name for name in names if type(TASKS[name]) in (Task, Language)]


def layers_table(layers: Sequence[Layer]) -> Table:
    """A row for each task after each number of steps: geometric means over its layers."""
    rows = []
    for task, step in dict.fromkeys((each.task, each.step) for each in layers):
        some = [each.ratios for each in layers if (each.task, each.step) == (task, step)]
        means = {name: _geometric([each[name] for each in some]) for name in some[0]}
        shown = [f"{means[name]:.3g}" for name in means]
        gain = means["neuronwise"] / means["plain"]
        rows.append([TASKS[task].title, str(step), str(len(some)), *shown, f"{gain:.2f}"])
    names = [METHODS[name].title for name in layers[0].ratios]
    headings = ("task", "steps", "layers", *names, "neuron-wise over plain")
    return Table(headings, rows, "Largest over mean eigenvalue of a neuron's block")


def _geometric(values: Sequence[float]) -> float:
    return math.exp(float(np.mean(np.log(values))))
