"""Faults of the ResNet: BatchNorm's conventions, strides, kernels, the residual."""

from functools import partial

from parity_tests.port.faults.fault import Fault

fault = partial(Fault, pair="resnet")

NORM = ("stage0_block0/norm1", "blocks.0.norm1")
#: The first convolution of stride 2.
STRIDED = ("stage1_block0/conv1", "blocks.1.conv1")
BLOCK = ("stage0_block0", "blocks.0")

FAULTS = (
    fault(
        "momentum inverted",
        side="torch",
        edits=(
            (
                "return nn.BatchNorm2d(features, eps=eps, momentum=momentum)",
                "return nn.BatchNorm2d(features, eps=eps, momentum=1 - momentum)",
            ),
        ),
        layer=NORM,
        cause="momentum inverted",
    ),
    fault(
        "momentum inverted",
        side="flax",
        edits=(("momentum=1 - self.momentum", "momentum=self.momentum"),),
        layer=NORM,
        cause="momentum inverted",
    ),
    fault(
        "momentum left at the default",
        side="flax",
        edits=(("                momentum=1 - self.momentum,\n", ""),),
        layer=NORM,
        cause="momentum",
    ),
    fault(
        "unbiased running variance",
        side="torch",
        edits=(("return BiasedBatchNorm2d(features", "return nn.BatchNorm2d(features"),),
        layer=NORM,
        cause="unbiased running variance",
        configuration={"norm": "biased batch"},
        strict=True,
    ),
    fault(
        "momentum inverted, in a layer of the user's own",
        side="torch",
        edits=(
            (
                "return BiasedBatchNorm2d(features, eps=eps, momentum=momentum)",
                "return BiasedBatchNorm2d(features, eps=eps, momentum=1 - momentum)",
            ),
        ),
        layer=NORM,
        cause="momentum inverted",
        configuration={"norm": "biased batch"},
    ),
    fault(
        "epsilon 1e-3",
        side="torch",
        edits=(("nn.BatchNorm2d(features, eps=eps", "nn.BatchNorm2d(features, eps=1e-3"),),
        layer=NORM,
        cause="epsilon",
    ),
    fault(
        "epsilon 1e-3 in GroupNorm",
        side="flax",
        edits=(("num_groups=2, epsilon=self.eps", "num_groups=2, epsilon=1e-3"),),
        layer=NORM,
        cause="epsilon",
        configuration={"norm": "group"},
    ),
    fault(
        "evaluation with the statistics of the batch",
        side="flax",
        edits=(("use_running_average=not train", "use_running_average=False"),),
        layer=NORM,
        cause="batch or running statistics",
    ),
    fault(
        "training with the moving statistics",
        side="torch",
        edits=(
            (
                "return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)",
                "return super().eval().forward(x)",
            ),
        ),
        layer=NORM,
        cause="batch or running statistics",
        configuration={"norm": "biased batch"},
    ),
    fault(
        "running variance starts at 0",
        side="torch",
        edits=(
            (
                "                return nn.BatchNorm2d(features, eps=eps, momentum=momentum)\n",
                "                layer = nn.BatchNorm2d(features, eps=eps, momentum=momentum)\n"
                "                layer.running_var.zero_()\n"
                "                return layer\n",
            ),
        ),
        layer=NORM,
        cause="initial states",
    ),
    fault(
        "padding SAME with stride 2",
        side="flax",
        edits=(("conv(strides=self.stride, ", 'conv(padding="SAME", strides=self.stride, '),),
        layer=STRIDED,
        cause="padding",
    ),
    fault(
        "padding SAME with stride 2",
        side="torch",
        edits=(
            (
                "self.conv1 = nn.Conv2d(inputs, features, kernel, stride, around, bias=False)",
                "self.conv1 = SameConv2d(inputs, features, kernel, stride, bias=False)",
            ),
        ),
        added=(
            "class SameConv2d(nn.Conv2d):\n"
            "    def forward(self, x):\n"
            "        step, size = self.stride[0], self.kernel_size[0]\n"
            "        pad = max((-(-x.shape[-1] // step) - 1) * step + size - x.shape[-1], 0)\n"
            "        low, high = pad // 2, pad - pad // 2\n"
            "        return super().forward(F.pad(x, (low, high, low, high)))\n"
        ),
        layer=STRIDED,
        cause="padding",
    ),
    fault(
        "kernel flipped",
        side="torch",
        edits=(("self.conv2 = nn.Conv2d(features", "self.conv2 = Flipped(features"),),
        added=(
            "class Flipped(nn.Conv2d):\n"
            "    def forward(self, x):\n"
            "        return self._conv_forward(x, self.weight.flip(2, 3), self.bias)\n"
        ),
        layer=("stage0_block0/conv2", "blocks.0.conv2"),
        cause="flipped kernel",
    ),
    fault(
        "kernel with height and width swapped",
        side="flax",
        edits=(
            (
                "x = fnn.Conv(\n            self.widths[0]",
                "x = Swapped(\n            self.widths[0]",
            ),
        ),
        added=(
            "class Swapped(fnn.Conv):\n"
            "    def param(self, name, *args, **kwargs):\n"
            "        value = super().param(name, *args, **kwargs)\n"
            '        return value.transpose(1, 0, 2, 3) if name == "kernel" else value\n'
        ),
        layer=("stem", "stem"),
        cause="transposed kernel",
    ),
    fault(
        "bias missing",
        side="torch",
        edits=(("kernel, 1, kernel // 2)", "kernel, 1, kernel // 2, bias=False)"),),
        layer=("stem", "stem"),
        cause="bias missing",
    ),
    fault(
        "bias missing",
        side="flax",
        edits=(('(self.classes, name="head")', '(self.classes, use_bias=False, name="head")'),),
        layer=("head", "fc"),
        cause="bias missing",
    ),
    fault(
        "bias too many",
        side="torch",
        edits=(
            (
                "features, features, kernel, 1, around, bias=False",
                "features, features, kernel, 1, around",
            ),
        ),
        layer=("stage0_block0/conv2", "blocks.0.conv2"),
        cause="bias missing",
    ),
    fault(
        "activation before the sum",
        side="torch",
        edits=(
            (
                "return self.activation(self.shortcut(x) + y)",
                "return self.shortcut(x) + self.activation(y)",
            ),
        ),
        layer=BLOCK,
        cause=None,
    ),
    fault(
        "residual missing",
        side="flax",
        edits=(("return act(x + y)", "return act(y)"),),
        layer=BLOCK,
        cause="residual missing",
    ),
    fault(
        "residual's gradient stopped",
        side="torch",
        edits=(("self.shortcut(x) + y", "self.shortcut(x).detach() + y"),),
        layer=BLOCK,
        cause="gradient stopped",
    ),
    fault(
        "maximum in place of the mean",
        side="torch",
        edits=(("x.mean((2, 3))", "x.amax((2, 3))"),),
        layer=("", ""),
        cause=None,
    ),
    fault(
        "bfloat16 in one layer",
        side="flax",
        edits=(('(self.classes, name="head")', '(self.classes, dtype=jnp.bfloat16, name="head")'),),
        layer=("head", "fc"),
        cause="dtype",
    ),
    fault(
        "dilation in place of stride",
        side="torch",
        edits=(
            (
                "self.conv2 = nn.Conv2d(features, features, kernel, 1, around, bias=False)",
                "self.conv2 = nn.Conv2d(features, features, kernel, 1, 2 * around, 2, bias=False)",
            ),
        ),
        layer=("stage0_block0/conv2", "blocks.0.conv2"),
        cause=None,
    ),
)
