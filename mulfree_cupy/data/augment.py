"""Random augmentation of whole batches of uint8 images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class RandomCrop:
    """Pad each image with zeros and cut a window of the old size at a random place.

    Image n becomes ``padded[n, :, dy[n] : dy[n] + H, dx[n] : dx[n] + W]``, where the shifts
    ``dy, dx = rng.integers(0, 2 * padding + 1, (2, N))``.

    Parameters
    ----------
    padding : int, default 4
        Zero pixels on each side.

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy.data import RandomCrop
    >>> images = np.arange(1, 5, dtype=np.uint8).reshape(1, 1, 2, 2)
    >>> RandomCrop(padding=1)(images, np.random.default_rng(3))
    array([[[[0, 3],
             [0, 0]]]], dtype=uint8)
    """

    padding: int = 4

    def __post_init__(self) -> None:
        if not isinstance(self.padding, int) or self.padding < 0:
            raise ValueError(f"RandomCrop: padding must be an int of at least 0: {self.padding!r}")

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        count, channels, height, width = images.shape
        pad = self.padding
        padded = np.zeros((count, channels, height + 2 * pad, width + 2 * pad), images.dtype)
        padded[:, :, pad : pad + height, pad : pad + width] = images
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
        dy, dx = rng.integers(0, 2 * pad + 1, (2, count))
        return windows[np.arange(count), :, dy, dx]


@dataclass(frozen=True)
class RandomFlip:
    """Mirror each image left to right with some probability.

    Image n becomes ``image[:, :, ::-1]`` where ``rng.random(N)[n] < probability``.

    Parameters
    ----------
    probability : float, default 0.5

    Examples
    --------
    >>> import numpy as np
    >>> from mulfree_cupy.data import RandomFlip
    >>> images = np.arange(4, dtype=np.uint8).reshape(2, 1, 1, 2)
    >>> RandomFlip()(images, np.random.default_rng(0)).tolist()
    [[[[0, 1]]], [[[3, 2]]]]
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"RandomFlip: probability must be in 0..1: {self.probability!r}")

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        flipped = np.flatnonzero(rng.random(len(images)) < self.probability)
        out = images.copy()
        out[flipped] = images[flipped][..., ::-1]
        return out


class Compose:
    """Augmentations one after the other.

    Parameters
    ----------
    *augments : callable
        Each takes uint8 images (N, C, H, W) and a `numpy.random.Generator`, and returns images
        without changing those it was given.

    Examples
    --------
    >>> from mulfree_cupy.data import Compose, RandomCrop, RandomFlip
    >>> Compose(RandomCrop(padding=4), RandomFlip())
    Compose(RandomCrop(padding=4), RandomFlip(probability=0.5))
    """

    def __init__(self, *augments: Augment) -> None:
        self.augments = augments

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.augments))})"

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for augment in self.augments:
            images = augment(images, rng)
        return images
