"""The layers that are timed: ResNet-20 on CIFAR images and ResNet-18 on ImageNet images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Layer:
    """One square convolution of x (batch, channels, size, size) with `filters` filters."""

    batch: int
    channels: int
    filters: int
    size: int
    kernel: int = 3
    stride: int = 1

    @property
    def padding(self) -> int:
        return self.kernel // 2

    @property
    def options(self) -> dict[str, int]:
        """The keyword arguments of the convolution."""
        return {"stride": self.stride, "padding": self.padding}

    @property
    def out_size(self) -> int:
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def taps(self) -> int:
        """Terms in one output's sum."""
        return self.channels * self.kernel**2

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.channels, self.size, self.size

    @property
    def w_shape(self) -> tuple[int, int, int, int]:
        return self.filters, self.channels, self.kernel, self.kernel

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.filters, self.out_size, self.out_size

    @property
    def terms(self) -> int:
        """Terms ``abs(x - w)``, or products, in the whole layer."""
        return int(np.prod(self.out_shape)) * self.taps

    def moved_bytes(self, itemsize: int) -> int:
        """Bytes of the rows of x that the kernel meets, and of an answer of four bytes a number."""
        rows = min(1, self.kernel / self.stride)
        return int(rows * np.prod(self.x_shape)) * itemsize + 4 * int(np.prod(self.out_shape))

    @property
    def name(self) -> str:
        shape = f"N{self.batch} {self.channels}->{self.filters}@{self.size}"
        kernel = f" {self.kernel}x{self.kernel}" if self.kernel != 3 else ""
        return shape + kernel + (f" s{self.stride}" if self.stride > 1 else "")

    def with_batch(self, batch: int) -> Layer:
        return replace(self, batch=batch)

    def floats(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, w and the gradient of the answer: normal float32 numbers, the same in every run."""
        rng = np.random.default_rng(0)
        shapes = self.x_shape, self.w_shape, self.out_shape
        return tuple(rng.standard_normal(shape, np.float32) for shape in shapes)

    def bytes(self) -> tuple[np.ndarray, np.ndarray]:
        """x and w of uint8, over the whole range."""
        rng = np.random.default_rng(1)
        return tuple(rng.integers(0, 256, s, np.uint8) for s in (self.x_shape, self.w_shape))


RESNET20 = [
    Layer(128, 16, 16, 32),
    Layer(128, 32, 32, 16),
    Layer(128, 64, 64, 8),
    Layer(128, 16, 32, 32, stride=2),
    Layer(128, 16, 32, 32, kernel=1, stride=2),
]
RESNET18 = [
    Layer(8, 64, 64, 56),
    Layer(8, 128, 128, 28),
    Layer(8, 256, 256, 14),
    Layer(8, 64, 128, 56, stride=2),
    Layer(8, 64, 128, 56, kernel=1, stride=2),
]
LAYERS = RESNET20 + RESNET18

SHIFT = [
    Layer(8, 64, 64, 56, kernel=1),
    Layer(8, 144, 64, 56, kernel=1),
    Layer(8, 128, 128, 28, kernel=1),
    Layer(8, 256, 256, 14, kernel=1),
    Layer(16, 512, 512, 7, kernel=1),
    Layer(32, 48, 16, 32, kernel=1),
]
# Bare shifts, of their inputs: from inside the caches to far outside them.
MOVES = [
    Layer(32, 64, 64, 56, kernel=1),
    Layer(8, 64, 64, 56, kernel=1),
    Layer(32, 48, 16, 32, kernel=1),
    Layer(32, 128, 128, 28, kernel=1),
    Layer(64, 256, 256, 14, kernel=1),
    Layer(8, 256, 256, 14, kernel=1),
    Layer(128, 192, 64, 8, kernel=1),
    Layer(64, 512, 512, 7, kernel=1),
    Layer(16, 512, 512, 7, kernel=1),
]

# Seconds of work in all: for a look at whether everything runs, not for figures.
QUICK_SHIFT = [Layer(2, 12, 8, 8, kernel=1), Layer(1, 9, 4, 10, kernel=1)]
QUICK = [Layer(2, 8, 8, 8), Layer(2, 8, 16, 8, kernel=1, stride=2)]


def select(words: list[str] | None, layers: list[Layer] = LAYERS) -> list[Layer]:
    """The layers whose name contains one of the words; all of them without words."""
    chosen = [a for a in layers if not words or any(word in a.name for word in words)]
    if not chosen:
        names = ", ".join(a.name for a in layers)
        raise ValueError(f"no layer matches {words}; there are: {names}")
    return chosen
