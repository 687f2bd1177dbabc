"""The options of `python -m experiments ppo`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from experiments.options import StudyOptions, some_of

EnvironmentName = Literal["cartpole", "cartpole_scaled", "acrobot", "acrobot_scaled", "pendulum"]
LearnerName = Literal["plain", "batchnorm", "layernorm", "bnp", "neuronwise"]


@dataclass(frozen=True, kw_only=True)
class PpoOptions(StudyOptions):
    """Proximal policy optimization: does the rule help where BatchNorm is known to hurt?

    Actor and critic learn in the environments of gymnax (pip install 'neuronwise-norm[rl]') under
    every method: all rates with two seeds, then twelve others at each method's best one. Writes
    ppo.md, .csv and .png. Twenty minutes on two cores. After an interruption the same command goes
    on.

    Attributes:
        environments: Which environments. scaled: the rewards that are learned from are divided by
            100, so that values are of size 1.
        methods: Which methods, beside plain. batchnorm and layernorm stand before each activation,
            BatchNorm with the minibatch's statistics in the updates and the running ones in acting;
            bnp and neuronwise run Adam in their coordinates.
        quick: Fewer rates, seeds and frames: about a minute on two cores.
        seeds: Not asked: two in the screen, twelve afterwards.
        data_dir: Not asked: there are no data.
        out: Folder for the results. What was trained for it before is not trained again.
    """

    job: ClassVar[str] = "experiments.reinforcement.study:Reinforcement.main"

    environments: Annotated[
        tuple[EnvironmentName, ...] | None,
        some_of(EnvironmentName, "all; quick: cartpole"),
    ] = None
    methods: Annotated[
        tuple[LearnerName, ...] | None,
        some_of(LearnerName, "all; quick: batchnorm neuronwise"),
    ] = None
    quick: bool = False
    seeds: Annotated[int, tyro.conf.Suppress] = 12
    data_dir: Annotated[Path | None, tyro.conf.Suppress] = None
    out: Path = Path("results/ppo")
