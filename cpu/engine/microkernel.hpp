// The register tile: a few filters by a few vectors of pixels, every accumulator in a register, one
// broadcast weight at a time. All the operations share it; they differ in `term`.
#pragma once

#include "isa.hpp"

namespace mulfree::MULFREE_ISA {

// Calls put(f)(v, sum) with the sum over taps t < rows of term(x, w), where vector v of tap t is at
// x + tap(t) + place[v] and weights come Op::MR a tap.
template <class Op, int FILTERS, int VECTORS, class Operand, class Tap, class Put>
inline void tile(const Operand* x, Tap tap, const index* place, const Operand* w, index rows, Put put) {
    Vec<typename Op::Accumulator> sum[FILTERS][VECTORS] = {};
    const Operand* from[VECTORS];
    for (int v = 0; v < VECTORS; ++v) from[v] = x + place[v];
    for (index t = 0; t < rows; ++t, w += Op::MR) {
        Vec<Operand> pixels[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) pixels[v] = load(from[v] + tap(t));
#pragma GCC unroll 8
        for (int f = 0; f < FILTERS; ++f) {
            const Vec<Operand> weight = broadcast(w[f]);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) sum[f][v] = Op::term(sum[f][v], pixels[v], weight);
        }
    }
#pragma GCC unroll 8
    for (int f = 0; f < FILTERS; ++f) {
        const auto put_vector = put(f);
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) put_vector(v, Op::settled(sum[f][v]));
    }
}

// Calls f(Constant FILTERS, Constant VECTORS) for the smallest tile that holds `filters` filters, MR at most.
template <int MR, int VECTORS, class F>
inline void with_filters(index filters, F f) {
    if constexpr (MR > 4)
        if (filters > 4) return f(Constant<MR>(), Constant<VECTORS>());
    if (filters > 2) return f(Constant<4>(), Constant<VECTORS>());
    if (filters > 1) return f(Constant<2>(), Constant<VECTORS>());
    f(Constant<1>(), Constant<VECTORS>());
}

// total[f][v] (+)= the sums of a tile of `filters` filters along all of a packed tile's `vectors` vectors, where
// totals of successive filters are `total_row` apart.
template <class Op, class Operand, class Accumulator>
inline void tile_row(index filters, index vectors, const Operand* x, const index* tap, const index* place,
                     const Operand* w, index rows, Accumulator* total, index total_row, bool first) {
    for (index v = 0; v < vectors; v += NR) {
        const auto put = [=](index f) {
            return [=](index n, Vec<Accumulator> sum) {
                Accumulator* t = total + f * total_row + (v + n) * LANES<Accumulator>;
                store(t, first ? sum : load(t) + sum);
            };
        };
        const auto run = [&](auto f, auto n) {
            tile<Op, f.value, n.value>(x, [=](index t) { return tap[t]; }, place + v, w, rows, put);
        };
        if (vectors - v >= NR) with_filters<Op::MR, NR>(filters, run);
        else if (vectors - v == 2) with_filters<Op::MR, 2>(filters, run);
        else with_filters<Op::MR, 1>(filters, run);
    }
}

}  // namespace mulfree::MULFREE_ISA
