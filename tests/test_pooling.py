"""Pooling, and the scale of binary filters: compiled for every instruction set, and as arrays."""

import contextlib
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from problems import LAYOUTS, lay_out, run, sides

from mulfree_cupy import formulas as spec
from mulfree_cupy import launch
from mulfree_cupy.launch import numpy_kernels
from mulfree_cupy.ops.packing import filter_scale
from mulfree_cupy.ops.pooling import avg_pool, global_average_pool, max_pool

kernels = launch.cpu_kernels()
WAYS = [*getattr(kernels, "available_features", tuple)(), "expressions"]
WAYS.append(pytest.param("gpu", marks=pytest.mark.gpu))
ways = pytest.mark.parametrize("way", WAYS)
DTYPES = ["float32", "float64", "float16", "uint8", "int8", "int64", "bool"]


@contextlib.contextmanager
def entered(way):
    if way in ("expressions", "gpu"):
        with mock.patch.object(launch, "cpu_kernels", lambda: numpy_kernels):
            yield
    else:
        before = kernels.features()
        kernels.use_features(way)
        try:
            yield
        finally:
            kernels.use_features(before)


def called(way, function, x, *arguments, **options):
    with entered(way):
        place = "gpu" if way == "gpu" else "cpu"
        return run(place, lambda image: function(image, *arguments, **options), x)


@st.composite
def images(draw, kernel, padding):
    least = [max(1, k - sum(p)) for k, p in zip(kernel, sides(padding), strict=True)]
    size = [n + draw(st.one_of(st.integers(0, 9), st.integers(30, 70))) for n in least]
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 4)), *size
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    if dtype.kind == "f":
        x = rng.normal(size=shape).astype(dtype)
        values = [np.nan, np.inf, -np.inf, 0.0, -0.0]
        for value in draw(st.lists(st.sampled_from(values), max_size=3)):
            x.flat[rng.integers(x.size, size=1 + x.size // 50)] = value
    else:
        x = rng.integers(0, 256, shape).astype(dtype)
    return lay_out(x, draw(st.sampled_from(LAYOUTS)))


@st.composite
def poolings(draw, most_padding=None):
    pair = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
    kernel = draw(st.sampled_from([(2, 2), (3, 3), (1, 1), (2, 5), (7, 4)]))
    most = [most_padding or k - 1 for k in kernel]
    padding = tuple(draw(st.integers(0, size)) for size in most)
    if draw(st.booleans()):
        padding = tuple(
            (p, draw(st.integers(0, size))) for p, size in zip(padding, most, strict=True)
        )
    stride = draw(st.one_of(st.none(), st.sampled_from([(1, 1), (2, 2)]), pair(1, 9)))
    return draw(images(kernel, padding)), kernel, dict(stride=stride, padding=padding)


@ways
@given(problem=poolings())
def test_max_pool(way, problem):
    x, kernel, options = problem
    y = called(way, max_pool, x, kernel, **options)
    assert y.dtype == x.dtype
    assert_array_equal(y, spec.max_pool(x, kernel, **options).astype(x.dtype))


@ways
@given(problem=poolings(most_padding=9))
def test_avg_pool(way, problem):
    x, kernel, options = problem
    with np.errstate(invalid="ignore"):
        y, want = called(way, avg_pool, x, kernel, **options), spec.avg_pool(x, kernel, **options)
    assert y.dtype == (x.dtype if x.dtype.kind == "f" else np.float64)
    epsilon = 4 * float(np.finfo(y.dtype).eps)
    assert_allclose(y, want, rtol=epsilon, atol=4 * epsilon)


@ways
@given(x=images((1, 1), (0, 0)))
def test_global_average_pool(way, x):
    with np.errstate(invalid="ignore"):
        y, want = called(way, global_average_pool, x), spec.global_average_pool(x)
    integers = np.float32 if x.dtype == np.uint8 else np.float64
    assert y.dtype == (x.dtype if x.dtype.kind == "f" else integers)
    if x.dtype == np.uint8:
        assert_array_equal(y, want.astype(np.float32))
    epsilon = 4 * float(np.finfo(y.dtype).eps)
    assert_allclose(y, want, rtol=epsilon, atol=epsilon)


@ways
def test_sums_of_many_bytes_are_exact(way):
    x = np.full((1, 2, 4099, 4099), 255, np.uint8)
    x[0, 1, 0, 0] = 254
    want = spec.global_average_pool(x).astype(np.float32)
    assert_array_equal(called(way, global_average_pool, x), want)


@ways
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (5, 7, 3, 3), (2, 31, 1, 1), (1, 64, 5, 5)])
def test_the_scale_of_a_binary_filter_is_its_mean_magnitude(way, shape, dtype):
    w = np.random.default_rng(0).normal(size=shape).astype(dtype)
    w.flat[0] = np.finfo(dtype).max / 2
    scale = called(way, filter_scale, w)
    assert scale.dtype == dtype
    assert_allclose(scale, spec.filter_scale(w), rtol=2 * float(np.finfo(dtype).eps))
    w[0, 0, 0, 0] = np.nan
    assert_array_equal(np.isnan(called(way, filter_scale, w)), np.arange(len(w)) == 0)


CALLS = {
    "max_pool": lambda x, **out: max_pool(x, 2, **out),
    "avg_pool": lambda x, **out: avg_pool(x, (3, 2), stride=1, padding=1, **out),
    "global_average_pool": global_average_pool,
}
calls = pytest.mark.parametrize("name", CALLS)


@pytest.mark.parametrize("way", WAYS[:-1])
@calls
def test_out_receives_the_answer(way, name):
    x, memory = np.random.default_rng(0).normal(size=(2, 3, 6, 5)), np.ones(300)
    with entered(way):
        want = CALLS[name](x)
        for out in (
            np.empty(want.shape),
            np.empty(want.shape[::-1]).T,
            np.empty((9, *want.shape))[3],
        ):
            assert CALLS[name](x, out=out) is out
            assert_array_equal(out, want)
        with pytest.raises(ValueError, match=f"^{name}: out must have shape .* and dtype float64"):
            CALLS[name](x, out=np.empty(want.shape, np.float32))
        with pytest.raises(ValueError, match=f"^{name}: out, of shape .* overlaps the memory of x"):
            CALLS[name](
                memory[:180].reshape(x.shape), out=memory[9:][: want.size].reshape(want.shape)
            )


@pytest.mark.parametrize("way", WAYS[:-1])
@calls
def test_of_no_images(way, name):
    with entered(way):
        assert len(CALLS[name](np.empty((0, 3, 6, 5)))) == 0


@calls
def test_errors(name):
    pool = CALLS[name]
    with pytest.raises(
        ValueError, match=f"{name}: x must have 4 dimensions .*got shape \\(2, 3\\)"
    ):
        pool(np.ones((2, 3)))
    with pytest.raises(ValueError, match=f"{name}: x must have H >= 1 and W >= 1"):
        pool(np.ones((1, 1, 0, 3)))
    with pytest.raises(TypeError, match=f"{name}: x must hold real numbers, got dtype complex128"):
        pool(np.ones((1, 1, 4, 4), complex))


def test_a_window_must_see_some_of_the_image():
    message = r"max_pool: padding \(\(0, 0\), \(2, 2\)\) must be smaller than the kernel \(2, 2\)"
    with pytest.raises(ValueError, match=message):
        max_pool(np.ones((1, 1, 4, 4)), 2, padding=(0, 2))
    with pytest.raises(ValueError, match="avg_pool: the kernel .* is larger than the padded image"):
        avg_pool(np.ones((1, 1, 4, 4)), 7, padding=1)
