"""The options of `python -m experiments bench`."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from experiments.options import Options, left_open, some_of

SettingName = Literal["jax", "jax-two-programs", "torch", "torch-compiled", "torch-cudagraphs"]
NetworkName = Literal["mlp-256", "mlp-1024", "mlp-4096", "transformer", "resnet"]
TimedName = Literal[
    "plain",
    "batchnorm",
    "layernorm",
    "bnp",
    "neuronwise",
    "full",
    "layer",
    "bfloat16",
    "stateless",
    "muon",
    "soap",
]


@dataclass(frozen=True, kw_only=True)
class BenchOptions(Options):
    """What does a training step cost beside the plain one, on this machine?

    Whole steps (forward, backward, Adam) on data that is on the device, all methods of a network
    taking turns: the median over rounds of the ratio to the plain step of the same round. Beside
    it what does not depend on the clock: memory, state, operations, bytes; and the seconds of
    compiling. Writes table.md, bench.json, cost.png and .svg. Three quarters of an hour on one
    core; use a machine that does nothing else. Ctrl-C writes what there is.

    Attributes:
        frameworks: Which frameworks, and how the step runs. In JAX as one program, or as two, with
            statistics and without, between which the loop chooses. In PyTorch eager, compiled with
            torch.compile, or on CUDA as one CUDA graph. What cannot be here is left out, with the
            reason.
        networks: Which networks.
        methods: Which methods, beside plain. neuronwise is the default rule, full that with
            statistics in every step, layer that with scale="layer", bfloat16 that with
            statistics_dtype="bfloat16"; stateless adapts the gradient itself. muon and soap where
            they are installed.
        rounds: How often every step is timed.
        quick: A small part of it, in under two minutes on two cores.
        sweep: Also vary the batch and the width of the MLP, for the plot.
        threads: Of the CPU.
        device: cpu, cuda, cuda:1, tpu, ...
        dtype: In which the networks compute; parameters, and what Adam has, are float32.
        out: Folder for the results.
    """

    job: ClassVar[str] = "experiments.bench.job:run"

    frameworks: Annotated[
        tuple[SettingName, ...] | None, some_of(SettingName, "all; quick: jax torch")
    ] = None
    networks: Annotated[
        tuple[NetworkName, ...] | None, some_of(NetworkName, "all; quick: mlp-256")
    ] = None
    methods: Annotated[
        tuple[TimedName, ...] | None, some_of(TimedName, "all; quick: the most important ones")
    ] = None
    rounds: Annotated[int | None, left_open("INT", "15; quick: 5")] = None
    quick: bool = False
    sweep: bool = True
    threads: int = 1
    device: Annotated[str | None, left_open("NAME", "the one that JAX takes by itself")] = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    out: Path = Path("results/bench")

    def resolved(self) -> "BenchPlan":
        """What is to be done, with nothing left open; plain is always timed."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, (everything, few) in {
            "frameworks": (get_args(SettingName), ("jax", "torch")),
            "networks": (get_args(NetworkName), ("mlp-256",)),
            "methods": (get_args(TimedName), ("plain", "batchnorm", "neuronwise", "full")),
            "rounds": (15, 5),
        }.items():
            if given[name] is None:
                given[name] = few if self.quick else everything
        given["methods"] = ("plain", *(name for name in given["methods"] if name != "plain"))
        return BenchPlan(**given)


@dataclass(frozen=True, kw_only=True)
class BenchPlan(BenchOptions):
    """A `BenchOptions` with nothing left open, made by `resolved`."""

    frameworks: tuple[SettingName, ...] = ()
    networks: tuple[NetworkName, ...] = ()
    methods: tuple[TimedName, ...] = ()
    rounds: int = 0
