"""The tasks of the comparison and of the studies, behind one interface (`Workload`)."""

from experiments.workloads.base import Defaults as Defaults
from experiments.workloads.base import Samples as Samples
from experiments.workloads.base import Workload as Workload
from experiments.workloads.burgers import Burgers
from experiments.workloads.cifar10 import Cifar10
from experiments.workloads.digits import Digits
from experiments.workloads.fashion_mnist import FashionMnist
from experiments.workloads.mnist import Autoencoder, Mnist
from experiments.workloads.photo import Photo
from experiments.workloads.regression import Diabetes, Friedman
from experiments.workloads.shakespeare import Shakespeare
from experiments.workloads.tables import BreastCancer, Wine

WORKLOADS: dict[str, type[Workload]] = {
    workload.name: workload for workload in (Photo, Digits, FashionMnist)
}
"""Every workload of the comparison by its name on the command line."""

STUDIED: dict[str, type[Workload]] = WORKLOADS | {
    workload.name: workload
    for workload in (
        Cifar10,
        Friedman,
        Diabetes,
        Shakespeare,
        Mnist,
        Autoencoder,
        BreastCancer,
        Wine,
        Burgers,
    )
}
"""Those, and what only studies learn: no `defaults`."""

__all__ = ["STUDIED", "WORKLOADS", "Defaults", "Samples", "Workload"]
