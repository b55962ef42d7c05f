"""Images as wide as the vectors of the CPU kernels, and wider: paths of their own."""

import numpy as np
import pytest
import spec
from hypothesis import given
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
    rng = np.random.default_rng(seed)
    draw = lambda *shape: (rng.normal(size=shape) * 40 + 99).clip(0, 255).astype(dtype)  # noqa: E731
    x, w = draw(batch, channels, height, width), draw(filters, channels, *kernel)
    options = dict(stride=stride, padding=(kernel[0] // 2, kernel[1] // 2))
    expected = spec.adder_conv(x, w, **options)
    if dtype == "uint8":
        assert_array_equal(mf.adder_conv(x, w, **options), expected)
        return
    assert_allclose(mf.adder_conv(x, w, **options), expected, rtol=1e-5)
    assert_close(mf.conv(x, w, **options), spec.conv(x, w, **options), dtype)
    grad = rng.normal(size=expected.shape).astype(dtype)
    for function, formula in (
        (mf.adder_conv_backward, spec.adder_conv_backward),
        (mf.conv_backward, spec.conv_backward),
    ):
        pairs = zip(function(grad, x, w, **options), formula(grad, x, w, **options), strict=True)
        for ours, theirs in pairs:
            assert_close(ours, theirs, dtype)
