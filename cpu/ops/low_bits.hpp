// The low-bit operations: the adder on numbers of up to four bits, and the product of signs.
#pragma once

#include "../engine/borders.hpp"
#include "adder_u8.hpp"
#include "look_up.hpp"
#include "peak.hpp"
#include "popcount.hpp"

namespace mulfree::MULFREE_ISA {

// y = bias - sum |x - w|, of distances as in popcount.hpp,
template <class Distance>
struct LowBitDistance : Distance {
    using V = Vec<typename Distance::Accumulator>;
    using Constant = typename Distance::Constant;

    static auto answer(std::int32_t bias, const Constant& c) {
        const auto b = broadcast(std::int32_t(std::uint32_t(bias) - Distance::of_filter(c)));
        return [b](V total, const auto& x, NoDoubt) { return b - (Vec<std::int32_t>)Distance::of_pixel(total, x); };
    }
};

// and of bytes, where codes do not pay.
template <int BITS>
struct ClippedByteDistance : ByteDistance {
    static constexpr bool CONVERTS = true;
    static V packed(V x) {
        using Bytes = Vec<std::uint8_t>;
        const Bytes bytes = (Bytes)x, most = broadcast(std::uint8_t(MOST));
        return (V)(bytes < most ? bytes : most);
    }
    static Word packed_weight(Word w, index) {
        Word clipped = 0;
        for (index k = 0; k < PER_WORD; ++k) clipped |= Word(smaller(std::uint8_t(w >> 8 * k), MOST)) << 8 * k;
        return clipped;
    }

private:
    static constexpr index MOST = (1 << BITS) - 1;
};

// Whether numbers of `bits` bits are processed as bytes or as codes.
template <int BITS>
struct AsBytes {
    using Distance = ClippedByteDistance<BITS>;
    using Adder = AdderWords<std::uint8_t, Distance>;
    static constexpr index NUMBERS = PER_WORD;
};
template <class Code, class Distance_>
struct AsCodes {
    using Distance = Distance_;
    using Adder = WordKernel<BitWords<Code, std::int32_t>, LowBitDistance<Distance>>;
    static constexpr index NUMBERS = Code::NUMBERS;
};
template <int BITS>
struct LowBits : AsBytes<BITS> {};
// The same for signs.
template <class T>
struct Signs {
    using Code = Sign<T>;
    using Distance = Differences<typename Code::Word, T>;
};
#if defined(__AVX2__) && !defined(__AVX512F__)
template <>
struct LowBits<1> : AsCodes<NumberIndex<1>, LookUpDistance<1, std::int32_t>> {};
template <>
struct LowBits<2> : AsCodes<NumberIndex<2>, LookUpDistance<2, std::int32_t>> {};
template <>
struct LowBits<3> : AsCodes<NumberIndex<3>, LookUpDistance<3, std::int32_t>> {};
template <>
struct Signs<float> {
    using Code = SignIndex;
    using Distance = LookUpDistance<1, float>;
};
#else
template <>
struct LowBits<1> : AsCodes<GrayCode<1>, Differences<std::uint32_t, std::int32_t>> {};
#if defined(__AVX512VPOPCNTDQ__) || defined(__aarch64__)
template <>
struct LowBits<2> : AsCodes<GrayCode<2>, GrayDifferences> {};
#endif
#endif

// y = scale * sum sign(x) sign(w), with zero padding. The scale is passed as the bias. If d of n taps differ the sum
// is n - 2 d. Outside x no bit is set, as if all were -1: there d counts the positive weights of a tap, which is
// corrected by the filter's sums over the taps outside (Borders).
template <class T, class Distance>
struct SignProduct : Distance {
    using W = typename Distance::Accumulator;
    using V = Vec<W>;
    using Whole = Vec<typename IntegersOf<T>::Whole>;

    static constexpr bool HAS_BORDERS = true;
    static constexpr T NO_BIAS = 1;
    static auto answer(T scale, const typename Distance::Constant& c, Border<W> border) {
        return [s = broadcast(scale), border, of_filter = W(2 * Distance::of_filter(c))](V total, const auto& x, NoDoubt) {
            const V differ = Distance::of_pixel(total, x);
            V sum = border.number_of(x.kind()) - differ - differ;
            if constexpr (Distance::HAS_CONSTANT) sum -= broadcast(of_filter);
            Vec<T> y = __builtin_convertvector((Whole)sum, Vec<T>) * s;
            touch(y);  // rounded before the epilogue subtracts
            return y;
        };
    }
};

// Its packed weights are followed by the sums of signs at every tap, filter by filter.
template <class T>
struct BinaryConvolution {
    using W = BorderNumber<T>;
    using Product = SignProduct<T, typename Signs<T>::Distance>;
    using Words = WordKernel<BitWords<typename Signs<T>::Code, T>, Product>;
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
        pack_weights<Product>(c.words, c, to);
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
    return bits == 1 ? measure<LowBits<1>::Distance>(seconds, LowBits<1>::NUMBERS)
                     : measure<LowBits<2>::Distance>(seconds, LowBits<2>::NUMBERS);
}

constexpr PopcountKernels popcount_kernels() {
    return {BinaryConvolution<float>::row(), BinaryConvolution<double>::row(),
            {LowBits<1>::Adder::row(), LowBits<2>::Adder::row(), LowBits<3>::Adder::row(), LowBits<4>::Adder::row()},
            popcount_peak};
}

}  // namespace mulfree::MULFREE_ISA
