// Winograd's transforms, a vector of tiles at a time, between images with any strides and slabs
// [position of the tile][channel][tile of the panel].
#pragma once

#include "../../engine/driver.hpp"

namespace mulfree::MULFREE_ISA {

constexpr int WINOGRAD_VECTORS = 4;  // of tiles, in a panel
template <class T>
constexpr index PANEL_TILES = WINOGRAD_VECTORS * LANES<T>;

template <class T>
struct RemoveConst {
    using type = T;
};
template <class T>
struct RemoveConst<const T> {
    using type = T;
};

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
    // Not inlined: a transform of both axes calls it a dozen times, and the compiler would take a minute.
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

// A run of tiles in an image whose numbers are contiguous, and whose tiles lie two apart: lane l has
// numbers 2 l and 2 l + 1 of `at[i]` for the first two columns of row i, and so on. Rows outside the image
// have step 0, and others the distance between channels.
template <int SIDE, class T>
struct PairRun {
    T* at[SIDE];
    index step[SIDE];
    std::uint32_t mask[SIDE / 2];  // of the 32 numbers from at[i] + 2 * h, those inside the image

    void move_to(const Run& run, const Image<T>& image, const Axis& h, const Axis& w) {
        const index column = run.column * 2 + w.offset;
        T* origin = image.data + run.image * image.batch + column - 2 * run.lane;
        for (int i = 0; i < SIDE; ++i) {
            const index row = run.row * 2 + h.offset + i;
            const bool inside = row >= 0 && row < h.size;
            at[i] = inside ? origin + row * image.row : outside();
            step[i] = inside ? image.channel : 0;
        }
        for (int half = 0; half < SIDE / 2; ++half) {
            const index first = column + 2 * half, length = 2 * run.count;
            const index begin = smaller(length, larger(0, -first)), end = smaller(length, w.size - first);
            mask[half] = begin < end ? bits(2 * run.lane + begin, 2 * run.lane + end) : 0;
        }
    }

private:
    static T* outside() {
        static const typename RemoveConst<T>::type zeros[2 * LANES<T> + SIDE] = {};
        return const_cast<T*>(zeros);  // never written to, as its step tells
    }
};

#if defined(__AVX512F__)
// The numbers of a vector of tiles in channel `channel`.
template <int SIDE>
inline void load_pairs(const PairRun<SIDE, const float>* run, const PairRun<SIDE, const float>* end,
                       index channel, Vec<float> (&d)[SIDE][SIDE]) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    __m512 low[SIDE][SIDE / 2], high[SIDE][SIDE / 2];
#pragma GCC unroll 6
    for (int i = 0; i < SIDE; ++i)
#pragma GCC unroll 6
        for (int h = 0; h < SIDE / 2; ++h) {
            const float* from = run->at[i] + channel * run->step[i] + 2 * h;
            low[i][h] = _mm512_maskz_loadu_ps(run->mask[h] & 0xffff, from);
            high[i][h] = _mm512_maskz_loadu_ps(run->mask[h] >> 16, from + 16);
        }
    while (++run < end)
#pragma GCC unroll 6
        for (int i = 0; i < SIDE; ++i)
#pragma GCC unroll 6
            for (int h = 0; h < SIDE / 2; ++h) {
                const float* from = run->at[i] + channel * run->step[i] + 2 * h;
                low[i][h] = _mm512_mask_loadu_ps(low[i][h], run->mask[h] & 0xffff, from);
                high[i][h] = _mm512_mask_loadu_ps(high[i][h], run->mask[h] >> 16, from + 16);
            }
#pragma GCC unroll 6
    for (int i = 0; i < SIDE; ++i)
#pragma GCC unroll 6
        for (int h = 0; h < SIDE / 2; ++h) {
            d[i][2 * h] = (Vec<float>)_mm512_permutex2var_ps(low[i][h], even, high[i][h]);
            d[i][2 * h + 1] = (Vec<float>)_mm512_permutex2var_ps(low[i][h], odd, high[i][h]);
        }
}

// Stores or adds them.
template <int SIDE>
inline void store_pairs(const PairRun<SIDE, float>* begin, const PairRun<SIDE, float>* end, index channel,
                        const Vec<float> (&y)[SIDE][SIDE], bool add) {
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    const auto put = [=](float* to, __mmask16 mask, __m512 v) {
        if (add) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, to));
        _mm512_mask_storeu_ps(to, mask, v);
    };
#pragma GCC unroll 6
    for (int i = 0; i < SIDE; ++i)
#pragma GCC unroll 6
        for (int h = 0; h < SIDE / 2; ++h) {
            const __m512 a = (__m512)y[i][2 * h], b = (__m512)y[i][2 * h + 1];
            const __m512 low = _mm512_permutex2var_ps(a, first, b), high = _mm512_permutex2var_ps(a, second, b);
            for (const PairRun<SIDE, float>* run = begin; run < end; ++run) {
                if (!run->step[i]) continue;
                float* to = run->at[i] + channel * run->step[i] + 2 * h;
                put(to, run->mask[h] & 0xffff, low);
                put(to + 16, run->mask[h] >> 16, high);
            }
        }
}
#endif

// Where the numbers of a panel's tiles lie in an image.
template <int SIDE, class T>
class Patches {
    using Number = typename RemoveConst<T>::type;
    static constexpr index NUMBERS = SIDE * SIDE;
#if defined(__AVX512F__)
    static constexpr bool PAIRS = sizeof(T) == 4 && SIDE % 2 == 0;
#else
    static constexpr bool PAIRS = false;
#endif

public:
    Patches(const Image<T>& image, const Axis& height, const Axis& width, Carver& scratch)
        : image_(image),
          height_(height),
          width_(width),
          in_pairs_(PAIRS && image.column == 1 && width.step == 2),
          spans_(scratch.take<Span>(in_pairs_ ? 0 : NUMBERS * PANEL_TILES<Number>)),
          pairs_(scratch.take<PairRun<SIDE, T>>(in_pairs_ ? PANEL_TILES<Number> : 0)) {}

    void move_to(const Run* runs, const index* start) {
        start_ = start;
        runs_ = start[WINOGRAD_VECTORS];
        if (in_pairs_)
            for (index r = 0; r < runs_; ++r) pairs_[r].move_to(runs[r], image_, height_, width_);
        else find_spans(runs, runs_, image_, height_, width_, Block{0, 1, 0, NUMBERS}, spans_);
    }

    // The tiles of vector v in a channel; zero outside the image.
    void load(index channel, index v, Vec<Number> (&d)[SIDE][SIDE]) const {
        if constexpr (PAIRS)
            if (in_pairs_) return load_pairs(pairs_ + start_[v], pairs_ + start_[v + 1], channel, d);
        const T* plane = image_.data + channel * image_.channel;
        for (int i = 0; i < SIDE; ++i)
            for (int j = 0; j < SIDE; ++j)
                d[i][j] = gather<STRIDED>(begin(i, j, v), end(i, j, v), plane, lane_stride());
    }

    void store(index channel, index v, const Vec<Number> (&y)[SIDE][SIDE]) const {
        put(channel, v, y, false);
    }
    void add(index channel, index v, const Vec<Number> (&y)[SIDE][SIDE]) const {
        put(channel, v, y, true);
    }

private:
    const Span* begin(int i, int j, index v) const { return spans_ + (i * SIDE + j) * runs_ + start_[v]; }
    const Span* end(int i, int j, index v) const { return spans_ + (i * SIDE + j) * runs_ + start_[v + 1]; }
    index lane_stride() const { return width_.step * image_.column; }

    void put(index channel, index v, const Vec<Number> (&y)[SIDE][SIDE], bool add) const {
        if constexpr (PAIRS)
            if (in_pairs_) return store_pairs(pairs_ + start_[v], pairs_ + start_[v + 1], channel, y, add);
        T* plane = image_.data + channel * image_.channel;
        for (int i = 0; i < SIDE; ++i)
            for (int j = 0; j < SIDE; ++j) {
                const Vec<T> old = add ? gather<STRIDED>(begin(i, j, v), end(i, j, v), plane, lane_stride())
                                       : Vec<T>{};
                scatter(begin(i, j, v), end(i, j, v), plane, lane_stride(), y[i][j] + old);
            }
    }

    const Image<T> image_;
    const Axis height_, width_;
    const bool in_pairs_;
    Span* const spans_;
    PairRun<SIDE, T>* const pairs_;
    const index* start_;
    index runs_;
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
