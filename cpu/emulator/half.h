// IEEE half precision, under the names of cuda_fp16.h. Every operation is computed wider and rounded
// once to half, nearest even.
#pragma once

namespace mulfree_emulator {

inline unsigned short half_bits(double x) {
    const unsigned long long bits = bits_as<unsigned long long>(x);
    const unsigned sign = static_cast<unsigned>(bits >> 48) & 0x8000;
    const double magnitude = fabs(x);
    if (!(magnitude == magnitude)) return 0x7fff;
    if (magnitude >= 65520.0) return static_cast<unsigned short>(sign | 0x7c00);
    // The weight of the last place: 2^-24 among the subnormals, 2^(exponent - 10) above.
    int exponent = -13;
    if (magnitude >= 0x1p-14) frexp(magnitude, &exponent);
    const unsigned steps = static_cast<unsigned>(nearbyint(ldexp(magnitude, 11 - exponent)));
    const unsigned field = static_cast<unsigned>(exponent + 13) << 10;
    return static_cast<unsigned short>(sign | (field + steps));
}

inline float half_value(unsigned short bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float sign = bits & 0x8000 ? -1.0f : 1.0f;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    return sign * (exponent ? ldexpf(static_cast<float>(1024 + fraction), exponent - 25)
                            : ldexpf(static_cast<float>(fraction), -24));
}

}  // namespace mulfree_emulator

struct __half_raw { unsigned short x; };

struct alignas(2) __half {
    unsigned short __x;
    __half() = default;
    __half(__half_raw raw) : __x(raw.x) {}
    template <class Number, class = std::enable_if_t<std::is_arithmetic_v<Number>>>
    __half(Number v) : __x(mulfree_emulator::half_bits(static_cast<double>(v))) {}
    operator float() const { return mulfree_emulator::half_value(__x); }
    operator __half_raw() const { return {__x}; }
    __half &operator+=(__half o) { return *this = __half(float(*this) + float(o)); }
    __half &operator-=(__half o) { return *this = __half(float(*this) - float(o)); }
    __half &operator*=(__half o) { return *this = __half(float(*this) * float(o)); }
    __half &operator/=(__half o) { return *this = __half(float(*this) / float(o)); }
};
using half = __half;

struct alignas(4) __half2 {
    __half x, y;
    __half2() = default;
    __half2(__half a, __half b) : x(a), y(b) {}
    __half2 &operator+=(__half2 o) { return *this = __half2(x += o.x, y += o.y); }
    __half2 &operator-=(__half2 o) { return *this = __half2(x -= o.x, y -= o.y); }
    __half2 &operator*=(__half2 o) { return *this = __half2(x *= o.x, y *= o.y); }
};
using half2 = __half2;

#define MULFREE_HALF_OPERATOR(op)                                                       \
    inline __half operator op(__half a, __half b) { return __half(float(a) op float(b)); } \
    inline __half2 operator op(__half2 a, __half2 b) { return {a.x op b.x, a.y op b.y}; }
MULFREE_HALF_OPERATOR(+)
MULFREE_HALF_OPERATOR(-)
MULFREE_HALF_OPERATOR(*)
MULFREE_HALF_OPERATOR(/)
#undef MULFREE_HALF_OPERATOR
inline __half operator-(__half a) { return __half_raw{static_cast<unsigned short>(a.__x ^ 0x8000)}; }
#define MULFREE_HALF_COMPARISON(name, op)                                                              \
    inline bool operator op(__half a, __half b) { return float(a) op float(b); }                       \
    inline bool name(__half a, __half b) { return float(a) op float(b); }                              \
    inline __half2 name##2(__half2 a, __half2 b) { return {__half(a.x op b.x), __half(a.y op b.y)}; }
MULFREE_HALF_COMPARISON(__heq, ==)
MULFREE_HALF_COMPARISON(__hne, !=)
MULFREE_HALF_COMPARISON(__hlt, <)
MULFREE_HALF_COMPARISON(__hle, <=)
MULFREE_HALF_COMPARISON(__hgt, >)
MULFREE_HALF_COMPARISON(__hge, >=)
#undef MULFREE_HALF_COMPARISON

inline __half __float2half(float x) { return __half(x); }
inline __half __float2half_rn(float x) { return __half(x); }
inline __half __double2half(double x) { return __half(x); }
inline float __half2float(__half x) { return x; }
inline __half __int2half_rn(int x) { return __half(x); }
inline __half __uint2half_rn(unsigned int x) { return __half(x); }
inline int __half2int_rn(__half x) { return __float2int_rn(x); }
inline int __half2int_rz(__half x) { return __float2int_rz(x); }
inline unsigned short __half_as_ushort(__half x) { return x.__x; }
inline short __half_as_short(__half x) { return static_cast<short>(x.__x); }
inline __half __ushort_as_half(unsigned short x) { return __half_raw{x}; }
inline __half __short_as_half(short x) { return __half_raw{static_cast<unsigned short>(x)}; }

inline __half __hneg(__half a) { return -a; }
inline __half __habs(__half a) { return __half_raw{static_cast<unsigned short>(a.__x & 0x7fff)}; }
inline bool __hisnan(__half a) { return (a.__x & 0x7fff) > 0x7c00; }
inline int __hisinf(__half a) { return (a.__x & 0x7fff) == 0x7c00 ? (a.__x & 0x8000 ? -1 : 1) : 0; }

inline __half2 __halves2half2(__half a, __half b) { return {a, b}; }
inline __half2 make_half2(__half a, __half b) { return {a, b}; }
inline __half2 __half2half2(__half a) { return {a, a}; }
inline __half2 __float2half2_rn(float a) { return {__half(a), __half(a)}; }
inline __half2 __floats2half2_rn(float a, float b) { return {__half(a), __half(b)}; }
inline __half2 __float22half2_rn(float2 a) { return {__half(a.x), __half(a.y)}; }
inline float2 __half22float2(__half2 a) { return {a.x, a.y}; }
inline __half __low2half(__half2 a) { return a.x; }
inline __half __high2half(__half2 a) { return a.y; }
inline float __low2float(__half2 a) { return a.x; }
inline float __high2float(__half2 a) { return a.y; }
inline __half2 __low2half2(__half2 a) { return {a.x, a.x}; }
inline __half2 __high2half2(__half2 a) { return {a.y, a.y}; }
inline __half2 __lowhigh2highlow(__half2 a) { return {a.y, a.x}; }

#define MULFREE_HALF_UNARY(name, expression)                      \
    inline __half h##name(__half a) { return __half(expression); } \
    inline __half2 h2##name(__half2 a) { return {h##name(a.x), h##name(a.y)}; }
MULFREE_HALF_UNARY(sqrt, sqrt(double(float(a))))
MULFREE_HALF_UNARY(rsqrt, rsqrt(double(float(a))))
MULFREE_HALF_UNARY(rcp, 1.0 / float(a))
MULFREE_HALF_UNARY(exp, exp(double(float(a))))
MULFREE_HALF_UNARY(exp2, exp2(double(float(a))))
MULFREE_HALF_UNARY(log, log(double(float(a))))
MULFREE_HALF_UNARY(log2, log2(double(float(a))))
MULFREE_HALF_UNARY(sin, sin(double(float(a))))
MULFREE_HALF_UNARY(cos, cos(double(float(a))))
MULFREE_HALF_UNARY(floor, floorf(a))
MULFREE_HALF_UNARY(ceil, ceilf(a))
MULFREE_HALF_UNARY(trunc, truncf(a))
MULFREE_HALF_UNARY(rint, rintf(a))
#undef MULFREE_HALF_UNARY

#define MULFREE_HALF_BINARY(name, expression)                                         \
    inline __half name(__half a, __half b) { return __half(expression); }             \
    inline __half2 name##2(__half2 a, __half2 b) { return {name(a.x, b.x), name(a.y, b.y)}; }
MULFREE_HALF_BINARY(__hadd, float(a) + float(b))
MULFREE_HALF_BINARY(__hsub, float(a) - float(b))
MULFREE_HALF_BINARY(__hmul, float(a) * float(b))
MULFREE_HALF_BINARY(__hmin, fminf(a, b))
MULFREE_HALF_BINARY(__hmax, fmaxf(a, b))
#undef MULFREE_HALF_BINARY
inline __half __hdiv(__half a, __half b) { return a / b; }
inline __half2 __h2div(__half2 a, __half2 b) { return a / b; }
inline __half __hfma(__half a, __half b, __half c) { return __half(double(float(a)) * float(b) + float(c)); }
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
inline __half2 __hneg2(__half2 a) { return {-a.x, -a.y}; }
inline __half2 __habs2(__half2 a) { return {__habs(a.x), __habs(a.y)}; }
