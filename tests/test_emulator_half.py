"""cuda_fp16.h: conversions and arithmetic give NumPy's float16, bit for bit."""

import numpy as np
import pytest

from mulfree_cupy.launch.emulator import RawKernel

F16, F32, U16 = np.float16, np.float32, np.uint16
CODE = """
#include <cuda_fp16.h>
extern "C" __global__ void widen(const half* x, float* y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = __half2float(x[i]);
}
extern "C" __global__ void narrow(const float* x, half* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = __float2half(x[i]);
}
extern "C" __global__ void narrow_double(const double* x, half* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = __double2half(x[i]);
}
extern "C" __global__ void arithmetic(const half* a, const half* b, half* r) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, n = gridDim.x * blockDim.x;
    r[i] = a[i] + b[i];
    r[n + i] = __hsub(a[i], b[i]);
    r[2 * n + i] = a[i] * b[i];
    r[3 * n + i] = __hdiv(a[i], b[i]);
    r[4 * n + i] = a[i] - a[i];
    half2 equal = __heq2(__half2half2(a[i]), __halves2half2(b[i], a[i]));
    r[5 * n + i] = equal.x;
    r[6 * n + i] = equal.y;
}
extern "C" __global__ void fused(const half2* x, const half2* y, half2* z) {
    int i = threadIdx.x;
    z[i] = __hfma2(x[i], y[i], __hadd2(__hmul2(x[i], y[i]), __float2half2_rn(0.5f)));
}"""
EVERY = np.arange(1 << 16).astype(U16).view(F16)
rng = np.random.default_rng(0)


def assert_same_bits(found, expected):
    """Equal bits; a NaN's sign and payload are not compared."""
    assert found.dtype == expected.dtype
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), ~number)
    bits = f"u{found.itemsize}"
    np.testing.assert_array_equal(found[number].view(bits), expected[number].view(bits))


def test_every_half_to_float():
    wide = np.empty(1 << 16, F32)
    RawKernel(CODE, "widen")((256,), (256,), (EVERY, wide))
    assert_same_bits(wide, EVERY.astype(F32))


@pytest.mark.parametrize(("kernel", "dtype"), [("narrow", F32), ("narrow_double", np.float64)])
def test_to_half(kernel, dtype):
    finite = EVERY[np.isfinite(EVERY)].astype(dtype)
    positive = np.unique(abs(finite))
    ties = np.append((positive[:-1] + positive[1:]) / 2, dtype(65520))
    beside = [np.nextafter(ties, dtype(to)) for to in (0, np.inf)]
    info = np.finfo(dtype)
    special = np.array([0, np.inf, np.nan, info.tiny, info.smallest_subnormal, info.max], dtype)
    kind = np.dtype(f"u{info.bits // 8}")
    patterns = rng.integers(0, np.iinfo(kind).max, 50_000, dtype=kind).view(dtype)
    scales = (rng.standard_normal(50_000) * 2.0 ** rng.uniform(-28, 18, 50_000)).astype(dtype)
    x = np.concatenate([finite, ties, *beside, special, patterns, scales])
    x = np.concatenate([x, -x])
    found = np.empty(x.size, F16)
    RawKernel(CODE, kernel)((-(-x.size // 256),), (256,), (x, found, np.int32(x.size)))
    with np.errstate(all="ignore"):
        assert_same_bits(found, x.astype(F16))


def test_arithmetic():
    special = [0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 2**-24, 2**-14, 65504, 0.25, 1 / 3]
    pairs = np.array([(p, q) for p in special for q in special], F16)
    bits = rng.integers(0, 1 << 16, ((1 << 13) - len(pairs), 2), dtype=U16)
    a, b = np.ascontiguousarray(np.concatenate([pairs, bits.view(F16)]).T)
    found = np.empty((7, a.size), F16)
    RawKernel(CODE, "arithmetic")((a.size // 256,), (256,), (a, b, found))
    with np.errstate(all="ignore"):
        expected = [a + b, a - b, a * b, a / b, a - a, (a == b).astype(F16), (a == a).astype(F16)]
    for row, right in zip(found, expected, strict=True):
        assert_same_bits(row, right)


def test_fused_multiply_add_rounds_once():
    x, y = rng.standard_normal((2, 64)).astype(F16)
    z = np.zeros_like(x)
    RawKernel(CODE, "fused")((1,), (32,), (x, y, z))
    product = x.astype(float) * y.astype(float)
    np.testing.assert_array_equal(z, (product + (x * y + F16(0.5))).astype(F16))
