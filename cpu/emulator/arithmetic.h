// CUDA's floating-point functions beyond <math.h>. The fast ones (__expf, ...) are computed exactly
// here: a GPU's answers differ in the last bits.
#pragma once

#define MULFREE_MIN_MAX(T)                           \
    inline T min(T a, T b) { return b < a ? b : a; } \
    inline T max(T a, T b) { return a < b ? b : a; }
MULFREE_MIN_MAX(int)
MULFREE_MIN_MAX(unsigned int)
MULFREE_MIN_MAX(long)
MULFREE_MIN_MAX(unsigned long)
MULFREE_MIN_MAX(long long)
MULFREE_MIN_MAX(unsigned long long)
#undef MULFREE_MIN_MAX

// Of a NaN and a number, the number.
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

// Mixed types convert as in C; of signed and unsigned the result is unsigned.
#define MULFREE_MIXED(A, B)                                                                                 \
    inline std::common_type_t<A, B> min(A a, B b) { using C = std::common_type_t<A, B>; return min(C(a), C(b)); } \
    inline std::common_type_t<A, B> min(B a, A b) { return min(b, a); }                                     \
    inline std::common_type_t<A, B> max(A a, B b) { using C = std::common_type_t<A, B>; return max(C(a), C(b)); } \
    inline std::common_type_t<A, B> max(B a, A b) { return max(b, a); }
MULFREE_MIXED(int, unsigned int)
MULFREE_MIXED(int, long)
MULFREE_MIXED(int, unsigned long)
MULFREE_MIXED(int, long long)
MULFREE_MIXED(int, unsigned long long)
MULFREE_MIXED(unsigned int, long)
MULFREE_MIXED(unsigned int, unsigned long)
MULFREE_MIXED(unsigned int, long long)
MULFREE_MIXED(unsigned int, unsigned long long)
MULFREE_MIXED(long, unsigned long)
MULFREE_MIXED(long, long long)
MULFREE_MIXED(long long, unsigned long long)
MULFREE_MIXED(float, double)
MULFREE_MIXED(int, float)
MULFREE_MIXED(int, double)
#undef MULFREE_MIXED

namespace mulfree_emulator {

template <class To, class From>
inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

// A GPU saturates where C++ is undefined; NaN becomes 0.
template <class Integer, class Float>
inline Integer saturating(Float x) {
    using Limits = std::numeric_limits<Integer>;
    if (!(x == x)) return 0;
    if (x <= static_cast<Float>(Limits::min())) return Limits::min();
    if (x >= static_cast<Float>(Limits::max())) return Limits::max();
    return static_cast<Integer>(x);
}

}  // namespace mulfree_emulator

inline float rsqrtf(float x) { return static_cast<float>(1.0 / sqrt(static_cast<double>(x))); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float rcbrtf(float x) { return 1.0f / cbrtf(x); }
inline float fdividef(float a, float b) { return a / b; }
inline float sinpif(float x) { return static_cast<float>(sin(3.14159265358979323846 * x)); }
inline float cospif(float x) { return static_cast<float>(cos(3.14159265358979323846 * x)); }
inline float normcdff(float x) { return static_cast<float>(0.5 * erfc(-x * 0.70710678118654752440)); }

inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return static_cast<float>(pow(10.0, x)); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanf(float x) { return tanf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __tanhf(float x) { return tanhf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline void __sincosf(float x, float *s, float *c) { *s = sinf(x); *c = cosf(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frsqrt_rn(float a) { return rsqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __drcp_rn(double a) { return 1.0 / a; }
inline double __dsqrt_rn(double a) { return sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

inline int __float_as_int(float x) { return mulfree_emulator::bits_as<int>(x); }
inline unsigned int __float_as_uint(float x) { return mulfree_emulator::bits_as<unsigned int>(x); }
inline float __int_as_float(int x) { return mulfree_emulator::bits_as<float>(x); }
inline float __uint_as_float(unsigned int x) { return mulfree_emulator::bits_as<float>(x); }
inline long long __double_as_longlong(double x) { return mulfree_emulator::bits_as<long long>(x); }
inline double __longlong_as_double(long long x) { return mulfree_emulator::bits_as<double>(x); }
inline int __double2hiint(double x) { return static_cast<int>(__double_as_longlong(x) >> 32); }
inline int __double2loint(double x) { return static_cast<int>(__double_as_longlong(x)); }
inline double __hiloint2double(int hi, int lo) {
    return __longlong_as_double(static_cast<long long>(hi) << 32 | static_cast<unsigned int>(lo));
}

// Conversions by rounding mode: rn nearest even, rz towards zero, ru up, rd down.
#define MULFREE_TO_INTEGER(name, From, To)                                                          \
    inline To name##_rn(From x) { return mulfree_emulator::saturating<To>(nearbyint(x)); }          \
    inline To name##_rz(From x) { return mulfree_emulator::saturating<To>(trunc(x)); }              \
    inline To name##_ru(From x) { return mulfree_emulator::saturating<To>(ceil(x)); }               \
    inline To name##_rd(From x) { return mulfree_emulator::saturating<To>(floor(x)); }
MULFREE_TO_INTEGER(__float2int, float, int)
MULFREE_TO_INTEGER(__float2uint, float, unsigned int)
MULFREE_TO_INTEGER(__float2ll, float, long long)
MULFREE_TO_INTEGER(__float2ull, float, unsigned long long)
MULFREE_TO_INTEGER(__double2int, double, int)
MULFREE_TO_INTEGER(__double2uint, double, unsigned int)
MULFREE_TO_INTEGER(__double2ll, double, long long)
MULFREE_TO_INTEGER(__double2ull, double, unsigned long long)
#undef MULFREE_TO_INTEGER

inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned int x) { return static_cast<float>(x); }
inline float __ll2float_rn(long long x) { return static_cast<float>(x); }
inline float __ull2float_rn(unsigned long long x) { return static_cast<float>(x); }
inline double __int2double_rn(int x) { return x; }
inline double __uint2double_rn(unsigned int x) { return x; }
inline double __ll2double_rn(long long x) { return static_cast<double>(x); }
inline double __ull2double_rn(unsigned long long x) { return static_cast<double>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }

inline long long clock64() { return clock(); }
