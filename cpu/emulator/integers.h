// CUDA's integer intrinsics: bits, products, and four bytes or two halfwords in one word.
#pragma once

inline int __popc(unsigned int x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned int>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }

inline unsigned long long __brevll(unsigned long long x) {
    unsigned long long r = 0;
    for (int i = 0; i < 64; ++i) r |= (x >> i & 1) << (63 - i);
    return r;
}
inline unsigned int __brev(unsigned int x) { return static_cast<unsigned int>(__brevll(x) >> 32); }

inline unsigned int __byte_perm(unsigned int x, unsigned int y, unsigned int selector) {
    const unsigned long long bytes = static_cast<unsigned long long>(y) << 32 | x;
    unsigned int r = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned int s = selector >> 4 * i & 15;
        unsigned int byte = static_cast<unsigned int>(bytes >> 8 * (s & 7)) & 255;
        if (s & 8) byte = byte & 128 ? 255 : 0;  // the sign, spread
        r |= byte << 8 * i;
    }
    return r;
}

inline unsigned int __funnelshift_l(unsigned int lo, unsigned int hi, unsigned int n) {
    return static_cast<unsigned int>((static_cast<unsigned long long>(hi) << 32 | lo) << (n & 31) >> 32);
}
inline unsigned int __funnelshift_r(unsigned int lo, unsigned int hi, unsigned int n) {
    return static_cast<unsigned int>((static_cast<unsigned long long>(hi) << 32 | lo) >> (n & 31));
}
inline unsigned int __funnelshift_lc(unsigned int lo, unsigned int hi, unsigned int n) {
    return n >= 32 ? lo : __funnelshift_l(lo, hi, n);
}
inline unsigned int __funnelshift_rc(unsigned int lo, unsigned int hi, unsigned int n) {
    return n >= 32 ? hi : __funnelshift_r(lo, hi, n);
}

inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<long long>(a) * b >> 32); }
inline unsigned int __umulhi(unsigned int a, unsigned int b) {
    return static_cast<unsigned int>(static_cast<unsigned long long>(a) * b >> 32);
}
inline long long __mul64hi(long long a, long long b) {
    return static_cast<long long>(static_cast<__int128>(a) * b >> 64);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline int __mul24(int a, int b) { return (a << 8 >> 8) * (b << 8 >> 8); }
inline unsigned int __umul24(unsigned int a, unsigned int b) { return (a & 0xffffff) * (b & 0xffffff); }
inline unsigned int __sad(int a, int b, unsigned int c) {
    return c + (a < b ? static_cast<unsigned int>(b) - a : static_cast<unsigned int>(a) - b);
}
inline unsigned int __usad(unsigned int a, unsigned int b, unsigned int c) { return c + (a < b ? b - a : a - b); }
inline int __hadd(int a, int b) { return static_cast<int>((static_cast<long long>(a) + b) >> 1); }
inline int __rhadd(int a, int b) { return static_cast<int>((static_cast<long long>(a) + b + 1) >> 1); }
inline unsigned int __uhadd(unsigned int a, unsigned int b) {
    return static_cast<unsigned int>((0ull + a + b) >> 1);
}
inline unsigned int __urhadd(unsigned int a, unsigned int b) {
    return static_cast<unsigned int>((1ull + a + b) >> 1);
}

// ---- words of bytes or halfwords ------------------------------------------------------------------

namespace mulfree_emulator {

template <class Lane>
inline int lane_of(unsigned int word, int i) { return static_cast<Lane>(word >> 8 * sizeof(Lane) * i); }

template <class Lane>
inline unsigned int distance(unsigned int a, unsigned int b, int i) {
    return abs(lane_of<Lane>(a, i) - lane_of<Lane>(b, i));
}

template <class Lane, class Function>
inline unsigned int each_lane(unsigned int a, unsigned int b, Function f) {
    constexpr int bits = 8 * sizeof(Lane);
    unsigned int r = 0;
    for (int i = 0; i < 32 / bits; ++i) {
        const int v = f(lane_of<Lane>(a, i), lane_of<Lane>(b, i));
        r |= (static_cast<unsigned int>(v) & ((1u << bits) - 1)) << bits * i;
    }
    return r;
}

template <class Lane>
inline int clamp(int v) {
    using Limits = std::numeric_limits<Lane>;
    return v < Limits::min() ? Limits::min() : v > Limits::max() ? Limits::max() : v;
}

template <class Lane, class Other>
inline int dot(unsigned int a, unsigned int b) {
    int sum = 0;
    for (int i = 0; i < 4; ++i) sum += lane_of<Lane>(a, i) * lane_of<Other>(b, i);
    return sum;
}

}  // namespace mulfree_emulator

#define MULFREE_LANES(name, Lane, expression)                                                                   \
    inline unsigned int name(unsigned int x, unsigned int y) {                                                  \
        return mulfree_emulator::each_lane<Lane>(x, y, [](int a, int b) { return int(expression); });         \
    }
#define MULFREE_LANE(name, Lane, expression)                                                                    \
    inline unsigned int name(unsigned int x) {                                                                  \
        return mulfree_emulator::each_lane<Lane>(x, x, [](int a, int) { return int(expression); });             \
    }
#define MULFREE_COMPARE(name, n, S, U, op)                     \
    MULFREE_LANES(__vcmp##name##s##n, S, a op b ? -1 : 0)      \
    MULFREE_LANES(__vcmp##name##u##n, U, a op b ? -1 : 0)      \
    MULFREE_LANES(__vset##name##s##n, S, a op b ? 1 : 0)       \
    MULFREE_LANES(__vset##name##u##n, U, a op b ? 1 : 0)
#define MULFREE_SIMD(n, S, U)                                                                              \
    MULFREE_LANES(__vadd##n, U, a + b)                                                                     \
    MULFREE_LANES(__vaddss##n, S, mulfree_emulator::clamp<S>(a + b))                                       \
    MULFREE_LANES(__vaddus##n, U, mulfree_emulator::clamp<U>(a + b))                                       \
    MULFREE_LANES(__vsub##n, U, a - b)                                                                     \
    MULFREE_LANES(__vsubss##n, S, mulfree_emulator::clamp<S>(a - b))                                       \
    MULFREE_LANES(__vsubus##n, U, mulfree_emulator::clamp<U>(a - b))                                       \
    MULFREE_LANES(__vabsdiffs##n, S, a < b ? b - a : a - b)                                                \
    MULFREE_LANES(__vabsdiffu##n, U, a < b ? b - a : a - b)                                                \
    MULFREE_LANES(__vmaxs##n, S, a > b ? a : b)                                                            \
    MULFREE_LANES(__vmaxu##n, U, a > b ? a : b)                                                            \
    MULFREE_LANES(__vmins##n, S, a < b ? a : b)                                                            \
    MULFREE_LANES(__vminu##n, U, a < b ? a : b)                                                            \
    MULFREE_LANES(__vavgs##n, S, (a + b + (a + b >= 0)) >> 1)                                              \
    MULFREE_LANES(__vavgu##n, U, (a + b + 1) >> 1)                                                         \
    MULFREE_LANES(__vhaddu##n, U, (a + b) >> 1)                                                            \
    MULFREE_LANES(__vcmpeq##n, U, a == b ? -1 : 0)                                                         \
    MULFREE_LANES(__vcmpne##n, U, a != b ? -1 : 0)                                                         \
    MULFREE_LANES(__vseteq##n, U, a == b)                                                                  \
    MULFREE_LANES(__vsetne##n, U, a != b)                                                                  \
    MULFREE_COMPARE(gt, n, S, U, >)                                                                        \
    MULFREE_COMPARE(ge, n, S, U, >=)                                                                       \
    MULFREE_COMPARE(lt, n, S, U, <)                                                                        \
    MULFREE_COMPARE(le, n, S, U, <=)                                                                       \
    MULFREE_LANE(__vabs##n, S, a < 0 ? -a : a)                                                             \
    MULFREE_LANE(__vabsss##n, S, mulfree_emulator::clamp<S>(a < 0 ? -a : a))                               \
    MULFREE_LANE(__vneg##n, S, -a)                                                                         \
    MULFREE_LANE(__vnegss##n, S, mulfree_emulator::clamp<S>(-a))                                           \
    inline unsigned int __vsads##n(unsigned int x, unsigned int y) {                                       \
        unsigned int sum = 0;                                                                              \
        for (int i = 0; i < n; ++i) sum += mulfree_emulator::distance<S>(x, y, i); \
        return sum;                                                                                        \
    }                                                                                                      \
    inline unsigned int __vsadu##n(unsigned int x, unsigned int y) {                                       \
        unsigned int sum = 0;                                                                              \
        for (int i = 0; i < n; ++i) sum += mulfree_emulator::distance<U>(x, y, i); \
        return sum;                                                                                        \
    }
MULFREE_SIMD(4, signed char, unsigned char)
MULFREE_SIMD(2, short, unsigned short)
#undef MULFREE_SIMD
#undef MULFREE_COMPARE
#undef MULFREE_LANE
#undef MULFREE_LANES

inline int __dp4a(int a, int b, int c) { return c + mulfree_emulator::dot<signed char, signed char>(a, b); }
inline unsigned int __dp4a(unsigned int a, unsigned int b, unsigned int c) {
    return c + mulfree_emulator::dot<unsigned char, unsigned char>(a, b);
}
inline int __dp4a(char4 a, char4 b, int c) { return c + a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }
inline unsigned int __dp4a(uchar4 a, uchar4 b, unsigned int c) {
    return c + a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
}
