"""Import of residual networks of AdderNet's published code, and torchvision's, by name and
shape."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence

import numpy as np

from mulfree_cupy import data, models, nn
from mulfree_cupy.foreign import state_dicts
from mulfree_cupy.train import Checkpoint, History, Recipe

_DEPTHS = {
    "resnet20": (3, 3, 3),
    "resnet32": (5, 5, 5),
    "resnet18": (2, 2, 2, 2),
    "resnet50": (3, 4, 6, 3),
}
NETWORKS = [f"{kind}-{network}" for kind in ("adder", "conv") for network in _DEPTHS]

_CIFAR10 = tuple(
    "airplane automobile bird cat deer dog frog horse ship truck".split()  # noqa: SIM905
)
_IMAGENET_MEAN = tuple(255 * channel for channel in (0.485, 0.456, 0.406))
_IMAGENET_STD = tuple(255 * channel for channel in (0.229, 0.224, 0.225))


def imported(
    path: str | os.PathLike, model: str, *, classes: Sequence[str] | None = None
) -> Checkpoint:
    """A checkpoint of a network that another program trained.

    What a state dict does not contain is left empty: a history of no epochs, no data, and the
    default recipe. The images' normalisation is that of the published training, for CIFAR or for
    ImageNet.

    Parameters
    ----------
    path : path
        Of a state dict, as in `read`. Names may begin with ``module.``.
    model : str
        A key of `models.MODELS`: ``adder-`` or ``conv-`` and ``resnet20``, ``resnet32``,
        ``resnet18`` or ``resnet50``.
    classes : sequence of str, optional
        Their names, in the order of the labels. By default CIFAR-10's for ten classes of a network
        for CIFAR, else label numbers.

    Raises
    ------
    FileNotFoundError, ValueError, ImportError
        As `read`; if there are no published names for `model`; if anything is missing, unknown, of
        another shape or not finite, as listed in the message; if the number of `classes` is wrong.

    Notes
    -----
    The published classifier is a 1x1 convolution, here a matrix. torchvision's networks do not
    normalise the logits; here that normalisation is the identity.
    """
    if model not in NETWORKS:
        raise ValueError(
            f"{model!r} is not among the networks that can be imported: {', '.join(NETWORKS)}"
        )
    found = _plain_names(state_dicts.read(path))
    shape = models.default_shape(model)
    if found.get("fc.weight", np.empty(0)).ndim >= 2:
        shape["classes"] = len(found["fc.weight"])
    try:
        network = models.build(model, **shape)
    except ValueError as error:
        raise ValueError(f"{path} cannot be imported: {error}") from None
    if model.startswith("conv-") and not any(name.startswith("bn2.") for name in found):
        found |= _identity(network.bn2)
    _fill(network, _published(network, _DEPTHS[model.split("-")[1]]), found, path, model)
    cifar = shape["size"] == 32
    mean, std = (data.CIFAR_MEAN, data.CIFAR_STD) if cifar else (_IMAGENET_MEAN, _IMAGENET_STD)
    if classes is None:
        ten = cifar and shape["classes"] == len(_CIFAR10)
        classes = _CIFAR10 if ten else [str(label) for label in range(shape["classes"])]
    return Checkpoint(
        recipe=Recipe(model),
        history=History(),
        epoch=0,
        sums={"loss": 0.0, "right": 0, "seen": 0},
        shape=shape,
        classes=tuple(classes),
        data=None,
        mean=np.array(mean),
        std=np.array(std),
        model=network,
        teacher=None,
        velocities={},
    )


def _plain_names(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without DataParallel's prefix, and without the numbers of batches."""
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): array for name, array in state.items()}
    return {n: a for n, a in state.items() if not n.endswith(".num_batches_tracked")}


def _published(network: nn.Module, depths: Sequence[int]) -> dict[str, str]:
    """The published name of each of our parameters and buffers."""
    blocks = [(stage, i) for stage, depth in enumerate(depths, 1) for i in range(depth)]
    adders = {name for name, parameter in network.named_parameters() if parameter.adder}
    names = {}
    for name in network.state_dict():
        theirs = name.removesuffix("weight") + "adder" if name in adders else name
        if name.startswith("stages."):
            _, _, block, rest = theirs.split(".", 3)
            stage, i = blocks[int(block)]
            theirs = f"layer{stage}.{i}.{rest.replace('shortcut.layers.', 'downsample.')}"
        names[name] = theirs
    return names


def _identity(norm: nn.BatchNorm) -> dict[str, np.ndarray]:
    one = np.ones_like(norm.running_var)
    return {
        "bn2.weight": np.sqrt(one + np.float32(norm.eps)),
        "bn2.bias": 0 * one,
        "bn2.running_mean": 0 * one,
        "bn2.running_var": one,
    }


def _fill(
    network: nn.Module,
    names: Mapping[str, str],
    found: Mapping[str, np.ndarray],
    path: str | os.PathLike,
    model: str,
) -> None:
    """Load all arrays, or raise with everything that does not fit."""
    state, faults = network.state_dict(), []
    for ours, theirs in names.items():
        array, wanted = found.get(theirs), state[ours].shape
        if array is None:
            faults.append(f"missing: {theirs} {wanted}")
            continue
        if theirs == "fc.weight" and array.shape[2:] == (1, 1):
            array = array[:, :, 0, 0]
        if array.shape != wanted or array.dtype.kind != "f":
            faults.append(f"other: {theirs} is {array.dtype} {array.shape}, not float {wanted}")
            continue
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            faults.append(f"not finite: {theirs} {wanted}")
        state[ours] = array
    unknown = found.keys() - set(names.values())
    faults += [f"unknown: {name!r:.200} {found[name].shape}" for name in sorted(unknown)]
    if faults:
        lines = itertools.chain([f"{path} does not fit {model}:"], faults)
        raise ValueError("\n  ".join(lines))
    network.load_state_dict(state)
