// Winograd's transforms, a vector of tiles at a time, between images with any strides and slabs
// [position of the tile][channel][tile of the panel].
#pragma once

#include "convolution.hpp"

namespace mulfree::MULFREE_ISA {

constexpr int WINOGRAD_VECTORS = 4;  // of tiles, in a panel
template <class T>
constexpr index PANEL_TILES = WINOGRAD_VECTORS * LANES<T>;

// F(2 x 2, 3 x 3) with Lavin's signs, one axis of a tile: additions only.
template <class T>
struct Lavin {
    static constexpr int TILE = 4, OUT = 2;
    using V = Vec<T>;
    explicit Lavin(const Winograd<T>&) {}

    void input(const V* d, V* v) const {  // B^T
        v[0] = d[0] - d[2], v[1] = d[1] + d[2], v[2] = d[2] - d[1], v[3] = d[1] - d[3];
    }
    void output(const V* m, V* y) const {  // A^T
        y[0] = m[0] + m[1] + m[2], y[1] = m[1] - m[2] - m[3];
    }
    void output_grad(const V* y, V* m) const {  // A
        m[0] = y[0], m[1] = y[0] + y[1], m[2] = y[0] - y[1], m[3] = -y[1];
    }
    void input_grad(const V* v, V* d) const {  // B
        d[0] = v[0], d[1] = v[1] - v[2] + v[3], d[2] = v[1] + v[2] - v[0], d[3] = -v[3];
    }
};

// F(4 x 4, 3 x 3), for points that its matrices stand for.
template <class T>
struct Points {
    static constexpr int TILE = 6, OUT = 4;
    using V = Vec<T>;
    const T *bt, *at;
    explicit Points(const Winograd<T>& p) : bt(p.bt), at(p.at) {}

    void input(const V* d, V* v) const { product<TILE, TILE>(bt, TILE, 1, d, v); }
    void output(const V* m, V* y) const { product<TILE, OUT>(at, TILE, 1, m, y); }
    void output_grad(const V* y, V* m) const { product<OUT, TILE>(at, 1, TILE, y, m); }
    void input_grad(const V* v, V* d) const { product<TILE, TILE>(bt, 1, TILE, v, d); }

private:
    template <int IN, int OUTPUTS>
    static void product(const T* matrix, index row, index column, const V* in, V* out) {
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
    if (p.bt) f(Points<T>(p));
    else f(Lavin<T>(p));
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

// Two neighbouring numbers of every lane, where lanes lie two apart: span.wide marks those to touch.
template <class T>
struct Pairs {
    static constexpr bool AVAILABLE = false;
};

#if defined(__AVX512F__)
template <>
struct Pairs<float> {
    static constexpr bool AVAILABLE = true;
    static void load(const Span* span, const Span* end, const float* base, Vec<float>* pair) {
        const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
        __m512 low = _mm512_maskz_loadu_ps(span->wide & 0xffff, base + span->offset);
        __m512 high = _mm512_maskz_loadu_ps(span->wide >> 16, base + span->offset + 16);
        while (++span < end) {
            low = _mm512_mask_loadu_ps(low, span->wide & 0xffff, base + span->offset);
            high = _mm512_mask_loadu_ps(high, span->wide >> 16, base + span->offset + 16);
        }
        pair[0] = (Vec<float>)_mm512_permutex2var_ps(low, even, high);
        pair[1] = (Vec<float>)_mm512_permutex2var_ps(low, odd, high);
    }
    template <bool ADD>
    static void store(const Span* span, const Span* end, float* base, const Vec<float>* pair) {
        const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
        const __m512 low = _mm512_permutex2var_ps((__m512)pair[0], first, (__m512)pair[1]);
        const __m512 high = _mm512_permutex2var_ps((__m512)pair[0], second, (__m512)pair[1]);
        for (; span < end; ++span) {
            float* to = base + span->offset;
            put<ADD>(to, span->wide & 0xffff, low);
            put<ADD>(to + 16, span->wide >> 16, high);
        }
    }

private:
    template <bool ADD>
    static void put(float* to, __mmask16 mask, __m512 v) {
        if (ADD) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, to));
        _mm512_mask_storeu_ps(to, mask, v);
    }
};
#endif

// Where the numbers of a panel's tiles lie in an image: spans [row and column of the tile][run].
template <int SIDE, class T>
class Patches {
    template <class U>
    struct Plain {
        using type = U;
    };
    template <class U>
    struct Plain<const U> {
        using type = U;
    };
    using Number = typename Plain<T>::type;
    static constexpr index NUMBERS = SIDE * SIDE;
    static constexpr bool PAIRS = Pairs<Number>::AVAILABLE && SIDE % 2 == 0;

public:

    Patches(const Image<T>& image, const Axis& height, const Axis& width, Carver& scratch)
        : image_(image),
          height_(height),
          width_(width),
          spans_(scratch.take<Span>(NUMBERS * PANEL_TILES<Number>)) {
        in_pairs_ = PAIRS && image.column == 1 && width.step == 2;
    }

    void move_to(const Run* runs, const index* start) {
        start_ = start;
        runs_ = start[WINOGRAD_VECTORS];
        find_spans(runs, runs_, image_, height_, width_, Block{0, 1, 0, NUMBERS}, spans_);
        for (index number = 0; in_pairs_ && number < NUMBERS; number += 2)
            for (index r = 0; r < runs_; ++r) {
                Span& first = first_of(number)[r];
                const Span& second = first_of(number + 1)[r];
                if (!first.mask) first.offset = second.offset - 1;
                first.wide |= second.wide << 1;
            }
    }

    // The tiles of vector v in a channel's plane of the image; zero outside.
    void load(index channel, index v, Vec<Number> (&d)[SIDE][SIDE]) const {
        const T* plane = image_.data + channel * image_.channel;
        if constexpr (PAIRS)
            if (in_pairs_) {
#pragma GCC unroll 6
                for (int i = 0; i < SIDE; ++i)
#pragma GCC unroll 6
                    for (int j = 0; j < SIDE; j += 2)
                        Pairs<Number>::load(begin(i * SIDE + j, v), end(i * SIDE + j, v), plane, &d[i][j]);
                return;
            }
        for (int i = 0; i < SIDE; ++i)
            for (int j = 0; j < SIDE; ++j)
                d[i][j] = gather<STRIDED>(begin(i * SIDE + j, v), end(i * SIDE + j, v), plane, lane_stride());
    }

    void store(index channel, index v, const Vec<Number> (&y)[SIDE][SIDE]) const { put<false>(channel, v, y); }
    void add(index channel, index v, const Vec<Number> (&y)[SIDE][SIDE]) const { put<true>(channel, v, y); }

private:
    Span* first_of(index number) const { return spans_ + number * runs_; }
    const Span* begin(index number, index v) const { return first_of(number) + start_[v]; }
    const Span* end(index number, index v) const { return first_of(number) + start_[v + 1]; }
    index lane_stride() const { return width_.step * image_.column; }

    template <bool ADD>
    void put(index channel, index v, const Vec<Number> (&y)[SIDE][SIDE]) const {
        T* plane = image_.data + channel * image_.channel;
        if constexpr (PAIRS)
            if (in_pairs_) {
#pragma GCC unroll 6
                for (int i = 0; i < SIDE; ++i)
#pragma GCC unroll 6
                    for (int j = 0; j < SIDE; j += 2)
                        Pairs<Number>::template store<ADD>(begin(i * SIDE + j, v), end(i * SIDE + j, v), plane, &y[i][j]);
                return;
            }
        for (int i = 0; i < SIDE; ++i)
            for (int j = 0; j < SIDE; ++j) {
                const Span *from = begin(i * SIDE + j, v), *to = end(i * SIDE + j, v);
                const Vec<T> old = ADD ? gather<STRIDED>(from, to, plane, lane_stride()) : Vec<T>{};
                scatter(from, to, plane, lane_stride(), y[i][j] + old);
            }
    }

    const Image<T> image_;
    const Axis height_, width_;
    Span* spans_;
    const index* start_;
    index runs_;
    bool in_pairs_;
};

// The tiles of a panel.
template <class T>
struct TilePanel {
    Run* runs;
    index start[WINOGRAD_VECTORS + 1];
    index vectors;

    explicit TilePanel(Carver& scratch) : runs(scratch.take<Run>(PANEL_TILES<T>)) {}
    void move_to(const Winograd<T>& p, index first, index end) {
        const index count = smaller(PANEL_TILES<T>, end - first);
        vectors = ceil_div(count, LANES<T>);
        find_runs(p.height.pixels, p.width.pixels, first, count, LANES<T>, WINOGRAD_VECTORS, runs, start);
    }
};

// Numbers [position][row][tile]; positions lie an odd number of lines apart, or their rows would all fall
// into the same sets of the cache.
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

// The tiles of channels [first, first + count) of an image through `along` into the rows of the slab, at
// `tile`; negative numbers become zero where relu.
template <int TILE, int SIDE, class T, class Along>
inline void transform_in(const Patches<SIDE, const T>& patches, index first, index count, index vectors,
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
