"""Residual networks: ResNet-20/32 for 32-pixel images, ResNet-18/50 for ImageNet's.

As in the AdderNet reference, the first convolution and the classifier are ordinary, the 1x1
convolutions of the shortcuts are of the chosen kind, and the logits are batch-normalised. Binary
networks have no ReLU, and ordinary convolutions in their shortcuts, as in Bi-Real networks: only
the binary convolutions take signs, and sums are real-valued. For ImageNet pooling then precedes
normalisation, as in XNOR-Net, so that both signs occur.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mulfree_cupy import nn
from mulfree_cupy.autograd import Tensor
from mulfree_cupy.models.kinds import normalisation, takes_signs


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(
        self, convolution: type, before: int, width: int, stride: int, rng: np.random.Generator
    ):
        self.conv1 = convolution(before, width, 3, rng, stride=stride, padding=1)
        self.bn1 = normalisation(convolution, width)
        self.conv2 = convolution(width, width, 3, rng, padding=1)
        self.bn2 = normalisation(convolution, width)
        self.shortcut = shortcut(convolution, before, width, stride, rng)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x))
        return self.bn2(self.conv2(y), self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last four times as wide, and a shortcut."""

    expansion = 4

    def __init__(
        self, convolution: type, before: int, after: int, stride: int, rng: np.random.Generator
    ):
        width = after // self.expansion
        self.conv1 = convolution(before, width, 1, rng)
        self.bn1 = normalisation(convolution, width)
        self.conv2 = convolution(width, width, 3, rng, stride=stride, padding=1)
        self.bn2 = normalisation(convolution, width)
        self.conv3 = convolution(width, after, 1, rng)
        self.bn3 = normalisation(convolution, after)
        self.shortcut = shortcut(convolution, before, after, stride, rng)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        return self.bn3(self.conv3(y), self.shortcut(x))


def shortcut(
    convolution: type, before: int, after: int, stride: int, rng: np.random.Generator
) -> nn.Sequential:
    """The identity, or a normalised 1x1 convolution where the shape changes."""
    if stride == 1 and before == after:
        return nn.Sequential()
    kind = nn.Conv if takes_signs(convolution) else convolution
    return nn.Sequential(kind(before, after, 1, rng, stride=stride), nn.BatchNorm(after))


def stages(
    block: Callable[[int, int, int], nn.Module],
    before: int,
    widths: Sequence[int],
    depths: Sequence[int],
) -> nn.Sequential:
    """Stages of blocks made by ``block(before, after, stride)``, with `depths` blocks of each
    width.

    The first block of each stage except the first has stride 2.
    """
    blocks = []
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for i in range(depth):
            blocks.append(block(before, width, 2 if stage > 0 and i == 0 else 1))
            before = width
    return nn.Sequential(*blocks)


def cifar_stages(
    block: Callable[[int, int, int], nn.Module], network: str, depth: int, size: int
) -> nn.Sequential:
    """Three stages of ``(depth - 2) / 6`` blocks, of 16, 32 and 64 channels.

    Raises
    ------
    ValueError
        If there are no such stages, or the images are too small for them.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"{network}: depth must be 6 n + 2, got {depth}")
    if size < 4:
        raise ValueError(f"{network}: size must be at least 4, got {size}")
    return stages(block, 16, (16, 32, 64), [(depth - 2) // 6] * 3)


class CifarResNet(nn.Module):
    """ResNet for small images: 16, 32 and 64 filters in three stages of ``(depth - 2) / 6`` blocks.

    Parameters
    ----------
    convolution : class
        `nn.AdderConv`, `nn.BinaryConv` or `nn.Conv`.
    rng : numpy.random.Generator
    depth : int
        20, 32, 44, ...: 6 n + 2.
    channels, size, classes : int
        Of the images (square, any size from 4 on) and their labels.
    """

    def __init__(
        self,
        convolution: type,
        rng: np.random.Generator,
        *,
        depth: int = 20,
        channels: int = 3,
        size: int = 32,
        classes: int = 10,
    ):
        def block(*shape: int) -> BasicBlock:
            return BasicBlock(convolution, *shape, rng)

        self.conv1 = nn.Conv(channels, 16, 3, rng, padding=1)
        self.bn1 = normalisation(convolution, 16)
        self.stages = cifar_stages(block, "CifarResNet", depth, size)
        self.pool = nn.GlobalAveragePool()
        self.fc = nn.Linear(64, classes, rng, bias=False)
        self.bn2 = nn.BatchNorm(classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.bn1(self.conv1(x)))
        return self.bn2(self.fc(self.pool(x)))


class ImageNetResNet(nn.Module):
    """ResNet-18 or ResNet-50 for images of about 224 pixels.

    Parameters
    ----------
    convolution : class
        `nn.AdderConv`, `nn.BinaryConv` or `nn.Conv`.
    rng : numpy.random.Generator
    depth : {18, 50}
    channels, size, classes : int
        Of the images (square, at least 32) and their labels.
    """

    def __init__(
        self,
        convolution: type,
        rng: np.random.Generator,
        *,
        depth: int = 18,
        channels: int = 3,
        size: int = 224,
        classes: int = 1000,
    ):
        if depth not in (18, 50):
            raise ValueError(f"ImageNetResNet: depth must be 18 or 50, got {depth}")
        if size < 32:
            raise ValueError(f"ImageNetResNet: size must be at least 32, got {size}")
        kind, depths = {18: (BasicBlock, (2, 2, 2, 2)), 50: (Bottleneck, (3, 4, 6, 3))}[depth]
        widths = [kind.expansion * width for width in (64, 128, 256, 512)]

        def block(*shape: int) -> nn.Module:
            return kind(convolution, *shape, rng)

        self.signs = takes_signs(convolution)
        self.conv1 = nn.Conv(channels, 64, 7, rng, stride=2, padding=3)
        self.bn1 = normalisation(convolution, 64)
        self.maxpool = nn.MaxPool(3, stride=2, padding=1)
        self.stages = stages(block, 64, widths, depths)
        self.pool = nn.GlobalAveragePool()
        self.fc = nn.Linear(widths[-1], classes, rng)
        self.bn2 = nn.BatchNorm(classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.bn1(self.maxpool(x)) if self.signs else self.maxpool(self.bn1(x))
        return self.bn2(self.fc(self.pool(self.stages(x))))
