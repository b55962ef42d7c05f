"""Random augmentation of whole batches of images.

Crops and flips are drawn on the host, by `draw`, and may be applied elsewhere: on a GPU the same
moves give bit-identical images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class Moves(NamedTuple):
    """A shift of each image, and whether it is mirrored.

    Image n becomes ``y[c, h, w] = image[c, h + dy[n], v + dx[n]]``, 0 outside, with
    ``v = W - 1 - w if flip[n] else w``.
    """

    dy: np.ndarray
    dx: np.ndarray
    flip: np.ndarray

    def then(self, other: Moves) -> Moves:
        """These moves followed by others.

        Raises
        ------
        ValueError
            If both shift an image: pixels shifted out by the first are lost.
        """
        shifted = [(moves.dy != 0) | (moves.dx != 0) for moves in (self, other)]
        if (shifted[0] & shifted[1]).any():
            raise ValueError("draw: an image can be cropped once, not cropped again")
        return Moves(
            self.dy + other.dy,
            self.dx + np.where(self.flip, -other.dx, other.dx),
            self.flip ^ other.flip,
        )


def still(count: int) -> Moves:
    """The identity for a number of images."""
    return Moves(np.zeros(count, int), np.zeros(count, int), np.zeros(count, bool))


def moved(images: np.ndarray, moves: Moves) -> np.ndarray:
    """A copy of the images, each after its moves."""
    count, channels, height, width = images.shape
    pad = int(np.abs([moves.dy, moves.dx]).max(initial=0))
    if pad:
        padded = np.zeros((count, channels, height + 2 * pad, width + 2 * pad), images.dtype)
        padded[:, :, pad : pad + height, pad : pad + width] = images
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
        images = windows[np.arange(count), :, pad + moves.dy, pad + moves.dx]
    else:
        images = images.copy()
    flipped = np.flatnonzero(moves.flip)
    images[flipped] = images[flipped][..., ::-1]
    return images


@dataclass(frozen=True)
class RandomCrop:
    """Pad each image with zeros and crop a window of the original size at a random position.

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

    def draw(self, rng: np.random.Generator, count: int) -> Moves:
        """The moves of so many images."""
        dy, dx = rng.integers(0, 2 * self.padding + 1, (2, count)) - self.padding
        return still(count)._replace(dy=dy, dx=dx)

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return moved(images, self.draw(rng, len(images)))


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

    def draw(self, rng: np.random.Generator, count: int) -> Moves:
        """The moves of so many images."""
        return still(count)._replace(flip=rng.random(count) < self.probability)

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return moved(images, self.draw(rng, len(images)))


class Compose:
    """Augmentations in sequence.

    Parameters
    ----------
    *augments : callable
        Each takes images (N, C, H, W) and a `numpy.random.Generator`, and returns images
        without changing its argument.

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

    def draw(self, rng: np.random.Generator, count: int) -> Moves:
        """The moves of so many images.

        Raises
        ------
        TypeError
            If one of the augmentations draws no moves.
        ValueError
            If an image is cropped twice.
        """
        moves = still(count)
        for augment in self.augments:
            moves = moves.then(drawn(augment, rng, count))
        return moves

    def __call__(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for augment in self.augments:
            images = augment(images, rng)
        return images


def drawn(augment: Augment | None, rng: np.random.Generator, count: int) -> Moves:
    """The moves that an augmentation draws for a number of images.

    Raises
    ------
    TypeError
        If it draws none: it is not a crop, a flip, or composed of them.
    """
    if augment is None:
        return still(count)
    if not hasattr(augment, "draw"):
        raise TypeError(f"draw: {augment!r} draws no moves, as RandomCrop and RandomFlip do")
    return augment.draw(rng, count)
