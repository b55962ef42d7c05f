// The loop over macro-tiles: pixels are split into macro-tiles of packed tiles, the reduction into blocks of taps,
// the filters into tiles. The split of a sum does not depend on the number of threads, and no sum is shared between
// threads, so results do not depend on it either.
#pragma once

#include "macrokernel.hpp"

namespace mulfree::MULFREE_ISA {

constexpr index SHARED_WEIGHTS = 16 << 20;  // bytes; above it every thread packs tiles on the fly
constexpr index LEAST_MACRO_TILES = 16;     // if there are enough packed tiles

// Packs the weights weight(group, filter, channel, i, j) with a team's threads.
template <class Op, class X, class Y, class Weight>
inline void pack_weights(Team& team, const Convolution<X, Y>& p, const Weight& weight,
                         const PackedWeights<Op>& packed) {
    Units every_tile(p.groups * packed.tiles(), 1);
    team.run([&](index) {
        every_tile.each([&](index tile) { packed.pack(p, weight, tile / packed.tiles(), tile % packed.tiles()); });
    });
}

template <class Op, class X, class Y>
inline index packed_bytes(const Convolution<X, Y>& p) {
    Carver measure(nullptr);
    PackedWeights<Op>(p, blocking_of<Op>(p), true, measure);
    return measure.used();
}

// Packs into memory of that size, for a convolution's `packed`.
template <class Op, class X, class Y, class Weight>
inline void pack_weights(const Convolution<X, Y>& p, const Weight& weight, void* memory) {
    const Blocking blocking = blocking_of<Op>(p);
    Carver carver(static_cast<char*>(memory));
    const PackedWeights<Op> packed(p, blocking, true, carver);
    Team team(threads_for(p.groups * packed.tiles(), MOVE * double(packed_bytes<Op>(p)) / sizeof(X)));
    pack_weights(team, p, weight, packed);
}

// Runs work(macro_tile) for every macro-tile of pixels and chunk of filters. The weights are p.packed, or else
// weight(group, filter, channel, i, j), packed for this call.
template <class Op, class X, class Y, class Weight, class Work>
inline void for_each_macro_tile(const Convolution<X, Y>& p, const Weight& weight, Work work) {
    using M = MacroTile<Op, Weight>;
    constexpr int MR = Op::MR;
    const index positions = p.height.taps * p.width.taps;
    const Blocking blocking = blocking_of<Op>(p);
    const index tiles = ceil_div(p.filters, MR);
    const index pixels = p.batch * p.height.pixels * p.width.pixels;
    const index packed_tiles = ceil_div(pixels, M::ROW);
    const double terms = double(pixels) * p.groups * p.filters * p.channels * larger(positions, 1);

    // Many packed tiles: several per macro-tile. This affects rounding, so it must not depend on the threads.
    const index kept = smaller(CHUNK_FILTERS<Op>, tiles * MR);
    const index side_by_side = larger(1, smaller(smaller(Source<Op>::most_packed(p.height, p.width),
                                                         MACRO_TOTALS<Op> / kept), packed_tiles / LEAST_MACRO_TILES));

    // Macro-tiles of large images end with the image, so that their pixels are contiguous.
    const index image = p.height.pixels * p.width.pixels;
    const index range = side_by_side > 1 && image >= MACRO_PACKED * M::ROW ? image : pixels;
    const index tiles_a_range = ceil_div(range, side_by_side * M::ROW);
    const index macro_pixels = round_up(ceil_div(range, tiles_a_range), M::ROW);
    const index macro_tiles = pixels / larger(1, range) * tiles_a_range;

    // Few macro-tiles: split the filters as well, so that every thread has work.
    const index most = threads_for(index(1) << 30, terms);
    const index cuts = smaller(tiles, ceil_div(2 * most, macro_tiles * p.groups));
    const index chunk = smaller(CHUNK_FILTERS<Op>, ceil_div(tiles, cuts) * MR);
    const index chunks = ceil_div(p.filters, chunk);
    const index parts = p.groups * chunks;
    const index splits = smaller(parts, ceil_div(4 * most, macro_tiles));  // units per macro-tile

    const bool share = packed_bytes<Op>(p) <= SHARED_WEIGHTS;
    const auto cut_shared = [&](Carver memory) {
        const PackedWeights<Op> weights(p, blocking, share, memory);
        return memory.used();
    };
    const index shared = p.packed ? 0 : cut_shared(Carver(nullptr));
    Carver measure(nullptr);
    M(p, blocking, weight, nullptr, side_by_side, chunk, measure);
    const index scratch = measure.used();
    Team team(threads_for(macro_tiles * splits, terms, scratch, shared));

    Workspace workspace;
    workspace.allocate(team.size() * scratch + shared);
    Carver packed(p.packed ? static_cast<char*>(const_cast<void*>(p.packed)) : workspace.data() + team.size() * scratch);
    const PackedWeights<Op> weights(p, blocking, p.packed || share, packed);
    if (!p.packed) pack_weights(team, p, weight, weights);

    // A thread takes several consecutive macro-tiles, which share rows of x or prefetched cache lines.
    Units units(macro_tiles * splits, larger(1, smaller(8, macro_tiles * splits / (8 * team.size()))));
    team.run([&](index thread) {
        Carver mine(workspace.data() + thread * scratch);
        M macro_tile(p, blocking, weight, &weights, side_by_side, chunk, mine);
        macro_tile.source.begin();
        units.each([&](index unit) {
            const index split = unit % splits;
            const index first = unit / splits % tiles_a_range * macro_pixels;
            macro_tile.move_to(unit / splits / tiles_a_range * range + first, smaller(macro_pixels, range - first));
            for (index part = parts * split / splits; part < parts * (split + 1) / splits; ++part) {
                const index filter = part % chunks * chunk;
                macro_tile.take(part / chunks, filter, smaller(chunk, p.filters - filter));
                work(macro_tile);
            }
        });
    });
}

// If every pixel of y is a pixel of x, and both have contiguous rows: the same with planes as one long row.
template <class X, class Y>
inline Convolution<X, Y> flattened(Convolution<X, Y> p) {
    Axis &h = p.height, &w = p.width;
    const auto whole = [](const Axis& a) {
        return a.taps == 1 && a.step == 1 && a.offset == 0 && a.pixels == a.size;
    };
    if (p.x_shifts || p.y_shifts || !whole(h) || !whole(w) || p.x.row != w.size * p.x.column ||
        p.y.row != w.size * p.y.column)
        return p;
    w.size = w.pixels = h.size * w.size;
    h.size = h.pixels = 1;
    p.x.row = w.size * p.x.column, p.y.row = w.size * p.y.column;
    return p;
}

// y = the output of an operation.
template <class Op, class Weight>
inline void convolve(const Convolution<typename Op::Operand, typename Op::Output>& p, const Weight& weight) {
    for_each_macro_tile<Op>(flattened(p), weight, [](auto& macro_tile) { macro_tile.answer(); });
}

// The kernel table's row of an operation on floats: Choice::with_operation(p, f) calls f with a value of the
// operation type for a convolution.
template <class T, class Choice>
constexpr ConvolutionKernel<T, T> kernel_row() {
    using C = Convolution<T, T>;
    return {
        [](const C& p) {
            Choice::with_operation(p, [&](auto op) { convolve<decltype(op)>(p, Weights<T>{p}); });
        },
        [](const C& p) {
            index bytes = 0;
            Choice::with_operation(p, [&](auto op) { bytes = packed_bytes<decltype(op)>(p); });
            return bytes;
        },
        [](const C& p, void* to) {
            Choice::with_operation(p, [&](auto op) { pack_weights<decltype(op)>(p, Weights<T>{p}, to); });
        }};
}

}  // namespace mulfree::MULFREE_ISA
