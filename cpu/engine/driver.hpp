// The loop over strips, shared by every operation that has the shape of a convolution: pixels are cut
// into strips of panels, the reduction into blocks of taps, the filters into tiles. None of the cuts
// depends on the number of threads in a way that a sum would notice, and no sum is shared between threads,
// so answers do not depend on it either.
#pragma once

#include "macrokernel.hpp"

namespace mulfree::MULFREE_ISA {

constexpr index SHARED_WEIGHTS = 16 << 20;  // bytes; above it every thread packs tiles as it goes
constexpr index LEAST_STRIPS = 16;          // where there are panels for as many

// Runs prepare(group, filter) once for every filter and then, tile by tile, packs its weights, which
// weight(group, filter, channel, i, j) gives; after that runs work(strip) for every strip of pixels and
// chunk of filters.
template <class X, class Y, class Weight, class Prepare, class Work>
inline void for_each_strip(const Convolution<X, Y>& p, const Weight& weight, Prepare prepare, Work work) {
    using S = Strip<X, Y, Weight>;
    const index positions = p.height.taps * p.width.taps;
    const Blocking blocking(p.channels, positions);
    const index tiles = ceil_div(p.filters, TILE_FILTERS);
    const index pixels = p.batch * p.height.pixels * p.width.pixels;
    const index panels = ceil_div(pixels, S::ROW);
    const double terms = double(pixels) * p.groups * p.filters * p.channels * larger(positions, 1);

    // Many panels: strips of several. That decides how sums are rounded, so threads have no say in it.
    const index kept = smaller(CHUNK_FILTERS, tiles * TILE_FILTERS);
    const index strip_panels =
        larger(1, smaller(smaller(S::most_panels(p), STRIP_TOTALS / kept), panels / LEAST_STRIPS));

    // Strips of large images end where the image does, so that pixels follow one another in memory.
    const index image = p.height.pixels * p.width.pixels;
    const index range = strip_panels > 1 && image >= STRIP_PANELS * S::ROW ? image : pixels;
    const index strips_a_range = ceil_div(range, strip_panels * S::ROW);
    const index strip_pixels = round_up(ceil_div(range, strips_a_range), S::ROW);
    const index strips = pixels / larger(1, range) * strips_a_range;

    // Few strips: cut the filters as well, so that every thread has something to do.
    const index most = threads_for(index(1) << 30, terms);
    const index cuts = smaller(tiles, ceil_div(2 * most, strips * p.groups));
    const index chunk = smaller(CHUNK_FILTERS, ceil_div(tiles, cuts) * TILE_FILTERS);
    const index chunks = ceil_div(p.filters, chunk);
    const index parts = p.groups * chunks;
    const index splits = smaller(parts, ceil_div(4 * most, strips));  // units a strip is split into

    const index packed = blocking.weights(p.groups, 0, 0, tiles) * index(sizeof(X));
    const bool share = packed <= SHARED_WEIGHTS;
    const index shared = share ? packed : 0;
    Carver measure(nullptr);
    S(p, blocking, weight, nullptr, strip_panels, chunk, measure);
    const index scratch = measure.used();
    Team team(threads_for(strips * splits, terms, scratch, shared));

    Workspace workspace;
    workspace.allocate(team.size() * scratch + shared);
    X* weights = share ? reinterpret_cast<X*>(workspace.data() + team.size() * scratch) : nullptr;

    Units every_tile(p.groups * tiles, 1);
    team.run([&](index) {
        every_tile.each([&](index tile) {
            const index group = tile / tiles, filter = tile % tiles * TILE_FILTERS;
            for (index f = filter; f < smaller(filter + TILE_FILTERS, p.filters); ++f) prepare(group, f);
            for (index b = 0; share && b < blocking.count(); ++b)
                pack_weights(p, weight, group, filter, blocking[b],
                             weights + blocking.weights(group, b, tile % tiles, tiles));
        });
    });

    // A thread takes several strips in a row, which share rows of x or lines that come in by themselves.
    Units every_strip(strips * splits, larger(1, smaller(8, strips * splits / (8 * team.size()))));
    team.run([&](index thread) {
        Carver mine(workspace.data() + thread * scratch);
        S strip(p, blocking, weight, weights, strip_panels, chunk, mine);
        strip.begin();
        every_strip.each([&](index unit) {
            const index split = unit % splits;
            const index first = unit / splits % strips_a_range * strip_pixels;
            strip.move_to(unit / splits / strips_a_range * range + first, smaller(strip_pixels, range - first));
            for (index part = parts * split / splits; part < parts * (split + 1) / splits; ++part) {
                const index filter = part % chunks * chunk;
                strip.take(part / chunks, filter, smaller(chunk, p.filters - filter));
                work(strip);
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
    for_each_strip(flattened(p), Weights<T>{p}, [](index, index) {},
                   [](auto& strip) { strip.template answer<Dot<T>>(); });
}

}  // namespace mulfree::MULFREE_ISA
