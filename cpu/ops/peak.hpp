// Peak throughput of the inner operations without loads and stores: the reference of the benchmarks.
#pragma once

#include <time.h>

#include "adder.hpp"
#include "adder_u8.hpp"
#include "conv.hpp"

namespace mulfree::MULFREE_ISA {

inline double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

// Throughput of work() on all threads; it returns how much it did.
template <class Work>
inline double rate_of(double seconds, Work work) {
    Team team(max_threads());
    Workspace workspace;
    workspace.allocate(team.size() * index(sizeof(double)));
    double* rate = reinterpret_cast<double*>(workspace.data());
    for (index thread = 0; thread < team.size(); ++thread) rate[thread] = 0;
    team.run([&](index thread) {
        double done = 0, elapsed = 0;
        for (const double begin = now(); elapsed < seconds; elapsed = now() - begin) done += work();
        rate[thread] = done / elapsed;
    });
    double all = 0;
    for (index thread = 0; thread < team.size(); ++thread) all += rate[thread];
    return all;
}

constexpr int REPEATS = 10000;

// Accumulates operands in registers, and returns the number of vectors;
template <class Op, class Operand = typename Op::Operand>
inline double sum_registers() {
    constexpr int PLANES = Op::PLANES;
    Vec<Operand> sum[MR][NR] = {}, x[NR][PLANES] = {}, w[PLANES] = {};
    for (auto& planes : x)
        for (auto& plane : planes) touch(plane);
    for (int i = 0; i < REPEATS; ++i) {
#pragma GCC unroll 8
        for (int f = 0; f < MR; ++f) {
            for (auto& plane : w) touch(plane);
#pragma GCC unroll 8
            for (int v = 0; v < NR; ++v) sum[f][v] = term<Op>(sum[f][v], x[v], w);
        }
    }
#pragma GCC unroll 8
    for (int f = 0; f < MR; ++f)
#pragma GCC unroll 8
        for (int v = 0; v < NR; ++v) touch(sum[f][v]);
    return double(REPEATS) * MR * NR;
}
// or, with an operation's own tile, in the L1 cache.
template <class Op, class Operand = typename Op::Operand>
inline double sum_tiles() {
    constexpr index TERMS = Op::MOST_TERMS, ROW = Op::NR * LANES<Operand>, TILES = REPEATS / TERMS;
    alignas(64) const Operand x[TERMS * ROW] = {}, w[TERMS * Op::MR] = {};
    index place[Op::NR];
    for (index v = 0; v < Op::NR; ++v) place[v] = v * LANES<Operand>;
    const auto put = [](index) { return [](index, auto sum) { touch(sum); }; };
    for (index i = 0; i < TILES; ++i)
        tile<Op, Op::MR, Op::NR>(x, [](index t) { return t * ROW; }, 0, place, w, TERMS, put);
    return double(TILES) * TERMS * Op::MR * Op::NR;
}

// Terms per second of Op on all threads.
template <class Op>
inline double measure(double seconds, double terms_in_lane) {
    return double(LANES<typename Op::Operand>) * terms_in_lane * rate_of(seconds, [] {
        if constexpr (Op::HAS_TILE) return sum_tiles<Op>();
        else return sum_registers<Op>();
    });
}

inline double peak(int operation, double seconds) {
    switch (operation) {
    case PEAK_FMA: return measure<Dot<float>>(seconds, 1);
    case PEAK_MAX_ADD: return measure<Maximum>(seconds, 1);
    case PEAK_SUB_ABS_ADD: return measure<AbsoluteDifference<float>>(seconds, 1);
    default: return measure<ByteDistance>(seconds, sizeof(Word));
    }
}

}  // namespace mulfree::MULFREE_ISA
