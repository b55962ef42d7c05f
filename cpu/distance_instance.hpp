// The table of one instruction set's distances. Each kernels_<isa>_distances.cpp defines MULFREE_ISA and includes this;
// separate from instance.hpp, so that each compiles faster.
#pragma once

#include "ops/distances.hpp"
#include "ops/match_template.hpp"
#include "ops/peak.hpp"

namespace mulfree::MULFREE_ISA {

template <class Op>
constexpr DistanceFunctions<typename Op::Element, typename Op::Number> distance_functions() {
    return {all_distances<Op>, nearest<Op>, match_template<Op>};
}

// float32: short rows, and windows, term by term.
constexpr DistanceFunctions<float, float> float_distance_functions() {
    using Exact = AbsoluteDifferences<float>;
    auto functions = distance_functions<Exact>();
    if constexpr (!DISTANCE_IN_ONE) {
        functions.all = [](const Distances<float, float>& p) {
            p.length > FEW_TERMS ? all_distances<Maxima>(p) : all_distances<Exact>(p);
        };
        functions.nearest = [](const Nearest<float, float>& p) {
            p.length > FEW_TERMS ? nearest<Maxima>(p) : nearest<Exact>(p);
        };
    }
    return functions;
}

// Terms per second, all threads together, of tiles in the first-level cache.
template <class Op>
inline double distance_peak(double seconds) {
    using Lane = typename Op::Lane;
    static constexpr index TERMS = 80, TILE = TILE_LANES<Op>, TILES = 100;
    return double(PER_LANE<Op> * TILES * TERMS * MR * TILE) * rate_of(seconds, [] {
        alignas(64) Lane x[TERMS * TILE] = {}, w[MR * TERMS] = {}, total[MR * TILE] = {};
        for (index i = 0; i < TILES; ++i) {
            asm volatile("" : : "r"(x), "r"(w), "r"(total) : "memory");  // so that nothing is optimised away
            add_terms<Op, MR, NR>((const char*)w, TERMS * index(sizeof(Lane)), x, TILE, TERMS, total, TILE, true);
        }
        return 1.0;
    });
}

// Of long rows of float32.
inline double float_distance_peak(double seconds) {
    if constexpr (DISTANCE_IN_ONE) return distance_peak<AbsoluteDifferences<float>>(seconds);
    else return distance_peak<Maxima>(seconds);
}

constexpr DistanceKernels distance_kernels() {
    return {float_distance_functions(), distance_functions<AbsoluteDifferences<double>>(),
            distance_functions<ByteDifferences>(),
            [](int element_bytes, double seconds) {
                if (element_bytes == 1) return distance_peak<ByteDifferences>(seconds);
                if (element_bytes == 8) return distance_peak<AbsoluteDifferences<double>>(seconds);
                return float_distance_peak(seconds);
            }};
}

}  // namespace mulfree::MULFREE_ISA
