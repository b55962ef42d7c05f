"""LeNet-5 with batch normalisation, the network of AdderNet's ablation."""

from __future__ import annotations

import numpy as np

from mulfree_cupy import nn
from mulfree_cupy.autograd import Tensor
from mulfree_cupy.models.kinds import normalisation, takes_signs


class LeNet(nn.Module):
    """LeNet-5-BN: two 5x5 convolutions with pooling, then three fully connected layers.

    As in AdderNet's experiment on digits, every layer is of the chosen kind, including the last: a
    fully connected layer is a convolution whose kernel is the whole image. In the binary variant
    the first and the last are ordinary, and pooling precedes normalisation, as in `VGGSmall`.

    Parameters
    ----------
    convolution : class
        `nn.AdderConv`, `nn.BinaryConv` or `nn.Conv`.
    rng : numpy.random.Generator
    channels, size, classes : int
        Of the images (square, of 2 to 256 pixels) and their labels. Images below 16 pixels are
        padded in the first layer and pooled only once.
    plane : bool
        Use two features, without a ReLU, instead of 84 before the last layer, to plot them.
    """

    def __init__(
        self,
        convolution: type,
        rng: np.random.Generator,
        *,
        channels: int = 1,
        size: int = 28,
        classes: int = 10,
        plane: bool = False,
    ):
        if not 2 <= size <= 256:
            raise ValueError(f"LeNet: size must be from 2 to 256, got {size}")
        small = size < 16
        self.size, self.signs = size, takes_signs(convolution)
        outer = nn.Conv if self.signs else convolution
        self.conv1 = outer(channels, 6, 5, rng, padding=2)
        self.bn1 = normalisation(convolution, 6)
        self.pool1 = nn.Sequential() if small else nn.MaxPool(2)
        self.conv2 = convolution(6, 16, 5, rng, padding=2 if small else 0)
        self.bn2 = normalisation(convolution, 16)
        self.pool2 = nn.MaxPool(2)
        side = size // 2 if small else (size // 2 - 4) // 2
        self.fc1 = convolution(16, 120, side, rng)
        self.bn3 = normalisation(convolution, 120)
        features = 2 if plane else 84
        self.fc2 = convolution(120, features, 1, rng)
        self.bn4 = normalisation(convolution, features, relu=not plane)
        self.fc3 = outer(features, classes, 1, rng)
        self.bn5 = nn.BatchNorm(classes)
        self.flatten = nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (self.size, self.size):
            raise ValueError(f"LeNet: x must be images of size {self.size}, got shape {x.shape}")
        x = self._normalised(self.bn1, self.pool1, self.conv1(x))
        x = self._normalised(self.bn2, self.pool2, self.conv2(x))
        x = self.bn4(self.fc2(self.bn3(self.fc1(x))))
        return self.flatten(self.bn5(self.fc3(x)))

    def _normalised(self, norm: nn.Module, pool: nn.Module, x: Tensor) -> Tensor:
        return norm(pool(x)) if self.signs else pool(norm(x))
