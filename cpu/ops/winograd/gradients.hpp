// Gradients of the Winograd convolution: by x the forward engine on the gradient, with the transposed transforms; by
// U products of tall and skinny matrices, per position.
#pragma once

#include "../weight_gradient.hpp"
#include "forward.hpp"

namespace mulfree::MULFREE_ISA {

// Source: the gradient. Target: the gradient by x, where neighbouring tiles overlap and accumulate, so each image is
// processed by one thread.
template <class Transform, class T>
struct WinogradGradX {
    static constexpr int TILE = Transform::TILE, STEP = Transform::OUT, IN = STEP, OUT = TILE;
    const Winograd<T>& p;
    const Transform transform;

    explicit WinogradGradX(const Winograd<T>& p_) : p(p_), transform(p_) {}

    index columns() const { return p.filters; }
    index rows() const { return p.channels; }
    bool relu() const { return false; }
    const Image<const T>& source() const { return p.grad; }
    const Axis& source_height() const { return p.out_height; }
    const Axis& source_width() const { return p.out_width; }
    const Axis& target_height() const { return p.height; }
    const Axis& target_width() const { return p.width; }
    void in(const Vec<T>* d, Vec<T>* v) const { transform.output_grad(d, v); }
    index tiles_an_image() const { return p.height.pixels * p.width.pixels; }
    index tiles_a_unit() const { return round_up(BLOCK_TILES<T>, tiles_an_image()); }

    struct Scratch {
        Patches<TILE, STEP, const T> x;
        Scratch(const WinogradGradX& pass, Carver& scratch)
            : x(pass.p.x, pass.p.height, pass.p.width, scratch) {}
        void move_to(const TileBlock<T>& tiles) { x.move_to(tiles.runs, tiles.start); }
    };
    void begin(index tile, index end, index first, index last) const {
        for (index n = tile / tiles_an_image(); n < end / tiles_an_image(); ++n) {
            T* image = p.y.data + n * p.y.batch;
            for (index i = first * p.y.channel; i < last * p.y.channel; ++i) image[i] = 0;
        }
    }
    void write(const Scratch& scratch, const Patches<OUT, STEP, T>& grad_x, index channel, index v,
               Vec<T> (&m)[TILE][TILE]) const {
        Vec<T> d[TILE][TILE];
        if (p.relu) {
            Vec<T> t[TILE][TILE];
            scratch.x.load(channel, v, d);
            both_axes(d, t, [&](const Vec<T>* a, Vec<T>* b) { transform.input(a, b); });
#pragma GCC unroll 36
            for (int i = 0; i < TILE * TILE; ++i)
                m[i / TILE][i % TILE] = t[i / TILE][i % TILE] > T(0) ? m[i / TILE][i % TILE] : Vec<T>{};
        }
        both_axes(m, d, [&](const Vec<T>* a, Vec<T>* b) { transform.input_grad(a, b); });
        grad_x.add(channel, v, d);
    }
};

template <class T>
inline void winograd_grad_x(const Winograd<T>& p) {
    with_transform(p, [&](auto transform) {
        for_each_tile(p, WinogradGradX<decltype(transform), T>(p));
    });
}

// grad_u[position][k][c] = sum over all tiles of the transformed gradient times the transformed x. A unit of work is
// a block of filters by a block of channels, at all positions.
constexpr index GRAD_U_SIDE = 32;

template <class Transform, class T>
struct WinogradGradU {
    static constexpr int TILE = Transform::TILE, OUT = Transform::OUT;
    static constexpr index POSITIONS = TILE * TILE, TILES = 32 * LANES<T>;
    static constexpr index ROW = (GRAD_U_SIDE + NR) * LANES<T>;  // rounded up to register tiles

    const Winograd<T>& p;
    const Transform transform;
    TileBlock<T> tiles;
    Patches<TILE, OUT, const T> x;
    Patches<OUT, OUT, const T> grad;
    Slab<T> v, m;
    T* total;
    index rows[GRAD_U_SIDE];  // starts of the rows of x's tiles

    WinogradGradU(const Winograd<T>& p_, Carver& scratch)
        : p(p_),
          transform(p_),
          tiles(scratch),
          x(p.x, p.height, p.width, scratch),
          grad(p.grad, p.out_height, p.out_width, scratch),
          v(POSITIONS, GRAD_U_SIDE + NR, TILES, scratch),
          m(POSITIONS, GRAD_U_SIDE, TILES, scratch),
          total(scratch.take<T>(POSITIONS * GRAD_U_SIDE * ROW)) {
        for (index c = 0; c < GRAD_U_SIDE; ++c) rows[c] = c * TILES;
    }

    void run(index filter, index channel) {
        const index filters = smaller(GRAD_U_SIDE, p.filters - filter);
        const index channels = smaller(GRAD_U_SIDE, p.channels - channel);
        const index count = p.batch * p.height.pixels * p.width.pixels;
        for (index i = 0; i < POSITIONS * GRAD_U_SIDE * ROW; ++i) total[i] = 0;
        for (index begin = 0; begin < count; begin += TILES) {
            const index end = smaller(count, begin + TILES);
            for (index tile = begin; tile < end; tile += BLOCK_TILES<T>) {
                tiles.move_to(p, tile, end);
                x.move_to(tiles.runs, tiles.start);
                grad.move_to(tiles.runs, tiles.start);
                transform_in<TILE>(x, channel, channels, tiles.vectors, p.relu, v, tile - begin,
                                   [&](const Vec<T>* a, Vec<T>* b) { transform.input(a, b); });
                transform_in<TILE>(grad, filter, filters, tiles.vectors, false, m, tile - begin,
                                   [&](const Vec<T>* a, Vec<T>* b) { transform.output_grad(a, b); });
            }
            for (index position = 0; position < POSITIONS; ++position)
                products(filters, channels, end - begin, m.row(position, 0), TILES, v.row(position, 0), rows,
                         total + position * GRAD_U_SIDE * ROW, ROW);
        }
        for (index position = 0; position < POSITIONS; ++position)
            for (index k = 0; k < filters; ++k) {
                const T* from = total + (position * GRAD_U_SIDE + k) * ROW;
                T* to = p.grad_u + (position * p.filters + filter + k) * p.channels + channel;
                for (index c = 0; c < channels; ++c) to[c] = sum_lanes<T>(load(from + c * LANES<T>));
            }
    }
};

template <class Unit, class T>
inline void winograd_grad_u_by(const Winograd<T>& p) {
    const index filters = ceil_div(p.filters, GRAD_U_SIDE), channels = ceil_div(p.channels, GRAD_U_SIDE);
    const double terms = double(p.batch) * p.height.pixels * p.width.pixels * p.filters * p.channels *
                         Unit::POSITIONS;
    Carver measure(nullptr);
    Unit(p, measure);
    const index scratch = measure.used();
    Team team(threads_for(filters * channels, terms, scratch));
    Workspace workspace;
    workspace.allocate(team.size() * scratch);
    Units blocks(filters * channels, 1);
    team.run([&](index thread) {
        Carver mine(workspace.data() + thread * scratch);
        Unit unit(p, mine);
        blocks.each([&](index block) {
            unit.run(block / channels * GRAD_U_SIDE, block % channels * GRAD_U_SIDE);
        });
    });
}

template <class T>
inline void winograd_grad_u(const Winograd<T>& p) {
    with_transform(p, [&](auto transform) {
        winograd_grad_u_by<WinogradGradU<decltype(transform), T>>(p);
    });
}

}  // namespace mulfree::MULFREE_ISA
