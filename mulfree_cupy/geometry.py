"""Window geometry of convolutions: argument checks and output sizes."""

from __future__ import annotations

import functools
import math
import numbers
import operator
from collections.abc import Iterator
from dataclasses import dataclass

Pair = tuple[int, int]
Sizes = tuple[int, ...]  # one a spatial axis
Sides = tuple[Pair, ...]  # (before, after) of each spatial axis
PaddingLike = int | Sizes | Sides | str  # what the argument `padding` may be


@dataclass(frozen=True)
class ConvGeometry:
    """The sizes of one convolution of x (N, C, *size) with w (K, C/groups, *kernel).

    Kernels take 2-D ones; `mulfree_cupy.ops.spatial` reduces 1-D and 3-D to these.
    """

    batch: int
    channels: int
    size: Sizes
    filters: int
    kernel: Sizes
    stride: Sizes = (1, 1)
    padding: Sides = ((0, 0), (0, 0))
    dilation: Sizes = (1, 1)
    groups: int = 1

    @functools.cached_property
    def out_size(self) -> Sizes:
        return tuple(
            map(output_size, self.size, self.kernel, self.stride, self.padding, self.dilation)
        )

    @property
    def height(self) -> int:
        return self.size[-2]

    @property
    def width(self) -> int:
        return self.size[-1]

    @property
    def out_height(self) -> int:
        return self.out_size[-2]

    @property
    def out_width(self) -> int:
        return self.out_size[-1]

    @property
    def before(self) -> Sizes:
        """The padding before each axis, where the first window begins."""
        return tuple(before for before, _ in self.padding)

    @property
    def padded_size(self) -> Sizes:
        return tuple(size + sum(sides) for size, sides in zip(self.size, self.padding, strict=True))

    @property
    def x_shape(self) -> Sizes:
        return self.batch, self.channels, *self.size

    @property
    def w_shape(self) -> Sizes:
        return self.filters, self.channels // self.groups, *self.kernel

    @functools.cached_property
    def out_shape(self) -> Sizes:
        return self.batch, self.filters, *self.out_size

    @property
    def cols_shape(self) -> tuple[int, int, int]:
        rows = self.channels * math.prod(self.kernel)
        return self.batch, rows, math.prod(self.out_size)

    @functools.cached_property
    def taps(self) -> int:
        """Terms in one output's sum."""
        return self.channels // self.groups * math.prod(self.kernel)


def output_size(size: int, kernel: int, stride: int, padding: Pair, dilation: int) -> int:
    """Number of positions of the kernel along one axis."""
    return (size + padding[0] + padding[1] - dilation * (kernel - 1) - 1) // stride + 1


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
    """An int or a pair of ints, all at least `least`, as a pair."""
    return per_axis(function, argument, value, least, 2)


def per_axis(function: str, argument: str, value: object, least: int, axes: int) -> Sizes:
    """An int or one for each spatial axis, all at least `least`, as one for each axis."""
    if type(value) is int and least <= value <= _MOST:  # the common case, at once
        return (value,) * axes
    values = value if isinstance(value, (tuple, list)) else (value,) * axes
    try:
        values = tuple(map(operator.index, values))
    except TypeError:
        values = ()
    if len(values) != axes:
        raise TypeError(f"{function}: {argument} must be an int or {_SEVERAL[axes]}, got {value!r}")
    if min(values) < least:
        raise ValueError(f"{function}: {argument} must be at least {least}, got {value!r}")
    if max(values) > _MOST:
        raise ValueError(f"{function}: {argument} must be below 2**31, got {value!r}")
    return values


_SEVERAL = {1: "a tuple of one", 2: "a pair of ints", 3: "a triple of ints"}


def window_options(
    function: str,
    kernel: Sizes,
    *,
    stride: object = 1,
    padding: object = 0,
    dilation: object = 1,
) -> tuple[Sizes, Sides, Sizes]:
    """Checked stride, padding and dilation of a window, for each axis."""
    stride = per_axis(function, "stride", stride, 1, len(kernel))
    dilation = per_axis(function, "dilation", dilation, 1, len(kernel))
    return stride, _padding(function, padding, kernel, stride, dilation), dilation


def _padding(function: str, value: object, kernel: Sizes, stride: Sizes, dilation: Sizes) -> Sides:
    """The padding before and after each axis, from any of its forms.

    An int, an int for each axis, a pair (before, after) for each axis, ``"valid"``, or ``"same"``,
    which keeps the size and so is defined only for stride 1: it adds ``dilation * (kernel - 1)`` to
    each axis, the odd one after it, as in PyTorch.
    """
    if type(value) is int and 0 <= value <= _MOST:  # the common case
        return ((value, value),) * len(kernel)
    if isinstance(value, str):
        return _named_padding(function, value, kernel, stride, dilation)
    sides = _read_sides(value, len(kernel))
    if sides is None:
        raise TypeError(
            f"{function}: padding must be an int, {_SEVERAL[len(kernel)]}, a pair (before, after) "
            f"for each of {len(kernel)} axes, 'same' or 'valid', got {value!r}"
        )
    if min(map(min, sides)) < 0:
        raise ValueError(f"{function}: padding must be at least 0, got {value!r}")
    if max(map(max, sides)) > _MOST:
        raise ValueError(f"{function}: padding must be below 2**31, got {value!r}")
    return sides


def _read_sides(value: object, axes: int) -> Sides | None:
    """Of ints only or of pairs only; None for anything else."""
    values = value if isinstance(value, (tuple, list)) else (value,) * axes
    if len(values) != axes:
        return None
    if not isinstance(values[0], (tuple, list)):
        values = zip(values, values, strict=True)
    try:
        return tuple([(operator.index(before), operator.index(after)) for before, after in values])
    except (TypeError, ValueError):
        return None


def _named_padding(
    function: str, name: str, kernel: Sizes, stride: Sizes, dilation: Sizes
) -> Sides:
    if name == "valid":
        return ((0, 0),) * len(kernel)
    if name != "same":
        raise ValueError(f"{function}: padding must be 'same', 'valid' or ints, got {name!r}")
    if max(stride) > 1:
        raise ValueError(f"{function}: padding='same' is for stride 1, got stride {stride}")
    added = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
    return tuple((size // 2, size - size // 2) for size in added)


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


def check_rank(function: str, argument: str, shape: tuple, axes: str, why: str = "") -> None:
    """`axes` names the dimensions that the argument must have, such as ``"N, C, H, W"``."""
    rank = axes.count(",") + 1
    if len(shape) != rank:
        raise ValueError(
            f"{function}: {argument} must have {rank} dimensions ({axes}){why}, got shape {shape}"
        )


def check_shape(function: str, argument: str, shape: tuple, expected: tuple, why: str) -> None:
    if tuple(shape) != tuple(expected):
        hint = "" if shape else ", a number; stride, padding and other options are keywords"
        raise ValueError(
            f"{function}: {argument} must have shape {tuple(expected)} {why}, got {tuple(shape)}"
            + hint
        )


_AXES = {1: ("N, C, L", "K, C/groups, k"), 2: ("N, C, H, W", "K, C/groups, kh, kw")}
_AXES[3] = "N, C, D, H, W", "K, C/groups, kd, kh, kw"


def window(
    function: str,
    x_shape: tuple,
    kernel_size: object,
    *,
    filters: int = 0,
    stride: object = 1,
    padding: object = 0,
    dilation: object = 1,
    groups: int = 1,
    source: str = "kernel_size",
    axes: int = 2,
) -> ConvGeometry:
    """The checked geometry of a kernel sliding over x; `source` names the origin of its size."""
    check_rank(function, "x", x_shape, _AXES[axes][0])
    kernel = per_axis(function, source, kernel_size, 1, axes)
    options = window_options(function, kernel, stride=stride, padding=padding, dilation=dilation)
    return _fitting(function, x_shape, filters, kernel, *options, groups)


@functools.lru_cache(1024)  # most calls repeat
def _fitting(function, x_shape, filters, kernel, stride, padding, dilation, groups) -> ConvGeometry:
    """The geometry, if the kernel lies in the padded image."""
    batch, channels, *size = x_shape
    geometry = ConvGeometry(
        batch, channels, tuple(size), filters, kernel, stride, padding, dilation, groups
    )
    if min(size) < 1:
        sizes = " and ".join(f"{axis} >= 1" for axis in _AXES[len(size)][0].split(", ")[2:])
        raise ValueError(f"{function}: x must have {sizes}, got shape {x_shape}")
    if max(geometry.padded_size) > _MOST:
        raise ValueError(
            f"{function}: the padded image must have fewer than 2**31 rows and columns: x has "
            f"shape {x_shape}, padding {padding}"
        )
    if min(geometry.out_size) < 1:
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
    most_axes: int = 3,
) -> ConvGeometry:
    """The checked geometry of a convolution of x (N, C, *size) with w (K, C/groups, *kernel)."""
    axes = len(x_shape) - 2
    if len(w_shape) == len(x_shape) + 1 and 0 <= axes < most_axes:
        raise ValueError(
            f"{function}: x must have {len(w_shape)} dimensions ({_AXES[axes + 1][0]}) beside w of "
            f"shape {w_shape}, got shape {x_shape}; for one image: x[None]"
        )
    if not 1 <= axes <= most_axes:
        served = " or ".join(f"({_AXES[n][0]})" for n in range(1, most_axes + 1))
        raise ValueError(f"{function}: x must have dimensions {served}, got shape {x_shape}")
    check_rank(function, "w", w_shape, _AXES[axes][1], f" beside x of shape {x_shape}")
    channels, filters = x_shape[1], w_shape[0]
    groups = integer(function, "groups", groups)
    if channels % groups or filters % groups:
        raise ValueError(
            f"{function}: groups={groups} must divide the channels of x, {channels}, and the "
            f"filters of w, {filters}: x has shape {x_shape}, w has shape {w_shape}"
        )
    if w_shape[1] * groups != channels:
        last = "; channels come before the rows: numpy.moveaxis(x, -1, 1)"
        raise ValueError(
            f"{function}: w must have C/groups = {channels}/{groups} = {channels // groups} "
            f"channels, got {w_shape[1]}: x has shape {x_shape}, w has shape {w_shape}"
            + last
            * (w_shape[1] * groups == x_shape[-1])
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
        axes=axes,
    )
