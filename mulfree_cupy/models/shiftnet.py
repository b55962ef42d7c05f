"""The paper's pre-activation blocks, CSC and SC2, and the networks ShiftNet-A, B and C.

Published for ShiftNet [1]_ on ImageNet are 4.1, 1.1 and 0.78 million parameters, and 1.4 and 0.371
billion multiply-adds for A and B. The authors' code and weights are not public. Here:

- A follows the table used in independent implementations: a 7x7 convolution with stride 2, then
  groups of 64, 128, 256 and 512 channels with the kernels, expansions and depths below. It has 4.19
  million parameters (4.16 without normalisation) and 1.42 billion multiply-adds.
- B is A with half of its channels: 1.18 million (1.17) and 0.371 billion.
- C is reconstructed from its number of parameters only: B with half of the blocks after each
  group's first, 0.79 million (0.78). The paper's C may differ.

.. [1] B. Wu et al., "Shift: A Zero FLOP, Zero Parameter Alternative to Spatial Convolutions",
   CVPR 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mulfree_cupy import nn
from mulfree_cupy.autograd import Tensor, apply
from mulfree_cupy.models.shift_tables import Inside
from mulfree_cupy.ops.shift import modulo_shifts


class Preactivation(nn.Module):
    """CSC, or SC2 with `shift_first`, with pre-activation before each 1x1 convolution.

    CSC is BN, ReLU, 1x1, shift, BN, ReLU, 1x1 with the stride; SC2 has another shift in front.
    Where the width grows, new channels are concatenated to the average-pooled input, else the input
    is added.
    """

    def __init__(
        self,
        before: int,
        width: int,
        stride: int,
        rng: np.random.Generator,
        *,
        expansion: float,
        kernel_size: int = 3,
        shift_first: bool = False,
    ):
        if (width == before) != (stride == 1):
            raise ValueError(
                "Preactivation: the width must grow where the stride is not 1, and only there, "
                f"got {before} and then {width} channels with stride {stride}"
            )
        self.grows, self.kernel_size = stride != 1, kernel_size
        filters = width - before if self.grows else width
        middle = int(filters * expansion)
        first = [nn.Shift(modulo_shifts(before, kernel_size))] if shift_first else []
        self.shift1 = nn.Sequential(*first)
        self.bn1 = nn.BatchNorm(before, relu=True)
        self.conv1 = nn.Conv(before, middle, 1, rng)
        self.shift2 = nn.Shift(modulo_shifts(middle, kernel_size))
        self.bn2 = nn.BatchNorm(middle, relu=True)
        self.conv2 = nn.Conv(middle, filters, 1, rng, stride=stride)
        self.pool = nn.AvgPool(3, stride=stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.bn1(self.shift1(x)))
        y = self.conv2(self.bn2(self.shift2(y)))
        return apply("concatenate", self.pool(x), y, axis=1) if self.grows else y + x

    def inside(self) -> Inside:
        return Inside(self.conv1, self.bn2, self.shift2, self.conv2, self.kernel_size)


@dataclass(frozen=True)
class Group:
    """Blocks of one width.

    The first has a separate expansion, and a stride of 2 if it changes the width.
    """

    width: int
    blocks: int
    expansions: tuple[float, float]  # of the first block, of the others
    kernel_size: int = 3


class ShiftNet(nn.Module):
    """One ordinary convolution, groups of pre-activation shift blocks, and a classifier.

    Parameters
    ----------
    rng : numpy.random.Generator
    stem : tuple of 3 ints
        Filters, kernel size and stride of the first convolution.
    groups : sequence of Group
    shift_first : bool
        SC2 blocks instead of CSC.
    channels, classes : int
        Of the images (any size) and their labels.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        stem: tuple[int, int, int],
        groups: Sequence[Group],
        *,
        shift_first: bool = False,
        channels: int = 3,
        classes: int = 1000,
    ):
        width, kernel_size, stride = stem
        self.conv1 = nn.Conv(
            channels, width, kernel_size, rng, stride=stride, padding=kernel_size // 2
        )
        blocks = []
        for group in groups:
            for i in range(group.blocks):
                blocks.append(
                    Preactivation(
                        *(width, group.width, 1 if width == group.width else 2, rng),
                        expansion=group.expansions[i > 0],
                        kernel_size=group.kernel_size,
                        shift_first=shift_first,
                    )
                )
                width = group.width
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm(width, relu=True)
        self.pool = nn.GlobalAveragePool()
        self.fc = nn.Linear(width, classes, rng)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.bn(self.blocks(self.conv1(x)))))


def shiftnet(
    variant: str,
    rng: np.random.Generator,
    *,
    channels: int = 3,
    size: int = 224,
    classes: int = 1000,
) -> ShiftNet:
    """ShiftNet-A, B or C, for images of about 224 pixels; see the module for what is published."""
    share = {"a": 1, "b": 2, "c": 2}[variant]
    more = {"a": (4, 5, 6, 2), "b": (4, 5, 6, 2), "c": (2, 3, 3, 1)}[variant]
    groups = (
        Group(64 // share, 1 + more[0], (4, 4), kernel_size=5),
        Group(128 // share, 1 + more[1], (4, 3), kernel_size=5),
        Group(256 // share, 1 + more[2], (3, 2)),
        Group(512 // share, 1 + more[3], (2, 1)),
    )
    return ShiftNet(rng, (32 // share, 7, 2), groups, channels=channels, classes=classes)


def sc2_resnet(
    rng: np.random.Generator,
    *,
    depth: int = 20,
    expansion: float = 1,
    channels: int = 3,
    size: int = 32,
    classes: int = 10,
) -> ShiftNet:
    """ResNet-20, 56 or 110 for small images, with SC2 blocks."""
    blocks = (depth - 2) // 6
    groups = [Group(width, blocks, (expansion, expansion)) for width in (16, 32, 64)]
    stem = 16, 3, 1
    return ShiftNet(rng, stem, groups, shift_first=True, channels=channels, classes=classes)
