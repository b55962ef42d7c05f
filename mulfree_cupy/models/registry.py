"""The networks by their names on the command line."""

from __future__ import annotations

import difflib
import inspect
from functools import partial

import numpy as np

from mulfree_cupy import geometry, nn
from mulfree_cupy.models.lenet import LeNet
from mulfree_cupy.models.resnet import CifarResNet, ImageNetResNet
from mulfree_cupy.models.shiftnet import sc2_resnet, shiftnet
from mulfree_cupy.models.shiftresnet import ShiftResNet
from mulfree_cupy.models.vgg import VGGSmall
from mulfree_cupy.models.winograd import (
    FORMS,
    ConvPoolCNN,
    VGGNagadomi,
    WinogradCifarResNet,
    WinogradResNet,
)

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
    "binary": nn.BinaryConv,
    "conv": nn.Conv,
    "sign-adder": partial(nn.AdderConv, sign=True),  # slow; for AdderNet's ablation
}

MODELS = {
    f"{kind}-{name}": partial(network, convolution)
    for kind, convolution in _KINDS.items()
    for name, network in _NETWORKS.items()
}
for _network, _blocks in {
    "shiftresnet": partial(ShiftResNet, "shift"),
    "depthwise-resnet": partial(ShiftResNet, "depthwise"),
    "shift-adder-resnet": partial(ShiftResNet, "shift-adder"),
    "sc2-resnet": sc2_resnet,
}.items():
    MODELS |= {
        f"{_network}{depth}-e{expansion}": partial(_blocks, depth=depth, expansion=expansion)
        for depth in (20, 56, 110)
        for expansion in (1, 3, 6, 9)
    }
MODELS |= {
    f"{kind}-lenet-plane": partial(LeNet, _KINDS[kind], plane=True) for kind in ("conv", "adder")
}
MODELS |= {f"shiftnet-{variant}": partial(shiftnet, variant) for variant in "abc"}
for _form in FORMS:
    MODELS |= {
        f"{_form}-resnet{depth}": partial(WinogradCifarResNet, FORMS[_form], depth=depth)
        for depth in (20, 32)
    }
    for _network, _layers in {
        "vgg-nagadomi": VGGNagadomi,
        "convpool-cnn-c": ConvPoolCNN,
        "resnet18": WinogradResNet,
    }.items():
        MODELS[f"{_form}-{_network}"] = partial(_layers, FORMS[_form])
        MODELS |= {
            f"{_form}-{_network}-{width}": partial(_layers, FORMS[_form], width=width)
            for width in (8, 16, 32)
        }


# The variants of one network by their names in the papers, for comparison.
RESNET20 = {
    "CNN": "conv-resnet20",
    "AdderNet": "adder-resnet20",
    "BNN": "binary-resnet20",
    "shift": "shiftresnet20-e3",
    "sparse Winograd": "winograd-relu-resnet20",
}

# Limits for the data: larger than any data set, and small enough for memory.
MOST = {"channels": 4096, "size": 4096, "classes": 65536}


def build(name: str, *, seed: int = 0, **shape: int) -> nn.Module:
    """A freshly initialised network.

    Parameters
    ----------
    name : str
        A key of `MODELS`. Either ``adder-``, ``binary-``, ``conv-`` or ``sign-adder-`` (filters
        trained with the true derivative, as in AdderNet's ablation), and ``lenet``, ``vggsmall``,
        ``resnet20``, ``resnet32``, ``resnet18`` or ``resnet50``. Or ``shiftresnet``,
        ``depthwise-resnet``, ``shift-adder-resnet`` or ``sc2-resnet``, the depth, 20, 56 or 110,
        and ``-e`` with the expansion, 1, 3, 6 or 9. Or ``shiftnet-a``, ``-b`` or ``-c``. Or
        ``spatial-``, ``winograd-``, ``winograd-relu-``, ``winograd4-`` or ``winograd4-relu-``, then
        ``resnet20``, ``resnet32``, ``vgg-nagadomi``, ``convpool-cnn-c`` or ``resnet18``, and for
        narrow versions of the last three the filters of the first group, ``-8``, ``-16`` or
        ``-32``. Or ``conv-lenet-plane`` or ``adder-lenet-plane``, whose last features are two
        numbers.
    seed : int
        Of the weights.
    **shape : int
        ``channels``, ``size`` and ``classes`` of the data.

    Raises
    ------
    ValueError
        If there is no such network, it cannot take images of this size, or `shape` exceeds `MOST`.

    Examples
    --------
    >>> from mulfree_cupy import models
    >>> network = models.build("adder-resnet20")
    >>> sum(p.size for p in network.parameters())
    272484
    """
    network = _constructor(name)
    for what, number in shape.items():
        if geometry.integer(name, what, number) > MOST.get(what, number):
            raise ValueError(f"{name}: {what} must be at most {MOST[what]}, got {number}")
    return network(np.random.default_rng(seed), **shape)


def default_shape(name: str) -> dict[str, int]:
    """The default ``channels``, ``size`` and ``classes`` of a network.

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
        alike = difflib.get_close_matches(name, MODELS, 5, 0)
        raise ValueError(
            f"no model named {name!r}; the nearest of {len(MODELS)} are {', '.join(alike)}; "
            "`mulfree models` lists all"
        )
    return MODELS[name]
