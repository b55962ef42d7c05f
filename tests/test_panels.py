"""Images as wide as the vectors of the CPU kernels, and long sums: paths of their own."""

import numpy as np
import pytest
import spec
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from test_convolution import assert_close

import mulfree_cupy as mf
from mulfree_cupy import launch


@pytest.fixture(scope="module", params=["baseline", "avx2", "avx512"])
def features(request):
    kernels = launch.cpu_kernels()
    if not hasattr(kernels, "use_features"):
        pytest.skip("no compiled kernels")
    if request.param not in kernels.available_features():
        pytest.skip(f"this machine has no {request.param}")
    before = kernels.features()
    kernels.use_features(request.param)
    yield request.param
    kernels.use_features(before)


@given(
    batch=st.integers(1, 6),
    channels=st.integers(1, 20),
    filters=st.integers(1, 20),
    height=st.integers(1, 4),
    width=st.sampled_from([8, 16, 20, 31, 32, 48, 64, 80, 128]),
    kernel=st.sampled_from([(1, 1), (1, 3), (3, 3), (1, 5), (5, 5), (1, 7), (3, 1)]),
    stride=st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 2), (2, 2)]),
    dtype=st.sampled_from(["float32", "float64", "uint8"]),
    seed=st.integers(0, 99),
)
def test_wide_images(
    features, batch, channels, filters, height, width, kernel, stride, dtype, seed
):
    x, w = draw(seed, dtype, (batch, channels, height, width), (filters, channels, *kernel))
    check(x, w, stride=stride, padding=(kernel[0] // 2, kernel[1] // 2))


@settings(max_examples=20)
@given(
    taps=st.sampled_from([(161, 1), (200, 1), (700, 1), (40, 3), (8, 5)]),
    filters=st.integers(1, 20),
    size=st.sampled_from([(3, 16, 32), (4, 7, 75), (5, 4, 64), (40, 7, 7)]),
    stride=st.sampled_from([1, 1, 2]),
    dtype=st.sampled_from(["float32", "float64", "uint8"]),
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


def draw(seed, dtype, *shapes):
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=s) * 40 + 99).clip(0, 255).astype(dtype) for s in shapes]


def check(x, w, **options):
    """The CPU's answers and gradients beside the formulas'."""
    dtype = x.dtype
    expected = spec.adder_conv(x, w, **options)
    if dtype == "uint8":
        assert_array_equal(mf.adder_conv(x, w, **options), expected)
        return
    assert_allclose(mf.adder_conv(x, w, **options), expected, rtol=1e-5)
    assert_close(mf.conv(x, w, **options), spec.conv(x, w, **options), dtype)
    grad = np.random.default_rng(len(x)).normal(size=expected.shape).astype(dtype)
    for function, formula in (
        (mf.adder_conv_backward, spec.adder_conv_backward),
        (mf.conv_backward, spec.conv_backward),
    ):
        pairs = zip(function(grad, x, w, **options), formula(grad, x, w, **options), strict=True)
        for ours, theirs in pairs:
            assert_close(ours, theirs, dtype)
