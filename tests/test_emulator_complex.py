"""cuComplex.h, thrust/complex.h and cupy/complex.cuh, held to NumPy's complex numbers."""

import numpy as np
import pytest

from mulfree_cupy.launch.emulator import RawKernel

rng = np.random.default_rng(3)


def numbers(dtype, n=64):
    z = rng.standard_normal((2, n)) + 1j * rng.standard_normal((2, n))
    return z.astype(dtype)


@pytest.mark.parametrize(("f", "dtype"), [("f", np.complex64), ("", np.complex128)])
def test_cu_complex(f, dtype):
    name = {"f": "Float", "": "Double"}[f]
    code = f"""
#include <cuComplex.h>
typedef cu{name}Complex C;
extern "C" __global__ void arithmetic(const C* a, const C* b, C* r, C one) {{
    int i = threadIdx.x, n = blockDim.x;
    r[i] = cuCadd{f}(a[i], b[i]);
    r[n + i] = cuCsub{f}(a[i], b[i]);
    r[2 * n + i] = cuCmul{f}(a[i], b[i]);
    r[3 * n + i] = cuCdiv{f}(a[i], b[i]);
    r[4 * n + i] = cuCfma{f}(a[i], b[i], one);
    r[5 * n + i] = cuConj{f}(a[i]);
    r[6 * n + i] = make_cu{name}Complex(cuCabs{f}(a[i]), cuCreal{f}(b[i]) + cuCimag{f}(b[i]));
    r[7 * n + i] = cuCdiv{f}(a[i], make_cu{name}Complex(1e30, 1e30));
}}"""
    a, b = numbers(dtype)
    r = np.zeros((8, 64), dtype)
    RawKernel(code, "arithmetic")((1,), (64,), (a, b, r, dtype(1)))
    parts = np.array(b.real + b.imag)
    expected = [
        a + b,
        a - b,
        a * b,
        a / b,
        a * b + 1,
        a.conj(),
        abs(a) + 1j * parts,
        a / (1e30 + 1e30j),
    ]
    for row, right in zip(r, expected, strict=True):
        np.testing.assert_allclose(row, right, rtol=20 * np.finfo(dtype).eps)


def test_cu_complex_of_both_widths():
    code = """
#include <cuComplex.h>
extern "C" __global__ void widths(const cuComplex* a, cuDoubleComplex* b, cuComplex* c) {
    b[0] = cuComplexFloatToDouble(a[0]);
    c[0] = cuComplexDoubleToFloat(make_cuDoubleComplex(b[0].x / 2, b[0].y));
    c[1] = make_cuComplex(1, 2);
}"""
    a, b, c = np.array([3 + 4j], np.complex64), np.zeros(1, complex), np.zeros(2, np.complex64)
    RawKernel(code, "widths")((1,), (1,), (a, b, c))
    assert (b[0], *c) == (3 + 4j, 1.5 + 4j, 1 + 2j)


FUNCTIONS = (
    "exp", "log", "sqrt", "sin", "cos", "tan", "sinh", "cosh", "tanh",
    "asin", "acos", "atan", "asinh", "acosh", "atanh", "log10", "conj",
)  # fmt: skip


@pytest.mark.parametrize(("part", "dtype"), [("float", np.complex64), ("double", np.complex128)])
def test_thrust_complex(part, dtype):
    functions = "".join(f"*r = thrust::{f}(x); r += n;" for f in FUNCTIONS)
    code = f"""
#include <thrust/complex.h>
typedef thrust::complex<{part}> C;
extern "C" __global__ void functions(const C* a, const C* b, C* r, C shift) {{
    __shared__ C s[64];
    int i = threadIdx.x, n = blockDim.x;
    s[i] = a[i];
    __syncthreads();
    const C x = s[i], y = b[i];
    r += i;
    {functions}
    *r = x + y; r += n;
    *r = x - y * 2 + shift; r += n;
    *r = x * y / (x + {part}(3)); r += n;
    *r = 1 / x - 2.0f * y; r += n;
    *r = thrust::pow(x, y); r += n;
    *r = thrust::pow(x, {part}(2)); r += n;
    *r = thrust::polar(abs(x), arg(x)); r += n;
    C z = -x;
    z *= y; z -= x; z += {part}(1); z /= y;
    z.imag(z.imag() + norm(y));
    *r = z; r += n;
    *r = (x == x) + 2 * (x != y) + 4 * (x == x.real());
}}"""
    a, b = numbers(dtype)
    r = np.zeros((len(FUNCTIONS) + 9, 64), dtype)
    RawKernel(code, "functions")((1,), (64,), (a, b, r, dtype(1j)))
    x, y = a.astype(complex), b.astype(complex)
    numpy_names = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "asinh": "arcsinh"}
    numpy_names |= {"acosh": "arccosh", "atanh": "arctanh"}
    expected = [getattr(np, numpy_names.get(f, f))(x) for f in FUNCTIONS]
    expected += [x + y, x - 2 * y + 1j, x * y / (x + 3), 1 / x - 2 * y, x**y, x**2, x]
    expected += [(-x * y - x + 1) / y + 1j * abs(y) ** 2, np.full(64, 3 + 0j)]
    for row, right in zip(r, expected, strict=True):
        np.testing.assert_allclose(row, right, rtol=200 * np.finfo(dtype).eps)


def test_cupy_complex():
    code = """
#include <cupy/complex.cuh>
extern "C" __global__ void named(
    const complex<float>* a, const complex<float>* b, complex<float>* r) {
    int i = threadIdx.x, n = blockDim.x;
    r[i] = exp(a[i]) * conj(b[i]);
    r[n + i] = max(a[i], b[i]);
    r[2 * n + i] = min(a[i], complex<float>(nanf(""), 1.0f));
    r[3 * n + i] = complex<float>(real(a[i]), imag(b[i]) + isnan(a[i]) + isfinite(b[i]));
    r[4 * n + i] = log1p(a[i]) + expm1(b[i]) - log2(a[i]);
}"""
    a, b = numbers(np.complex64)
    r = np.zeros((5, 64), np.complex64)
    RawKernel(code, "named")((1,), (64,), (a, b, r))
    expected = [np.exp(a) * b.conj(), np.maximum(a, b), a, a.real + 1j * (b.imag + 1)]
    expected += [np.log1p(a) + np.expm1(b) - np.log2(a)]
    for row, right in zip(r, expected, strict=True):
        np.testing.assert_allclose(row, right, rtol=2e-5)
