"""The networks by the name that the command line gives them."""

from __future__ import annotations

import inspect
from functools import partial

import numpy as np

from mulfree_cupy import nn
from mulfree_cupy.models.lenet import LeNet
from mulfree_cupy.models.resnet import CifarResNet, ImageNetResNet
from mulfree_cupy.models.vgg import VGGSmall

_NETWORKS = {
    "lenet": LeNet,
    "vggsmall": VGGSmall,
    "resnet20": partial(CifarResNet, depth=20),
    "resnet32": partial(CifarResNet, depth=32),
    "resnet18": partial(ImageNetResNet, depth=18),
    "resnet50": partial(ImageNetResNet, depth=50),
}
_KINDS = {
    "adder": nn.AdderConv,
    "conv": nn.Conv,
    "sign-adder": partial(nn.AdderConv, sign=True),  # slow; for AdderNet's ablation
}

MODELS = {
    f"{kind}-{name}": partial(network, convolution)
    for kind, convolution in _KINDS.items()
    for name, network in _NETWORKS.items()
}


def build(name: str, *, seed: int = 0, **shape: int) -> nn.Module:
    """A freshly initialised network.

    Parameters
    ----------
    name : str
        ``adder-``, ``conv-`` or ``sign-adder-`` (filters trained on the derivative's sign, as in
        AdderNet's ablation), and ``lenet``, ``vggsmall``, ``resnet20``, ``resnet32``,
        ``resnet18`` or ``resnet50``.
    seed : int
        Of the weights.
    **shape : int
        ``channels``, ``size`` and ``classes`` of the data.

    Raises
    ------
    ValueError
        If there is no such network, or it cannot take images of this size.

    Examples
    --------
    >>> from mulfree_cupy import models
    >>> network = models.build("adder-resnet20")
    >>> sum(p.size for p in network.parameters())
    272484
    """
    return _constructor(name)(np.random.default_rng(seed), **shape)


def default_shape(name: str) -> dict[str, int]:
    """The ``channels``, ``size`` and ``classes`` that a network is built for if none are given.

    Examples
    --------
    >>> from mulfree_cupy import models
    >>> models.default_shape("conv-resnet18")
    {'channels': 3, 'size': 224, 'classes': 1000}
    """
    options = inspect.signature(_constructor(name)).parameters
    return {option: options[option].default for option in ("channels", "size", "classes")}


def _constructor(name: str):
    if name not in MODELS:
        raise ValueError(f"no model named {name!r}; there are {', '.join(MODELS)}")
    return MODELS[name]
