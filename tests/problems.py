"""Convolution problems for hypothesis to choose from, and the three ways to run one."""

import contextlib
import ctypes
from dataclasses import dataclass
from unittest import mock

import numpy as np
import pytest
from hypothesis import strategies as st

import mulfree_cupy as mf
from mulfree_cupy import launch
from mulfree_cupy.geometry import ConvGeometry, convolution
from mulfree_cupy.launch import numpy_kernels

WAYS = ["cpu", "numpy", "emulated", pytest.param("gpu", marks=pytest.mark.gpu)]
LAYOUTS = ["C", "F", "reversed", "every second", "unaligned", "broadcast"]


def run(way, function, *arrays, **options):
    """Call a public function on NumPy arrays in one of the ways; NumPy arrays come back."""
    if way == "gpu":
        answer = function(*(a if a is None else on_gpu(a) for a in arrays), **options)
        return tuple(map(on_cpu, answer)) if isinstance(answer, tuple) else on_cpu(answer)
    with entered(way):
        return function(*arrays, **options)


def namespace(way):
    """The array module of a device; skips the test without a GPU."""
    if way != "gpu":
        return np
    cupy = pytest.importorskip("cupy")
    if not cupy.is_available():
        pytest.skip("no GPU")
    return cupy


def on_gpu(array):
    """The array on the GPU, its strides and its alignment to 16 bytes kept; asarray loses both."""
    cupy = namespace("gpu")
    if isinstance(array, mf.WinogradWeights):
        return mf.WinogradWeights.from_dense(
            on_gpu(array.dense), on_gpu(array.mask), points=array.points
        )
    if not array.size:
        return cupy.empty(array.shape, array.dtype)
    first, end = np.lib.array_utils.byte_bounds(array)
    before = first % 16
    memory = cupy.zeros(before + end - first, np.uint8)
    memory[before:].set(np.frombuffer((ctypes.c_char * (end - first)).from_address(first), "u1"))
    place = memory.data + (before + array.ctypes.data - first)
    return cupy.ndarray(array.shape, array.dtype, place, array.strides)


def on_cpu(array):
    """The values as a NumPy array."""
    return array if isinstance(array, np.ndarray) else array.get()


@contextlib.contextmanager
def entered(way):
    """The setting in which NumPy arrays are served by the compiled, NumPy or emulated kernels."""
    if way == "emulated":
        with mf.emulated_cuda() as report:
            yield report
    elif way == "numpy":
        with mock.patch.object(launch, "cpu_kernels", lambda: numpy_kernels):
            yield None
    else:
        yield None


def lay_out(array, layout):
    """The same values in another memory layout (for "broadcast", the first image for all)."""
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "reversed":
        return np.ascontiguousarray(array[..., ::-1, ::-1])[..., ::-1, ::-1]
    if layout == "every second":
        wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    if layout == "unaligned":
        return unaligned(array)
    if layout == "broadcast" and len(array):
        return np.broadcast_to(array[:1], array.shape)
    return array


def unaligned(array):
    """The same values at an address that is not a multiple of the element size."""
    memory = np.empty(array.nbytes + 1, np.uint8)[1:]
    view = memory.view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def sides(padding):
    """(before, after) of each axis, where one number stands for both."""
    return tuple(p if isinstance(p, (tuple, list)) else (p, p) for p in padding)


def images_of(
    batch, channels, height, width, filters, kernel,
    stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1,
):  # fmt: skip
    """A geometry, unchecked."""
    size = height, width
    return ConvGeometry(
        batch, channels, size, filters, kernel, stride, sides(padding), dilation, groups
    )


@st.composite
def paddings(draw, most=3):
    """A number for each of two axes, or a pair."""
    one = st.integers(0, most)
    return draw(st.tuples(*(st.one_of(one, st.tuples(one, one)) for _ in range(2))).map(_spelled))


def _spelled(padding):
    """As it may be: all of one kind."""
    return sides(padding) if any(isinstance(p, tuple) for p in padding) else padding


@dataclass
class Problem:
    x: np.ndarray
    w: np.ndarray
    bias: np.ndarray | None
    options: dict

    def grad(self):
        shape = convolution("grad", self.x.shape, self.w.shape, **self.options).out_shape
        return np.random.default_rng(7).normal(size=shape).astype(self.x.dtype)


@st.composite
def problems(draw, dtypes=("float32", "float64"), most=6):
    """A small convolution with awkward sizes, any stride, padding, dilation, groups and layout."""
    small = st.integers(1, most)
    pair = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
    groups = draw(st.integers(1, 3))
    channels, filters = draw(small), draw(small)
    kernel, dilation = draw(pair(1, 4)), draw(pair(1, 2))
    padding, stride = draw(paddings()), draw(pair(1, 3))
    size = [
        max(1, d * (k - 1) + 1 - sum(p)) + draw(st.integers(0, 9))
        for k, d, p in zip(kernel, dilation, sides(padding), strict=True)
    ]
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def values(*shape):
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
        return rng.normal(size=shape).astype(dtype)

    bias = values(groups * filters) if draw(st.booleans()) else None
    return Problem(
        x=lay_out(
            values(draw(st.integers(1, 3)), groups * channels, *size),
            draw(st.sampled_from(LAYOUTS)),
        ),
        w=lay_out(values(groups * filters, channels, *kernel), draw(st.sampled_from(LAYOUTS))),
        bias=bias if bias is None or dtype.kind == "f" else bias.astype(np.int32),
        options=dict(stride=stride, padding=padding, dilation=dilation, groups=groups),
    )


@dataclass
class ShiftProblem:
    x: np.ndarray
    w: np.ndarray
    shifts: np.ndarray
    bias: np.ndarray | None
    stride: tuple[int, int]

    def grad(self, channels):
        size = (-(-n // s) for n, s in zip(self.x.shape[2:], self.stride, strict=True))
        shape = self.x.shape[0], channels, *size
        return np.random.default_rng(7).normal(size=shape).astype(self.x.dtype)


@st.composite
def shift_problems(draw, dtypes=("float32", "float64")):
    """A small image with any table of shifts, also such as leave the image, and any stride."""
    channels, filters = draw(st.integers(1, 20)), draw(st.integers(1, 10))
    size = draw(st.tuples(st.integers(1, 12), st.integers(1, 40)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = draw(st.sampled_from(dtypes))
    most = draw(st.sampled_from([1, 1, 2, 15, 50]))
    table = rng.integers(-most, most, (channels, 2), endpoint=True)
    if most == 1 and channels >= 9:
        table = draw(st.sampled_from([mf.modulo_shifts, mf.group_shifts]))(channels)
    values = lambda *shape: rng.normal(size=shape).astype(dtype)  # noqa: E731
    return ShiftProblem(
        x=lay_out(values(draw(st.integers(1, 3)), channels, *size), draw(st.sampled_from(LAYOUTS))),
        w=lay_out(values(filters, channels), draw(st.sampled_from(LAYOUTS[:2]))),
        shifts=table,
        bias=values(filters) if draw(st.booleans()) else None,
        stride=draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (2, 1), (1, 3), (30, 50)])),
    )
