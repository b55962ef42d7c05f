// Locations of the pixels of a packed tile, in the source and in the output.
//
// Pixels are numbered through rows, planes and images, so that small planes fill the vectors too. Lanes of one vector
// in one row form a Run; a Run at one tap becomes a Span: an address for lane 0 and a mask of the lanes inside the
// image. Spans depend on the tap, not on the channel, so they are computed once for all channels.
#pragma once

#include "isa.hpp"

namespace mulfree::MULFREE_ISA {

struct Run {
    index image, row, column;  // of the first pixel
    int vector, lane, count;
};

struct Span {
    index offset;        // of lane 0, in elements
    std::uint32_t mask;  // lanes to read
    std::uint32_t wide;  // the same mask over elements for lanes two elements apart, in vectors of at most 16
};

// Runs of pixels [begin, begin + count) of (batch, height, width), `lanes` to a vector; start[v] is the
// first run of vector v. Returns the number of runs. (Not inlined, like others that are called once per tile, because
// compilation would take much longer.)
__attribute__((noinline)) inline index find_runs(index height, index width, index begin, index count, index lanes,
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

// Whether two successive runs are in one vector and one image.
inline bool same_span(const Run& a, const Run& b) { return a.vector == b.vector && a.image == b.image; }

// A mask of bits [first, last), at most 32.
inline std::uint32_t bits(index first, index last) {
    return std::uint32_t((std::uint64_t(1) << last) - (std::uint64_t(1) << first));
}

inline Span make_span(index offset, index first, index last) {
    return {offset, bits(first, last), bits(smaller(32, 2 * first), smaller(32, 2 * last)) & 0x55555555u};
}

// The spans of a run at tap (i, j) of the source. (Divisions only for rows at the border.)
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

// The stride of a span's lanes decides how they are read. EVEN: a stride of two, where there are instructions for it.
enum Access { CONTIGUOUS, EVEN, STRIDED };

// Calls f(Constant) with the way to read lanes of T with this stride.
template <class T, class F>
inline auto with_access(index lane_stride, F f) {
#if defined(__AVX2__)
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

#if defined(__AVX2__) && !defined(__AVX512F__)
// v in the lanes of a mask, zero in the others.
inline Vec<std::uint8_t> masked(Vec<std::uint8_t> v, std::uint32_t mask) {
    const __m256i byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x(std::int64_t(0x8040201008040201));
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(int(mask)), byte);
    return v & (Vec<std::uint8_t>)_mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
}
#endif

// Bytes have no masked loads: whole vectors are read, which needs this many bytes of room around them.
constexpr index ROOM = 2 * VECTOR_BYTES;

// The lanes of a mask from p on, zero in the others.
template <class T>
inline Vec<T> load_masked(const T* p, std::uint32_t mask) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_loadu_ps(mask, p);
    else return (Vec<T>)_mm512_maskz_loadu_pd(mask, p);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 1) {
        return masked(load(p), mask);
    } else if constexpr (sizeof(T) == 4) {
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

// Lanes at any stride, one by one.
template <class T>
__attribute__((noinline)) inline Vec<T> gather_singly(const Span* span, const Span* end, const T* base,
                                                      index lane_stride) {
    T lane[LANES<T>] = {};
    for (; span != end; ++span)
        for_each_lane<LANES<T>>(*span, [&](index l) { lane[l] = base[span->offset + l * lane_stride]; });
    return load(lane);
}

// Loads one vector of the packed tile; lanes outside the source are zero.
template <Access ACCESS, class T>
inline Vec<T> gather(const Span* span, const Span* end, const T* base, index lane_stride) {
    [[maybe_unused]] Vec<T> v{};
    if constexpr (ACCESS == CONTIGUOUS) {
        for (; span != end; ++span) v = either(v, load_masked(base + span->offset, span->mask));
        return v;
    }
#if defined(__AVX2__)
    if constexpr (ACCESS == EVEN) {
        for (; span != end; ++span) {
            const T* p = base + span->offset;
            if constexpr (sizeof(T) == 1) {
                v |= masked(even_lanes(load(p), load(p + LANES<T>)), span->mask);
            } else {
                const Vec<T> low = load_masked(p, span->wide);
                v = either(v, even_lanes(low, load_masked(p + LANES<T>, span->wide >> LANES<T>)));
            }
        }
        return v;
    }
#endif
#if defined(__AVX512F__)
    if constexpr (ACCESS == STRIDED && sizeof(T) >= 4)
        if (reaches(lane_stride)) {
            const __m512i lanes = lane_offsets(lane_stride);
            for (; span != end; ++span) {
                const T* p = base + span->offset;
                if constexpr (sizeof(T) == 4) v = (Vec<T>)_mm512_mask_i32gather_ps((__m512)v, span->mask, lanes, p, 4);
                else v = (Vec<T>)_mm512_mask_i32gather_pd((__m512d)v, span->mask, _mm512_castsi512_si256(lanes), p, 8);
            }
            return v;
        }
#endif
    return gather_singly(span, end, base, lane_stride);
}

// The inverse of gather: stores the masked lanes of v, as many as a vector of the source has, to y.
template <class T, index COUNT = LANES<T>>
inline void scatter(const Span* span, const Span* end, T* base, index lane_stride, Lanes<T, COUNT> v) {
#if defined(__AVX512F__)
    if constexpr (COUNT == LANES<T>) {
        if (lane_stride == 1) {
            for (; span != end; ++span) {
                T* p = base + span->offset;
                if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, span->mask, (__m512)v);
                else _mm512_mask_storeu_pd(p, span->mask, (__m512d)v);
            }
            return;
        }
    }
    if constexpr (COUNT == LANES<T> && sizeof(T) == 4) {
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
        if (reaches(lane_stride)) {
            const __m512i lanes = lane_offsets(lane_stride);
            for (; span != end; ++span)
                _mm512_mask_i32scatter_ps(base + span->offset, span->mask, lanes, (__m512)v, 4);
            return;
        }
    }
#endif
    const auto whole = [=](const Span& s) { return lane_stride == 1 && s.mask == bits(0, COUNT); };
    if (span + 1 == end && whole(*span)) return store_lanes(base + span->offset, v);  // the common case
    T lane[COUNT];
    store_lanes(lane, v);
    for (; span != end; ++span) {
        T* p = base + span->offset;
        if (whole(*span)) store_lanes(p, v);
        else for_each_lane<COUNT>(*span, [&](index l) { p[l * lane_stride] = lane[l]; });
    }
}

}  // namespace mulfree::MULFREE_ISA
