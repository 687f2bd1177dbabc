"""The options of `python -m experiments tpu`."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from experiments.options import Options, left_open, some_of

KindName = Literal["mlp", "transformer", "resnet"]
ShardingName = Literal["one", "data", "fsdp"]
CompiledName = Literal["plain", "batchnorm", "neuronwise", "full", "layer", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class TpuOptions(Options):
    """What does a training step cost on TPUs, as far as their compiler knows?

    Compiles whole steps (forward, backward, Adam) for TPUs, none of which need be there:
    operations, bytes, memory, what the devices send each other. It needs libtpu (pip install
    'neuronwise-norm[tpu]'; Linux on x86-64). On a machine with TPUs it compiles for these, and
    times the steps too. Writes table.md and tpu.json after each. Half an hour on two cores, with
    --scale large much more.

    Attributes:
        targets: For which TPUs: a generation (v2 v3 v4 v5e v5p v6e tpu7x), with its chips if not
            the usual few: v5e:4x4. here: the devices of this machine, whichever they are.
        sharding: one: one chip. data: the batch over all chips. fsdp: parameters, optimizer
            state and statistics too.
        networks: Which networks, those of bench.
        scale: bench: about the sizes of bench. large: sizes that fill a chip; the MLP is 4096 wide
            and has 4096 samples in a step.
        methods: Which methods, beside plain, as in bench.
        quick: The MLP, plain and two methods, for one target.
        export: Also write every step to this folder, with jax.export for TPU, CUDA and CPU; read it
            again, run it on the CPU and compare.
        dtype: In which the networks compute; parameters, and what Adam has, are float32.
        out: Folder for the results.
    """

    job: ClassVar[str] = "experiments.tpu.job:run"

    targets: Annotated[
        tuple[str, ...] | None, left_open("NAME [NAME ...]", "v5e:2x2; with TPUs: here")
    ] = None
    sharding: Annotated[
        tuple[ShardingName, ...] | None, some_of(ShardingName, "all; quick: data")
    ] = None
    networks: Annotated[tuple[KindName, ...] | None, some_of(KindName, "all; quick: mlp")] = None
    scale: Literal["bench", "large"] = "bench"
    methods: Annotated[
        tuple[CompiledName, ...] | None, some_of(CompiledName, "all; quick: batchnorm neuronwise")
    ] = None
    quick: bool = False
    export: Annotated[Path | None, left_open("PATH", "nothing is exported")] = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    out: Path = Path("results/tpu")

    def resolved(self) -> "TpuPlan":
        """What is to be done, with nothing left open but the targets; plain is always compiled."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, (everything, few) in {
            "sharding": (get_args(ShardingName), ("data",)),
            "networks": (get_args(KindName), ("mlp",)),
            "methods": (get_args(CompiledName), ("batchnorm", "neuronwise")),
        }.items():
            if given[name] is None:
                given[name] = few if self.quick else everything
        given["methods"] = ("plain", *(name for name in given["methods"] if name != "plain"))
        return TpuPlan(**given)


@dataclass(frozen=True, kw_only=True)
class TpuPlan(TpuOptions):
    """A `TpuOptions` with nothing left open but the targets, made by `resolved`."""

    sharding: tuple[ShardingName, ...] = ()
    networks: tuple[KindName, ...] = ()
    methods: tuple[CompiledName, ...] = ()
