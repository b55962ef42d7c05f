// CuPy's <cupy/complex.cuh>: thrust::complex under its bare name.
#pragma once
#include <thrust/complex.h>

using thrust::acos, thrust::acosh, thrust::arg, thrust::asin, thrust::asinh, thrust::atan, thrust::atanh;
using thrust::complex, thrust::conj, thrust::cos, thrust::cosh, thrust::exp, thrust::imag, thrust::log;
using thrust::log10, thrust::real, thrust::sin, thrust::sinh, thrust::tan, thrust::tanh;

template <class T> bool isnan(complex<T> z) { return isnan(z.real()) || isnan(z.imag()); }
template <class T> bool isinf(complex<T> z) { return isinf(z.real()) || isinf(z.imag()); }
template <class T> bool isfinite(complex<T> z) { return isfinite(z.real()) && isfinite(z.imag()); }
template <class T> complex<T> log1p(complex<T> z) { return log(z + T(1)); }
template <class T> complex<T> log2(complex<T> z) { return log(z) / log(T(2)); }
template <class T> complex<T> expm1(complex<T> z) { return exp(z) - T(1); }
template <class T> complex<T> rint(complex<T> z) { return {rint(z.real()), rint(z.imag())}; }

// By the real parts, then the imaginary ones; of a NaN and a number, the number.
template <class T>
bool mulfree_less(complex<T> a, complex<T> b) {
    return a.real() < b.real() || (a.real() == b.real() && a.imag() < b.imag());
}
template <class T>
complex<T> min(complex<T> a, complex<T> b) { return isnan(a) ? b : isnan(b) || mulfree_less(a, b) ? a : b; }
template <class T>
complex<T> max(complex<T> a, complex<T> b) { return isnan(a) ? b : isnan(b) || !mulfree_less(a, b) ? a : b; }
