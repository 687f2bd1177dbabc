"""Every geometry of every operation, as data."""

from __future__ import annotations

import numpy as np

from parity_tests.cases.case import Layer
from parity_tests.oracle import Convolution, ConvTranspose, Einsum, TorchConvTranspose

#: What a PixelCNN may see: nothing at or behind itself, and of two channels not the second.
_SEEN = np.ones((3, 3, 4, 6))
_SEEN[1, 1:] = _SEEN[2] = 0
_SEEN[0, :, 1] = 0

IMAGES = (4, 7, 6, 4)  # [batch, *space, C]
CONVOLUTIONS = {
    "same": Layer(Convolution(), IMAGES, (3, 3, 4, 6)),
    "same, stride 2, even window": Layer(Convolution(strides=2), IMAGES, (2, 3, 4, 6)),
    "valid, strides": Layer(Convolution((1, 2), "VALID"), IMAGES, (3, 2, 4, 6)),
    "one-sided pads": Layer(Convolution(1, ((2, 0), (0, 1))), IMAGES, (3, 3, 4, 6)),
    "cropped": Layer(Convolution(1, ((-1, 0), (0, 2))), IMAGES, (3, 3, 4, 6)),
    "wider than the image": Layer(Convolution(1, ((4, 4), (0, 0))), (6, 3, 7, 4), (5, 2, 4, 6)),
    "groups, dilation": Layer(
        Convolution(1, ((2, 2), (2, 2)), 1, 2, feature_group_count=2), IMAGES, (3, 3, 2, 6)
    ),
    "depthwise": Layer(Convolution(feature_group_count=4), IMAGES, (3, 3, 1, 4)),
    "depthwise, 3 each": Layer(Convolution(2, feature_group_count=4), IMAGES, (3, 3, 1, 12)),
    "one tap": Layer(Convolution(), IMAGES, (1, 1, 4, 6)),
    "circular": Layer(Convolution(2, "CIRCULAR"), IMAGES, (3, 3, 4, 6)),
    "circular, even window": Layer(Convolution(1, "CIRCULAR"), IMAGES, (4, 3, 4, 6)),
    "reflected": Layer(Convolution(1, "REFLECT", 1, (1, 2)), IMAGES, (3, 3, 4, 6)),
    "1-d": Layer(Convolution(2), (4, 13, 4), (5, 4, 6)),
    "1-d, causal": Layer(Convolution(1, "CAUSAL", 1, 2), (4, 13, 4), (3, 4, 6)),
    "3-d": Layer(Convolution((1, 2, 1)), (2, 4, 5, 4, 3), (2, 3, 2, 3, 4)),
    "two batch axes": Layer(Convolution(), (2, 3, 5, 6, 4), (3, 3, 4, 6)),
    "no batch axis": Layer(Convolution(), (9, 8, 4), (3, 3, 4, 6)),
    # Without a counterpart in PyTorch.
    "dilated input, no pads": Layer(Convolution(1, ((0, 0),), 2), (4, 7, 4), (3, 4, 6)),
    "dilated input": Layer(
        Convolution(1, ((1, 2), (0, 1)), (2, 3), feature_group_count=2), IMAGES, (3, 3, 2, 6)
    ),
    "mask": Layer(Convolution(), IMAGES, (3, 3, 4, 6), mask=_SEEN),
}
TRANSPOSED = {
    "same, stride 2": Layer(ConvTranspose(2), IMAGES, (3, 3, 4, 6)),
    "valid, strides": Layer(ConvTranspose((1, 2), "VALID"), IMAGES, (3, 2, 4, 6)),
    "stride beyond the window": Layer(ConvTranspose(3), IMAGES, (2, 2, 4, 6)),
    "pads, dilation": Layer(ConvTranspose(2, ((2, 1), (0, 3)), 2), IMAGES, (3, 2, 4, 6)),
    "circular": Layer(ConvTranspose(2, "CIRCULAR"), IMAGES, (4, 3, 4, 6)),
    "transposed kernel": Layer(ConvTranspose(2, "SAME", 1, True), IMAGES, (3, 3, 6, 4)),
    "circular, transposed kernel": Layer(
        ConvTranspose(2, "CIRCULAR", 1, True), IMAGES, (4, 3, 6, 4)
    ),
    "1-d, two batch axes": Layer(ConvTranspose(2), (2, 3, 6, 4), (3, 4, 6)),
    "3-d, no batch axis": Layer(ConvTranspose(2), (3, 4, 3, 3), (2, 3, 2, 3, 4)),
    "mask": Layer(ConvTranspose(2), IMAGES, (3, 3, 4, 6), mask=_SEEN),
    "mask, transposed kernel": Layer(
        ConvTranspose(2, "SAME", 1, True), IMAGES, (3, 3, 6, 4), mask=_SEEN.swapaxes(2, 3)
    ),
    "torch": Layer(TorchConvTranspose(2, 1, 1), IMAGES, (4, 6, 3, 3)),
    "torch, stride beyond the window": Layer(TorchConvTranspose((3, 2)), IMAGES, (4, 6, 2, 2)),
    "torch, groups, dilation": Layer(
        TorchConvTranspose((2, 3), (0, 1), (1, 0), 2, (1, 2)), IMAGES, (4, 5, 3, 2)
    ),
    "torch, depthwise": Layer(TorchConvTranspose(2, groups=4), IMAGES, (4, 1, 3, 3)),
    "torch, 1-d": Layer(TorchConvTranspose(2, 1), (4, 7, 4), (4, 6, 4)),
    "torch, 3-d, no batch axis": Layer(TorchConvTranspose(2, 1), (3, 4, 3, 3), (3, 4, 2, 3, 2)),
}
PRODUCTS = {
    "heads": Layer(Einsum("btd,dhk->bthk"), (4, 9, 5), (5, 3, 4), (2, 3)),
    "heads joined": Layer(Einsum("bthk,hkd->btd"), (4, 9, 2, 3), (2, 3, 5)),
    "groups": Layer(Einsum("btgi,gio->btgo"), (4, 9, 3, 5), (3, 5, 4), (2, 3)),
    "outputs first in the kernel": Layer(Einsum("bi,oi->bo"), (36, 5), (6, 5)),
    "samples last": Layer(Einsum("itb,oi->otb"), (5, 4, 9), (6, 5), (0,)),
    "groups first, all mixed": Layer(Einsum("bgin,ogi->gbno"), (6, 2, 5, 6), (4, 2, 5), (0, 3)),
    "general": Layer(Einsum("abcd,bdEF->acEF", ((1, 3), ())), (6, 2, 6, 3), (2, 3, 3, 2), (2, 3)),
    "general, batch axes": Layer(
        Einsum("abcd,adE->abcE", ((3,), (0,))), (2, 6, 6, 4), (2, 4, 5), (0, 3)
    ),
    "general, batch axes, all mixed": Layer(
        Einsum("abcd,abdEF->abcEF", ((3,), (0, 1))), (2, 2, 36, 4), (2, 2, 4, 3, 2), (0, 1, 3, 4)
    ),
}
LAYERS = {"conv": CONVOLUTIONS, "transposed": TRANSPOSED, "einsum": PRODUCTS}
