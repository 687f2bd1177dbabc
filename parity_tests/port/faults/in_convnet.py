"""Faults of the convolutional network: the flatten, slopes, pooled borders, square kernels."""

from functools import partial

from parity_tests.port.faults.fault import Fault

fault = partial(Fault, pair="convnet")

FAULTS = (
    fault(
        "channels first before the flatten",
        side="torch",
        edits=(("x.permute(0, 2, 3, 1).flatten(1)", "x.flatten(1)"),),
        layer=("", ""),
        cause="channel order before a flatten",
    ),
    fault(
        "channels first before the flatten",
        side="flax",
        edits=(
            (
                "x = x.reshape(x.shape[0], -1)",
                "x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)",
            ),
        ),
        layer=("", ""),
        cause="channel order before a flatten",
    ),
    fault(
        "slope 0.2",
        side="torch",
        edits=(
            (
                "self.pool(F.leaky_relu(self.conv1(x), self.slope))",
                "self.pool(F.leaky_relu(self.conv1(x), 0.2))",
            ),
        ),
        layer=("", ""),
        cause="negative slope",
    ),
    fault(
        "slope 0.2",
        side="flax",
        edits=(
            (
                "jax.nn.leaky_relu(self.dense1(x), self.slope)",
                "jax.nn.leaky_relu(self.dense1(x), 0.2)",
            ),
        ),
        layer=("", ""),
        cause="negative slope",
    ),
    fault(
        "border counted in the mean",
        side="flax",
        edits=(
            (
                "strides=(2, 2), padding=BORDER)",
                "strides=(2, 2), padding=BORDER, count_include_pad=False)",
            ),
        ),
        layer=("", ""),
        cause="count_include_pad",
    ),
    fault(
        "border counted in the mean",
        side="torch",
        edits=(
            (
                "nn.AvgPool2d(3, 2, padding=1)",
                "nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)",
            ),
        ),
        layer=("", ""),
        cause="count_include_pad",
    ),
    fault(
        "padding SAME with stride 2",
        side="flax",
        edits=(
            (
                "nnx.Conv(first, second, (3, 3), strides=2, padding=1",
                'nnx.Conv(first, second, (3, 3), strides=2, padding="SAME"',
            ),
        ),
        layer=("conv2", "conv2"),
        cause="padding",
    ),
    fault(
        "kernel transposed",
        side="torch",
        edits=(("self.dense2 = nn.Linear(", "self.dense2 = Transposed("),),
        added=(
            "class Transposed(nn.Linear):\n"
            "    def forward(self, x):\n"
            "        return F.linear(x, self.weight.T, self.bias)\n"
        ),
        layer=("dense2", "dense2"),
        cause="transposed kernel",
    ),
    fault(
        "kernel transposed",
        side="flax",
        edits=(("self.dense2 = nnx.Linear(", "self.dense2 = Transposed("),),
        added=(
            "class Transposed(nnx.Linear):\n"
            "    def __call__(self, x):\n"
            "        return x @ self.kernel[...].T + self.bias[...]\n"
        ),
        layer=("dense2", "dense2"),
        cause="transposed kernel",
    ),
    fault(
        "kernel's inputs and outputs swapped",
        side="torch",
        edits=(("self.conv2 = nn.Conv2d(", "self.conv2 = Swapped("),),
        added=(
            "class Swapped(nn.Conv2d):\n"
            "    def forward(self, x):\n"
            "        return self._conv_forward(x, self.weight.transpose(0, 1), self.bias)\n"
        ),
        layer=("conv2", "conv2"),
        cause="transposed kernel",
    ),
    fault(
        "kernel flipped",
        side="flax",
        edits=(("self.conv1 = nnx.Conv(", "self.conv1 = Flipped("),),
        added=(
            "class Flipped(nnx.Conv):\n"
            "    def __call__(self, x):\n"
            "        return jax.lax.conv_general_dilated(\n"
            "            x, self.kernel[...][::-1, ::-1], (1, 1), ((1, 1), (1, 1)),\n"
            '            dimension_numbers=("NHWC", "HWIO", "NHWC"),\n'
            "        ) + self.bias[...]\n"
        ),
        layer=("conv1", "conv1"),
        cause="flipped kernel",
    ),
    fault(
        "ReLU in place of ELU",
        side="torch",
        edits=(("F.elu(", "F.relu("),),
        layer=("", ""),
        cause="activation",
    ),
    fault(
        "probabilities, not their logarithms",
        side="flax",
        edits=(("jax.nn.log_softmax(", "jax.nn.softmax("),),
        layer=("", ""),
        cause=None,
    ),
    fault(
        "dropout left on",
        side="torch",
        edits=(("self.dense2(self.dropout(x))", "self.dense2(F.dropout(x, 0.2))"),),
        layer=("", ""),
        cause="dropout left on",
    ),
    fault(
        "bias not used",
        side="flax",
        edits=(("self.dense3 = nnx.Linear(", "self.dense3 = WithoutBias("),),
        added=(
            "class WithoutBias(nnx.Linear):\n"
            "    def __call__(self, x):\n"
            "        return x @ self.kernel[...]\n"
        ),
        layer=("dense3", "dense3"),
        cause="bias missing",
    ),
)
