// Addresses of tiles in an image of any strides, and reading and writing of vectors of tiles.
#pragma once

#include "../../engine/driver.hpp"

namespace mulfree::MULFREE_ISA {

constexpr int WINOGRAD_VECTORS = 4;  // of tiles per block
template <class T>
constexpr index BLOCK_TILES = WINOGRAD_VECTORS * LANES<T>;

// The tiles of a block.
template <class T>
struct TileBlock {
    Run* runs;
    index start[WINOGRAD_VECTORS + 1];
    index vectors;

    explicit TileBlock(Carver& scratch) : runs(scratch.take<Run>(BLOCK_TILES<T>)) {}
    void move_to(const Winograd<T>& p, index first, index end) {
        const index count = smaller(BLOCK_TILES<T>, end - first);
        vectors = ceil_div(count, LANES<T>);
        find_runs(p.height.pixels, p.width.pixels, first, count, LANES<T>, WINOGRAD_VECTORS, runs, start);
    }
};

template <class T>
struct RemoveConst {
    using type = T;
};
template <class T>
struct RemoveConst<const T> {
    using type = T;
};

// Deinterleave: the even, then the odd numbers of a and b; and interleave, numbers of a and b alternating.
struct Halves {
    Vec<float> first, second;
};

inline Halves unzip(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return {(Vec<float>)_mm512_permutex2var_ps((__m512)a, even, (__m512)b),
            (Vec<float>)_mm512_permutex2var_ps((__m512)a, odd, (__m512)b)};
#elif defined(__AVX2__)
    const __m256 low = _mm256_permute2f128_ps((__m256)a, (__m256)b, 0x20);
    const __m256 high = _mm256_permute2f128_ps((__m256)a, (__m256)b, 0x31);
    return {(Vec<float>)_mm256_shuffle_ps(low, high, 0x88), (Vec<float>)_mm256_shuffle_ps(low, high, 0xdd)};
#elif defined(__SSE2__)
    return {(Vec<float>)_mm_shuffle_ps((__m128)a, (__m128)b, 0x88),
            (Vec<float>)_mm_shuffle_ps((__m128)a, (__m128)b, 0xdd)};
#elif defined(__aarch64__)
    return {(Vec<float>)vuzp1q_f32((float32x4_t)a, (float32x4_t)b),
            (Vec<float>)vuzp2q_f32((float32x4_t)a, (float32x4_t)b)};
#else
    return {Vec<float>{a[0], a[2], b[0], b[2]}, Vec<float>{a[1], a[3], b[1], b[3]}};
#endif
}

inline Halves zip(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i second = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    return {(Vec<float>)_mm512_permutex2var_ps((__m512)a, first, (__m512)b),
            (Vec<float>)_mm512_permutex2var_ps((__m512)a, second, (__m512)b)};
#elif defined(__AVX2__)
    const __m256 low = _mm256_unpacklo_ps((__m256)a, (__m256)b);
    const __m256 high = _mm256_unpackhi_ps((__m256)a, (__m256)b);
    return {(Vec<float>)_mm256_permute2f128_ps(low, high, 0x20),
            (Vec<float>)_mm256_permute2f128_ps(low, high, 0x31)};
#elif defined(__SSE2__)
    return {(Vec<float>)_mm_unpacklo_ps((__m128)a, (__m128)b), (Vec<float>)_mm_unpackhi_ps((__m128)a, (__m128)b)};
#elif defined(__aarch64__)
    return {(Vec<float>)vzip1q_f32((float32x4_t)a, (float32x4_t)b),
            (Vec<float>)vzip2q_f32((float32x4_t)a, (float32x4_t)b)};
#else
    return {Vec<float>{a[0], b[0], a[1], b[1]}, Vec<float>{a[2], b[2], a[3], b[3]}};
#endif
}

// Transposes STEP vectors in memory order to STEP vectors of which lane l has the numbers STEP * l, STEP * l + 1,
// ...; and back.
template <int STEP>
inline void part(Vec<float> (&v)[STEP]) {
    const Halves a = unzip(v[0], v[1]);
    if constexpr (STEP == 2) {
        v[0] = a.first, v[1] = a.second;
    } else {
        const Halves b = unzip(v[2], v[3]);
        const Halves even = unzip(a.first, b.first), odd = unzip(a.second, b.second);
        v[0] = even.first, v[1] = odd.first, v[2] = even.second, v[3] = odd.second;
    }
}

template <int STEP>
inline void join(Vec<float> (&v)[STEP]) {
    if constexpr (STEP == 2) {
        const Halves a = zip(v[0], v[1]);
        v[0] = a.first, v[1] = a.second;
    } else {
        const Halves even = zip(v[0], v[2]), odd = zip(v[1], v[3]);
        const Halves a = zip(even.first, odd.first), b = zip(even.second, odd.second);
        v[0] = a.first, v[1] = a.second, v[2] = b.first, v[3] = b.second;
    }
}

// Adds to, or overwrites, the lanes of a mask from p on.
inline void store_masked(float* p, std::uint32_t mask, Vec<float> v, bool add) {
    if (mask == bits(0, LANES<float>)) return store(p, add ? v + load(p) : v);
    if (add) v += load_masked(p, mask);
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, mask, (__m512)v);
#else
    float lane[LANES<float>];
    store(lane, v);
    for (; mask; mask &= mask - 1) {
        const int l = __builtin_ctz(mask);
        p[l] = lane[l];
    }
#endif
}

// A run of tiles, STEP numbers apart, in an image whose rows are contiguous. A row of their numbers is read in parts:
// part h of row i begins at `at[i] + STEP * h` with lane 0's numbers STEP * h, ..., STEP * h + STEP - 1, followed by
// those of lane 1, and so on. Rows outside the image have a channel stride of 0.
template <int SIDE, int STEP, class T>
struct RowRun {
    static constexpr int PARTS = (SIDE + STEP - 1) / STEP;
    T* at[SIDE];
    index channel[SIDE];
    std::uint32_t mask[PARTS][STEP];  // of each vector of a part, the numbers that belong to the tiles and are inside

    void move_to(const Run& run, const Image<T>& image, const Axis& h, const Axis& w) {
        const index column = run.column * STEP + w.offset;
        T* origin = image.data + run.image * image.batch + column - STEP * run.lane;
        for (int i = 0; i < SIDE; ++i) {
            const index row = run.row * STEP + h.offset + i;
            const bool inside = row >= 0 && row < h.size;
            at[i] = inside ? origin + row * image.row : outside();
            channel[i] = inside ? image.channel : 0;
        }
        for (int part = 0; part < PARTS; ++part) {
            const index first = column + STEP * part, length = STEP * run.count;
            const index begin = larger(0, -first), end = smaller(length, w.size - first);
            std::uint64_t inside = 0;
            if (begin < end)
                inside = (~std::uint64_t(0) >> (64 - (end - begin)) << (STEP * run.lane + begin)) & tiles(part);
            for (int q = 0; q < STEP; ++q) mask[part][q] = inside >> q * LANES<float> & bits(0, LANES<float>);
        }
    }

private:
    // A bit for every number of a part that belongs to the tile at which it is read.
    static constexpr std::uint64_t tiles(int part) {
        std::uint64_t numbers = 0;
        for (int i = 0; i < 64; ++i) numbers |= std::uint64_t(i % STEP < SIDE - STEP * part) << i;
        return numbers;
    }
    static T* outside() {
        static const typename RemoveConst<T>::type zeros[STEP * LANES<float> + SIDE] = {};
        return const_cast<T*>(zeros);  // never written to, because its channel stride is 0
    }
};

// The numbers of a vector of tiles in a channel; zero outside the image.
template <int SIDE, int STEP>
inline void load_rows(const RowRun<SIDE, STEP, const float>* begin, const RowRun<SIDE, STEP, const float>* end,
                      index channel, Vec<float> (&d)[SIDE][SIDE]) {
#pragma GCC unroll 6
    for (int i = 0; i < SIDE; ++i)
#pragma GCC unroll 2
        for (int h = 0; h < begin->PARTS; ++h) {
            Vec<float> v[STEP];
            const float* from = begin->at[i] + channel * begin->channel[i] + STEP * h;
#pragma GCC unroll 4
            for (int q = 0; q < STEP; ++q) v[q] = load_masked(from + q * LANES<float>, begin->mask[h][q]);
            for (auto run = begin + 1; run < end; ++run) {
                from = run->at[i] + channel * run->channel[i] + STEP * h;
#pragma GCC unroll 4
                for (int q = 0; q < STEP; ++q)
                    if (run->mask[h][q])
                        v[q] = either(v[q], load_masked(from + q * LANES<float>, run->mask[h][q]));
            }
            part(v);
#pragma GCC unroll 4
            for (int q = 0; q < STEP; ++q)
                if (STEP * h + q < SIDE) d[i][STEP * h + q] = v[q];
        }
}

// Stores or accumulates them.
template <int SIDE, int STEP>
inline void store_rows(const RowRun<SIDE, STEP, float>* begin, const RowRun<SIDE, STEP, float>* end, index channel,
                       const Vec<float> (&y)[SIDE][SIDE], bool add) {
#pragma GCC unroll 6
    for (int i = 0; i < SIDE; ++i)
#pragma GCC unroll 2
        for (int h = 0; h < begin->PARTS; ++h) {
            Vec<float> v[STEP];
#pragma GCC unroll 4
            for (int q = 0; q < STEP; ++q) v[q] = STEP * h + q < SIDE ? y[i][STEP * h + q] : Vec<float>{};
            join(v);
            for (auto run = begin; run < end; ++run) {
                if (!run->channel[i]) continue;
                float* to = run->at[i] + channel * run->channel[i] + STEP * h;
#pragma GCC unroll 4
                for (int q = 0; q < STEP; ++q)
                    if (run->mask[h][q]) store_masked(to + q * LANES<float>, run->mask[h][q], v[q], add);
            }
        }
}

// SIDE x SIDE numbers of each of a block's tiles, which are STEP apart.
template <int SIDE, int STEP, class T>
class Patches {
    using Number = typename RemoveConst<T>::type;
    using Row = RowRun<SIDE, STEP, T>;
    static constexpr index NUMBERS = SIDE * SIDE;
    static constexpr bool IN_ROWS = sizeof(T) == 4;

public:
    Patches(const Image<T>& image, const Axis& height, const Axis& width, Carver& scratch)
        : image_(image),
          height_(height),
          width_(width),
          in_rows_(IN_ROWS && image.column == 1),
          spans_(scratch.take<Span>(in_rows_ ? 0 : NUMBERS * BLOCK_TILES<Number>)),
          rows_(scratch.take<Row>(in_rows_ ? BLOCK_TILES<Number> : 0)) {}

    __attribute__((noinline)) void move_to(const Run* runs, const index* start) {
        start_ = start;
        runs_ = start[WINOGRAD_VECTORS];
        if (in_rows_)
            for (index r = 0; r < runs_; ++r) rows_[r].move_to(runs[r], image_, height_, width_);
        else find_spans(runs, runs_, image_, height_, width_, Block{0, 1, 0, NUMBERS}, false, spans_);
    }

    // The tiles of vector v in a channel; zero outside the image.
    void load(index channel, index v, Vec<Number> (&d)[SIDE][SIDE]) const {
        if constexpr (IN_ROWS)
            if (in_rows_) return load_rows(rows_ + start_[v], rows_ + start_[v + 1], channel, d);
        load_singly(channel, v, d);
    }

    void store(index channel, index v, const Vec<Number> (&y)[SIDE][SIDE]) const {
        put(channel, v, y, false);
    }
    void add(index channel, index v, const Vec<Number> (&y)[SIDE][SIDE]) const {
        put(channel, v, y, true);
    }

private:
    void load_singly(index channel, index v, Vec<Number> (&d)[SIDE][SIDE]) const {
        const T* plane = image_.data + channel * image_.channel;
        for (int i = 0; i < SIDE; ++i)
            for (int j = 0; j < SIDE; ++j)
                d[i][j] = gather<STRIDED>(begin(i, j, v), end(i, j, v), plane, lane_stride());
    }
    const Span* begin(int i, int j, index v) const { return spans_ + (i * SIDE + j) * runs_ + start_[v]; }
    const Span* end(int i, int j, index v) const { return spans_ + (i * SIDE + j) * runs_ + start_[v + 1]; }
    index lane_stride() const { return STEP * image_.column; }

    void put(index channel, index v, const Vec<Number> (&y)[SIDE][SIDE], bool add) const {
        if constexpr (IN_ROWS)
            if (in_rows_) return store_rows(rows_ + start_[v], rows_ + start_[v + 1], channel, y, add);
        put_singly(channel, v, y, add);
    }
    void put_singly(index channel, index v, const Vec<Number> (&y)[SIDE][SIDE], bool add) const {
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
    const bool in_rows_;
    Span* const spans_;
    Row* const rows_;
    const index* start_;
    index runs_;
};

}  // namespace mulfree::MULFREE_ISA
