// The operations on bits: terms are the ones in x ^ w. On thermometer codes, of which one holds the ones of the other,
// that is |x - w|; on signs it is how many differ.
#pragma once

#include "../engine/bits.hpp"
#include "../engine/borders.hpp"
#include <type_traits>

#include "adder_u8.hpp"
#include "peak.hpp"

namespace mulfree::MULFREE_ISA {

// A register counts the ones of its lanes. With no instruction for that it counts those of its bytes, at most 8 a term,
// and adds these up when it is full.
template <class W, class Output>
struct Differences : Operation<W, W, Output> {
    using V = Vec<W>;

#if defined(__AVX512VPOPCNTDQ__)
    static V term(V total, V x, V w) {
        if constexpr (sizeof(W) == 4) return total + (V)_mm512_popcnt_epi32((__m512i)(x ^ w));
        else return total + (V)_mm512_popcnt_epi64((__m512i)(x ^ w));
    }
#else
#if !defined(__aarch64__)
    static constexpr int MR = 4;  // the count needs registers too
#endif
    static constexpr index MOST_TERMS = 255 / 8;

    static V term(V total, V x, V w) { return (V)((Bytes)total + ones((Bytes)(x ^ w))); }
    static V settled(V sum) {
        constexpr W LOW = W(-1) / 0xffff * 0xff;  // every second byte
        V pairs = (sum & LOW) + (sum >> 8 & LOW);
        for (int shift = 16; shift < 8 * int(sizeof(W)); shift *= 2) pairs += pairs >> shift;
        return pairs & W(0xffff);
    }

private:
    using Bytes = Vec<std::uint8_t>;

    // In every byte.
    static Bytes ones(Bytes x) {
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

// y = bias - sum |x - w|.
struct CodeDistance : Differences<std::uint32_t, std::int32_t> {
    static auto answer(std::int32_t bias, Constant) {
        return [b = broadcast(bias)](V total, const auto&, NoDoubt) { return b - (Vec<std::int32_t>)total; };
    }
};

// The same of bytes, for as many bits as make longer codes than it pays to count.
template <int BITS>
struct ClippedByteDistance : ByteDistance {
    static V packed(V x) {
        using Bytes = Vec<std::uint8_t>;
        const Bytes bytes = (Bytes)x, most = broadcast(std::uint8_t(MOST));
        return (V)(bytes < most ? bytes : most);
    }
    static Word packed_weight(Word w) {
        Word clipped = 0;
        for (index k = 0; k < PER_WORD; ++k) clipped |= Word(smaller(std::uint8_t(w >> 8 * k), MOST)) << 8 * k;
        return clipped;
    }

private:
    static constexpr index MOST = (1 << BITS) - 1;
};

#if defined(__AVX512VPOPCNTDQ__) || defined(__aarch64__)
constexpr int MOST_COUNTED = 2;
#else
constexpr int MOST_COUNTED = 1;
#endif
template <int BITS>
using LowBitAdder = std::conditional_t<(BITS <= MOST_COUNTED), WordKernel<BitWords<Thermometer<BITS>, std::int32_t>, CodeDistance>,
                                       AdderWords<std::uint8_t, ClippedByteDistance<BITS>>>;

// y = scale * sum sign(x) sign(w), what lies outside of x being zero. The scale stands in the place of a bias. With n
// taps of which d differ the sum is n - 2 d. Outside of x no bit is set, as if all were -1: there d counts the positive
// weights of a tap, which the filter's sums over the taps outside (Borders) take out again.
template <class T>
struct SignProduct : Differences<typename Sign<T>::Word, T> {
    using W = typename Sign<T>::Word;
    using V = Vec<W>;
    using Whole = Vec<typename Sign<T>::Whole>;

    static constexpr bool HAS_BORDERS = true;
    static constexpr T NO_BIAS = 1;
    static auto answer(T scale, typename SignProduct::Constant, Border<W> border) {
        return [s = broadcast(scale), border](V total, const auto& kinds, NoDoubt) {
            const V sum = border.number_of(kinds.part[0]) - total - total;
            Vec<T> y = __builtin_convertvector((Whole)sum, Vec<T>) * s;
            touch(y);  // rounded before an epilogue takes anything off
            return y;
        };
    }
};

// Its packed weights are followed by the sums of their signs, filter by filter, at every tap.
template <class T>
struct BinaryConvolution {
    using W = typename Sign<T>::Word;
    using Words = WordKernel<BitWords<Sign<T>, T>, SignProduct<T>>;
    using C = Convolution<T, T>;

    static void run(const C& p) {
        const index filters = p.groups * p.filters, taps = p.height.taps * p.width.taps;
        const auto cut = [&](Carver memory) {
            W* sums = memory.take<W>(filters * taps);
            const BorderKinds<W> kinds(p.height, p.width, memory, filters);
            return Cut{sums, kinds, memory.used()};
        };
        Workspace workspace, prepared;
        workspace.allocate(cut(Carver(nullptr)).bytes);
        const Cut memory = cut(Carver(workspace.data()));
        typename Words::Words c(p);
        if (!p.packed) c.prepare(prepared), c.layout.add_up(memory.sums);
        const W* sums = p.packed ? packed_sums(p, const_cast<void*>(p.packed)) : memory.sums;
        const Borders<W> borders =
            memory.kinds.find(filters, W(p.channels * taps), [&](index f) { return sums + f * taps; });
        c.borders = &borders;
        Words::run(c);
    }
    static index packed_bytes(const C& p) {
        const index sums = p.groups * p.filters * p.height.taps * p.width.taps;
        return round_up(Words::packed_bytes(p), 64) + sums * index(sizeof(W));
    }
    static void pack(const C& p, void* to) {
        typename Words::Words c(p);
        Workspace prepared;
        c.prepare(prepared);
        pack_weights<SignProduct<T>>(c.words, c, to);
        c.layout.add_up(packed_sums(p, to));
    }
    static constexpr ConvolutionKernel<T, T> row() { return {run, packed_bytes, pack}; }

private:
    struct Cut {
        W* sums;
        BorderKinds<W> kinds;
        index bytes;
    };
    static W* packed_sums(const C& p, void* packed) {
        return reinterpret_cast<W*>(static_cast<char*>(packed) + round_up(Words::packed_bytes(p), 64));
    }
};

inline double popcount_peak(double seconds) { return measure<CodeDistance>(seconds, 32); }

constexpr PopcountKernels popcount_kernels() {
    return {BinaryConvolution<float>::row(), BinaryConvolution<double>::row(),
            {LowBitAdder<1>::row(), LowBitAdder<2>::row(), LowBitAdder<3>::row(), LowBitAdder<4>::row()},
            popcount_peak};
}

}  // namespace mulfree::MULFREE_ISA
