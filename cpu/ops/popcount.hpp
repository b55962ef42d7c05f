// The operations on bits: numbers of one bit or two and signs, of which words have many, and how many ones logic makes of
// x and w is a sum over as many.
#pragma once

#include "../engine/bits.hpp"
#include "../engine/borders.hpp"
#include "adder_u8.hpp"
#include "peak.hpp"

namespace mulfree::MULFREE_ISA {

// Sums of the ones in lanes. With no instruction that counts those of a lane, those of its bytes are added up, MOST of
// a byte at most, and these when it is full.
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
    static V add_twice(V total, V bits) {  // a lane's count fits its lowest byte
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

// sum popcount(x ^ w).
template <class W, class Output>
struct Differences : Operation<W, W, Output> {
    using V = Vec<W>;
#if !defined(__AVX512VPOPCNTDQ__) && !defined(__aarch64__)
    static constexpr int MR = 4;  // the count needs registers too
#endif
    static constexpr index MOST_TERMS = smaller(Operation<W, W, Output>::MOST_TERMS, Ones<W>::MOST / 8);
    static V term(V total, V x, V w) { return Ones<W>::add(total, x ^ w); }
    static V settled(V sum) { return Ones<W>::settled(sum); }
};

// y = bias - sum |x - w| of one bit,
struct BitDistance : Differences<std::uint32_t, std::int32_t> {
    static auto answer(std::int32_t bias, Constant) {
        return [b = broadcast(bias)](V total, const auto&, NoDoubt) { return b - (Vec<std::int32_t>)total; };
    }
};

// and of two, in Gray code, whose high bit is the number's own: with g the low one and t = where the high ones differ,
// |x - w| = popcount(gx) - popcount(gw) + popcount(t) + 2 popcount(~gx & (t | gw)).
struct GrayDistance : Operation<std::uint32_t, std::uint32_t, std::int32_t> {
    using V = Vec<std::uint32_t>;

    static constexpr int PLANES = 2;
    static constexpr index MOST_TERMS = smaller(Operation::MOST_TERMS / PLANES, Ones<std::uint32_t>::MOST / 24);

    static V term(V total, const V* x, const V* w) {
        const V high = x[1] ^ w[1];
        return Ones<std::uint32_t>::add_twice(Ones<std::uint32_t>::add(total, high), ~x[0] & (high | w[0]));
    }
    static V settled(V sum) { return Ones<std::uint32_t>::settled(sum); }

    static constexpr int COLUMN_SUMS = 1;
    static void add_column(V* sum, V x) { *sum += settled(Ones<std::uint32_t>::add(V{}, x)); }

    struct Constant {
        std::int32_t ones;
    };
    static constexpr bool HAS_CONSTANT = true;
    static void add_weight(Constant& c, std::uint32_t w) { c.ones += __builtin_popcount(w); }
    static auto answer(std::int32_t bias, const Constant& c) {
        return [b = broadcast(bias + c.ones)](V total, const auto& x, NoDoubt) {
            return b - (Vec<std::int32_t>)(total + x.part[0]);
        };
    }
};

// The same of bytes, for as many bits as it does not pay to take apart.
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

template <int BITS>
struct LowBits {
    using Adder = AdderWords<std::uint8_t, ClippedByteDistance<BITS>>;
};
template <>
struct LowBits<1> {
    using Adder = WordKernel<BitWords<GrayCode<1>, std::int32_t>, BitDistance>;
};
#if defined(__AVX512VPOPCNTDQ__) || defined(__aarch64__)
template <>
struct LowBits<2> {
    using Adder = WordKernel<BitWords<GrayCode<2>, std::int32_t>, GrayDistance>;
};
#endif
template <int BITS>
using LowBitAdder = typename LowBits<BITS>::Adder;

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

inline double popcount_peak(index bits, double seconds) {
    return bits == 1 ? measure<BitDistance>(seconds, 32) : measure<GrayDistance>(seconds, 32);
}

constexpr PopcountKernels popcount_kernels() {
    return {BinaryConvolution<float>::row(), BinaryConvolution<double>::row(),
            {LowBitAdder<1>::row(), LowBitAdder<2>::row(), LowBitAdder<3>::row(), LowBitAdder<4>::row()},
            popcount_peak};
}

}  // namespace mulfree::MULFREE_ISA
