"""VGG-small, the CIFAR network of the binary-network papers that AdderNet is compared on."""

from __future__ import annotations

import numpy as np

from mulfree_cupy import nn
from mulfree_cupy.autograd import Tensor
from mulfree_cupy.models.kinds import normalisation, takes_signs


class VGGSmall(nn.Module):
    """Six 3x3 convolutions, 128-128-256-256-512-512, with pooling after every second, and a
    classifier.

    The first convolution and the classifier are always ordinary. In the binary variant pooling
    precedes normalisation, as in XNOR-Net: the maximum of four normalised numbers is nearly always
    positive.

    Parameters
    ----------
    convolution : class
        `nn.AdderConv`, `nn.BinaryConv` or `nn.Conv`.
    rng : numpy.random.Generator
    channels, size, classes : int
        Of the images (square; a multiple of 8 up to 256) and their labels.
    """

    def __init__(
        self,
        convolution: type,
        rng: np.random.Generator,
        *,
        channels: int = 3,
        size: int = 32,
        classes: int = 10,
    ):
        if size % 8 or size > 256:
            raise ValueError(f"VGGSmall: size must be a multiple of 8 up to 256, got {size}")
        layers, before, signs = [], channels, takes_signs(convolution)
        for i, filters in enumerate((128, 128, 256, 256, 512, 512)):
            kind = nn.Conv if i == 0 else convolution
            layers.append(kind(before, filters, 3, rng, padding=1))
            norm = normalisation(convolution, filters)
            pool = [nn.MaxPool(2)] if i % 2 else []
            layers += [*pool, norm] if signs else [norm, *pool]
            before = filters
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.fc = nn.Linear(512 * (size // 8) ** 2, classes, rng)
        self.bn = nn.BatchNorm(classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.fc(self.features(x)))
