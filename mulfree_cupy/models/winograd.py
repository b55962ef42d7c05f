"""The Winograd pruning paper's networks, each in the paper's three forms.

A network consists of units: normalisation, ReLU, 3x3 convolution. In the form ``spatial`` the
convolution is ordinary, in ``winograd`` its weights are in the Winograd domain, and in
``winograd-relu`` the ReLU is too. Pooling precedes a unit, before its ReLU. The first convolution
is linear in all forms.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np

from mulfree_cupy import nn
from mulfree_cupy.autograd import Tensor


@dataclass(frozen=True)
class Form:
    """The weights' domain, None for spatial or m of F(m x m, 3 x 3), and whether the ReLU is in
    it."""

    m: int | None = None
    relu_in_domain: bool = False
    points: str = "lavin"

    def convolution(
        self, channels: int, filters: int, rng: np.random.Generator, *, relu: bool = False
    ) -> nn.Module:
        """A 3x3 convolution that keeps the size, or with `relu` a Winograd-ReLU layer.

        In the Winograd domain a linear one, and any of F(4x4, 3x3), is trained with preconditioned
        gradients, since it learns slowly with plain ones.
        """
        if self.m is None:
            return nn.MaskedConv(channels, filters, 3, rng, padding=1)
        gradient = "plain" if relu and self.m == 2 else "preconditioned"
        options = {"m": self.m, "points": self.points, "relu": relu, "gradient": gradient}
        return nn.WinogradConv(channels, filters, rng, **options)

    def unit(
        self, channels: int, filters: int, rng: np.random.Generator, *, dropout: float = 0.0
    ) -> list[nn.Module]:
        """Normalisation, ReLU, dropout and convolution."""
        inside = self.relu_in_domain
        return [
            nn.BatchNorm(channels, relu=not inside),
            *([nn.Dropout(dropout, rng)] if dropout else []),
            self.convolution(channels, filters, rng, relu=inside),
        ]


FORMS = {
    "spatial": Form(),
    "winograd": Form(m=2),
    "winograd-relu": Form(m=2, relu_in_domain=True),
    "winograd4": Form(m=4, points="barabasz"),
    "winograd4-relu": Form(m=4, relu_in_domain=True, points="barabasz"),
}


class VGGNagadomi(nn.Module):
    """Eight convolutions, 64-64, 128-128, 256-256-256-256, with pooling after each group, then
    1024-1024.

    Parameters
    ----------
    form : Form
    rng : numpy.random.Generator
    width : int
        Filters of the first group; all other widths scale with it.
    channels, size, classes : int
        Of the images (square, of 8 to 256 pixels) and their labels.

    Notes
    -----
    With normalisation before every convolution except the first, and dropout only between the fully
    connected layers, as in later work on Winograd pruning; Nagadomi's original has no normalisation
    and another image size.

    References
    ----------
    .. [1] https://github.com/nagadomi/kaggle-cifar10-torch7
    """

    def __init__(
        self,
        form: Form,
        rng: np.random.Generator,
        *,
        width: int = 64,
        channels: int = 3,
        size: int = 32,
        classes: int = 10,
    ):
        if not 8 <= size <= 256:
            raise ValueError(f"VGGNagadomi: size must be from 8 to 256, got {size}")
        layers, before = [form.convolution(channels, width, rng)], width
        for filters, count in ((width, 1), (2 * width, 2), (4 * width, 4)):
            for _ in range(count):
                layers += form.unit(before, filters, rng)
                before = filters
            layers.append(nn.MaxPool(2))
        self.features = nn.Sequential(*layers, nn.BatchNorm(before, relu=True), nn.Flatten())
        hidden = 16 * width
        self.classifier = nn.Sequential(
            nn.Linear(before * (size // 8) ** 2, hidden, rng),
            nn.ReLU(),
            nn.Dropout(0.5, rng),
            nn.Linear(hidden, hidden, rng),
            nn.ReLU(),
            nn.Dropout(0.5, rng),
            nn.Linear(hidden, classes, rng),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class ConvPoolCNN(nn.Module):
    """ConvPool-CNN-C: 3x3 convolutions 96-96-96, 192-192-192 and 192, 1x1 ones, and a global mean.

    Parameters
    ----------
    form : Form
    rng : numpy.random.Generator
    width : int
        Filters of the first group; the others are twice as wide.
    channels, size, classes : int
        Of the images (square, any size) and their labels.

    References
    ----------
    .. [1] J. T. Springenberg et al., "Striving for Simplicity: The All Convolutional Net",
       ICLR 2015 workshop.
    """

    def __init__(
        self,
        form: Form,
        rng: np.random.Generator,
        *,
        width: int = 96,
        channels: int = 3,
        size: int = 32,
        classes: int = 100,
    ):
        wide = 2 * width
        self.features = nn.Sequential(
            nn.Dropout(0.2, rng),
            form.convolution(channels, width, rng),
            *form.unit(width, width, rng),
            *form.unit(width, width, rng),
            nn.MaxPool(3, stride=2, padding=1),
            *form.unit(width, wide, rng, dropout=0.5),
            *form.unit(wide, wide, rng),
            *form.unit(wide, wide, rng),
            nn.MaxPool(3, stride=2, padding=1),
            *form.unit(wide, wide, rng, dropout=0.5),
        )
        self.classifier = nn.Sequential(
            nn.BatchNorm(wide, relu=True),
            nn.Conv(wide, wide, 1, rng),
            nn.BatchNorm(wide, relu=True),
            nn.Conv(wide, classes, 1, rng),
            nn.GlobalAveragePool(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class _Block(nn.Module):
    """Two units and a normalisation, added to the input after its ReLU."""

    def __init__(self, form: Form, before: int, width: int, first: bool, rng: np.random.Generator):
        self.branch = nn.Sequential(
            *form.unit(before, width, rng), *form.unit(width, width, rng), nn.BatchNorm(width)
        )
        projection = [nn.Conv(before, width, 1, rng), nn.BatchNorm(width)] if first else []
        self.shortcut = nn.Sequential(nn.ReLU(), *projection)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.shortcut(x)


def _groups(
    form: Form, widths: Sequence[int], depth: int, pooled: Container[int], rng: np.random.Generator
) -> nn.Sequential:
    """Groups of `depth` blocks; those whose numbers are in `pooled` follow a pooling."""
    layers, before = [], widths[0]
    for group, width in enumerate(widths):
        if group in pooled:
            layers.append(nn.MaxPool(3, stride=2, padding=1))
        for i in range(depth):
            layers.append(_Block(form, before, width, i == 0, rng))
            before = width
    return nn.Sequential(*layers)


class WinogradResNet(nn.Module):
    """The paper's ResNet-18: all 3x3 convolutions have stride 1, the last group has 14x14 pixels.

    Parameters
    ----------
    form : Form
    rng : numpy.random.Generator
    width : int
        Filters of the first group; the others have 2, 4 and 8 times as many.
    channels, size, classes : int
        Of the images (square, any size) and their labels.

    Notes
    -----
    As in the authors' code: 3x3 max pooling with stride 2 between the first three groups; a 1x1
    convolution in the shortcut of each group's first block, the very first one too. The 7x7
    convolution is ordinary and not pruned.

    References
    ----------
    .. [1] https://github.com/xingyul/sparse-winograd-cnn
    """

    def __init__(
        self,
        form: Form,
        rng: np.random.Generator,
        *,
        width: int = 64,
        channels: int = 3,
        size: int = 224,
        classes: int = 1000,
    ):
        self.conv0 = nn.Conv(channels, width, 7, rng, stride=2, padding=3)
        widths = [width * 2**group for group in range(4)]
        self.groups = _groups(form, widths, 2, range(3), rng)
        self.classifier = nn.Sequential(
            nn.ReLU(),
            nn.GlobalAveragePool(),
            nn.Dropout(0.15, rng),
            nn.Linear(widths[-1], classes, rng),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.groups(self.conv0(x)))


class WinogradCifarResNet(nn.Module):
    """ResNet-20 or 32 for small images, with the blocks of the paper's ResNet-18.

    Parameters
    ----------
    form : Form
    rng : numpy.random.Generator
    depth : int
        20, 32, 44, ...: 6 n + 2.
    channels, size, classes : int
        Of the images (square, any size) and their labels.

    Notes
    -----
    `CifarResNet` in the paper's order: the ReLU before a convolution, and pooling instead of a
    stride of 2, which Winograd tiles do not allow. The first convolution is ordinary and not
    pruned. This network is not published.
    """

    def __init__(
        self,
        form: Form,
        rng: np.random.Generator,
        *,
        depth: int = 20,
        channels: int = 3,
        size: int = 32,
        classes: int = 10,
    ):
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"WinogradCifarResNet: depth must be 6 n + 2, got {depth}")
        self.conv0 = nn.Conv(channels, 16, 3, rng, padding=1)
        self.groups = _groups(form, (16, 32, 64), (depth - 2) // 6, (1, 2), rng)
        self.classifier = nn.Sequential(
            nn.ReLU(), nn.GlobalAveragePool(), nn.Linear(64, classes, rng)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.groups(self.conv0(x)))
