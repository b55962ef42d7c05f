"""Loading of trained networks, and their accuracy."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np

from mulfree_cupy import data, nn
from mulfree_cupy.arrays import Array
from mulfree_cupy.autograd import Tensor, no_grad
from mulfree_cupy.communicator import ALONE, Communicator, part_of, totals
from mulfree_cupy.data.dataset import check_same, check_type
from mulfree_cupy.data.feed import Feed
from mulfree_cupy.train import checkpoint
from mulfree_cupy.train.checkpoint import Checkpoint
from mulfree_cupy.train.device import right_answers
from mulfree_cupy.train.recipe import AUGMENTATIONS, Recipe


def load_model(path: str | os.PathLike, xp: Any = np) -> tuple[nn.Module, Checkpoint]:
    """The trained network of a checkpoint, in evaluation mode, and the checkpoint.

    The network takes batches of a `data.Loader`, normalised by the checkpoint's `mean` and `std`;
    raw pixels are for `mulfree_cupy.load`.
    """
    saved = checkpoint.load(path)
    return saved.model.to(xp).eval(), saved


def load_teacher(path: str | os.PathLike, train: data.Dataset) -> tuple[str, nn.Module]:
    """A checkpoint's network as a teacher for a data set, with its name.

    Raises
    ------
    ValueError
        If it is for other images or classes, was trained with another normalisation, or was not
        trained for an epoch.
    """
    saved = checkpoint.load(path)
    check_data(path, saved, train)
    if not saved.epoch and saved.data is not None:  # an imported network was trained elsewhere
        raise ValueError(f"{path} cannot teach: it was not trained for an epoch")
    for ours, theirs in zip(data.statistics(train), (saved.mean, saved.std), strict=True):
        if not np.array_equal(ours, theirs):
            raise ValueError(
                f"{path} cannot teach on {train.name}: it normalises images by other statistics "
                "than those of the training images"
            )
    return saved.recipe.model, saved.model


def evaluate(
    model: nn.Module,
    dataset: data.Dataset,
    mean: np.ndarray,
    std: np.ndarray,
    xp: Any = np,
    batch_size: int = 500,
    communicator: Communicator = ALONE,
) -> float:
    """Accuracy of a network on a data set, of which each rank of the communicator tests a part.

    Raises
    ------
    FloatingPointError
        If a logit is not finite.
    """
    model.eval()
    loader = in_order(own_part(dataset, communicator), mean, std, batch_size)
    right = _right_answers(model, loader) if xp is np else right_answers(model, Feed(loader, xp))
    return totals(communicator, right, xp=xp)[0] / len(dataset)


def own_part(dataset: data.Dataset, communicator: Communicator) -> data.Dataset:
    """The images that this rank tests."""
    part = part_of(len(dataset), communicator)
    return replace(dataset, images=dataset.images[part], labels=dataset.labels[part])


def _right_answers(model: nn.Module, loader: data.Loader) -> int:
    right = 0
    with no_grad():
        for images, labels in loader:
            logits = model(Tensor(images)).data
            if not np.isfinite(logits).all():
                raise FloatingPointError(
                    f"the network's answers on {loader.dataset.name} are not finite; "
                    f"{first_fault(model, images)}"
                )
            right += int((logits.argmax(axis=1) == labels).sum())
    return right


def in_order(
    dataset: data.Dataset, mean: np.ndarray, std: np.ndarray, batch_size: int = 500
) -> data.Loader:
    """The batches for testing."""
    return data.Loader(dataset, batch_size, shuffle=False, mean=mean, std=std, seed=0)


def in_training(
    recipe: Recipe,
    dataset: data.Dataset,
    mean: np.ndarray,
    std: np.ndarray,
    communicator: Communicator = ALONE,
) -> data.Loader:
    """The batches for training."""
    return data.Loader(
        dataset,
        recipe.batch_size,
        shuffle=True,
        augment=AUGMENTATIONS[recipe.augment],
        mean=mean,
        std=std,
        seed=recipe.seed,
        communicator=communicator,
    )


def first_fault(model: nn.Module, x: Array) -> str:
    """Message naming the first executed layer whose output is not finite."""
    names = {id(module): name for name, module in model.modules()}
    faults = []

    def watch(module: nn.Module, answer: Tensor, _: float) -> None:
        if not faults and not bool(np.isfinite(answer.data).all()):
            faults.append(f"{names[id(module)]} ({type(module).__name__})")

    with nn.observed(watch), no_grad():
        model(Tensor(x))
    return (
        f"the first layer that is not finite is {faults[0]}" if faults else "every layer is finite"
    )


def namespace_of(device: str) -> Any:
    """NumPy for ``"cpu"``, CuPy for ``"cuda"``."""
    if device == "cpu":
        return np
    if device != "cuda":
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")
    try:
        import cupy
    except ImportError:
        raise ValueError(
            "device 'cuda' needs CuPy; pip install 'mulfree_cupy[cuda13]', or its extra cuda12"
        ) from None
    if not cupy.is_available():
        raise ValueError("device 'cuda' needs a GPU, and CuPy finds none")
    return cupy


def check_data(source: str | os.PathLike, saved: Checkpoint, dataset: data.Dataset) -> None:
    """Raise `data.OtherData` unless a checkpoint's network is for images and classes like these."""
    channels, size = saved.shape["channels"], saved.shape["size"]
    check_same(source, (channels, size, size), saved.classes, dataset)


def shape_of(dataset: data.Dataset) -> dict[str, int]:
    """The shape arguments of a network for these images."""
    check_type(dataset)
    _, channels, height, width = dataset.images.shape
    if height != width:
        raise data.OtherSize(f"the networks take square images, got {height} x {width}")
    return {"channels": channels, "size": height, "classes": len(dataset.classes)}
