"""The tasks of the comparison, behind one interface (`Workload`)."""

from experiments.workloads.base import Defaults as Defaults
from experiments.workloads.base import Samples as Samples
from experiments.workloads.base import Workload as Workload
from experiments.workloads.digits import Digits
from experiments.workloads.fashion_mnist import FashionMnist
from experiments.workloads.photo import Photo

WORKLOADS: dict[str, type[Workload]] = {
    workload.name: workload for workload in (Photo, Digits, FashionMnist)
}
"""Every workload by its name on the command line."""

__all__ = ["WORKLOADS", "Defaults", "Samples", "Workload"]
