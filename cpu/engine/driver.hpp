// The loop over macro-tiles, shared by every operation that has the shape of a convolution: pixels are cut
// into macro-tiles of packed tiles, the reduction into blocks of taps, the filters into tiles. None of the cuts
// depends on the number of threads in a way that a sum would notice, and no sum is shared between threads,
// so answers do not depend on it either.
#pragma once

#include "macrokernel.hpp"

namespace mulfree::MULFREE_ISA {

constexpr index SHARED_WEIGHTS = 16 << 20;  // bytes; above it every thread packs tiles as it goes
constexpr index LEAST_MACRO_TILES = 16;          // where there are packed tiles for as many

// Runs prepare(group, filter) once for every filter and then, tile by tile, packs its weights, which
// weight(group, filter, channel, i, j) gives; after that runs work(macro-tile) for every macro-tile of pixels and
// chunk of filters.
template <class X, class Y, class Weight, class Prepare, class Work>
inline void for_each_macro_tile(const Convolution<X, Y>& p, const Weight& weight, Prepare prepare, Work work) {
    using S = MacroTile<X, Y, Weight>;
    const index positions = p.height.taps * p.width.taps;
    const Blocking blocking(p.channels, positions);
    const index tiles = ceil_div(p.filters, MR);
    const index pixels = p.batch * p.height.pixels * p.width.pixels;
    const index packed_tiles = ceil_div(pixels, S::ROW);
    const double terms = double(pixels) * p.groups * p.filters * p.channels * larger(positions, 1);

    // Many packed tiles: macro-tiles of several. That decides how sums are rounded, so threads have no say in it.
    const index kept = smaller(CHUNK_FILTERS, tiles * MR);
    const index macro_packed =
        larger(1, smaller(smaller(S::most_packed(p), MACRO_TOTALS / kept), packed_tiles / LEAST_MACRO_TILES));

    // Macro-tiles of large images end where the image does, so that pixels follow one another in memory.
    const index image = p.height.pixels * p.width.pixels;
    const index range = macro_packed > 1 && image >= MACRO_PACKED * S::ROW ? image : pixels;
    const index tiles_a_range = ceil_div(range, macro_packed * S::ROW);
    const index macro_pixels = round_up(ceil_div(range, tiles_a_range), S::ROW);
    const index macro_tiles = pixels / larger(1, range) * tiles_a_range;

    // Few macro-tiles: cut the filters as well, so that every thread has something to do.
    const index most = threads_for(index(1) << 30, terms);
    const index cuts = smaller(tiles, ceil_div(2 * most, macro_tiles * p.groups));
    const index chunk = smaller(CHUNK_FILTERS, ceil_div(tiles, cuts) * MR);
    const index chunks = ceil_div(p.filters, chunk);
    const index parts = p.groups * chunks;
    const index splits = smaller(parts, ceil_div(4 * most, macro_tiles));  // units a macro-tile is split into

    const index packed = blocking.weights(p.groups, 0, 0, tiles) * index(sizeof(X));
    const bool share = packed <= SHARED_WEIGHTS;
    const index shared = share ? packed : 0;
    Carver measure(nullptr);
    S(p, blocking, weight, nullptr, macro_packed, chunk, measure);
    const index scratch = measure.used();
    Team team(threads_for(macro_tiles * splits, terms, scratch, shared));

    Workspace workspace;
    workspace.allocate(team.size() * scratch + shared);
    X* weights = share ? reinterpret_cast<X*>(workspace.data() + team.size() * scratch) : nullptr;

    Units every_tile(p.groups * tiles, 1);
    team.run([&](index) {
        every_tile.each([&](index tile) {
            const index group = tile / tiles, filter = tile % tiles * MR;
            for (index f = filter; f < smaller(filter + MR, p.filters); ++f) prepare(group, f);
            for (index b = 0; share && b < blocking.count(); ++b)
                pack_weights(p, weight, group, filter, blocking[b],
                             weights + blocking.weights(group, b, tile % tiles, tiles));
        });
    });

    // A thread takes several macro-tiles in a row, which share rows of x or lines that come in by themselves.
    Units every_macro_tile(macro_tiles * splits, larger(1, smaller(8, macro_tiles * splits / (8 * team.size()))));
    team.run([&](index thread) {
        Carver mine(workspace.data() + thread * scratch);
        S macro_tile(p, blocking, weight, weights, macro_packed, chunk, mine);
        macro_tile.begin();
        every_macro_tile.each([&](index unit) {
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

// Where every pixel of y is a pixel of x, and neither has gaps between rows: the same with planes of one
// long row.
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

template <class T>
inline void conv(const Convolution<T, T>& p) {
    for_each_macro_tile(flattened(p), Weights<T>{p}, [](index, index) {},
                   [](auto& macro_tile) { macro_tile.template answer<Dot<T>>(); });
}

}  // namespace mulfree::MULFREE_ISA
