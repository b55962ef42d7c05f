// How fast this machine runs the inner operations when nothing is loaded or stored: the limit that the
// benchmarks compare with.
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

// Terms a second, all threads together, of Op on operands that stay in registers.
template <class Op, class Operand = typename Op::Operand>
inline double measure(double seconds, double terms_in_lane) {
    constexpr int PLANES = Op::PLANES;
    Team team(max_threads());
    Workspace workspace;
    workspace.allocate(team.size() * index(sizeof(double)));
    double* rate = reinterpret_cast<double*>(workspace.data());
    for (index thread = 0; thread < team.size(); ++thread) rate[thread] = 0;
    team.run([&](index thread) {
        Vec<Operand> sum[MR][NR] = {}, x[NR][PLANES] = {}, w[PLANES] = {};
        for (auto& planes : x)
            for (auto& plane : planes) touch(plane);
        double repeats = 0, begin = now(), elapsed = 0;
        while (elapsed < seconds) {
            for (int i = 0; i < 10000; ++i) {
#pragma GCC unroll 8
                for (int f = 0; f < MR; ++f) {
                    for (auto& plane : w) touch(plane);
#pragma GCC unroll 8
                    for (int v = 0; v < NR; ++v) sum[f][v] = term<Op>(sum[f][v], x[v], w);
                }
            }
            repeats += 10000;
            elapsed = now() - begin;
        }
#pragma GCC unroll 8
        for (int f = 0; f < MR; ++f)
#pragma GCC unroll 8
            for (int v = 0; v < NR; ++v) touch(sum[f][v]);
        rate[thread] = repeats * MR * NR * double(LANES<Operand>) * terms_in_lane / elapsed;
    });
    double all = 0;
    for (index thread = 0; thread < team.size(); ++thread) all += rate[thread];
    return all;
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
