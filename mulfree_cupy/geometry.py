"""Window geometry of convolutions: argument checks and output sizes."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterator
from typing import NamedTuple

Pair = tuple[int, int]


class ConvGeometry(NamedTuple):
    """The sizes of one convolution of x (N, C, H, W) with w (K, C/groups, kh, kw)."""

    batch: int
    channels: int
    height: int
    width: int
    filters: int
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @property
    def out_height(self) -> int:
        return output_size(
            self.height, self.kernel[0], self.stride[0], self.padding[0], self.dilation[0]
        )

    @property
    def out_width(self) -> int:
        return output_size(
            self.width, self.kernel[1], self.stride[1], self.padding[1], self.dilation[1]
        )

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.channels, self.height, self.width

    @property
    def w_shape(self) -> tuple[int, int, int, int]:
        return self.filters, self.channels // self.groups, *self.kernel

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.filters, self.out_height, self.out_width

    @property
    def cols_shape(self) -> tuple[int, int, int]:
        rows = self.channels * self.kernel[0] * self.kernel[1]
        return self.batch, rows, self.out_height * self.out_width

    @property
    def taps(self) -> int:
        """Terms in one output's sum."""
        return self.channels // self.groups * self.kernel[0] * self.kernel[1]


def output_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Number of positions of the kernel along one axis."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def windows(
    kernel: Pair, stride: Pair, dilation: Pair, out_size: Pair
) -> Iterator[tuple[int, int, tuple[slice, slice]]]:
    """For each tap (i, j) of a kernel, the rows and columns of the padded image that it reads."""

    def seen(axis: int, tap: int) -> slice:
        first = tap * dilation[axis]
        return slice(first, first + (out_size[axis] - 1) * stride[axis] + 1, stride[axis])

    for i in range(kernel[0]):
        for j in range(kernel[1]):
            yield i, j, (seen(0, i), seen(1, j))


_MOST = 2**31 - 1  # range of a kernel's int


def integer(function: str, argument: str, value: object, least: int = 1) -> int:
    """An int, at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{function}: {argument} must be an int, got {value!r}") from None
    if number < least:
        raise ValueError(f"{function}: {argument} must be at least {least}, got {number}")
    return number


def number(function: str, argument: str, value: object, least: float = 0.0) -> float:
    """A finite float, at least `least`; bools are rejected."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{function}: {argument} must be a number, got {value!r}")
    try:
        taken = float(value)
    except OverflowError:  # of an int
        taken = math.inf
    if not (math.isfinite(taken) and taken >= least):
        raise ValueError(
            f"{function}: {argument} must be a finite number >= {least:g}, got {value}"
        )
    return taken


def pair(function: str, argument: str, value: object, least: int) -> Pair:
    """An int or a pair of ints, both at least `least`, as a pair."""
    if type(value) is int:  # the common case, in a third of the time
        first = second = value
    else:
        values = value if isinstance(value, (tuple, list)) else (value, value)
        try:
            first, second = map(operator.index, values)
        except (TypeError, ValueError):
            raise TypeError(
                f"{function}: {argument} must be an int or a pair of ints, got {value!r}"
            ) from None
    if first < least or second < least:
        raise ValueError(f"{function}: {argument} must be at least {least}, got {value!r}")
    if first > _MOST or second > _MOST:
        raise ValueError(f"{function}: {argument} must be below 2**31, got {value!r}")
    return first, second


def shape4(
    function: str, argument: str, value: object, axes: str = "N, C, H, W"
) -> tuple[int, int, int, int]:
    """A shape (N, C, H, W), or with other `axes`, given as an argument."""
    try:
        shape = tuple(operator.index(size) for size in value)
    except TypeError:
        raise TypeError(f"{function}: {argument} must be 4 ints ({axes}), got {value!r}") from None
    check_rank(function, argument, shape, axes)
    if min(shape) < 0:
        raise ValueError(f"{function}: {argument} must not be negative, got {shape}")
    return shape


def check_rank(function: str, argument: str, shape: tuple, axes: str) -> None:
    """`axes` names the dimensions that the argument must have, such as ``"N, C, H, W"``."""
    rank = axes.count(",") + 1
    if len(shape) != rank:
        raise ValueError(
            f"{function}: {argument} must have {rank} dimensions ({axes}), got shape {shape}"
        )


def check_shape(function: str, argument: str, shape: tuple, expected: tuple, why: str) -> None:
    if tuple(shape) != tuple(expected):
        hint = "" if shape else ", a number; stride, padding and other options are keywords"
        raise ValueError(
            f"{function}: {argument} must have shape {tuple(expected)} {why}, got {tuple(shape)}"
            + hint
        )


def window(
    function: str,
    x_shape: tuple,
    kernel_size: object,
    *,
    filters: int = 0,
    stride: object = 1,
    padding: object = 0,
    dilation: object = 1,
    groups: object = 1,
    source: str = "kernel_size",
) -> ConvGeometry:
    """The checked geometry of a kernel sliding over x; `source` names the origin of the kernel
    size."""
    check_rank(function, "x", x_shape, "N, C, H, W")
    kernel = pair(function, source, kernel_size, 1)
    stride = pair(function, "stride", stride, 1)
    padding = pair(function, "padding", padding, 0)
    dilation = pair(function, "dilation", dilation, 1)
    geometry = ConvGeometry(*x_shape, filters, kernel, stride, padding, dilation, groups)
    _, _, height, width = x_shape
    if height < 1 or width < 1:
        raise ValueError(f"{function}: x must have H >= 1 and W >= 1, got shape {x_shape}")
    if max(height, width) + 2 * max(padding) > _MOST:
        raise ValueError(
            f"{function}: the padded image must have fewer than 2**31 rows and columns: x has "
            f"shape {x_shape}, padding {padding}"
        )
    if geometry.out_height < 1 or geometry.out_width < 1:
        raise ValueError(
            f"{function}: the kernel {kernel} with dilation {dilation} is larger than the padded "
            f"image: x has shape {x_shape}, padding {padding}"
        )
    return geometry


def convolution(
    function: str,
    x_shape: tuple,
    w_shape: tuple,
    *,
    stride: object = 1,
    padding: object = 0,
    dilation: object = 1,
    groups: object = 1,
) -> ConvGeometry:
    """The checked geometry of a convolution of x (N, C, H, W) with w (K, C/groups, kh, kw)."""
    check_rank(function, "x", x_shape, "N, C, H, W")
    check_rank(function, "w", w_shape, "K, C/groups, kh, kw")
    channels, filters = x_shape[1], w_shape[0]
    groups = integer(function, "groups", groups)
    if channels % groups or filters % groups:
        raise ValueError(
            f"{function}: groups={groups} must divide the channels of x, {channels}, and the "
            f"filters of w, {filters}: x has shape {x_shape}, w has shape {w_shape}"
        )
    if w_shape[1] * groups != channels:
        raise ValueError(
            f"{function}: w must have C/groups = {channels}/{groups} = {channels // groups} "
            f"channels, got {w_shape[1]}: x has shape {x_shape}, w has shape {w_shape}"
        )
    return window(
        function,
        x_shape,
        w_shape[2:],
        filters=filters,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        source="the kernel of w",
    )
