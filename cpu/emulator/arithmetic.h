// CUDA's floating-point functions beyond <math.h>. The fast ones (__expf, ...) are accurate here: a GPU's results
// differ in the last bits.
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

inline unsigned int umin(unsigned int a, unsigned int b) { return min(a, b); }
inline unsigned int umax(unsigned int a, unsigned int b) { return max(a, b); }
inline long long llmin(long long a, long long b) { return min(a, b); }
inline long long llmax(long long a, long long b) { return max(a, b); }
inline unsigned long long ullmin(unsigned long long a, unsigned long long b) { return min(a, b); }
inline unsigned long long ullmax(unsigned long long a, unsigned long long b) { return max(a, b); }

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
    __builtin_memcpy(&to, &from, sizeof to);
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

// f of the operands in a rounding mode of <fenv.h>. What is volatile stays between the two calls.
template <class T, class Operand, class Function>
MULFREE_UNSEEN T rounded(int mode, Function f, Operand a, Operand b = 0, Operand c = 0) {
    volatile Operand x = a, y = b, z = c;
    fesetround(mode);
    volatile T result = f(x, y, z);
    fesetround(FE_TONEAREST);
    return result;
}

}  // namespace mulfree_emulator

inline float rsqrtf(float x) { return static_cast<float>(1.0 / sqrt(static_cast<double>(x))); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float rcbrtf(float x) { return 1.0f / cbrtf(x); }
inline float fdividef(float a, float b) { return a / b; }
inline double rcbrt(double x) { return 1.0 / cbrt(x); }
inline float normcdff(float x) { return static_cast<float>(0.5 * erfc(-x * 0.70710678118654752440)); }
inline double normcdf(double x) { return 0.5 * erfc(-x * 0.70710678118654752440); }

namespace mulfree_emulator {

// The sine of pi x + n pi / 2: exact where it is 0 or 1.
inline double sine_of_turns(double x, int n) {
    const double quarters = nearbyint(2 * x), rest = 3.14159265358979323846 * (x - quarters / 2);
    const int quadrant = saturating<int>(fmod(quarters, 4)) + n & 3;
    const double value = quadrant & 1 ? cos(rest) : sin(rest);
    return quadrant & 2 ? -value : value;
}

}  // namespace mulfree_emulator

inline double sinpi(double x) { return mulfree_emulator::sine_of_turns(x, 0); }
inline double cospi(double x) { return mulfree_emulator::sine_of_turns(x, 1); }
inline void sincospi(double x, double *s, double *c) { *s = sinpi(x), *c = cospi(x); }
inline float sinpif(float x) { return static_cast<float>(sinpi(x)); }
inline float cospif(float x) { return static_cast<float>(cospi(x)); }
inline void sincospif(float x, float *s, float *c) { *s = sinpif(x), *c = cospif(x); }

#define MULFREE_NORMS(T, f)                                                                              \
    inline T norm3d##f(T a, T b, T c) { return hypot(hypot(a, b), c); }                                  \
    inline T norm4d##f(T a, T b, T c, T d) { return hypot(hypot(a, b), hypot(c, d)); }                   \
    inline T rnorm3d##f(T a, T b, T c) { return 1 / norm3d##f(a, b, c); }                                \
    inline T rnorm4d##f(T a, T b, T c, T d) { return 1 / norm4d##f(a, b, c, d); }                        \
    inline T rhypot##f(T a, T b) { return 1 / hypot(a, b); }
MULFREE_NORMS(float, f)
MULFREE_NORMS(double, )
#undef MULFREE_NORMS

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

// By rounding mode: rn nearest even, rz towards zero, ru up, rd down.
#define MULFREE_ROUNDED(name, T, Operand, expression, parameters, ...)                                 \
    inline T name##_rn parameters { return static_cast<T>(expression); }                               \
    MULFREE_DIRECTED(name##_rz, FE_TOWARDZERO, T, Operand, expression, parameters, __VA_ARGS__)        \
    MULFREE_DIRECTED(name##_ru, FE_UPWARD, T, Operand, expression, parameters, __VA_ARGS__)            \
    MULFREE_DIRECTED(name##_rd, FE_DOWNWARD, T, Operand, expression, parameters, __VA_ARGS__)
#define MULFREE_DIRECTED(name, mode, T, Operand, expression, parameters, ...)                          \
    inline T name parameters {                                                                         \
        const auto f = [](Operand x, Operand y, Operand z) { return static_cast<T>(expression); };     \
        return mulfree_emulator::rounded<T, Operand>(mode, f, __VA_ARGS__);                            \
    }
#define MULFREE_ROUNDED_1(name, T, Operand, expression) \
    MULFREE_ROUNDED(name, T, Operand, expression, (Operand x), x)
#define MULFREE_ROUNDED_2(name, T, expression) MULFREE_ROUNDED(name, T, T, expression, (T x, T y), x, y)
#define MULFREE_ROUNDED_3(name, T, expression) MULFREE_ROUNDED(name, T, T, expression, (T x, T y, T z), x, y, z)
MULFREE_ROUNDED_2(__fadd, float, x + y)
MULFREE_ROUNDED_2(__fsub, float, x - y)
MULFREE_ROUNDED_2(__fmul, float, x *y)
MULFREE_ROUNDED_2(__fdiv, float, x / y)
MULFREE_ROUNDED_3(__fmaf, float, fmaf(x, y, z))
MULFREE_ROUNDED_1(__frcp, float, float, 1.0f / x)
MULFREE_ROUNDED_1(__fsqrt, float, float, sqrtf(x))
MULFREE_ROUNDED_2(__dadd, double, x + y)
MULFREE_ROUNDED_2(__dsub, double, x - y)
MULFREE_ROUNDED_2(__dmul, double, x *y)
MULFREE_ROUNDED_2(__ddiv, double, x / y)
MULFREE_ROUNDED_3(__fma, double, fma(x, y, z))
MULFREE_ROUNDED_1(__drcp, double, double, 1.0 / x)
MULFREE_ROUNDED_1(__dsqrt, double, double, sqrt(x))
MULFREE_ROUNDED_1(__double2float, float, double, x)
MULFREE_ROUNDED_1(__int2float, float, int, x)
MULFREE_ROUNDED_1(__uint2float, float, unsigned int, x)
MULFREE_ROUNDED_1(__ll2float, float, long long, x)
MULFREE_ROUNDED_1(__ull2float, float, unsigned long long, x)
MULFREE_ROUNDED_1(__ll2double, double, long long, x)
MULFREE_ROUNDED_1(__ull2double, double, unsigned long long, x)
#undef MULFREE_ROUNDED_1
#undef MULFREE_ROUNDED_2
#undef MULFREE_ROUNDED_3
#undef MULFREE_DIRECTED
#undef MULFREE_ROUNDED
inline double __int2double_rn(int x) { return x; }
inline double __uint2double_rn(unsigned int x) { return x; }
inline float __frsqrt_rn(float a) { return rsqrtf(a); }

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

inline long long clock64() { return clock(); }
