// The complex numbers of cuComplex.h: two floats or doubles.
#pragma once

using cuFloatComplex = float2;
using cuDoubleComplex = double2;
using cuComplex = cuFloatComplex;

#define MULFREE_COMPLEX(f, Complex, T, make)                                                            \
    inline Complex make(T re, T im) { return {re, im}; }                                                \
    inline T cuCreal##f(Complex a) { return a.x; }                                                      \
    inline T cuCimag##f(Complex a) { return a.y; }                                                      \
    inline Complex cuConj##f(Complex a) { return {a.x, -a.y}; }                                         \
    inline Complex cuCadd##f(Complex a, Complex b) { return {a.x + b.x, a.y + b.y}; }                   \
    inline Complex cuCsub##f(Complex a, Complex b) { return {a.x - b.x, a.y - b.y}; }                   \
    inline Complex cuCmul##f(Complex a, Complex b) {                                                    \
        return {a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x};                                          \
    }                                                                                                   \
    /* Scaled, so that no square overflows. */                                                          \
    inline Complex cuCdiv##f(Complex a, Complex b) {                                                    \
        const T scale = 1 / (fabs(b.x) + fabs(b.y));                                                    \
        a = {a.x * scale, a.y * scale};                                                                 \
        b = {b.x * scale, b.y * scale};                                                                 \
        const T by = 1 / (b.x * b.x + b.y * b.y);                                                       \
        return {(a.x * b.x + a.y * b.y) * by, (a.y * b.x - a.x * b.y) * by};                            \
    }                                                                                                   \
    inline T cuCabs##f(Complex a) { return hypot(a.x, a.y); }                                           \
    inline Complex cuCfma##f(Complex a, Complex b, Complex c) {                                         \
        return {a.x * b.x + c.x - a.y * b.y, a.x * b.y + c.y + a.y * b.x};                              \
    }
MULFREE_COMPLEX(f, cuFloatComplex, float, make_cuFloatComplex)
MULFREE_COMPLEX(, cuDoubleComplex, double, make_cuDoubleComplex)
#undef MULFREE_COMPLEX

inline cuComplex make_cuComplex(float re, float im) { return {re, im}; }
inline cuDoubleComplex cuComplexFloatToDouble(cuFloatComplex a) { return {a.x, a.y}; }
inline cuFloatComplex cuComplexDoubleToFloat(cuDoubleComplex a) {
    return {static_cast<float>(a.x), static_cast<float>(a.y)};
}
