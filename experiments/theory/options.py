"""The options of `python -m experiments theory`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from experiments.options import DATA_DIR, Options, WorkloadName


@dataclass(frozen=True, kw_only=True)
class TheoryOptions(Options):
    """What can be proven about the rule, and what its coordinates make of a network's curvature.

    Checks every claim of experiments/theory/README.md as a number, then trains a small network
    and looks at the spectra of its Hessian and Gauss-Newton matrix at some steps. Writes claims.md,
    conditioning.png, spectra.md and spectra.png. Two minutes on two cores.

    Attributes:
        spectra: Also measure; otherwise only the claims.
        layers: Also look at each layer of every task of `sweep`, which needs all of its data; a
            quarter of an hour on one core. Writes layers.md and layers.json.
        workloads: Whose networks are looked at.
        steps: After how many steps.
        width: Neurons in a hidden layer.
        depth: Number of hidden layers.
        data_dir: Folder with the files of fashion_mnist.
        out: Folder for the results.
    """

    job: ClassVar[str] = "experiments.theory.job:run"

    spectra: bool = True
    layers: bool = False
    workloads: tuple[WorkloadName, ...] = ("photo", "digits")
    steps: tuple[int, ...] = (0, 30, 300)
    width: int = 32
    depth: int = 3
    data_dir: Annotated[Path | None, DATA_DIR] = None
    out: Path = Path("results/theory")
