// Implicit im2col: a packed tile holds, for a few dozen consecutive pixels, one row of vectors per
// (channel, tap), gathered straight from the strided source with its zero padding.
//
// Pixels are numbered through rows, planes and images, so small planes fill the vectors as well as
// large ones. Lanes of one vector that lie in one row form a Run; a Run at one tap becomes a Span: an
// address for lane 0 and a mask of the lanes that are inside the source. Spans depend on the tap, not on
// the channel, so they are worked out once a packed tile and used for every channel.
#pragma once

#include "words.hpp"

namespace mulfree::MULFREE_ISA {

constexpr index MACRO_PACKED = 8;  // packed tiles that are packed together, at most
constexpr index MACRO_VECTORS = MACRO_PACKED * PACKED_VECTORS;

struct Run {
    index image, row, column;  // of the first pixel
    int vector, lane, count;
};

struct Span {
    index offset;        // of lane 0, in elements
    std::uint32_t mask;  // lanes to read
    std::uint32_t wide;  // the same mask over elements when lanes lie two elements apart
};

// Runs of pixels [begin, begin + count) of (batch, height, width), `lanes` to a vector; start[v] is the
// first run of vector v. Returns the number of runs.
inline index find_runs(index height, index width, index begin, index count, index lanes,
                       index vectors, Run* runs, index* start) {
    index image = begin / (height * width);
    index row = begin / width % height;
    index column = begin % width;
    index found = 0;
    for (index v = 0; v < vectors; ++v) {
        start[v] = found;
        for (index lane = 0; lane < lanes && count > 0;) {
            const index length = smaller(smaller(lanes - lane, width - column), count);
            runs[found++] = {image, row, column, int(v), int(lane), int(length)};
            lane += length;
            count -= length;
            column += length;
            if (column == width) {
                column = 0;
                if (++row == height) row = 0, ++image;
            }
        }
    }
    start[vectors] = found;
    return found;
}

// Bits [first, last), of at most 32.
inline std::uint32_t bits(index first, index last) {
    return std::uint32_t((std::uint64_t(1) << last) - (std::uint64_t(1) << first));
}

inline Span make_span(index offset, index first, index last) {
    return {offset, bits(first, last), bits(2 * first, 2 * last) & 0x55555555u};
}

// The spans of a run at tap (i, j) of the source. (Divisions only where a row meets the border.)
template <class T>
inline Span source_span(const Run& run, const Image<T>& x, const Axis& h, const Axis& w, index i,
                        index j) {
    const index row = run.row * h.step + h.offset + i * h.tap_step;
    const index column = run.column * w.step + w.offset + j * w.tap_step;
    index first = 0, last = run.count;
    if (row < 0 || row >= h.size) last = 0;
    if (column < 0) first = smaller(last, ceil_div(-column, w.step));
    if (column + (run.count - 1) * w.step >= w.size)
        last = smaller(last, column >= w.size ? 0 : ceil_div(w.size - column, w.step));
    const index lane_0 = run.image * x.batch + row * x.row + column * x.column -
                         run.lane * w.step * x.column;
    return first < last ? make_span(lane_0, run.lane + first, run.lane + last) : Span{0, 0, 0};
}

// The span of a run among the output's own pixels.
template <class T>
inline Span pixel_span(const Run& run, const Image<T>& y) {
    const index offset = run.image * y.batch + run.row * y.row + run.column * y.column;
    return make_span(offset - run.lane * y.column, run.lane, run.lane + run.count);
}

// How far apart the lanes of a span lie decides how they are read. EVEN: two apart, where there are
// instructions for it.
enum Access { CONTIGUOUS, EVEN, STRIDED };

// Calls f(Constant) of the way to read lanes of T that far apart.
template <class T, class F>
inline auto with_access(index lane_stride, F f) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
        if (lane_stride == 2) return f(Constant<EVEN>());
#endif
    return lane_stride == 1 ? f(Constant<CONTIGUOUS>()) : f(Constant<STRIDED>());
}

// Calls f for every lane of a span.
template <index MOST, class F>
inline void for_each_lane(const Span& span, F f) {
    for (index l = 0; l < MOST; ++l)
        if (span.mask >> l & 1) f(l);
}

#if defined(__AVX512F__)
// The offsets of sixteen lanes, for the instructions that gather and scatter.
inline bool reaches(index lane_stride) { return lane_stride < (1 << 27) && lane_stride > -(1 << 27); }
inline __m512i lane_offsets(index lane_stride) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_mullo_epi32(lanes, _mm512_set1_epi32(int(lane_stride)));
}
#endif

// The lanes of a mask from p on, zero in the others.
template <class T>
inline Vec<T> load_masked(const T* p, std::uint32_t mask) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_loadu_ps(mask, p);
    else return (Vec<T>)_mm512_maskz_loadu_pd(mask, p);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) {
        const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        const __m256i lanes = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(mask)), bit), bit);
        return (Vec<T>)_mm256_maskload_ps((const float*)p, lanes);
    } else {
        const __m256i bit = _mm256_setr_epi64x(1, 2, 4, 8);
        const __m256i lanes = _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(mask), bit), bit);
        return (Vec<T>)_mm256_maskload_pd((const double*)p, lanes);
    }
#else
    if (mask == bits(0, LANES<T>)) return load(p);
    T lane[LANES<T>] = {};
    for (index l = 0; l < LANES<T>; ++l)
        if (mask >> l & 1) lane[l] = p[l];
    return load(lane);
#endif
}

// One vector of the packed tile; lanes outside the source are zero.
template <Access ACCESS, class T>
inline Vec<T> gather(const Span* span, const Span* end, const T* base, index lane_stride) {
    [[maybe_unused]] Vec<T> v{};
    if constexpr (ACCESS == CONTIGUOUS) {
        for (; span != end; ++span) v = either(v, load_masked(base + span->offset, span->mask));
        return v;
    }
#if defined(__AVX512F__)
    if constexpr (ACCESS == EVEN) {
        const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        for (; span != end; ++span) {
            const T* p = base + span->offset;
            const __m512 low = _mm512_maskz_loadu_ps(span->wide & 0xffff, p);
            const __m512 high = _mm512_maskz_loadu_ps(span->wide >> 16, p + 16);
            v = (Vec<T>)_mm512_mask_mov_ps((__m512)v, span->mask,
                                           _mm512_permutex2var_ps(low, even, high));
        }
        return v;
    }
    if constexpr (ACCESS == STRIDED && sizeof(T) == 4)
        if (reaches(lane_stride)) {
            const __m512i lanes = lane_offsets(lane_stride);
            for (; span != end; ++span)
                v = (Vec<T>)_mm512_mask_i32gather_ps((__m512)v, span->mask, lanes, base + span->offset, 4);
            return v;
        }
#endif
    T lane[LANES<T>] = {};
    for (; span != end; ++span)
        for_each_lane<LANES<T>>(*span, [&](index l) { lane[l] = base[span->offset + l * lane_stride]; });
    return load(lane);
}

// The reverse of gather: the masked lanes of v go to y.
template <class T>
inline void scatter(const Span* span, const Span* end, T* base, index lane_stride, Vec<T> v) {
#if defined(__AVX512F__)
    if (lane_stride == 1) {
        for (; span != end; ++span) {
            T* p = base + span->offset;
            if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, span->mask, (__m512)v);
            else _mm512_mask_storeu_pd(p, span->mask, (__m512d)v);
        }
        return;
    }
    if constexpr (sizeof(T) == 4)
        if (lane_stride == 2) {
            const __m512i low = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
            const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
            for (; span != end; ++span) {
                T* p = base + span->offset;
                _mm512_mask_storeu_epi32(p, span->wide & 0xffff, _mm512_permutexvar_epi32(low, (__m512i)v));
                _mm512_mask_storeu_epi32(p + 16, span->wide >> 16,
                                         _mm512_permutexvar_epi32(high, (__m512i)v));
            }
            return;
        }
    if constexpr (sizeof(T) == 4)
        if (reaches(lane_stride)) {
            const __m512i lanes = lane_offsets(lane_stride);
            for (; span != end; ++span)
                _mm512_mask_i32scatter_ps(base + span->offset, span->mask, lanes, (__m512)v, 4);
            return;
        }
#endif
    T lane[LANES<T>];
    store(lane, v);
    for (; span != end; ++span)
        for_each_lane<LANES<T>>(*span, [&](index l) { base[span->offset + l * lane_stride] = lane[l]; });
}

// A block of the reduction: channels [channel, channel + channels) at kernel positions
// [position, position + positions); position i * taps_w + j is tap (i, j).
struct Block {
    index channel, channels, position, positions;
    index taps() const { return channels * positions; }
};

// Spans of every run at every kernel position of a block, position by position.
template <class T>
inline void find_spans(const Run* runs, index count, const Image<T>& x, const Axis& h, const Axis& w,
                       const Block& block, Span* spans) {
    for (index t = 0; t < block.positions; ++t) {
        const index i = (block.position + t) / w.taps, j = (block.position + t) % w.taps;
        for (index r = 0; r < count; ++r) *spans++ = source_span(runs[r], x, h, w, i, j);
    }
}

// Runs of the pixels of an image seen displaced: where all pixels are inside or have a bit that says so,
// rows do not matter, and a plane is one row.
inline index find_shifted_runs(const Shifts& s, index begin, index count, index lanes, index vectors,
                               Run* runs, index* start) {
    const index height = s.height.pixels, width = s.width.pixels;
    return s.inside ? find_runs(1, height * width, begin, count, lanes, vectors, runs, start)
                    : find_runs(height, width, begin, count, lanes, vectors, runs, start);
}

// The spans of every run, displacement by displacement.
template <class T>
inline void find_shifted_spans(const Run* runs, index count, const Image<T>& x, const Shifts& s,
                               index first, index last, Span* spans) {
    for (index k = first; k < last; ++k) {
        const index offset = s.row[k] * x.row + s.column[k] * x.column;
        Axis h = s.height, w = s.width;
        h.offset = s.row[k], w.offset = s.column[k];
        for (index r = 0; r < count; ++r, ++spans) {
            if (!s.inside) {
                *spans = source_span(runs[r], x, h, w, 0, 0);
                continue;
            }
            const Run& run = runs[r];
            std::uint32_t bits;
            __builtin_memcpy(&bits, s.inside + k * s.inside_bytes + run.column / 8, sizeof bits);
            bits = (bits >> run.column % 8 & ((1u << run.count) - 1)) << run.lane;
            *spans = {run.image * x.batch + run.column - run.lane + offset, bits, 0};
        }
    }
}

// What pack needs to know of the pixels of a macro-tile.
struct PixelMap {
    index packed_tiles;
    const index* start;  // first run of each vector
    const bool* single;  // the packed tiles whose every vector is one run
    bool straight;       // the vectors are whole and follow one another in x
    index runs;
    const Span* spans;   // [position][run]
    index lane_stride;
    const index* kind = nullptr;  // where spans are [kind][run], that of every channel,
    index first_kind = 0;         // and the kind of the first span
};

// The kinds of displacement whose spans serve a block: all of them, which then serve every block, or one
// for each of its channels; none without shifts.
struct BlockKinds {
    index first, end;
    BlockKinds(const Shifts* s, const Block& block) : first(0), end(s ? s->kinds : 0) {
        if (end >= MOST_KINDS) first = block.channel, end = block.channel + block.channels;
    }
};

// What SUMS adds up of the pixels of a packed tile: their sum, and the sum of the magnitudes of floats.
template <class T>
constexpr bool HAS_MAGNITUDE = T(0.5) != 0;

template <class V>
inline void add_sums(V& sum, V& magnitude, V x) {
    sum += x, magnitude += abs(x);
}

// Rows (channel, position) of the packed tiles, `packed_size` apart; with SUMS, added up into the sum and the
// magnitude of every vector. A row of all packed tiles, and then the next: so x is read along its planes. ONE packed tile
// keeps its sums in registers.
template <Access ACCESS, bool SUMS, bool ONE, class T>
inline void pack_rows(const PixelMap& map, const T* x, index channel_stride, const Block& block,
                      T* pixels, index packed_size, Vec<T>* sum, Vec<T>* magnitude) {
    const bool close = map.lane_stride == 1 || map.lane_stride == 2;
    const index ahead = close && ONE ? 2 * channel_stride : 0;
    Vec<T> s[PACKED_VECTORS] = {}, m[PACKED_VECTORS] = {};
    for (index c = 0; c < block.channels; ++c, x += channel_stride) {
        const Span* spans = map.spans + (map.kind ? (map.kind[c] - map.first_kind) * map.runs : 0);
        for (index t = 0; t < block.positions; ++t, spans += map.runs, pixels += PACKED_VECTORS * LANES<T>) {
            T* to = pixels;
            const index* start = map.start;
            for (index q = 0; q < (ONE ? 1 : map.packed_tiles); ++q, start += PACKED_VECTORS, to += packed_size) {
                const auto put = [&](int v, const Span* first, const Span* last) {
                    const Vec<T> row = gather<ACCESS>(first, last, x, map.lane_stride);
                    store(to + v * LANES<T>, row);
                    if (ahead && first != last) prefetch(x, ahead + first->offset);
                    if constexpr (SUMS && ONE) add_sums(s[v], m[v], row);
                    if constexpr (SUMS && !ONE)
                        add_sums(sum[q * PACKED_VECTORS + v], magnitude[q * PACKED_VECTORS + v], row);
                };
                const Span* single = spans + *start;
                if (map.single[q])
#pragma GCC unroll 12
                    for (int v = 0; v < PACKED_VECTORS; ++v) put(v, single + v, single + v + 1);
                else
#pragma GCC unroll 12
                    for (int v = 0; v < PACKED_VECTORS; ++v) put(v, spans + start[v], spans + start[v + 1]);
            }
        }
    }
    if constexpr (SUMS && ONE)
#pragma GCC unroll 12
        for (int v = 0; v < PACKED_VECTORS; ++v) sum[v] = s[v], magnitude[v] = m[v];
}

// The same for a straight macro-tile; MASKED: the spans say which pixels are inside.
template <bool MASKED, bool SUMS, class T>
inline void pack_straight(const PixelMap& map, const T* x, index channel_stride, const Block& block,
                          T* pixels, index packed_size, Vec<T>* sum, Vec<T>* magnitude) {
    for (index c = 0; c < block.channels; ++c, x += channel_stride, pixels += PACKED_VECTORS * LANES<T>) {
        const Span* span = map.spans + (MASKED ? (map.kind[c] - map.first_kind) * map.runs : 0);
        const T* from = x + span->offset;
        T* to = pixels;
        index vector = 0;
        for (index q = 0; q < map.packed_tiles; ++q, to += packed_size)
#pragma GCC unroll 12
            for (int v = 0; v < PACKED_VECTORS; ++v, ++vector, from += LANES<T>) {
                const Vec<T> row = MASKED ? load_masked(from, span[vector].mask) : load(from);
                store(to + v * LANES<T>, row);
                if constexpr (SUMS) add_sums(sum[vector], magnitude[vector], row);
            }
    }
}

template <bool SUMS, bool ONE, class T>
inline void pack(const PixelMap& map, const T* x, index channel_stride, const Block& block, T* pixels,
                 index packed_size, Vec<T>* sum, Vec<T>* magnitude) {
    const auto rows = [&] {
        if (map.straight) return map.kind ? pack_straight<true, SUMS, T> : pack_straight<false, SUMS, T>;
        return with_access<T>(map.lane_stride, [](auto way) { return pack_rows<Access(way.value), SUMS, ONE, T>; });
    }();
    rows(map, x, channel_stride, block, pixels, packed_size, sum, magnitude);
}

}  // namespace mulfree::MULFREE_ISA
