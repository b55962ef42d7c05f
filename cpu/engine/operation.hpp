// What the engine asks of an operation, which is a type; see ops/ for those that there are.
#pragma once

#include "isa.hpp"

namespace mulfree::MULFREE_ISA {

// No answer is in doubt.
struct NoDoubt {
    static constexpr bool any() { return false; }
};

// What every operation has, and what most leave as it is. An operation adds
//     static Vec<Accumulator> term(Vec<Accumulator> total, Vec<Operand> x, Vec<Operand> w)
//         the sum so far with one more tap: the inner loop;
//     static auto answer(Output bias, const Constant& constant)
//         for one filter, a function of (total, column sums, doubt) that gives the numbers of y.
template <class Operand_, class Accumulator_, class Output_>
struct Operation {
    using Operand = Operand_;          // a lane of x, and a weight
    using Accumulator = Accumulator_;  // a lane of the sums
    using Output = Output_;            // a number of y
    static_assert(sizeof(Operand) == sizeof(Accumulator), "a lane of x must have its sum in the same lane");
    static_assert(sizeof(Output) <= sizeof(Accumulator), "a number of y must fit the lane of its sum");

    // Filters of a register tile; their packed weights lie side by side.
    static constexpr int MR = MULFREE_ISA::MR;

    // The most terms that a register adds up, and what its sum then becomes.
    static constexpr index MOST_TERMS = 160;
    static Vec<Accumulator> settled(Vec<Accumulator> sum) { return sum; }

    // What a number of x, or a weight, becomes when it is packed. What lies outside of x is packed(0).
    static Vec<Operand> packed(Vec<Operand> x) { return x; }
    static Operand packed_weight(Operand w) { return w; }

    // Successive channels that one term takes: term(total, x, w) then has a vector of each, x[PLANES] and w[PLANES].
    static constexpr int PLANES = 1;

    // Sums over the window that the answer needs: how many, and how a row of x (of a first plane) is added to them.
    static constexpr int COLUMN_SUMS = 0;
    static void add_column(Vec<Operand>*, Vec<Operand>) {}

    // Whether the answer needs to know which taps lie outside of x: answer(bias, constant, Border) then,
    // and its sums over the window are the pixels' kinds (borders.hpp).
    static constexpr bool HAS_BORDERS = false;
    // The bias where none is given.
    static constexpr Output NO_BIAS = 0;

    // What the answer needs to know of a filter, and how a weight (of a first plane) is added to it.
    struct Constant {};
    static constexpr bool HAS_CONSTANT = false;
    static void add_weight(Constant&, Operand) {}

    // Gathers, over a tile, whether an answer is in doubt; then Exact sums the tile again.
    using Doubt = NoDoubt;
    using Exact = void;
};

// A term of all planes.
template <class Op, class Sum, class V>
inline Sum term(Sum total, const V* x, const V* w) {
    if constexpr (Op::PLANES == 1) return Op::term(total, *x, *w);
    else return Op::term(total, x, w);
}

// The sums over the window of a vector of pixels, or their kinds.
template <class Op>
struct ColumnSums {
    using V = Vec<typename Op::Operand>;
    static_assert(!(Op::HAS_BORDERS && Op::COLUMN_SUMS), "one or the other");
    V part[Op::COLUMN_SUMS > 0 ? Op::COLUMN_SUMS : 1];

    void add(V row, index channel) {
        if constexpr (Op::COLUMN_SUMS > 0)
            if (channel % Op::PLANES == 0) Op::add_column(part, row);
    }
    ColumnSums& operator+=(const ColumnSums& other) {
        for (int n = 0; n < Op::COLUMN_SUMS; ++n) part[n] += other.part[n];
        return *this;
    }
};

}  // namespace mulfree::MULFREE_ISA
