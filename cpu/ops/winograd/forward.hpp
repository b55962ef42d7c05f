// Fused Winograd convolution: a block of tiles, numbered through rows, planes and images, is transformed into slabs
// that stay in the L2 cache, multiplied per position by packed weights (plan.hpp), dense or sparse, and transformed
// back.
#pragma once

#include "transform.hpp"

namespace mulfree::MULFREE_ISA {

// m[row] (+)= sum over its entries of value[row] * v[channel], for one job, or for two of which the first is not
// longer, to hide the latency of the accumulators. Every row adds its channels in order: skipping a zero is the same
// as adding it, so all forms are bit-identical.
template <int ROWS, int VECTORS, int JOBS, class T>
inline void multiply(const WinogradEntry<T, ROWS>* e, const WinogradJob* job, const T* v, T* m, bool first) {
    constexpr index ROW = BLOCK_TILES<T>;
    Vec<T> sum[JOBS][ROWS][VECTORS] = {};
    const auto add = [&](const WinogradEntry<T, ROWS>& entry, Vec<T> (&to)[ROWS][VECTORS]) {
        const T* x = v + entry.channel * ROW;
        Vec<T> tiles[VECTORS];
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS; ++i) tiles[i] = load(x + i * LANES<T>);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) {
            const Vec<T> weight = broadcast(entry.value[r]);
#pragma GCC unroll 4
            for (int i = 0; i < VECTORS; ++i) to[r][i] = multiply_add(tiles[i], weight, to[r][i]);
        }
    };
    index i = 0;
    for (; i < job->count; ++i) {
        add(e[i * JOBS], sum[0]);
        if constexpr (JOBS == 2) add(e[i * JOBS + 1], sum[1]);
    }
    if constexpr (JOBS == 2)
        for (; i < job[1].count; ++i) add(e[job->count + i], sum[1]);
#pragma GCC unroll 2
    for (int j = 0; j < JOBS; ++j)
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
            for (int i = 0; i < VECTORS; ++i) {
                T* to = m + (job[j].row + r) * ROW + i * LANES<T>;
                store(to, first ? sum[j][r][i] : load(to) + sum[j][r][i]);
            }
}

// Not inlined: the loop needs the registers.
template <int ROWS, int VECTORS, class T>
__attribute__((noinline)) void multiply_section(const WinogradWeights<T>& w, index section, const T* v,
                                                T* m, bool first) {
    constexpr int JOBS = WINOGRAD_JOBS<ROWS>;
    const auto* entry = static_cast<const WinogradEntry<T, ROWS>*>(w.entries) + w.sections[section].entry;
    const WinogradJob *job = w.jobs + w.sections[section].job, *end = w.jobs + w.sections[section + 1].job;
    for (; job + JOBS <= end; job += JOBS) {
        multiply<ROWS, VECTORS, JOBS>(entry, job, v, m, first);
        for (int j = 0; j < JOBS; ++j) entry += job[j].count;
    }
    if (JOBS == 2 && job < end) multiply<ROWS, VECTORS, 1>(entry, job, v, m, first);
}

// Four vectors of four filters fill half of AVX-512's registers, and all of other instruction sets'.
#if defined(__AVX512F__)
template <int ROWS>
constexpr int VECTORS_AT_ONCE = 4;
#else
template <int ROWS>
constexpr int VECTORS_AT_ONCE = ROWS == 1 ? 4 : 2;
#endif

// A block's product with the weights of one section.
template <int ROWS, class T>
inline void multiply_vectors(const WinogradWeights<T>& w, index section, index vectors, const T* v, T* m,
                             bool first) {
    constexpr int MOST = VECTORS_AT_ONCE<ROWS>;
    for (; vectors >= MOST; vectors -= MOST, v += MOST * LANES<T>, m += MOST * LANES<T>)
        multiply_section<ROWS, MOST>(w, section, v, m, first);
    if constexpr (MOST == 4) {
        if (vectors == 3) multiply_section<ROWS, 3>(w, section, v, m, first);
        if (vectors == 2) multiply_section<ROWS, 2>(w, section, v, m, first);
    }
    if (vectors == 1) multiply_section<ROWS, 1>(w, section, v, m, first);
}

template <class T>
inline void multiply_block(const WinogradWeights<T>& w, index section, index vectors, const T* v, T* m,
                           bool first) {
    if (w.rows == 1) multiply_vectors<1>(w, section, vectors, v, m, first);
    else multiply_vectors<WINOGRAD_ROWS>(w, section, vectors, v, m, first);
}

// Forward: source x, target y.
template <class Transform, class T>
struct WinogradForward {
    static constexpr int TILE = Transform::TILE, STEP = Transform::OUT, IN = TILE, OUT = STEP;
    const Winograd<T>& p;
    const Transform transform;

    explicit WinogradForward(const Winograd<T>& p_) : p(p_), transform(p_) {}

    index columns() const { return p.channels; }
    index rows() const { return p.filters; }
    bool relu() const { return p.relu; }
    const Image<const T>& source() const { return p.x; }
    const Axis& source_height() const { return p.height; }
    const Axis& source_width() const { return p.width; }
    const Axis& target_height() const { return p.out_height; }
    const Axis& target_width() const { return p.out_width; }
    void in(const Vec<T>* d, Vec<T>* v) const { transform.input(d, v); }
    // Blocks may be split anywhere.
    index tiles_a_unit() const { return BLOCK_TILES<T>; }

    struct Scratch {
        Patches<OUT, STEP, const T> residual;
        const bool given;
        Scratch(const WinogradForward& pass, Carver& scratch)
            : residual(pass.p.residual, pass.p.out_height, pass.p.out_width, scratch), given(pass.p.residual.data) {}
        void move_to(const TileBlock<T>& tiles) {
            if (given) residual.move_to(tiles.runs, tiles.start);
        }
    };
    void begin(index, index, index, index) const {}
    void write(const Scratch& more, const Patches<OUT, STEP, T>& y, index k, index v, Vec<T> (&m)[TILE][TILE]) const {
        const Vec<T> bias = broadcast(p.bias ? p.bias[k] : T(0));
        Numbers out;
        both_axes(m, out.z, [&](const Vec<T>* a, Vec<T>* b) { transform.output(a, b); });
#pragma GCC unroll 16
        for (int i = 0; i < OUT * OUT; ++i) out.z[i / OUT][i % OUT] += bias;
        if (more.given || p.relu_of_y) return store_finished(more, y, k, v, out);
        y.store(k, v, out.z);
    }

private:
    struct Numbers {
        Vec<T> z[OUT][OUT];
    };

    // Not inlined, and with a copy, to leave the registers to the transform.
    __attribute__((noinline)) void store_finished(const Scratch& more, const Patches<OUT, STEP, T>& y, index k, index v,
                                                  Numbers numbers) const {
        Vec<T> residual[OUT][OUT] = {};
        if (more.given) more.residual.load(k, v, residual);
        for (int i = 0; i < OUT * OUT; ++i) {
            Vec<T>& z = numbers.z[i / OUT][i % OUT];
            if (more.given) z += residual[i / OUT][i % OUT];
            if (p.relu_of_y) z = z < Vec<T>{} ? Vec<T>{} : z;  // propagates NaN
        }
        y.store(k, v, numbers.z);
    }
};

// A thread's workspace: source tiles -> v -> product -> m -> target tiles. Rows of weights are processed GROUPS
// groups at a time, so that both slabs fit the L2 cache.
template <class Pass, class T>
struct WinogradBlock {
    static constexpr int TILE = Pass::TILE;
    static constexpr index POSITIONS = TILE * TILE, GROUPS = TILE == 4 ? 4 : 2;

    const Winograd<T>& p;
    const Pass& pass;
    const index chunks;
    TileBlock<T> tiles;
    Patches<Pass::IN, Pass::STEP, const T> source;
    Patches<Pass::OUT, Pass::STEP, T> target;
    typename Pass::Scratch more;
    Slab<T> v, m;

    WinogradBlock(const Pass& pass_, Carver& scratch)
        : p(pass_.p),
          pass(pass_),
          chunks(ceil_div(pass.columns(), WINOGRAD_CHUNK)),
          tiles(scratch),
          source(pass.source(), pass.source_height(), pass.source_width(), scratch),
          target(p.y, pass.target_height(), pass.target_width(), scratch),
          more(pass, scratch),
          v(POSITIONS, smaller(pass.columns(), WINOGRAD_CHUNK), BLOCK_TILES<T>, scratch),
          m(POSITIONS, smaller(round_up(pass.rows(), WINOGRAD_ROWS), GROUPS * WINOGRAD_GROUP), BLOCK_TILES<T>,
            scratch) {}

    // Tiles [begin, end), groups of rows [first, last).
    void run(index begin, index end, index first, index last) {
        pass.begin(begin, end, first * WINOGRAD_GROUP, smaller(pass.rows(), last * WINOGRAD_GROUP));
        for (index tile = begin; tile < end; tile += BLOCK_TILES<T>) {
            tiles.move_to(p, tile, end);
            source.move_to(tiles.runs, tiles.start);
            target.move_to(tiles.runs, tiles.start);
            more.move_to(tiles);
            for (index group = first; group < last; group += GROUPS)
                run_groups(group, smaller(last, group + GROUPS), group == first);
        }
    }

private:
    void run_groups(index group, index end, bool first) {
        for (index chunk = 0; chunk < chunks; ++chunk) {
            const index column = chunk * WINOGRAD_CHUNK;
            if (chunks > 1 || first)
                transform_in<TILE>(source, column, smaller(WINOGRAD_CHUNK, pass.columns() - column),
                                   tiles.vectors, pass.relu(), v, 0,
                                   [&](const Vec<T>* d, Vec<T>* t) { pass.in(d, t); });
            for (index position = 0; position < POSITIONS; ++position)
                for (index g = group; g < end; ++g)
                    multiply_block(p.weights, (g * chunks + chunk) * POSITIONS + position,
                                   tiles.vectors, v.row(position, 0),
                                   m.row(position, (g - group) * WINOGRAD_GROUP), chunk == 0);
        }
        const index row = group * WINOGRAD_GROUP;
        for (index r = row; r < smaller(pass.rows(), end * WINOGRAD_GROUP); ++r)
            for (index i = 0; i < tiles.vectors; ++i) {
                Vec<T> t[TILE][TILE];
                load_tile(m, r - row, i, t);
                pass.write(more, target, r, i, t);
            }
    }
};

template <class Pass, class T>
inline void for_each_tile(const Winograd<T>& p, const Pass& pass) {
    using B = WinogradBlock<Pass, T>;
    const index tiles = p.batch * p.height.pixels * p.width.pixels, length = pass.tiles_a_unit();
    const index pieces = ceil_div(tiles, length), groups = ceil_div(pass.rows(), WINOGRAD_GROUP);
    const double terms = double(tiles) * p.channels * p.filters * B::POSITIONS;

    // Few pieces: split the rows of weights as well, so that every thread has work.
    const index most = threads_for(index(1) << 30, terms);
    const index splits = smaller(groups, ceil_div(2 * most, pieces));

    Carver measure(nullptr);
    B(pass, measure);
    const index scratch = measure.used();
    Team team(threads_for(pieces * splits, terms, scratch));
    Workspace workspace;
    workspace.allocate(team.size() * scratch);

    Units units(pieces * splits, 1);
    team.run([&](index thread) {
        Carver mine(workspace.data() + thread * scratch);
        B block(pass, mine);
        units.each([&](index unit) {
            const index begin = unit / splits * length, split = unit % splits;
            block.run(begin, smaller(tiles, begin + length), groups * split / splits,
                      groups * (split + 1) / splits);
        });
    });
}

template <class T>
inline void winograd_conv(const Winograd<T>& p) {
    with_transform(p, [&](auto transform) {
        for_each_tile(p, WinogradForward<decltype(transform), T>(p));
    });
}

}  // namespace mulfree::MULFREE_ISA
