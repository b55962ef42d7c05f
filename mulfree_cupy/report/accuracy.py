"""Accuracy of a network on labelled images."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from mulfree_cupy.data.dataset import Dataset, check_same
from mulfree_cupy.inference.network import Network
from mulfree_cupy.inference.predictor import Predictor
from mulfree_cupy.progress import progress

_BATCH = 500


def check_data(source: str | os.PathLike, network: Network, dataset: Dataset) -> None:
    """Raise `data.OtherData` unless the network of a file is for images and classes like these."""
    check_same(source, network.image, network.classes, dataset)


def accuracy(predictor: Predictor, dataset: Dataset, xp: Any = np) -> float:
    """Accuracy, computed with arrays of `xp`.

    Raises
    ------
    FloatingPointError
        If a logit is not finite.
    """
    right = 0
    for start in progress(range(0, len(dataset), _BATCH), "testing", "image", scale=_BATCH):
        part = slice(start, start + _BATCH)
        logits = predictor(xp.asarray(dataset.images[part]))
        if not bool(xp.isfinite(logits).all()):
            raise FloatingPointError(f"the network's answers on {dataset.name} are not finite")
        right += int((logits.argmax(axis=1) == xp.asarray(dataset.labels[part])).sum())
    return right / len(dataset)
