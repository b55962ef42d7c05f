"""Properties of the kinds of convolution that networks depend on."""

from __future__ import annotations

from functools import partial

from mulfree_cupy import nn


def takes_signs(convolution: type | partial) -> bool:
    """Whether it uses only the signs of its input.

    Then it must not follow a ReLU, nor be part of a shortcut; and as in the papers the first
    convolution and the classifier are ordinary.
    """
    return getattr(convolution, "func", convolution) is nn.BinaryConv


def normalisation(convolution: type | partial, channels: int, *, relu: bool = True) -> nn.BatchNorm:
    """What follows the network's convolutions: with a ReLU, or before signs without.

    Before signs it does not decay, as binary filters do not: its scale would not change what is
    computed, but make the gradients of the layers before it vanish.
    """
    signs = takes_signs(convolution)
    return nn.BatchNorm(channels, relu=relu and not signs, decays=not signs)
