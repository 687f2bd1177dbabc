"""The networks whose steps are timed, in words; both frameworks build them from these."""

from dataclasses import dataclass, replace
from typing import Literal

HIDDEN = 4
"""Hidden layers of the MLP."""

OUTPUTS = 10
"""Width of the last layer of the MLP and of the ResNet."""

BLOCKS = {"transformer": 2, "resnet": 3}
"""How many blocks a network has."""

HEADS = 4
"""Of the transformer's attention."""


@dataclass(frozen=True)
class Network:
    """One network at one size.

    Attributes:
        kind: what it is made of.
        batch: samples, sequences or images in a step.
        width: neurons of a hidden layer, width of the residual stream, channels.
        extent: tokens of a sequence, side of an image; nothing for the MLP.
    """

    kind: Literal["mlp", "transformer", "resnet"]
    batch: int
    width: int
    extent: int = 0

    @property
    def title(self) -> str:
        """As tables have it."""
        if self.kind == "mlp":
            return f"MLP {self.batch} x {self.width}"
        if self.kind == "transformer":
            return f"transformer {self.batch} x {self.extent} x {self.width}"
        return f"ResNet {self.batch} x {self.extent}² x {self.width}"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of a batch, channels last."""
        spatial = {"mlp": (), "transformer": (self.extent,), "resnet": (self.extent,) * 2}
        return (self.batch, *spatial[self.kind], self.width)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of what it makes of a batch."""
        return self.input_shape if self.kind == "transformer" else (self.batch, OUTPUTS)

    @property
    def operations(self) -> float:
        """Of a step, about: multiplications and additions."""
        rows, square = self.batch * max(1, self.extent), self.width**2
        if self.kind == "mlp":
            return 6.0 * rows * square * HIDDEN
        if self.kind == "transformer":
            return 6.0 * rows * square * (12 * BLOCKS[self.kind] + 1)
        # Small convolutions run at a fifth of the speed of products.
        return 5 * 6.0 * rows * self.extent * 9 * square * 2 * BLOCKS[self.kind]


NETWORKS: dict[str, Network] = {
    "mlp-256": Network("mlp", 256, 256),
    "mlp-1024": Network("mlp", 1024, 1024),
    "mlp-4096": Network("mlp", 4096, 512),
    "transformer": Network("transformer", 8, 128, 64),
    "resnet": Network("resnet", 16, 16, 16),
}
"""By their names on the command line."""

MIDDLE = NETWORKS["mlp-256"]
"""What the sweep varies."""


def sweep(*, quick: bool) -> dict[str, list[Network]]:
    """The networks of the plot, by what varies: at one width the batch, at one batch the width."""
    sizes = (64, 256, 1024) if quick else (64, 128, 256, 512, 1024, 2048)
    return {
        axis: [replace(MIDDLE, **{axis: size}) for size in sizes] for axis in ("batch", "width")
    }
