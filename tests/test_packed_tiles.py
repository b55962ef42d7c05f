"""Images as wide as the vectors of the CPU kernels, and long sums: paths of their own."""

import contextlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from problems import paddings, sides
from test_convolution import assert_close

import mulfree_cupy as mf
from mulfree_cupy import formulas as spec
from mulfree_cupy import launch

pytest.importorskip("mulfree_cupy._cpu")


@contextlib.contextmanager
def using(features):
    kernels = launch.cpu_kernels()
    before = kernels.features()
    kernels.use_features(features)
    try:
        yield
    finally:
        kernels.use_features(before)


@pytest.fixture(scope="module", params=launch.cpu_kernels().available_features())
def features(request):
    with using(request.param):
        yield request.param


@example(4, 1, 1, 1, 16, (1, 1), (1, 2), "float32", 1)  # one gradient, 4000 times below its terms
@given(
    batch=st.integers(1, 6),
    channels=st.integers(1, 20),
    filters=st.integers(1, 20),
    height=st.integers(1, 4),
    width=st.sampled_from([8, 16, 20, 31, 32, 48, 64, 80, 128]),
    kernel=st.sampled_from([(1, 1), (1, 3), (3, 3), (1, 5), (5, 5), (1, 7), (3, 1)]),
    stride=st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 2), (2, 2)]),
    dtype=st.sampled_from(["float32", "float64", "uint8", "int8", "int16"]),
    seed=st.integers(0, 99),
)
def test_wide_images(
    features, batch, channels, filters, height, width, kernel, stride, dtype, seed
):
    x, w = draw(seed, dtype, (batch, channels, height, width), (filters, channels, *kernel))
    check(x, w, stride=stride, padding=(kernel[0] // 2, kernel[1] // 2))


@settings(max_examples=25)
@given(
    batch=st.sampled_from([1, 5, 40, 150]),
    channels=st.integers(1, 5),
    filters=st.integers(1, 9),
    pixels=st.sampled_from([(8, 8), (4, 4), (2, 8), (4, 12), (16, 16), (3, 16), (8, 28), (7, 8)]),
    kernel=st.sampled_from([(3, 3), (2, 2), (5, 3), (3, 1), (1, 3)]),
    stride=st.sampled_from([(1, 1), (2, 2), (3, 2), (1, 2)]),
    padding=paddings(2),
    dilation=st.sampled_from([(1, 1), (2, 2), (3, 1)]),
    dtype=st.sampled_from(["float32", "float64", "uint8", "int8", "int16"]),
    seed=st.integers(0, 99),
)
def test_planes_of_whole_vectors(
    features, batch, channels, filters, pixels, kernel, stride, padding, dilation, dtype, seed
):
    # The least image that has so many pixels, or somewhat more.
    size = [
        max(1, (n - 1) * s + (k - 1) * d + 1 - sum(p) + seed % s)
        for n, k, s, p, d in zip(pixels, kernel, stride, sides(padding), dilation, strict=True)
    ]
    x, w = draw(seed, dtype, (batch, channels, *size), (filters, channels, *kernel))
    check(x, w, stride=stride, padding=padding, dilation=dilation)


@settings(max_examples=10)
@given(
    taps=st.sampled_from([(161, 1), (200, 1), (700, 1), (40, 3), (8, 5)]),
    filters=st.integers(1, 20),
    size=st.sampled_from([(3, 16, 32), (4, 7, 75), (5, 4, 64), (40, 7, 7)]),
    stride=st.sampled_from([1, 1, 2]),
    dtype=st.sampled_from(["float32", "float64", "uint8", "int8", "int16"]),
    seed=st.integers(0, 99),
)
def test_long_sums_of_many_pixels(features, taps, filters, size, stride, dtype, seed):
    """Sums in several parts, of several panels of pixels at a time."""
    (channels, kernel), (batch, *plane) = taps, size
    x, w = draw(seed, dtype, (batch, channels, *plane), (filters, channels, kernel, kernel))
    check(x, w, stride=stride, padding=kernel // 2)


@pytest.mark.parametrize("padding", [(1, 0), (0, 0), (2, 3)])
def test_a_row_of_pixels_may_lie_in_the_padding(features, padding):
    x, w = draw(0, "float32", (2, 3, 4, 800), (8, 3, 1, 1))
    check(x, w, stride=(9, 1), padding=padding)


def test_a_row_of_the_gradient_may_lie_beyond_it(features):
    x, w = draw(0, "float32", (1, 2, 3, 96), (3, 2, 3, 1))
    check(x, w, stride=(3, 1), padding=(1, 0), dilation=(2, 1))


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int8", "int16"])
@pytest.mark.parametrize(
    "x_shape, w_shape, options",
    [
        pytest.param((2, 1, 8, 96), (257, 1, 1, 33), {"padding": (0, 16)}, id="chunks of filters"),
        pytest.param((16, 1, 25, 16), (9, 1, 1, 33), {"padding": (0, 16)}, id="tiles of images"),
        pytest.param((13, 18, 16, 32), (9, 18, 3, 3), {"padding": 1}, id="shared rows in blocks"),
        pytest.param((8, 3, 27, 25), (137, 3, 1, 1), {}, id="seven tiles, planes as rows"),
        pytest.param((4, 161, 40, 39), (13, 161, 1, 1), {"stride": 2}, id="every second pixel"),
        pytest.param((4, 5, 61, 64), (12, 5, 6, 6), {"stride": 6, "padding": 3}, id="36 phases"),
        pytest.param((2, 8200, 1, 1), (260, 8200, 1, 1), {}, id="17 MB of float64 weights"),
    ],
)
def test_cuts(x_shape, w_shape, options, dtype):
    """Many pixels, channels or filters, each cut into more pieces than one."""
    x, w = draw(0, dtype, x_shape, w_shape)
    if "float" in dtype:  # half the images are close to the weights, where float32 takes more care
        x, w = x / 40 + 99, w / 40 + 99
        x[::2] -= 100
    check_all_features(x, w, **options)


@pytest.mark.parametrize(
    "x_shape, w_shape, stride",
    [
        pytest.param((2300, 1, 31, 31), (2, 1, 3, 3), 1, id="of images"),
        pytest.param((1, 1, 1100, 2000), (2, 1, 3, 3), 1, id="of rows"),
        pytest.param((1, 1, 1, 2_200_000), (2, 1, 1, 3), 1, id="of columns"),
        pytest.param((1, 1, 2000, 4500), (2, 1, 1, 1), 2, id="of every second pixel"),
    ],
)
def test_slices_of_bytes(x_shape, w_shape, stride):
    """More pixels than are held as words at a time."""
    x, w = draw(0, "uint8", x_shape, w_shape)
    check_all_features(x, w, stride=stride, padding=(0, w_shape[-1] // 2))


def draw(seed, dtype, *shapes):
    rng = np.random.default_rng(seed)
    scale = {"int8": (40, 0), "int16": (9999, 0)}.get(dtype, (40, 99))
    draws = [rng.normal(scale[1], scale[0], s) for s in shapes]
    if np.dtype(dtype).kind in "iu":
        limits = np.iinfo(dtype)
        draws = [d.clip(limits.min, limits.max) for d in draws]
    return [d.astype(dtype) for d in draws]


def check(x, w, **options):
    """The CPU's results and gradients, compared with the formulas."""
    compare(formulas(x, w, **options), x, w, **options)


def check_all_features(x, w, **options):
    expected = formulas(x, w, **options)
    for features in launch.cpu_kernels().available_features():
        with using(features):
            compare(expected, x, w, **options)


def formulas(x, w, **options):
    y = spec.adder_conv(x, w, **options)
    if x.dtype == np.uint8:
        return y, [spec.low_bit_adder_conv(x // 16, w // 16, bits=b, **options) for b in (1, 2, 3)]
    if x.dtype.kind != "f":
        return (y,)
    grad = np.random.default_rng(len(x)).normal(size=y.shape).astype(x.dtype)
    gradients = [f(grad, x, w, **options) for f in (spec.adder_conv_backward, spec.conv_backward)]
    binary = spec.binary_conv(*centred(x, w), scale=False, **options)
    return y, spec.conv(x, w, **options), binary, grad, *gradients


def centred(*arrays):
    """With as many numbers below 0 as above."""
    return [a - np.median(a) for a in arrays]


def compare(expected, x, w, **options):
    if x.dtype.kind != "f":
        assert_array_equal(mf.adder_conv(x, w, **options), expected[0])
        if x.dtype == np.uint8:
            for bits, answers in enumerate(expected[1], 1):
                assert_array_equal(mf.adder_conv(x // 16, w // 16, bits=bits, **options), answers)
        return
    adder, conv, binary, grad, adder_gradients, conv_gradients = expected
    assert_array_equal(mf.binary_conv(*centred(x, w), scale=False, **options), binary)
    assert_allclose(mf.adder_conv(x, w, **options), adder, rtol=1e-5)
    assert_close(mf.conv(x, w, **options), conv, x.dtype)
    term = np.abs(grad).max() * max(np.abs(x).max(), np.abs(w).max())
    for function, gradients in (
        (mf.adder_conv_backward, adder_gradients),
        (mf.conv_backward, conv_gradients),
    ):
        for ours, theirs in zip(function(grad, x, w, **options), gradients, strict=True):
            assert_close(ours, theirs, x.dtype, term)
