// Of curand_kernel.h the XORWOW (the default) and Philox4_32_10 generators: the same words as on a GPU,
// the same uniform numbers, and normal ones up to the rounding of logf and sincosf.
#pragma once
#include <mulfree/push_letters.h>

struct curandStateXORWOW {
    unsigned d, v[5];
    int has_normal, has_normal_double;  // the second of a pair of normal numbers waits
    float normal;
    double normal_double;
};

struct curandStatePhilox4_32_10 {
    uint4 counter, output;
    uint2 key;
    unsigned used;  // words of the output
    int has_normal, has_normal_double;
    float normal;
    double normal_double;
};

using curandState = curandStateXORWOW;
using curandState_t = curandStateXORWOW;
using curandStateXORWOW_t = curandStateXORWOW;
using curandStatePhilox4_32_10_t = curandStatePhilox4_32_10;

// ---- XORWOW ---------------------------------------------------------------------------------------

MULFREE_INLINE unsigned curand(curandStateXORWOW *s) {
    const unsigned t = s->v[0] ^ s->v[0] >> 2;
    for (int i = 0; i < 4; ++i) s->v[i] = s->v[i + 1];
    s->v[4] = s->v[3] ^ s->v[3] << 4 ^ t ^ t << 1;
    s->d += 362437;
    return s->v[4] + s->d;
}

MULFREE_INLINE void skipahead(unsigned long long n, curandStateXORWOW *s) {
    mulfree_xorwow_skip(s->v, n, 0);
    s->d += 362437 * static_cast<unsigned>(n);
}

// A sequence is 2^67 numbers long; the multiples of d's step vanish.
MULFREE_INLINE void skipahead_sequence(unsigned long long n, curandStateXORWOW *s) { mulfree_xorwow_skip(s->v, n, 67); }

MULFREE_INLINE void curand_init(unsigned long long seed, unsigned long long subsequence, unsigned long long offset,
                                curandStateXORWOW *s) {
    const unsigned low = 1099087573u * (static_cast<unsigned>(seed) ^ 0xaad26b49u);
    const unsigned high = 2591861531u * (static_cast<unsigned>(seed >> 32) ^ 0xf7dcefddu);
    *s = {6615241u + high + low,
          {123456789u + low, 362436069u ^ low, 521288629u + high, 88675123u ^ high, 5783321u + low},
          0, 0, 0.0f, 0.0};
    skipahead_sequence(subsequence, s);
    skipahead(offset, s);
}

// ---- Philox4_32_10 --------------------------------------------------------------------------------

namespace mulfree_curand {

inline uint4 philox(uint4 c, uint2 key) {
    for (int round = 0; round < 10; ++round) {
        const unsigned long long a = 0xd2511f53ull * c.x, b = 0xcd9e8d57ull * c.z;
        c = {static_cast<unsigned>(b >> 32) ^ c.y ^ key.x, static_cast<unsigned>(b),
             static_cast<unsigned>(a >> 32) ^ c.w ^ key.y, static_cast<unsigned>(a)};
        key.x += 0x9e3779b9u;
        key.y += 0xbb67ae85u;
    }
    return c;
}

// Adds to the counter of 128 bits.
inline void advance(curandStatePhilox4_32_10 *s, unsigned long long low, unsigned long long high) {
    const auto wide = [](unsigned a, unsigned b) { return static_cast<unsigned long long>(b) << 32 | a; };
    const unsigned long long x = wide(s->counter.x, s->counter.y) + low;
    const unsigned long long y = wide(s->counter.z, s->counter.w) + high + (x < low);
    s->counter = {static_cast<unsigned>(x), static_cast<unsigned>(x >> 32), static_cast<unsigned>(y),
                  static_cast<unsigned>(y >> 32)};
    s->output = philox(s->counter, s->key);
}

}  // namespace mulfree_curand

MULFREE_INLINE unsigned curand(curandStatePhilox4_32_10 *s) {
    const unsigned words[] = {s->output.x, s->output.y, s->output.z, s->output.w}, word = words[s->used++];
    if (s->used == 4) {
        s->used = 0;
        mulfree_curand::advance(s, 1, 0);
    }
    return word;
}

MULFREE_INLINE uint4 curand4(curandStatePhilox4_32_10 *s) {
    const unsigned a = curand(s), b = curand(s), c = curand(s);
    return {a, b, c, curand(s)};
}

MULFREE_INLINE void skipahead(unsigned long long n, curandStatePhilox4_32_10 *s) {
    const unsigned used = s->used + static_cast<unsigned>(n & 3);
    s->used = used & 3;
    mulfree_curand::advance(s, n / 4 + used / 4, 0);
}

MULFREE_INLINE void skipahead_sequence(unsigned long long n, curandStatePhilox4_32_10 *s) {
    mulfree_curand::advance(s, 0, n);
}

MULFREE_INLINE void curand_init(unsigned long long seed, unsigned long long subsequence, unsigned long long offset,
                                curandStatePhilox4_32_10 *s) {
    *s = {{}, {}, {static_cast<unsigned>(seed), static_cast<unsigned>(seed >> 32)}, 0, 0, 0, 0.0f, 0.0};
    skipahead_sequence(subsequence, s);
    skipahead(offset, s);
}

// ---- distributions --------------------------------------------------------------------------------

namespace mulfree_curand {

// In (0, 1].
inline float uniform(unsigned x) { return static_cast<float>(x) * 0x1p-32f + 0x1p-33f; }
inline double uniform(unsigned x, unsigned y) {
    return static_cast<double>(x ^ static_cast<unsigned long long>(y) << 21) * 0x1p-53 + 0x1p-54;
}

// Box and Muller's transform. The compiler of a GPU contracts the angle to a fused operation.
inline float2 normal(unsigned x, unsigned y) {
    constexpr float turn = 0x1p-32f * 6.2831855f;
    const float angle = fmaf(static_cast<float>(y), turn, turn / 2), r = sqrtf(-2.0f * logf(uniform(x)));
    return {sinf(angle) * r, cosf(angle) * r};
}
inline double2 normal(uint4 x) {
    const double angle = 3.14159265358979323846 * (2 * uniform(x.z, x.w)), r = sqrt(-2.0 * log(uniform(x.x, x.y)));
    return {sin(angle) * r, cos(angle) * r};
}

// The generators' own choice of words.
MULFREE_INLINE double one_double(curandStateXORWOW *s) {
    const unsigned x = curand(s);
    return uniform(x, curand(s));
}
MULFREE_INLINE double one_double(curandStatePhilox4_32_10 *s) { return curand(s) * 0x1p-32 + 0x1p-32; }

template <class State>
MULFREE_INLINE uint4 four_words(State *s) {
    const unsigned a = curand(s), b = curand(s), c = curand(s);
    return {a, b, c, curand(s)};
}

}  // namespace mulfree_curand

template <class State>
MULFREE_INLINE float curand_uniform(State *s) { return mulfree_curand::uniform(curand(s)); }
template <class State>
MULFREE_INLINE double curand_uniform_double(State *s) { return mulfree_curand::one_double(s); }
MULFREE_INLINE float4 curand_uniform4(curandStatePhilox4_32_10 *s) {
    const uint4 x = curand4(s);
    using mulfree_curand::uniform;
    return {uniform(x.x), uniform(x.y), uniform(x.z), uniform(x.w)};
}
MULFREE_INLINE double2 curand_uniform2_double(curandStatePhilox4_32_10 *s) {
    const uint4 x = curand4(s);
    return {mulfree_curand::uniform(x.x, x.y), mulfree_curand::uniform(x.z, x.w)};
}

template <class State>
MULFREE_INLINE float2 curand_normal2(State *s) {
    const unsigned x = curand(s);
    return mulfree_curand::normal(x, curand(s));
}
template <class State>
MULFREE_INLINE double2 curand_normal2_double(State *s) { return mulfree_curand::normal(mulfree_curand::four_words(s)); }
MULFREE_INLINE float4 curand_normal4(curandStatePhilox4_32_10 *s) {
    const float2 a = curand_normal2(s), b = curand_normal2(s);
    return {a.x, a.y, b.x, b.y};
}

// Pairs, of which the second is kept for the next call.
template <class State>
MULFREE_INLINE float curand_normal(State *s) {
    if (s->has_normal) {
        s->has_normal = 0;
        return s->normal;
    }
    const float2 pair = curand_normal2(s);
    s->normal = pair.y;
    s->has_normal = 1;
    return pair.x;
}
template <class State>
MULFREE_INLINE double curand_normal_double(State *s) {
    if (s->has_normal_double) {
        s->has_normal_double = 0;
        return s->normal_double;
    }
    const double2 pair = curand_normal2_double(s);
    s->normal_double = pair.y;
    s->has_normal_double = 1;
    return pair.x;
}

template <class State>
MULFREE_INLINE float curand_log_normal(State *s, float mean, float deviation) {
    return expf(mean + deviation * curand_normal(s));
}
template <class State>
MULFREE_INLINE double curand_log_normal_double(State *s, double mean, double deviation) {
    return exp(mean + deviation * curand_normal_double(s));
}

#include <mulfree/pop_letters.h>
