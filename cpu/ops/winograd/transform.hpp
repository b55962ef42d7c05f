// Winograd transforms, a vector of tiles at a time, between images with any strides and slabs [position of the
// tile][channel][tile of the block].
#pragma once

#include "patches.hpp"

namespace mulfree::MULFREE_ISA {

// One axis of the transforms: B^T, A^T, A and B, whose matrices are those of ops/winograd/matrices.py.

// F(2 x 2, 3 x 3) with Lavin's signs: additions only.
template <class T>
struct Transform2 {
    static constexpr int TILE = 4, OUT = 2;
    using V = Vec<T>;
    explicit Transform2(const Winograd<T>&) {}

    void input(const V* d, V* v) const {
        v[0] = d[0] - d[2], v[1] = d[1] + d[2], v[2] = d[2] - d[1], v[3] = d[1] - d[3];
    }
    void output(const V* m, V* y) const {
        y[0] = m[0] + m[1] + m[2], y[1] = m[1] - m[2] - m[3];
    }
    void output_grad(const V* y, V* m) const {
        m[0] = y[0], m[1] = y[0] + y[1], m[2] = y[0] - y[1], m[3] = -y[1];
    }
    void input_grad(const V* v, V* d) const {
        d[0] = v[0], d[1] = v[1] - v[2] + v[3], d[2] = v[1] + v[2] - v[0], d[3] = -v[3];
    }
};

// F(4 x 4, 3 x 3) with Lavin's points 0, +-1, +-2: subexpressions common to the two signs of a point are computed
// once.
template <class T>
struct Transform4 {
    static constexpr int TILE = 6, OUT = 4;
    using V = Vec<T>;
    explicit Transform4(const Winograd<T>&) {}

    void input(const V* d, V* v) const {
        const V a = plus(d[4], -4, d[2]), b = plus(d[3], -4, d[1]), c = d[4] - d[2], e = d[3] - d[1];
        v[0] = plus(plus(d[4], -5, d[2]), 4, d[0]);
        v[1] = a + b, v[2] = a - b;
        v[3] = plus(c, 2, e), v[4] = plus(c, -2, e);
        v[5] = plus(plus(d[5], -5, d[3]), 4, d[1]);
    }
    void output(const V* m, V* y) const {
        const V a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
        y[0] = m[0] + a + c;
        y[1] = plus(b, 2, e);
        y[2] = plus(a, 4, c);
        y[3] = plus(b, 8, e) + m[5];
    }
    void output_grad(const V* y, V* m) const {
        const V a = y[0] + y[2], b = y[1] + y[3], c = plus(y[0], 4, y[2]), e = plus(y[1], 4, y[3]);
        m[0] = y[0];
        m[1] = a + b, m[2] = a - b;
        m[3] = plus(c, 2, e), m[4] = plus(c, -2, e);
        m[5] = y[3];
    }
    void input_grad(const V* v, V* d) const {
        const V a = v[1] + v[2], b = v[1] - v[2], c = v[3] + v[4], e = v[3] - v[4];
        d[0] = T(4) * v[0];
        d[1] = T(4) * (v[5] - b) - T(2) * e;
        d[2] = plus(plus(-c, -4, a), -5, v[0]);
        d[3] = plus(plus(b, 2, e), -5, v[5]);
        d[4] = v[0] + a + c;
        d[5] = v[5];
    }

private:
    static V plus(V a, T times, V b) { return multiply_add(broadcast(times), b, a); }
};

// F(4 x 4, 3 x 3) with any points, given by matrices.
template <class T>
struct TransformByMatrices {
    static constexpr int TILE = 6, OUT = 4;
    using V = Vec<T>;
    const T *bt, *at;
    explicit TransformByMatrices(const Winograd<T>& p) : bt(p.bt), at(p.at) {}

    void input(const V* d, V* v) const { product<TILE, TILE>(bt, TILE, 1, d, v); }
    void output(const V* m, V* y) const { product<TILE, OUT>(at, TILE, 1, m, y); }
    void output_grad(const V* y, V* m) const { product<OUT, TILE>(at, 1, TILE, y, m); }
    void input_grad(const V* v, V* d) const { product<TILE, TILE>(bt, 1, TILE, v, d); }

private:
    // Not inlined: a transform of both axes calls it a dozen times, and compilation would take a minute.
    template <int IN, int OUTPUTS>
    __attribute__((noinline)) static void product(const T* matrix, index row, index column, const V* in, V* out) {
        for (int i = 0; i < OUTPUTS; ++i) {
            V sum{};
            for (int j = 0; j < IN; ++j)
                if (const T a = matrix[i * row + j * column]) sum = multiply_add(in[j], broadcast(a), sum);
            out[i] = sum;
        }
    }
};

template <class T, class F>
inline void with_transform(const Winograd<T>& p, F f) {
    if (p.bt) f(TransformByMatrices<T>(p));
    else if (p.height.taps == 6) f(Transform4<T>(p));
    else f(Transform2<T>(p));
}

// to = L from L^T, where along() is the product by L.
template <int IN, int OUT, class V, class Along>
inline void both_axes(const V (&from)[IN][IN], V (&to)[OUT][OUT], Along along) {
    V half[IN][OUT];
#pragma GCC unroll 6
    for (int i = 0; i < IN; ++i) along(from[i], half[i]);
#pragma GCC unroll 6
    for (int j = 0; j < OUT; ++j) {
        V column[IN], sum[OUT];
#pragma GCC unroll 6
        for (int i = 0; i < IN; ++i) column[i] = half[i][j];
        along(column, sum);
#pragma GCC unroll 6
        for (int i = 0; i < OUT; ++i) to[i][j] = sum[i];
    }
}

// Numbers [position][row][tile]; positions are an odd number of lines apart, to avoid cache set conflicts.
template <class T>
struct Slab {
    T* data;
    index row_stride, position_stride;

    Slab(index positions, index rows, index tiles, Carver& scratch)
        : row_stride(tiles), position_stride(rows * tiles + LANES<T>) {
        data = scratch.take<T>(positions * position_stride);
    }
    T* row(index position, index r) const { return data + position * position_stride + r * row_stride; }
};

// Transforms the tiles of channels [first, first + count) of an image by `along` into the rows of the slab, at
// `tile`; optionally with a ReLU.
template <int TILE, int SIDE, int STEP, class T, class Along>
inline void transform_in(const Patches<SIDE, STEP, const T>& patches, index first, index count, index vectors,
                         bool relu, const Slab<T>& slab, index tile, Along along) {
    for (index c = 0; c < count; ++c)
        for (index v = 0; v < vectors; ++v) {
            Vec<T> d[SIDE][SIDE], t[TILE][TILE];
            patches.load(first + c, v, d);
            both_axes(d, t, along);
            T* to = slab.row(0, c) + tile + v * LANES<T>;
#pragma GCC unroll 36
            for (int p = 0; p < TILE * TILE; ++p) {
                const Vec<T> value = t[p / TILE][p % TILE];
                store(to + p * slab.position_stride, relu ? max(Vec<T>{}, value) : value);
            }
        }
}

template <int TILE, class T>
inline void load_tile(const Slab<T>& slab, index row, index vector, Vec<T> (&t)[TILE][TILE]) {
    const T* from = slab.row(0, row) + vector * LANES<T>;
#pragma GCC unroll 36
    for (int p = 0; p < TILE * TILE; ++p) t[p / TILE][p % TILE] = load(from + p * slab.position_stride);
}

}  // namespace mulfree::MULFREE_ISA
