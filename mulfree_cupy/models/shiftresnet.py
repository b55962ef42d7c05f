"""ShiftResNet for 32-pixel images, and variants with other layers instead of shifts.

The block is that of the authors' CIFAR code: 1x1, shift, 1x1 (CSC) with normalisations and
activations after the convolutions. One block replaces the two 3x3 convolutions of a ResNet block.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mulfree_cupy import nn
from mulfree_cupy.autograd import Tensor
from mulfree_cupy.models.resnet import cifar_stages, shortcut
from mulfree_cupy.models.shift_tables import Inside
from mulfree_cupy.ops.shift import modulo_shifts


def _shifted(layer: type) -> Callable[..., nn.Module]:
    def mixing(channels: int, filters: int, rng: np.random.Generator, stride: int) -> nn.Module:
        return layer(modulo_shifts(channels, 3), filters, rng, stride=stride)

    return mixing


def _depthwise(channels: int, filters: int, rng: np.random.Generator, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv(channels, channels, 3, rng, stride=stride, padding=1, groups=channels),
        nn.Conv(channels, filters, 1, rng),
    )


# A block's first 1x1 convolution, and its layer that mixes pixels and then channels.
KINDS = {
    "shift": (nn.Conv, _shifted(nn.ShiftConv)),
    "depthwise": (nn.Conv, _depthwise),
    "shift-adder": (nn.AdderConv, _shifted(nn.ShiftAdderConv)),
}


class CSC(nn.Module):
    """1x1 convolution to ``expansion`` times the width, 3x3 shift, 1x1 convolution, shortcut.

    The stride belongs to the second convolution, and no activation follows the sum.
    """

    def __init__(
        self,
        kind: str,
        before: int,
        width: int,
        stride: int,
        rng: np.random.Generator,
        *,
        expansion: float,
    ):
        pointwise, mixing = KINDS[kind]
        middle = int(width * expansion)
        self.conv1 = pointwise(before, middle, 1, rng)
        self.bn1 = nn.BatchNorm(middle, relu=True)
        self.conv2 = mixing(middle, width, rng, stride)
        self.bn2 = nn.BatchNorm(width, relu=True)
        self.shortcut = shortcut(pointwise, before, width, stride, rng)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.bn1(self.conv1(x)))
        return self.bn2(y) + self.shortcut(x)

    def inside(self) -> Inside:
        return Inside(self.conv1, self.bn1, self.conv2, self.conv2, kernel_size=3)


class ShiftResNet(nn.Module):
    """ShiftResNet-20, 56 or 110: a ResNet for small images with CSC blocks.

    Parameters
    ----------
    kind : {"shift", "depthwise", "shift-adder"}
        Type of the blocks: shifts between 1x1 convolutions; a 3x3 depthwise convolution instead of
        the shift; or shifts between 1x1 adder convolutions, without multiplications.
    rng : numpy.random.Generator
    depth : int
        20, 32, 44, ...: 6 n + 2, as for the ResNet whose blocks are replaced.
    expansion : float
        Channels between a block's convolutions, as a multiple of its width.
    channels, size, classes : int
        Of the images (square, any size from 4 on) and their labels.

    Notes
    -----
    With expansion 9 there are about as many parameters as in the ResNet. The first layer and the
    classifier are ordinary in all kinds.

    References
    ----------
    .. [1] B. Wu et al., "Shift: A Zero FLOP, Zero Parameter Alternative to Spatial Convolutions",
       CVPR 2018; code at https://github.com/alvinwan/shiftresnet-cifar.
    """

    def __init__(
        self,
        kind: str,
        rng: np.random.Generator,
        *,
        depth: int = 20,
        expansion: float = 3,
        channels: int = 3,
        size: int = 32,
        classes: int = 10,
    ):
        def block(*shape: int) -> CSC:
            return CSC(kind, *shape, rng, expansion=expansion)

        self.conv1 = nn.Conv(channels, 16, 3, rng, padding=1)
        self.bn1 = nn.BatchNorm(16, relu=True)
        self.stages = cifar_stages(block, "ShiftResNet", depth, size)
        self.pool = nn.GlobalAveragePool()
        self.fc = nn.Linear(64, classes, rng)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.stages(self.bn1(self.conv1(x)))))
