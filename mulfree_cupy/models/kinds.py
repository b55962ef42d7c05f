"""What the networks ask of the kind of convolution that they are made of."""

from __future__ import annotations

from functools import partial

from mulfree_cupy import nn


def takes_signs(convolution: type | partial) -> bool:
    """Whether it sees the signs of its input alone.

    Then no ReLU may be in front of it, nor a shortcut lead through it; and as in the papers the
    first convolution and the classifier are ordinary.
    """
    return getattr(convolution, "func", convolution) is nn.BinaryConv
