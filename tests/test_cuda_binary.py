"""The CUDA kernels of binary and low-bit convolutions: emulated with all checks, and on a GPU."""

import numpy as np
import pytest
import spec
from numpy.testing import assert_allclose, assert_array_equal
from test_cuda_kernels import Emulated, Gpu, options, unwritten

from mulfree_cupy.geometry import ConvGeometry
from mulfree_cupy.launch import binary, select

KERNELS = select.names("binary_conv")
FLOATS = ["float16", "float32", "float64"]
GEOMETRIES = {
    "one channel": ConvGeometry(2, 1, 7, 9, 5, (3, 3), padding=(1, 1)),
    "3 channels, stride 2": ConvGeometry(1, 3, 15, 13, 16, (7, 7), (2, 2), (3, 3)),
    "16 channels": ConvGeometry(3, 16, 4, 8, 16, (3, 3), padding=(1, 1)),
    "31 channels, stride (2, 1), wide padding, dilation": ConvGeometry(
        1, 31, 9, 6, 20, (3, 2), (2, 1), (3, 2), (1, 2)
    ),
    "64 channels": ConvGeometry(2, 64, 5, 5, 70, (3, 3), padding=(1, 1)),
    "65 channels": ConvGeometry(1, 65, 6, 5, 17, (3, 3), padding=(2, 0)),
    "130 channels in groups": ConvGeometry(2, 130, 3, 4, 6, (1, 3), padding=(0, 1), groups=2),
    "depthwise": ConvGeometry(2, 4, 5, 5, 4, (3, 3), (2, 2), (1, 1), groups=4),
    "groups, stride above kernel": ConvGeometry(
        2, 36, 8, 7, 9, (2, 3), (3, 4), (2, 0), (2, 1), groups=3
    ),
    "1x1": ConvGeometry(3, 96, 4, 4, 33, (1, 1), (2, 2)),
    "one pixel": ConvGeometry(1, 200, 1, 1, 40, (1, 1)),
    "nothing but padding": ConvGeometry(1, 8, 2, 3, 3, (3, 3), padding=(9, 20)),
    "a large window": ConvGeometry(1, 2, 18, 6, 3, (17, 2), (1, 2), (1, 1), (1, 2)),
    "more than one block": ConvGeometry(5, 48, 6, 6, 40, (2, 2), padding=(1, 1)),
}
geometries = pytest.mark.parametrize("g", GEOMETRIES.values(), ids=GEOMETRIES.keys())
kernels = pytest.mark.parametrize("kernel", KERNELS)


@pytest.fixture(params=[Emulated, pytest.param(Gpu, marks=pytest.mark.gpu)])
def run(request):
    return request.param()


def signed(shape, dtype, seed=0):
    """Numbers of both signs, and those whose sign is a matter of definition."""
    rng = np.random.default_rng(seed)
    special = np.array([0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1e-7, -1e-7])
    if dtype == "float32":
        special = np.append(special, [1e-45, -1e-45, 1e-40, -1e-40])
    numbers = rng.standard_normal(shape)
    return np.where(rng.random(shape) < 0.2, rng.choice(special, shape), numbers).astype(dtype)


def signs(x):
    return np.where(x >= 0, 1.0, -1.0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("channels", [1, 3, 16, 31, 64, 65, 130])
@pytest.mark.parametrize("plane", [(1, 1), (3, 5), (4, 7), (33, 32)])
@pytest.mark.parametrize("misaligned", [0, 1])
def test_pack_signs(run, dtype, channels, plane, misaligned):
    shape = 2, channels, *plane
    memory = signed(np.prod(shape) + misaligned, dtype)
    x = memory[misaligned:].reshape(shape)
    words = unwritten((2, -(-channels // 64), *plane), np.uint64)
    run(binary.pack_signs, x, words)
    bits = np.zeros((2, words.shape[1] * 64, *plane), np.uint64)
    bits[:, :channels] = x >= 0
    place = np.uint64(1) << np.arange(64, dtype=np.uint64)[:, None, None]
    assert_array_equal(words, (bits.reshape(2, -1, 64, *plane) * place).sum(2, dtype=np.uint64))


@geometries
@kernels
@pytest.mark.parametrize("dtype", FLOATS)
def test_binary_conv(run, g, kernel, dtype):
    x, w = signed(g.x_shape, dtype), signed(g.w_shape, dtype, 1)
    out = unwritten(g.out_shape, dtype)
    run(binary.binary_conv, x, w, None, out, g, kernel)
    expected = spec.conv(signs(x), signs(w), **options(g))
    assert_array_equal(out, expected.astype(dtype))


@geometries
@kernels
@pytest.mark.parametrize("dtype", FLOATS)
def test_binary_conv_with_a_scale(run, g, kernel, dtype):
    x, w = signed(g.x_shape, dtype), signed(g.w_shape, dtype, 1)
    scale = np.random.default_rng(2).random(g.filters)
    scale = scale.astype("float64" if dtype == "float64" else "float32")
    out = unwritten(g.out_shape, dtype)
    run(binary.binary_conv, x, w, scale, out, g, kernel)
    expected = spec.conv(signs(x), signs(w), **options(g)) * scale[:, None, None]
    rtol = {"float16": 2**-10, "float32": 2**-22, "float64": 2**-51}[dtype]
    assert_allclose(out, expected, rtol=rtol, atol=0)


@geometries
@kernels
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("biased", [True, False])
def test_low_bit_adder_conv(run, g, kernel, bits, biased):
    rng = np.random.default_rng(bits)
    x, w = (rng.integers(0, 2**bits + 3, s).astype(np.uint8) for s in (g.x_shape, g.w_shape))
    x.ravel()[::7] = 255
    bias = np.arange(g.filters, dtype=np.int32) - 3 if biased else None
    out = unwritten(g.out_shape, np.int32)
    run(binary.adder_conv, x, w, bias, out, g, bits, kernel)
    most = 2**bits - 1
    assert_array_equal(
        out, spec.adder_conv(np.minimum(x, most), np.minimum(w, most), bias, **options(g))
    )
