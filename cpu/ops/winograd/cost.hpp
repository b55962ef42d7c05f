// The cost of a product in each form of the weights, for choosing a form.
#pragma once

#include "../peak.hpp"
#include "forward.hpp"

namespace mulfree::MULFREE_ISA {

// Seconds of a full block's products with weights of at most one group of filters and one chunk of channels.
template <class T>
inline double winograd_seconds(const WinogradWeights<T>& weights, index positions, index filters, index channels) {
    Carver measure(nullptr);
    Slab<T>(positions, channels + filters, BLOCK_TILES<T>, measure);
    Workspace workspace;
    workspace.allocate(measure.used());
    Carver scratch(workspace.data());
    const Slab<T> slab(positions, channels + filters, BLOCK_TILES<T>, scratch);
    for (index i = 0; i < positions * slab.position_stride; ++i) slab.data[i] = T(1);
    const double begin = now();
    for (index position = 0; position < positions; ++position)
        multiply_block(weights, position, WINOGRAD_VECTORS, slab.row(position, 0), slab.row(position, channels), true);
    return now() - begin;
}

}  // namespace mulfree::MULFREE_ISA
