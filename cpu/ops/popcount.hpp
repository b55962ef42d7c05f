// Distances by population counts, for words of many 1-bit or 2-bit numbers: the number of ones in a logical function
// of x and w is a sum over all of them. Base of the operations in low_bits.hpp: the distance of x and w is
//     of_pixel(total, column sums) + of_filter(constant).
#pragma once

#include "../engine/bits.hpp"

namespace mulfree::MULFREE_ISA {

// Sums of the population counts of lanes. Without an instruction for lanes, byte counts are accumulated, up to MOST
// per byte, and then widened.
template <class W>
struct Ones {
    using V = Vec<W>;

#if defined(__AVX512VPOPCNTDQ__)
    static constexpr index MOST = index(1) << 30;

    static V of(V bits) {
        if constexpr (sizeof(W) == 4) return (V)_mm512_popcnt_epi32((__m512i)bits);
        else return (V)_mm512_popcnt_epi64((__m512i)bits);
    }
    static V add(V total, V bits) { return total + of(bits); }
    static V add_twice(V total, V bits) {  // the count of a lane fits its lowest byte
        return (V)_mm512_dpbusd_epi32((__m512i)total, (__m512i)of(bits), _mm512_set1_epi8(2));
    }
    static V settled(V sum) { return sum; }
#else
    static constexpr index MOST = 255;

    static V add(V total, V bits) { return (V)((Bytes)total + of((Bytes)bits)); }
    static V add_twice(V total, V bits) { return add(add(total, bits), bits); }
    static V settled(V sum) {
        constexpr W LOW = W(-1) / 0xffff * 0xff;  // every second byte
        V pairs = (sum & LOW) + (sum >> 8 & LOW);
        for (int shift = 16; shift < 8 * int(sizeof(W)); shift *= 2) pairs += pairs >> shift;
        return pairs & W(0xffff);
    }

private:
    using Bytes = Vec<std::uint8_t>;

    // In every byte.
    static Bytes of(Bytes x) {
#if defined(__AVX2__)
        const __m256i of_four = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3,
                                                 1, 2, 2, 3, 2, 3, 3, 4);
        const __m256i four = _mm256_set1_epi8(15);
        const __m256i low = _mm256_and_si256((__m256i)x, four);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16((__m256i)x, 4), four);
        return (Bytes)_mm256_add_epi8(_mm256_shuffle_epi8(of_four, low), _mm256_shuffle_epi8(of_four, high));
#elif defined(__aarch64__)
        return (Bytes)vcntq_u8((uint8x16_t)x);
#else
        V v = (V)x;
        v -= v >> 1 & every(0x55);
        v = (v & every(0x33)) + (v >> 2 & every(0x33));
        return (Bytes)((v + (v >> 4)) & every(0x0f));
#endif
    }
    static constexpr W every(std::uint8_t byte) { return W(-1) / 0xff * byte; }
#endif
};

// For one bit it is popcount(x ^ w).
template <class W, class Output>
struct Differences : Operation<W, W, Output> {
    using V = Vec<W>;
#if !defined(__AVX512VPOPCNTDQ__) && !defined(__aarch64__)
    static constexpr int MR = 4;  // the population count needs registers too
#endif
    static constexpr index MOST_TERMS = smaller(Operation<W, W, Output>::MOST_TERMS, Ones<W>::MOST / 8);
    static V term(V total, V x, V w) { return Ones<W>::add(total, x ^ w); }
    static V settled(V sum) { return Ones<W>::settled(sum); }

    template <class Sums>
    static V of_pixel(V total, const Sums&) { return total; }
    static constexpr W of_filter(typename Differences::Constant) { return 0; }
};

// For two, in Gray code, whose high bit is that of the number: with g the low bit and t = where the high bits differ,
// |x - w| = popcount(gx) - popcount(gw) + popcount(t) + 2 popcount(~gx & (t | gw)).
struct GrayDifferences : Operation<std::uint32_t, std::uint32_t, std::int32_t> {
    using V = Vec<std::uint32_t>;
    using Count = Ones<std::uint32_t>;

    static constexpr int PLANES = 2;
    static constexpr index MOST_TERMS = smaller(Operation::MOST_TERMS / PLANES, Count::MOST / 24);

    static V term(V total, const V* x, const V* w) {
        const V high = x[1] ^ w[1];
        return Count::add_twice(Count::add(total, high), ~x[0] & (high | w[0]));
    }
    static V settled(V sum) { return Count::settled(sum); }

    static constexpr int COLUMN_SUMS = 1;
    static void add_column(V* sum, V x) { *sum += settled(Count::add(V{}, x)); }

    struct Constant {
        std::uint32_t ones;
    };
    static constexpr bool HAS_CONSTANT = true;
    static void add_weight(Constant& c, std::uint32_t w) { c.ones += __builtin_popcount(w); }

    template <class Sums>
    static V of_pixel(V total, const Sums& x) { return total + x.part[0]; }
    static std::uint32_t of_filter(const Constant& c) { return -c.ones; }
};

}  // namespace mulfree::MULFREE_ISA
