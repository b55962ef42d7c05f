"""Recomputation of BatchNorm statistics from training images."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from mulfree_cupy import data, nn
from mulfree_cupy.arrays import Array, device_of, namespace
from mulfree_cupy.autograd import Tensor, no_grad
from mulfree_cupy.communicator import ALONE, Communicator, totals
from mulfree_cupy.train.checkpoint import Checkpoint
from mulfree_cupy.train.evaluation import check_data, in_training, load_model
from mulfree_cupy.train.recipe import IMAGES, integer


def gather_statistics(
    model: nn.Module, batches: Iterable[Array], communicator: Communicator = ALONE
) -> None:
    """Set the running mean and variance of every BatchNorm to averages over some batches.

    Every BatchNorm normalises each batch by the batch's own statistics, as in training; all other
    layers are in evaluation mode, without dropout. Only the statistics change, in place, and not if
    anything raises.

    Parameters
    ----------
    model : Module
    batches : iterable of arrays
        Images, prepared as in training, on the network's device.
    communicator : Communicator
        That of the BatchNorms; each rank has its part of the batches.

    Raises
    ------
    ValueError
        If the network has no BatchNorm, or there is no batch.

    Notes
    -----
    With the mean m_b and the unbiased variance v_b of a channel in batch b of n_b images::

        running_mean = sum_b n_b m_b / sum_b n_b,    running_var = sum_b n_b v_b / sum_b n_b

    averaged in float64 batch by batch: ``average = (1 - t) average + t new`` with ``t = n_b / (n_1
    + ... + n_b)``. The result depends only on the batches and their order, bit for bit.

    The running statistics of training are averages over batches during which the weights changed.
    An adder's filters change fast and the mean of its outputs is many deviations from zero, so
    while the rate is high these statistics lag behind the weights.

    References
    ----------
    .. [1] S. Ioffe and C. Szegedy, "Batch Normalization", ICML 2015, algorithm 2.
    """
    layers = [module for _, module in model.modules() if isinstance(module, nn.BatchNorm)]
    if not layers:
        raise ValueError("gather_statistics: the network has no BatchNorm")
    with _gathering(model, layers), no_grad():
        seen = 0
        for images in batches:
            (count,) = totals(communicator, len(images), xp=namespace(images))
            seen += count
            for layer in layers:
                layer.momentum = count / seen
            model(Tensor(images))
        if not seen:
            raise ValueError("gather_statistics: there is no batch to gather statistics from")
        gathered = [(layer.running_mean, layer.running_var) for layer in layers]
    for layer, averages in zip(layers, gathered, strict=True):
        with device_of(layer.running_mean):
            layer.running_mean[...], layer.running_var[...] = averages


@contextlib.contextmanager
def _gathering(model: nn.Module, layers: list[nn.BatchNorm]) -> Iterator[None]:
    """Inside it only the BatchNorms are in training mode, with float64 arrays as statistics."""
    modes = [(module, module.training) for _, module in model.modules()]
    before = [(layer.running_mean, layer.running_var, layer.momentum) for layer in layers]
    try:
        model.eval()
        for layer in layers:
            layer.training = True
            with device_of(layer.running_mean):
                xp = namespace(layer.running_mean)
                layer.running_mean, layer.running_var = (
                    xp.zeros(layer.running_mean.shape) for _ in range(2)
                )
        yield
    finally:
        for layer, (mean, variance, momentum) in zip(layers, before, strict=True):
            layer.running_mean, layer.running_var, layer.momentum = mean, variance, momentum
        for module, training in modes:
            module.training = training


def calibrated(
    source: str | os.PathLike,
    train: data.Dataset,
    *,
    images: int | None = None,
    xp: Any = np,
) -> Checkpoint:
    """A checkpoint with statistics recomputed from batches as in training.

    The batches are the first of the last trained epoch: with as many images as the recipe's
    `calibration` the result is bit-identical to that of training.

    Parameters
    ----------
    source : path
        A checkpoint between two epochs.
    train : data.Dataset
        The training images.
    images : int, optional
        Number, rounded up to whole batches; default 2560, or all if fewer.
    xp : module
        Array module, as returned by `namespace_of`.

    Raises
    ------
    ValueError
        If the checkpoint is inside an epoch, for other images or classes, or of a network without
        BatchNorm; if `images` is less than a batch or more than there are.
    FloatingPointError
        If the statistics are not finite.
    """
    model, saved = load_model(source, xp)
    check_data(source, saved, train)
    if saved.sums["seen"]:
        raise ValueError(
            f"{source} is inside an epoch, and a run resumed from there would end with other "
            "statistics than one that never stopped; resume it to the end of the epoch"
        )
    loader = in_training(saved.recipe, train, saved.mean, saved.std)
    least = min(loader.batch_size, len(train))
    images = min(IMAGES, len(train)) if images is None else integer("calibrated", "images", images)
    if not least <= images <= len(train):
        raise ValueError(
            f"images must be from {least}, a batch, to the {len(train)} of {train.name}, "
            f"got {images}"
        )
    batches = loader if xp is np else data.Feed(loader, xp)
    epoch, count = max(saved.epoch - 1, 0), -(-images // loader.batch_size)
    gather_statistics(model, batches.first_images(epoch, count))
    return replace(saved, model=model)
