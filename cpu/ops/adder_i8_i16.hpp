// The adder's forward pass on int8 and int16: y = bias - sum |x - w|, exact.
#pragma once

#include "adder_u8.hpp"

namespace mulfree::MULFREE_ISA {

// int8 as uint8: adding 128 to x and w does not change their distance, so the padding of x is 128.
struct SignedByteDistance : ByteDistance {
    static constexpr Word SIGNS = Word(0x8080808080808080);

    static constexpr bool CONVERTS = true;
    static V packed(V x) { return x ^ SIGNS; }
    static Word packed_weight(Word w, index) { return w ^ SIGNS; }
};

// Two int16 per word: sum |x - w| = 2 sum max(x, w) - sum x - sum w modulo 2^32; on NEON the distances directly.
struct ShortDistance : Operation<std::uint32_t, std::uint32_t, std::int32_t> {
    using V = Vec<std::uint32_t>;
    using Shorts = Vec<std::int16_t>;
    static constexpr bool BY_MAXIMA = !DISTANCE_IN_ONE;

    static V term(V total, V x, V w) {
#if defined(__aarch64__)
        return (V)vpadalq_u16((uint32x4_t)total, (uint16x8_t)vabdq_s16((int16x8_t)x, (int16x8_t)w));
#else
        const Shorts a = (Shorts)x, b = (Shorts)w;
        return add_pairs(total, (V)(a > b ? a : b));
#endif
    }

    static constexpr int COLUMN_SUMS = BY_MAXIMA;
    static void add_column(V* sum, V x) { *sum = add_pairs(*sum, x); }

    struct Constant {
        std::uint32_t sum;
    };
    static constexpr bool HAS_CONSTANT = BY_MAXIMA;
    static void add_weight(Constant& c, std::uint32_t w) {
        c.sum += std::uint32_t(std::int16_t(w)) + std::uint32_t(std::int16_t(w >> 16));
    }
    static auto answer(std::int32_t bias, const Constant& c) {
        const V constant = broadcast<std::uint32_t>(std::uint32_t(bias) + c.sum);
        return [=](V total, const auto& x, NoDoubt) {
            if constexpr (BY_MAXIMA) total = total + total - x.part[0];
            return (Vec<std::int32_t>)(constant - total);
        };
    }

private:
    // total + both int16 of every word.
    static V add_pairs(V total, V pairs) {
#if defined(__AVX512VNNI__)
        return (V)_mm512_dpwssd_epi32((__m512i)total, (__m512i)pairs, _mm512_set1_epi16(1));
#elif defined(__AVX2__)
        return total + (V)_mm256_madd_epi16((__m256i)pairs, _mm256_set1_epi16(1));
#else
        return total + (V)((Vec<std::int32_t>)(pairs << 16) >> 16) + (V)((Vec<std::int32_t>)pairs >> 16);
#endif
    }
};

using AdderSignedBytes = AdderWords<std::uint8_t, SignedByteDistance>;
using AdderShorts = AdderWords<std::uint16_t, ShortDistance>;

}  // namespace mulfree::MULFREE_ISA
