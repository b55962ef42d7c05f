// What the instructions of inline PTX are turned into (launch/emulator/ptx.py).
#pragma once

namespace mulfree_emulator {
namespace ptx {

// Between registers bits go as they are, as wide as the narrower one.
template <class To, class From>
inline void move(To &to, From from) {
    if constexpr (sizeof(To) == sizeof(From)) to = bits_as<To>(from);
    else to = (To)from;
}

inline unsigned lane_mask_below() { return (1u << mulfree_lane()) - 1; }
inline unsigned lane_bit() { return 1u << mulfree_lane(); }
inline unsigned warp_in_block() {
    return ((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x) / 32;
}
inline unsigned warps_in_block() { return (blockDim.x * blockDim.y * blockDim.z + 31) / 32; }

template <class Address>
MULFREE_INLINE void copy(size_t to, Address from, size_t size) {
    __pipeline_memcpy_async(__cvta_shared_to_generic(to), (const void *)from, size);
}
// Of `size` bytes the first `given` come from memory; the others are zeros.
template <class Address>
MULFREE_INLINE void copy(size_t to, Address from, size_t size, size_t given) {
    __pipeline_memcpy_async(__cvta_shared_to_generic(to), (const void *)from, size, size - given);
}

// ---- matrices ---------------------------------------------------------------------------------

// The products of what two registers hold.
template <class Format>
struct Shorts {
    using Sum = double;
    static double dot(unsigned a, unsigned b) {
        return double(short_value<Format>(a & 0xffff)) * short_value<Format>(b & 0xffff) +
               double(short_value<Format>(a >> 16)) * short_value<Format>(b >> 16);
    }
};
template <class A, class B>
struct Bytes {
    using Sum = long long;
    static long long dot(unsigned a, unsigned b) { return mulfree_emulator::dot<A, B>(a, b); }
};

struct BitsAnd {
    using Sum = long long;
    static long long dot(unsigned a, unsigned b) { return __popc(a & b); }
};
struct BitsXor {
    using Sum = long long;
    static long long dot(unsigned a, unsigned b) { return __popc(a ^ b); }
};

struct Registers {
    unsigned a[4], b[2];
};

// mma.sync: lane 4 g + t holds rows g and g + 8 of A and column g of B, at the t-th register of k and of
// its second half, and columns 2 t and 2 t + 1 of rows g and g + 8 of the result. Sums are exact but for
// the last rounding.
template <class Elements>
inline void multiply(typename Elements::Sum (&sums)[4], const Registers &mine, const char *file, int line) {
    Registers all[32];
    mulfree_exchange(&mine, sizeof mine, all, file, line);
    const int g = mulfree_lane() / 4, t = mulfree_lane() % 4;
    for (int i = 0; i < 4; ++i)
        for (int q = 0; q < 4; ++q) {
            const Registers &a = all[4 * g + q], &b = all[4 * (2 * t + i % 2) + q];
            sums[i] += Elements::dot(a.a[i / 2], b.b[0]) + Elements::dot(a.a[2 + i / 2], b.b[1]);
        }
}

template <class Elements, class D>
inline void mma(D &d0, D &d1, D &d2, D &d3, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1,
                typename Elements::Sum c0, typename Elements::Sum c1, typename Elements::Sum c2,
                typename Elements::Sum c3, MULFREE_HERE) {
    typename Elements::Sum sums[] = {c0, c1, c2, c3};
    multiply<Elements>(sums, {{a0, a1, a2, a3}, {b0, b1}}, file, line);
    d0 = static_cast<D>(sums[0]), d1 = static_cast<D>(sums[1]);
    d2 = static_cast<D>(sums[2]), d3 = static_cast<D>(sums[3]);
}

// With the result in halves.
template <class D>
inline void mma_half(D &d0, D &d1, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1,
                     unsigned c0, unsigned c1, MULFREE_HERE) {
    const unsigned halves[] = {c0 & 0xffff, c0 >> 16, c1 & 0xffff, c1 >> 16};
    double sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = short_value<Half>(static_cast<unsigned short>(halves[i]));
    multiply<Shorts<Half>>(sums, {{a0, a1, a2, a3}, {b0, b1}}, file, line);
    d0 = short_bits<Half>(sums[0]) | unsigned(short_bits<Half>(sums[1])) << 16;
    d1 = short_bits<Half>(sums[2]) | unsigned(short_bits<Half>(sums[3])) << 16;
}

// ldmatrix: lane 8 m + r has the address of row r of matrix m; lane 4 r + c gets its c-th word, or the two
// halfwords of column r in rows 2 c and 2 c + 1.
template <bool transposed, class... D>
MULFREE_INLINE void load_matrices(const char *file, int line, size_t address, D &...to) {
    size_t rows[32];
    mulfree_exchange(&address, sizeof address, rows, file, line);
    const int r = mulfree_lane() / 4, c = mulfree_lane() % 4;
    int matrix = 0;
    const auto load = [&](auto &word) {
        const size_t *of = rows + 8 * matrix++;
        if (transposed) {
            const auto *low = static_cast<const unsigned short *>(__cvta_shared_to_generic(of[2 * c])) + r;
            const auto *high = static_cast<const unsigned short *>(__cvta_shared_to_generic(of[2 * c + 1])) + r;
            word = *low | unsigned(*high) << 16;
        } else {
            word = static_cast<const unsigned *>(__cvta_shared_to_generic(of[r]))[c];
        }
    };
    (load(to), ...);
}

}  // namespace ptx
}  // namespace mulfree_emulator
