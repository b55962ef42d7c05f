// Distances by table look-up, for AVX2, where a population count takes seven instructions: low-bit numbers, or signs,
// are packed into a 4-bit index, and a byte shuffle looks up 32 pixels' distances from the weights.
#pragma once

#include "../engine/bits.hpp"

#if defined(__AVX2__) && !defined(__AVX512F__)

namespace mulfree::MULFREE_ISA {

// Codes (bits.hpp) replicated in every field of a byte, of which set() selects one.
template <class Element_, int BITS>
struct IndexCode {
    using Element = Element_;
    using Word = std::uint8_t;
    static constexpr index PLANES = 1, WIDTH = BITS, NUMBERS = 4 / BITS;

    static Vec<Word> set(Vec<Word> word, Vec<Word> codes, index, Vec<Word> field) { return word | (codes & field); }
};

// Those of signs,
struct SignIndex : IndexCode<float, 1> {
    static Vec<Word> read(const float* p) {
        return codes([p](index first) { return load(p + first); });
    }
    static Vec<Word> read_first(const float* p, index lanes) {
        return codes([p, lanes](index first) {
            return first < lanes ? load_masked(p + first, bits(0, smaller(LANES<float>, lanes - first))) : Vec<float>{};
        });
    }

private:
    // Of as many numbers from read(first) as a vector of floats has.
    template <class Read>
    static Vec<Word> codes(Read read) {
        const auto two = [&](index first) {
            return _mm256_packs_epi32((__m256i)(read(first) >= Vec<float>{}), (__m256i)(read(first + 8) >= Vec<float>{}));
        };
        const __m256i all = _mm256_packs_epi16(two(0), two(16));
        // Each half contains one half of every mask.
        return (Vec<Word>)_mm256_permutevar8x32_epi32(all, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    }
};

// and those of numbers of some bits, at most 2^BITS - 1.
template <int BITS>
struct NumberIndex : IndexCode<std::uint8_t, BITS> {
    using Codes = Vec<std::uint8_t>;
    static Codes read(const std::uint8_t* p) { return codes(load(p)); }
    static Codes read_first(const std::uint8_t* p, index lanes) {
        Codes x{};
        __builtin_memcpy(&x, p, std::size_t(lanes));
        return codes(x);
    }

private:
    static Codes codes(Codes x) {
        const Codes most = broadcast(std::uint8_t((1 << BITS) - 1));
        x = x < most ? x : most;
        for (int places = BITS; places < 4; places *= 2) x |= (Codes)((Vec<std::uint16_t>)x << places);
        return x;
    }
};

// The distances D(x, w) of indices. Since D(x, w) + odd(x) - odd(w) is always even,
//     T(x, w) = (D(x, w) + odd(x) - odd(w)) / 2
// is an integer, with half the range. sum odd(x) is per pixel, sum odd(w) per filter.
template <int BITS>
struct Tables {
    static constexpr int NUMBER = (1 << BITS) - 1, NUMBERS = 4 / BITS, MOST = (NUMBERS * NUMBER + 1) / 2;  // of T
    static constexpr int ODD = BITS == 1 ? 15 : BITS == 2 ? 5 : 1;  // the numbers' lowest bits

    // Filters are processed in pairs: entry [v][w][x] is T(x, w) + 16 T(x, v).
    alignas(64) std::uint8_t pair[16][16][16];
    alignas(32) std::uint8_t odd[32];  // twice those of the indices

    constexpr Tables() : pair(), odd() {
        for (int x = 0; x < 32; ++x) odd[x] = std::uint8_t(is_odd(x % 16));
        for (int v = 0; v < 16; ++v)
            for (int w = 0; w < 16; ++w)
                for (int x = 0; x < 16; ++x) pair[v][w][x] = std::uint8_t(half(x, w) + 16 * half(x, v));
    }
    static constexpr int is_odd(int i) { return __builtin_popcount(i & ODD) & 1; }

private:
    static constexpr int half(int x, int w) {
        int distance = is_odd(x) - is_odd(w);
        for (int k = 0; k < NUMBERS; ++k, x >>= BITS, w >>= BITS)
            distance += (x & NUMBER) < (w & NUMBER) ? (w & NUMBER) - (x & NUMBER) : (x & NUMBER) - (w & NUMBER);
        return distance / 2;
    }
};
template <int BITS>
constexpr Tables<BITS> TABLES;

// A distance as in popcount.hpp.
template <int BITS, class Output>
struct LookUpDistance : Operation<std::uint8_t, std::uint32_t, Output> {
    using V = Vec<std::uint32_t>;
    using Bytes = Vec<std::uint8_t>;
    using Shorts = Vec<std::uint16_t>;
    static constexpr int MR = 8, NR = 3;
    static constexpr bool HAS_TILE = true;

    // The weights of a pair are two bytes, the offset of its table.
    static std::uint8_t packed_weight(std::uint8_t w, index filter) { return filter % 2 ? w : w << 4; }

    template <int FILTERS, int VECTORS, class Tap, class Put>
    static void tile(const std::uint8_t* x, Tap tap, const index* place, const std::uint8_t* w, index terms, Put put) {
        const std::uint8_t* from[VECTORS];
        for (int v = 0; v < VECTORS; ++v) from[v] = x + place[v];
        for (int f = 0; f < FILTERS; f += 2) {
            Shorts sum[2][VECTORS][2];
            add_up<VECTORS>(from, tap, w + f, terms, sum);
            const auto put_filter = [&](index one) __attribute__((always_inline)) {
                const auto put_vector = put(f + one);
#pragma GCC unroll 8
                for (int v = 0; v < VECTORS; ++v) {
                    const __m256i even = (__m256i)sum[one][v][0], odd = (__m256i)sum[one][v][1];
                    const __m256i low = _mm256_unpacklo_epi16(even, odd), high = _mm256_unpackhi_epi16(even, odd);
                    put_vector(4 * v, (V)_mm256_cvtepu16_epi32(_mm256_castsi256_si128(low)));
                    put_vector(4 * v + 1, (V)_mm256_cvtepu16_epi32(_mm256_castsi256_si128(high)));
                    put_vector(4 * v + 2, (V)_mm256_cvtepu16_epi32(_mm256_extracti128_si256(low, 1)));
                    put_vector(4 * v + 3, (V)_mm256_cvtepu16_epi32(_mm256_extracti128_si256(high, 1)));
                }
            };
            put_filter(0);
            if constexpr (FILTERS > 1) put_filter(1);
        }
    }

    static constexpr int COLUMN_SUMS = 1;
    static void add_column(Bytes* sum, Bytes x) {
        *sum += (Bytes)_mm256_shuffle_epi8((__m256i)load(TABLES<BITS>.odd), (__m256i)x);
    }

    struct Constant {
        std::uint32_t odd;
    };
    static constexpr bool HAS_CONSTANT = true;
    static void add_weight(Constant& c, std::uint8_t w) { c.odd += Tables<BITS>::is_odd(w | w >> 4); }

    template <class Sums>
    static V of_pixel(V total, const Sums& x) { return total + total - x.part[0]; }
    static std::uint32_t of_filter(const Constant& c) { return c.odd; }

private:
    // The sums of two filters, each for the even and the odd pixels. They are accumulated in the halves of a byte for
    // a few rows, as long as they fit; then whole bytes are added to `all`, and the upper halves, with the next
    // byte's lower half, to `high`.
    template <int VECTORS, class Tap>
    __attribute__((always_inline)) static void add_up(const std::uint8_t* const* from, Tap tap, const std::uint8_t* w,
                                                      index terms, Shorts (&sum)[2][VECTORS][2]) {
        constexpr int ROWS = 15 / Tables<BITS>::MOST;
        constexpr index MOST = 255 / Tables<BITS>::MOST / ROWS * ROWS;
        unrolled<VECTORS>([&](auto v) { for (auto& s : sum) s[v.value][0] = s[v.value][1] = Shorts{}; });
        index t = 0;
        while (t < terms) {
            const index end = smaller(terms, t + MOST);
            Bytes all[VECTORS] = {}, high[VECTORS] = {};
            const auto add = [&](auto rows) __attribute__((always_inline)) {
                Bytes both[VECTORS];
                unrolled<rows.value>([&](auto i) __attribute__((always_inline)) {
                    const __m256i table = table_of(w + i.value * MR);
                    unrolled<VECTORS>([&](auto v) __attribute__((always_inline)) {
                        const __m256i pixels = (__m256i)load(from[v.value] + tap(t + i.value));
                        const Bytes found = (Bytes)_mm256_shuffle_epi8(table, pixels);
                        both[v.value] = i.value ? both[v.value] + found : found;
                        touch(both[v.value]);
                    });
                });
                unrolled<VECTORS>([&](auto v) __attribute__((always_inline)) {
                    all[v.value] += both[v.value], high[v.value] += (Bytes)((Shorts)both[v.value] >> 4);
                    touch(all[v.value]), touch(high[v.value]);
                });
                t += rows.value, w += rows.value * MR;
            };
            while (t + ROWS <= end) add(MULFREE_ISA::Constant<ROWS>());
            while (t < end) add(MULFREE_ISA::Constant<1>());
            unrolled<VECTORS>([&](auto v) __attribute__((always_inline)) {
                const Shorts a = (Shorts)all[v.value], h = (Shorts)high[v.value], second_odd = h >> 8;
                const Shorts first_odd = ((a >> 8) - (second_odd << 4)) & 0xff;
                const Shorts second_even = (h - (first_odd << 4)) & 0xff;
                sum[0][v.value][0] += (a - (second_even << 4)) & 0xff, sum[0][v.value][1] += first_odd;
                sum[1][v.value][0] += second_even, sum[1][v.value][1] += second_odd;
            });
        }
    }

    // Kept in a register.
    static __m256i table_of(const std::uint8_t* w) {
        std::uint16_t at;
        __builtin_memcpy(&at, w, sizeof at);
        const auto* pair = reinterpret_cast<const __m128i*>(&TABLES<BITS>.pair[0][0][0] + at);
        __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128(pair));
        touch(table);
        return table;
    }
};

}  // namespace mulfree::MULFREE_ISA

#endif
