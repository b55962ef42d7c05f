// 16-bit floating point under the names of cuda_fp16.h and cuda_bf16.h. Every operation is computed
// wider and rounded once, to nearest even where nothing else is asked for.
#pragma once

namespace mulfree_emulator {

enum class Rounding { nearest, zero, up, down };

struct Half { static constexpr int fraction = 10, bias = 15; };
struct Bfloat { static constexpr int fraction = 7, bias = 127; };

template <class Format>
unsigned short short_bits(double x, Rounding rounding = Rounding::nearest) {
    constexpr int fraction = Format::fraction, bias = Format::bias;
    constexpr unsigned infinity = (2 * bias + 1) << fraction;
    const bool negative = signbit(x);
    const unsigned sign = negative ? 0x8000 : 0;
    const double magnitude = fabs(x);
    if (!(magnitude == magnitude)) return 0x7fff;
    if (magnitude == INFINITY) return static_cast<unsigned short>(sign | infinity);
    // The weight of the last place is that of the smallest normal number also below it.
    int exponent = 2 - bias;
    if (magnitude >= ldexp(1.0, 1 - bias)) frexp(magnitude, &exponent);
    const double steps = ldexp(magnitude, fraction + 1 - exponent);
    const bool away = rounding == (negative ? Rounding::down : Rounding::up);
    const double whole = rounding == Rounding::nearest ? nearbyint(steps) : away ? ceil(steps) : floor(steps);
    unsigned bits = (static_cast<unsigned>(exponent + bias - 2) << fraction) + static_cast<unsigned>(whole);
    if (bits >= infinity) bits = away || rounding == Rounding::nearest ? infinity : infinity - 1;
    return static_cast<unsigned short>(sign | bits);
}

template <class Format>
float short_value(unsigned short bits) {
    constexpr int fraction = Format::fraction, bias = Format::bias;
    const int exponent = (bits & 0x7fff) >> fraction, rest = bits & ((1 << fraction) - 1);
    const float sign = bits & 0x8000 ? -1.0f : 1.0f;
    if (exponent == 2 * bias + 1) return rest ? NAN : sign * INFINITY;
    return sign * (exponent ? ldexpf(static_cast<float>((1 << fraction) + rest), exponent - bias - fraction)
                            : ldexpf(static_cast<float>(rest), 1 - bias - fraction));
}

// a * b + c, where a * b is exact, rounded to odd: a second rounding to fewer bits is then right.
inline double product_plus(float a, float b, float c) {
    const double p = static_cast<double>(a) * b, sum = p + c;
    if (!(fabs(sum) < INFINITY)) return sum;
    const double part = sum - p, error = (p - (sum - part)) + (c - part);
    const bool odd = bits_as<unsigned long long>(sum) & 1;
    return error == 0 || odd ? sum : nextafter(sum, error > 0 ? INFINITY : -INFINITY);
}

struct ShortRaw { unsigned short x; };

template <class Format>
struct alignas(2) Short {
    unsigned short __x;
    Short() = default;
    Short(ShortRaw raw) : __x(raw.x) {}
    template <class Number, class = std::enable_if_t<std::is_arithmetic_v<Number>>>
    Short(Number v) : __x(short_bits<Format>(static_cast<double>(v))) {}
    template <class Other>
    explicit Short(Short<Other> v) : Short(float(v)) {}
    static Short rounded(double x, Rounding rounding) { return ShortRaw{short_bits<Format>(x, rounding)}; }
    operator float() const { return short_value<Format>(__x); }
    operator ShortRaw() const { return {__x}; }
    Short &operator+=(Short o) { return *this = *this + o; }
    Short &operator-=(Short o) { return *this = *this - o; }
    Short &operator*=(Short o) { return *this = *this * o; }
    Short &operator/=(Short o) { return *this = *this / o; }
    Short &operator++() { return *this += Short(1); }
    Short &operator--() { return *this -= Short(1); }
    friend Short operator+(Short a, Short b) { return Short(float(a) + float(b)); }
    friend Short operator-(Short a, Short b) { return Short(float(a) - float(b)); }
    friend Short operator*(Short a, Short b) { return Short(float(a) * float(b)); }
    friend Short operator/(Short a, Short b) { return Short(float(a) / float(b)); }
    friend Short operator+(Short a) { return a; }
    friend Short operator-(Short a) { return ShortRaw{static_cast<unsigned short>(a.__x ^ 0x8000)}; }
    friend bool operator==(Short a, Short b) { return float(a) == float(b); }
    friend bool operator!=(Short a, Short b) { return float(a) != float(b); }
    friend bool operator<(Short a, Short b) { return float(a) < float(b); }
    friend bool operator<=(Short a, Short b) { return float(a) <= float(b); }
    friend bool operator>(Short a, Short b) { return float(a) > float(b); }
    friend bool operator>=(Short a, Short b) { return float(a) >= float(b); }
};

template <class Format>
struct alignas(4) Shorts {
    Short<Format> x, y;
    Shorts() = default;
    Shorts(Short<Format> a, Short<Format> b) : x(a), y(b) {}
    Shorts &operator+=(Shorts o) { return *this = *this + o; }
    Shorts &operator-=(Shorts o) { return *this = *this - o; }
    Shorts &operator*=(Shorts o) { return *this = *this * o; }
    Shorts &operator/=(Shorts o) { return *this = *this / o; }
    friend Shorts operator+(Shorts a, Shorts b) { return {a.x + b.x, a.y + b.y}; }
    friend Shorts operator-(Shorts a, Shorts b) { return {a.x - b.x, a.y - b.y}; }
    friend Shorts operator*(Shorts a, Shorts b) { return {a.x * b.x, a.y * b.y}; }
    friend Shorts operator/(Shorts a, Shorts b) { return {a.x / b.x, a.y / b.y}; }
    friend Shorts operator-(Shorts a) { return {-a.x, -a.y}; }
    friend bool operator==(Shorts a, Shorts b) { return a.x == b.x && a.y == b.y; }
    friend bool operator!=(Shorts a, Shorts b) { return !(a == b); }
};

}  // namespace mulfree_emulator

using __half_raw = mulfree_emulator::ShortRaw;
using __half = mulfree_emulator::Short<mulfree_emulator::Half>;
using __half2 = mulfree_emulator::Shorts<mulfree_emulator::Half>;
using half = __half;
using half2 = __half2;
using __nv_bfloat16_raw = mulfree_emulator::ShortRaw;
using __nv_bfloat16 = mulfree_emulator::Short<mulfree_emulator::Bfloat>;
using __nv_bfloat162 = mulfree_emulator::Shorts<mulfree_emulator::Bfloat>;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

#define H __half
#define H2 __half2
#define NAME(before, after) before##half##after
#include "half_functions.h"
#undef H
#undef H2
#undef NAME
#define H __nv_bfloat16
#define H2 __nv_bfloat162
#define NAME(before, after) before##bfloat16##after
#include "half_functions.h"
#undef H
#undef H2
#undef NAME

inline __half2 __half2half2(__half a) { return {a, a}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 a) { return {a, a}; }
