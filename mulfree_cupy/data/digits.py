"""The digits that come with scikit-learn: 1797 images of 8x8, with values 0..16."""

from __future__ import annotations

import numpy as np

from mulfree_cupy.data.dataset import Dataset, split


def load_digits() -> tuple[Dataset, Dataset]:
    """The training and the test digits."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "load: the digits come with scikit-learn; pip install 'mulfree_cupy[train]'"
        ) from error
    digits = datasets.load_digits()
    images = digits.images[:, np.newaxis].astype(np.uint8)
    labels = digits.target.astype(np.int64)
    classes = tuple(str(digit) for digit in range(10))
    train, test = (
        Dataset(images[indices], labels[indices], classes, "digits") for indices in split(labels)
    )
    return train, test
