"""The environments, which are gymnax's, and how long is learned in each."""

import importlib
from typing import Any, NamedTuple

from experiments.studies.grid import index_of


class Sizes(NamedTuple):
    """How much is done in an update, and what learns.

    Attributes:
        environments: that are stepped side by side.
        steps: frames of each of them.
        epochs: how often every frame is learned from.
        minibatch: frames in a step of the optimizer.
        episodes: whose mean return a run ends with.
        widths: of the hidden layers of the actor, and of the critic.
    """

    environments: int = 16
    steps: int = 128
    epochs: int = 4
    minibatch: int = 256
    episodes: int = 32
    widths: tuple[int, ...] = (64, 64)

    @property
    def frames(self) -> int:
        """In an update."""
        return self.environments * self.steps

    @property
    def optimizer_steps(self) -> int:
        """In an update."""
        return self.epochs * self.frames // self.minibatch


class Task(NamedTuple):
    """An environment and what depends on it.

    Attributes:
        title: as in tables and plots.
        environment: its name in gymnax.
        updates: of the policy.
        best: no return is larger.
        target: a return that counts as solved.
        discount: of later rewards.
        unit: of the rewards that are learned from.
        lowest: the smallest rate of the grid, about.
        highest: the largest, about.
        sizes: of everything else.
    """

    title: str
    environment: str
    updates: int
    best: float
    target: float
    discount: float = 0.99
    unit: float = 1.0
    lowest: float = 1e-4
    highest: float = 3e-2
    sizes: Sizes = Sizes()

    @property
    def rates(self) -> range:
        """Half a decade apart, the same for every method; indices of the log grid."""
        return range(index_of(self.lowest), index_of(self.highest) + 1, 2)

    @property
    def frames(self) -> int:
        """In a run."""
        return self.updates * self.sizes.frames


_CARTPOLE = Task("CartPole", "CartPole-v1", 50, best=500.0, target=475.0)
_ACROBOT = Task("Acrobot", "Acrobot-v1", 50, best=0.0, target=-100.0)

TASKS: dict[str, Task] = {
    "cartpole": _CARTPOLE,
    "cartpole_scaled": _CARTPOLE._replace(title="CartPole, rewards / 100", unit=100.0),
    "acrobot": _ACROBOT,
    "acrobot_scaled": _ACROBOT._replace(title="Acrobot, rewards / 100", unit=100.0),
    "pendulum": Task(
        "Pendulum", "Pendulum-v1", 100, best=0.0, target=-250.0, discount=0.9, unit=10.0
    ),
}
"""By their names on the command line. Scaled: the critic learns values of size 1, not 100."""


class World(NamedTuple):
    """An environment of gymnax, ready to be stepped.

    Attributes:
        environment: gymnax's.
        settings: its parameters.
        actions: how many there are to choose from; of a continuous one, its length.
        continuous: whether actions are vectors.
        length: frames in an episode, at most.
    """

    environment: Any
    settings: Any
    actions: int
    continuous: bool
    length: int


def make_world(name: str) -> World:
    """The environment with this name in gymnax.

    Raises:
        ModuleNotFoundError: gymnax, or what it needs, is not installed.
    """
    environment, settings = importlib.import_module("gymnax").make(name)
    space = environment.action_space(settings)
    continuous = not hasattr(space, "n")
    actions = space.shape[0] if continuous else space.n
    return World(environment, settings, actions, continuous, settings.max_steps_in_episode)
