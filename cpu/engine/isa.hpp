// One SIMD register of the instruction set this file is compiled for (MULFREE_ISA names it and is the
// namespace). GCC's vector types have + - * on every machine; this adds the rest.
#pragma once

#include <cstdint>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "../kernels.hpp"
#include "prefetch.hpp"

namespace mulfree::MULFREE_ISA {

#if defined(__AVX512F__)
constexpr index VECTOR_BYTES = 64;
constexpr int REGISTERS = 32, MR = 8, NR = 3, PACKED_VECTORS = 3;
#elif defined(__AVX2__)
constexpr index VECTOR_BYTES = 32;
constexpr int REGISTERS = 16, MR = 6, NR = 2, PACKED_VECTORS = 6;
#elif defined(__aarch64__)
constexpr index VECTOR_BYTES = 16;
constexpr int REGISTERS = 32, MR = 8, NR = 3, PACKED_VECTORS = 12;
#else
constexpr index VECTOR_BYTES = 16;
constexpr int REGISTERS = 16, MR = 6, NR = 2, PACKED_VECTORS = 12;
#endif

template <class T>
constexpr index LANES = VECTOR_BYTES / index(sizeof(T));

// A vector of COUNT lanes, and of a register's.
template <class T, index COUNT>
struct LanesOf {
    typedef T type __attribute__((vector_size(COUNT * sizeof(T))));
};
template <class T, index COUNT>
using Lanes = typename LanesOf<T, COUNT>::type;
template <class T>
using Vec = Lanes<T, LANES<T>>;

template <class T>
inline Vec<T> load(const T* p) {
    Vec<T> v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

template <class T>
inline void store(T* p, Vec<T> v) {
    __builtin_memcpy(p, &v, sizeof v);
}

template <class T, class V>
inline void store_lanes(T* p, V v) {
    __builtin_memcpy(p, &v, sizeof v);
}

// Optimisation barrier: the compiler assumes that v has changed, so it keeps v in a register and does not reload it
// for every use.
template <class V>
inline void touch(V& v) {
#if defined(__AVX512F__)
    asm volatile("" : "+v"(v));
#elif defined(__x86_64__)
    asm volatile("" : "+x"(v));
#elif defined(__aarch64__)
    asm volatile("" : "+w"(v));
#else
    asm volatile("" : "+m"(v));
#endif
}

// s - 0 is s, including the sign of zero.
template <class T>
inline Vec<T> broadcast(T s) {
    return s - Vec<T>{};
}

// Contiguous bytes as integers, and integers of [0, 255] as bytes, which GCC 12 does not vectorise.
template <index COUNT>
inline Lanes<std::int32_t, COUNT> load_bytes(const std::uint8_t* from) {
    using V = Lanes<std::int32_t, COUNT>;
    Lanes<std::uint8_t, COUNT> bytes;
    __builtin_memcpy(&bytes, from, sizeof bytes);
#if defined(__AVX512F__)
    if constexpr (COUNT == 16) return (V)_mm512_cvtepu8_epi32((__m128i)bytes);
#endif
#if defined(__AVX2__)
    if constexpr (COUNT == 8) return (V)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
    if constexpr (COUNT == 4) return (V)_mm_cvtepu8_epi32(_mm_cvtsi32_si128((std::int32_t)bytes));
#endif
    return __builtin_convertvector(bytes, V);
}
template <index COUNT>
inline Lanes<std::uint8_t, COUNT> to_bytes(Lanes<std::int32_t, COUNT> v) {
#if defined(__AVX2__)
    if constexpr (COUNT == 4 || COUNT == 8) {
        __m128i half[2];
        if constexpr (COUNT == 8) __builtin_memcpy(half, &v, sizeof v);
        else half[0] = half[1] = (__m128i)v;
        const __m128i shorts = _mm_packs_epi32(half[0], half[1]), all = _mm_packus_epi16(shorts, shorts);
        Lanes<std::uint8_t, COUNT> bytes;
        __builtin_memcpy(&bytes, &all, sizeof bytes);
        return bytes;
    }
#endif
    return __builtin_convertvector(v, Lanes<std::uint8_t, COUNT>);
}

// Numbers of T converted to lanes of W, which are at least as wide.
template <class W, class T>
inline Vec<W> load_as(const T* from) {
    if constexpr (sizeof(W) == sizeof(T)) return (Vec<W>)load(from);
    else return (Vec<W>)load_bytes<LANES<W>>(from);
}

// max, min: if either is NaN, x86 returns the second operand and NEON a NaN; do not rely on either.
// (With a full mask: GCC 12's unmasked forms read an uninitialised variable, and warn of it.)
template <class V>
inline V max(V a, V b) {
#if defined(__AVX512F__)
    if constexpr (sizeof(a[0]) == 4) return (V)_mm512_maskz_max_ps(__mmask16(-1), (__m512)a, (__m512)b);
    else return (V)_mm512_maskz_max_pd(__mmask8(-1), (__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
    if constexpr (sizeof(a[0]) == 4) return (V)_mm256_max_ps((__m256)a, (__m256)b);
    else return (V)_mm256_max_pd((__m256d)a, (__m256d)b);
#elif defined(__SSE2__)
    if constexpr (sizeof(a[0]) == 4) return (V)_mm_max_ps((__m128)a, (__m128)b);
    else return (V)_mm_max_pd((__m128d)a, (__m128d)b);
#elif defined(__aarch64__)
    if constexpr (sizeof(a[0]) == 4) return (V)vmaxq_f32((float32x4_t)a, (float32x4_t)b);
    else return (V)vmaxq_f64((float64x2_t)a, (float64x2_t)b);
#else
    return a > b ? a : b;
#endif
}

template <class V>
inline V min(V a, V b) {
#if defined(__AVX512F__)
    if constexpr (sizeof(a[0]) == 4) return (V)_mm512_maskz_min_ps(__mmask16(-1), (__m512)a, (__m512)b);
    else return (V)_mm512_maskz_min_pd(__mmask8(-1), (__m512d)a, (__m512d)b);
#elif defined(__AVX2__)
    if constexpr (sizeof(a[0]) == 4) return (V)_mm256_min_ps((__m256)a, (__m256)b);
    else return (V)_mm256_min_pd((__m256d)a, (__m256d)b);
#elif defined(__SSE2__)
    if constexpr (sizeof(a[0]) == 4) return (V)_mm_min_ps((__m128)a, (__m128)b);
    else return (V)_mm_min_pd((__m128d)a, (__m128d)b);
#elif defined(__aarch64__)
    if constexpr (sizeof(a[0]) == 4) return (V)vminq_f32((float32x4_t)a, (float32x4_t)b);
    else return (V)vminq_f64((float64x2_t)a, (float64x2_t)b);
#else
    return a < b ? a : b;
#endif
}

inline Vec<float> abs(Vec<float> a) {
    return (Vec<float>)((Vec<std::uint32_t>)a & 0x7fffffffu);
}
inline Vec<double> abs(Vec<double> a) {
    return (Vec<double>)((Vec<std::uint64_t>)a & 0x7fffffffffffffffull);
}

// |a - b|, for which NEON has an instruction.
#if defined(__aarch64__)
constexpr bool DISTANCE_IN_ONE = true;
#else
constexpr bool DISTANCE_IN_ONE = false;
#endif

template <class V>
inline V absolute_difference(V a, V b) {
#if defined(__aarch64__)
    if constexpr (sizeof(a[0]) == 4) return (V)vabdq_f32((float32x4_t)a, (float32x4_t)b);
    else return (V)vabdq_f64((float64x2_t)a, (float64x2_t)b);
#else
    return abs(a - b);
#endif
}

// a * b + c, fused if the machine has FMA.
template <class V>
inline V multiply_add(V a, V b, V c) {
#if defined(__AVX512F__)
    if constexpr (sizeof(a[0]) == 4) return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
    else return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__)
    if constexpr (sizeof(a[0]) == 4) return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
    else return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
    return a * b + c;
#endif
}

// total + v. On Zen 4 and 5 maxima, subtractions and additions share two pipes, and multiply-adds have two others:
// there v * 1 + total, which has the same bits, doubles their common rate. Where a maximum and a multiply-add share
// pipes it gains nothing. The compiler must not know the 1, or makes it an addition.
template <class V>
inline V add(V total, V v) {
#if defined(MULFREE_SUM_BY_FMA)
    return multiply_add(v, broadcast(std::remove_reference_t<decltype(v[0])>(hidden_one)), total);
#else
    return total + v;
#endif
}

// Whether any lane has not a >= b; true for NaN in either.
template <class T>
inline bool below(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NGE_UQ);
    else return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_NGE_UQ);
#else
    bool any = false;
    for (index i = 0; i < LANES<T>; ++i) any |= !(a[i] >= b[i]);
    return any;
#endif
}

// Bitwise OR; with any_negative, a cheap way to collect the sign bits of many vectors.
template <class V>
inline V either(V a, V b) {
    return (V)((Vec<std::uint32_t>)a | (Vec<std::uint32_t>)b);
}

inline bool any_negative(Vec<float> a) {
    std::uint32_t sign = 0;
    for (index i = 0; i < LANES<float>; ++i) sign |= ((Vec<std::uint32_t>)a)[i];
    return sign >> 31;
}

#if defined(__AVX2__)
// Lanes 0, 2, 4, ... of a, then of b.
template <class V>
inline V even_lanes(V a, V b) {
    static_assert(sizeof(a[0]) >= 4 || VECTOR_BYTES == 32);
#if defined(__AVX512F__)
    if constexpr (sizeof(a[0]) == 4) {
        const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        return (V)_mm512_permutex2var_epi32((__m512i)a, even, (__m512i)b);
    } else {
        const __m512i even = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
        return (V)_mm512_permutex2var_epi64((__m512i)a, even, (__m512i)b);
    }
#else
    // Shuffles work within 128-bit halves: first interleave pairs of lanes, or eights, of a and b.
    __m256d pairs;
    if constexpr (sizeof(a[0]) == 1) {
        const __m256i even = _mm256_set1_epi16(0xff);
        pairs = (__m256d)_mm256_packus_epi16(_mm256_and_si256((__m256i)a, even), _mm256_and_si256((__m256i)b, even));
    } else if constexpr (sizeof(a[0]) == 4) pairs = (__m256d)_mm256_shuffle_ps((__m256)a, (__m256)b, 0x88);
    else pairs = _mm256_unpacklo_pd((__m256d)a, (__m256d)b);
    return (V)_mm256_permute4x64_pd(pairs, 0xd8);
#endif
}
#endif

// The sum of the lanes, pairwise.
template <class T>
inline T sum_lanes(Vec<T> v) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return _mm512_reduce_add_ps((__m512)v);
    else return _mm512_reduce_add_pd((__m512d)v);
#endif
    T lane[LANES<T>];
    store(lane, v);
    for (index half = LANES<T> / 2; half; half /= 2)
        for (index i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
}

// No standard library templates in these files (see kernels.hpp).
constexpr index smaller(index a, index b) { return a < b ? a : b; }
constexpr index larger(index a, index b) { return a > b ? a : b; }
constexpr index ceil_div(index a, index b) { return (a + b - 1) / b; }
constexpr index round_up(index a, index b) { return ceil_div(a, b) * b; }

template <class A, class B>
struct Same {
    static constexpr bool value = false;
};
template <class A>
struct Same<A, A> {
    static constexpr bool value = true;
};

// An integral constant.
template <int N>
struct Constant {
    static constexpr int value = N;
};

// Calls f(Constant) for 0 to N - 1. GCC then keeps arrays in registers, which it does not always do for a loop.
template <int N, class F>
__attribute__((always_inline)) inline void unrolled(F f) {
    if constexpr (N > 0) {
        unrolled<N - 1>(f);
        f(Constant<N - 1>());
    }
}

}  // namespace mulfree::MULFREE_ISA
