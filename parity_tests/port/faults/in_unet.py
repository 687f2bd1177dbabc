"""Faults of the U-Net: transposed convolutions, groups, pooling, the order of a concatenation."""

from functools import partial

from parity_tests.port.faults.fault import Fault

fault = partial(Fault, pair="unet")

#: The first one that is called.
UP = ("up_1", "up.1")
NORM = ("down_0/norm1", "down.0.1")

FAULTS = (
    fault(
        "transposed convolution's kernel flipped",
        side="torch",
        edits=(("nn.ConvTranspose2d(a, b, 2, 2)", "Flipped(a, b, 2, 2)"),),
        added=(
            "class Flipped(nn.ConvTranspose2d):\n"
            "    def forward(self, x):\n"
            "        weight = self.weight.flip(2, 3)\n"
            "        return F.conv_transpose2d(x, weight, self.bias, self.stride)\n"
        ),
        layer=UP,
        cause="flipped kernel",
    ),
    fault(
        "transposed convolution's kernel flipped",
        side="flax",
        edits=(("x = fnn.ConvTranspose(width", "x = Flipped(width"),),
        added=(
            "class Flipped(fnn.ConvTranspose):\n"
            "    def param(self, name, *args, **kwargs):\n"
            "        value = super().param(name, *args, **kwargs)\n"
            '        return value[::-1, ::-1] if name == "kernel" else value\n'
        ),
        layer=UP,
        cause="flipped kernel",
    ),
    fault(
        "groups of another size",
        side="torch",
        edits=(
            (
                "(groups, features, eps=eps),\n            nn.SiLU(),\n            nn.Conv",
                "(1, features, eps=eps),\n            nn.SiLU(),\n            nn.Conv",
            ),
        ),
        layer=NORM,
        cause="number of groups",
    ),
    fault(
        "epsilon left at the default",
        side="flax",
        edits=(("fnn.GroupNorm(self.groups, epsilon=self.eps", "fnn.GroupNorm(self.groups"),),
        layer=NORM,
        cause="epsilon",
    ),
    fault(
        "skip last",
        side="torch",
        edits=(("torch.cat([skip, up(x)], dim=1)", "torch.cat([up(x), skip], dim=1)"),),
        layer=("", ""),
        cause="order of a concatenation",
    ),
    fault(
        "maxima in place of means",
        side="torch",
        edits=(("F.avg_pool2d(x, 2)", "F.max_pool2d(x, 2)"),),
        layer=("", ""),
        cause=None,
    ),
    fault(
        "GELU in place of SiLU",
        side="flax",
        edits=(("x = jax.nn.silu(x)", "x = jax.nn.gelu(x)"),),
        layer=("down_0", "down.0"),
        cause="activation",
    ),
    fault(
        "padding reflected",
        side="torch",
        edits=(
            (
                "(features, features, kernel, padding=kernel // 2)",
                '(features, features, kernel, padding=kernel // 2, padding_mode="reflect")',
            ),
        ),
        layer=("down_0/conv2", "down.0.3"),
        cause="padding",
    ),
    fault(
        "skip's gradient stopped",
        side="flax",
        edits=(
            (
                "skips.append(x)\n            x = fnn.avg_pool",
                "skips.append(jax.lax.stop_gradient(x))\n            x = fnn.avg_pool",
            ),
        ),
        layer=("", ""),
        cause="gradient stopped",
    ),
    fault(
        "bias missing",
        side="flax",
        edits=(
            (
                "fnn.ConvTranspose(width, (2, 2), strides=(2, 2)",
                "fnn.ConvTranspose(width, (2, 2), strides=(2, 2), use_bias=False",
            ),
        ),
        layer=UP,
        cause="bias missing",
    ),
)
