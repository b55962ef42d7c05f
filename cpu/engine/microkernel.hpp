// The register tile: a few filters by a few vectors of pixels, every accumulator in a register, one broadcast weight
// at a time. The operations share it and differ in `term`, except those with their own tile.
#pragma once

#include "operation.hpp"

namespace mulfree::MULFREE_ISA {

// Calls put(f)(v, sum) with the sum over t < terms of term(x, w), where vector v of term t is at x + tap(t) +
// place[v], its further planes are `apart`, and there are Op::MR weights per plane.
template <class Op, int FILTERS, int VECTORS, class Operand, class Tap, class Put>
inline void tile_of_terms(const Operand* x, Tap tap, index apart, const index* place, const Operand* w, index terms,
                          Put put) {
    static_assert(SUM_VECTORS<Op> == 1, "a lane of x must have its sum in the same lane");
    constexpr int PLANES = Op::PLANES;
    Vec<typename Op::Accumulator> sum[FILTERS][VECTORS] = {};
    const Operand* from[VECTORS];
    for (int v = 0; v < VECTORS; ++v) from[v] = x + place[v];
    for (index t = 0; t < terms; ++t, w += PLANES * Op::MR) {
        Vec<Operand> pixels[VECTORS][PLANES];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v)
            for (int k = 0; k < PLANES; ++k) pixels[v][k] = load(from[v] + tap(t) + k * apart);
#pragma GCC unroll 8
        for (int f = 0; f < FILTERS; ++f) {
            Vec<Operand> weight[PLANES];
            for (int k = 0; k < PLANES; ++k) weight[k] = broadcast(w[k * Op::MR + f]);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) sum[f][v] = term<Op>(sum[f][v], pixels[v], weight);
        }
    }
#pragma GCC unroll 8
    for (int f = 0; f < FILTERS; ++f) {
        const auto put_vector = put(f);
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) put_vector(v, Op::settled(sum[f][v]));
    }
}

// The same with the operation's own tile, if it has one; then v counts vectors of sums.
template <class Op, int FILTERS, int VECTORS, class Operand, class Tap, class Put>
__attribute__((always_inline)) inline void tile(const Operand* x, Tap tap, index apart, const index* place,
                                               const Operand* w, index terms, Put put) {
    if constexpr (Op::HAS_TILE) Op::template tile<FILTERS, VECTORS>(x, tap, place, w, terms, put);
    else tile_of_terms<Op, FILTERS, VECTORS>(x, tap, apart, place, w, terms, put);
}

// Calls f(Constant FILTERS, Constant VECTORS) for the smallest tile for `filters` filters, at most MR.
template <int MR, int VECTORS, class F>
inline void with_filters(index filters, F f) {
    if constexpr (MR > 4)
        if (filters > 4) return f(Constant<MR>(), Constant<VECTORS>());
    if (filters > 2) return f(Constant<4>(), Constant<VECTORS>());
    if (filters > 1) return f(Constant<2>(), Constant<VECTORS>());
    f(Constant<1>(), Constant<VECTORS>());
}

// total[f][v] (+)= the sums of a tile of `filters` filters over a packed tile's `vectors` vectors; totals of
// successive filters are `total_row` apart.
template <class Op, class Operand, class Accumulator>
inline void tile_row(index filters, index vectors, const Operand* x, const index* tap, index apart,
                     const index* place, const Operand* w, index terms, Accumulator* total, index total_row,
                     bool first) {
    constexpr int NR = Op::NR;
    for (index v = 0; v < vectors; v += NR) {
        const auto put = [=](index f) {
            return [=](index n, Vec<Accumulator> sum) {
                Accumulator* t = total + f * total_row + v * LANES<Operand> + n * LANES<Accumulator>;
                store(t, first ? sum : load(t) + sum);
            };
        };
        const auto run = [&](auto f, auto n) {
            tile<Op, f.value, n.value>(x, [=](index t) { return tap[t]; }, apart, place + v, w, terms, put);
        };
        if (vectors - v >= NR) with_filters<Op::MR, NR>(filters, run);
        else if (vectors - v == 2) with_filters<Op::MR, 2>(filters, run);
        else with_filters<Op::MR, 1>(filters, run);
    }
}

}  // namespace mulfree::MULFREE_ISA
