// The interface of an operation, which is a type; see ops/ for the operations.
#pragma once

#include "isa.hpp"

namespace mulfree::MULFREE_ISA {

// No output is ever recomputed.
struct NoDoubt {
    static constexpr bool any() { return false; }
};

// The base of operations, with defaults. An operation adds
//     static Vec<Accumulator> term(Vec<Accumulator> total, Vec<Operand> x, Vec<Operand> w)
//         the inner loop: adds a tap to the sum, if it has no tile of its own;
//     static auto answer(Output bias, const Constant& constant)
//         for one filter, a function of (total, column sums, doubt) that gives the numbers of y.
template <class Operand_, class Accumulator_, class Output_>
struct Operation {
    using Operand = Operand_;          // a lane of x, and a weight
    using Accumulator = Accumulator_;  // a lane of the sums, and of the per-pixel data of answer()
    using Output = Output_;            // a number of y
    static_assert(sizeof(Accumulator) % sizeof(Operand) == 0, "the sums of a vector of x must be whole vectors");
    static_assert(sizeof(Output) <= sizeof(Accumulator), "a number of y must fit the lane of its sum");

    // Filters of a register tile, whose packed weights are contiguous, and vectors of pixels.
    static constexpr int MR = MULFREE_ISA::MR, NR = MULFREE_ISA::NR;

    // Whether the operation has its own register tile, tile() of microkernel.hpp, instead of term(). Its sums may be
    // wider than its operands.
    static constexpr bool HAS_TILE = false;

    // The most terms that a register can accumulate, and the conversion of its sum.
    static constexpr index MOST_TERMS = 160;
    static Vec<Accumulator> settled(Vec<Accumulator> sum) { return sum; }

    // The packed form of a number of x, or of a weight, and whether those of x change. Outside x it is packed(0).
    static constexpr bool CONVERTS = false;
    static Vec<Operand> packed(Vec<Operand> x) { return x; }
    static Operand packed_weight(Operand w, index) { return w; }

    // Successive channels per term: term(total, x, w) then has a vector of each, x[PLANES] and w[PLANES].
    static constexpr int PLANES = 1;

    // Sums over the window needed by answer(): their number, and how a row of x (of a first plane) is added to them.
    static constexpr int COLUMN_SUMS = 0;
    static void add_column(Vec<Operand>*, Vec<Operand>) {}

    // Whether answer() needs to know which taps are outside x: then it is answer(bias, constant, Border), and the
    // pixels' kinds are stored with the sums over the window (borders.hpp).
    static constexpr bool HAS_BORDERS = false;
    // The default bias.
    static constexpr Output NO_BIAS = 0;

    // Per-filter data of answer(), and how a weight (of a first plane) is added to it.
    struct Constant {};
    static constexpr bool HAS_CONSTANT = false;
    static void add_weight(Constant&, Operand) {}

    // Collects, over a tile, whether an output must be recomputed; then Exact sums the tile again.
    using Doubt = NoDoubt;
    using Exact = void;
};

// A term of all planes.
template <class Op, class Sum, class V>
inline Sum term(Sum total, const V* x, const V* w) {
    if constexpr (Op::PLANES == 1) return Op::term(total, *x, *w);
    else return Op::term(total, x, w);
}

// Vectors of sums per vector of x.
template <class Op>
constexpr index SUM_VECTORS = sizeof(typename Op::Accumulator) / sizeof(typename Op::Operand);

// The sums over the window of a vector of pixels, and their kinds; during packing, a block's sums in the lanes of x.
template <class Op, class Lane = typename Op::Accumulator>
struct ColumnSums {
    using V = Vec<Lane>;
    V part[larger(1, Op::COLUMN_SUMS + Op::HAS_BORDERS)];

    V& kind() { return part[Op::COLUMN_SUMS]; }
    const V& kind() const { return part[Op::COLUMN_SUMS]; }
    void clear() {
        for (int n = 0; n < Op::COLUMN_SUMS; ++n) part[n] = V{};
    }
    void add(V row, index channel) {
        if constexpr (Op::COLUMN_SUMS > 0)
            if (channel % Op::PLANES == 0) Op::add_column(part, row);
    }
};

}  // namespace mulfree::MULFREE_ISA
