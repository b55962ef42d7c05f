// The adder's forward pass on uint8: y = bias - sum |x - w|, exact.
#pragma once

#include "adder_words.hpp"

namespace mulfree::MULFREE_ISA {

// All sums are modulo 2^32, and the result fits.
struct ByteDistance : Operation<Word, Word, std::int32_t> {
    using V = Vec<Word>;
    using Numbers = Lanes<std::int32_t, LANES<Word>>;

    static V term(V total, V x, V w) { return Bytes::term(total, x, w); }

    static constexpr int COLUMN_SUMS = BYTE_SUMS;
    template <class W>
    static void add_column(W* sum, W x) {
        if constexpr (BYTE_SUMS) *sum = add_bytes(*sum, x);
    }

    struct Constant {
        std::uint32_t sum;
    };
    static constexpr bool HAS_CONSTANT = BYTE_SUMS;
    static void add_weight(Constant& c, Word w) {
        for (index k = 0; k < PER_WORD; ++k) c.sum += std::uint8_t(w >> 8 * k);
    }
    static auto answer(std::int32_t bias, const Constant& c) {
        const V constant = broadcast<Word>(std::uint32_t(bias) + c.sum);
        return [=](V total, const auto& x, NoDoubt) {
            if constexpr (BYTE_SUMS) total = total + total - x.part[0];
            return __builtin_convertvector(constant - total, Numbers);
        };
    }
};

using AdderBytes = AdderWords<std::uint8_t, ByteDistance>;

}  // namespace mulfree::MULFREE_ISA
