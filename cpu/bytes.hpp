// uint8 operands: several taps of a pixel share one lane (a cell), so that one instruction sums them.
// AVX-512 VNNI: four taps in 32 bits, sum of max by vpdpbusd with ones. Elsewhere: eight taps in 64
// bits, sum of absolute differences by psadbw.
#pragma once

#include "panel.hpp"

namespace mulfree::MULFREE_ISA {

#if defined(__AVX512VNNI__)

using ByteCell = std::uint32_t;
constexpr bool BYTE_SUMS = true;  // the operation sums max(x, w), and so needs the sums of x and w

inline Vec<ByteCell> add_bytes(Vec<ByteCell> total, Vec<ByteCell> x) {
    return (Vec<ByteCell>)_mm512_dpbusd_epi32((__m512i)total, (__m512i)x, _mm512_set1_epi8(1));
}

struct Bytes {
    static Vec<ByteCell> term(Vec<ByteCell> total, Vec<ByteCell> x, Vec<ByteCell> w) {
        return add_bytes(total, (Vec<ByteCell>)_mm512_max_epu8((__m512i)x, (__m512i)w));
    }
};

template <Access ACCESS>
inline __m128i gather_bytes(const Span* span, const Span* end, const std::uint8_t* base,
                            index lane_stride) {
    __m128i v = _mm_setzero_si128();
    if constexpr (ACCESS == CONTIGUOUS) {
        for (; span != end; ++span) v = _mm_mask_loadu_epi8(v, span->mask, base + span->offset);
        return v;
    }
    if constexpr (ACCESS == EVEN) {
        for (; span != end; ++span) {
            const __m256i both = _mm256_maskz_loadu_epi8(span->wide, base + span->offset);
            v = _mm_mask_mov_epi8(v, span->mask, _mm256_cvtepi16_epi8(both));
        }
        return v;
    }
    std::uint8_t lane[16] = {};
    for (; span != end; ++span) gather_lanes(lane, *span, base, lane_stride);
    return _mm_loadu_si128((const __m128i*)lane);
}

// Four taps of sixteen pixels, turned into sixteen cells.
inline void store_cells(ByteCell* cells, const __m128i tap[4]) {
    const __m128i a = _mm_unpacklo_epi8(tap[0], tap[1]), b = _mm_unpackhi_epi8(tap[0], tap[1]);
    const __m128i c = _mm_unpacklo_epi8(tap[2], tap[3]), d = _mm_unpackhi_epi8(tap[2], tap[3]);
    __m128i* to = (__m128i*)cells;
    _mm_storeu_si128(to + 0, _mm_unpacklo_epi16(a, c));
    _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(a, c));
    _mm_storeu_si128(to + 2, _mm_unpacklo_epi16(b, d));
    _mm_storeu_si128(to + 3, _mm_unpackhi_epi16(b, d));
}

#else

using ByteCell = std::uint64_t;
constexpr bool BYTE_SUMS = false;

inline Vec<ByteCell> add_bytes(Vec<ByteCell> total, Vec<ByteCell>) { return total; }

struct Bytes {
    static Vec<ByteCell> term(Vec<ByteCell> total, Vec<ByteCell> x, Vec<ByteCell> w) {
#if defined(__AVX2__)
        return total + (Vec<ByteCell>)_mm256_sad_epu8((__m256i)x, (__m256i)w);
#elif defined(__SSE2__)
        return total + (Vec<ByteCell>)_mm_sad_epu8((__m128i)x, (__m128i)w);
#else
        const auto a = (Vec<std::uint8_t>)x, b = (Vec<std::uint8_t>)w;
        for (index i = 0; i < VECTOR_BYTES; ++i) total[i / 8] += a[i] > b[i] ? a[i] - b[i] : b[i] - a[i];
        return total;
#endif
    }
};

struct ByteLanes {
    std::uint8_t lane[LANES<ByteCell>];
};

template <Access>
inline ByteLanes gather_bytes(const Span* span, const Span* end, const std::uint8_t* base,
                              index lane_stride) {
    ByteLanes v = {};
    for (; span != end; ++span) gather_lanes(v.lane, *span, base, lane_stride);
    return v;
}

inline void store_cells(ByteCell* cells, const ByteLanes tap[8]) {
    auto* to = reinterpret_cast<std::uint8_t*>(cells);
    for (index l = 0; l < LANES<ByteCell>; ++l)
        for (index t = 0; t < 8; ++t) *to++ = tap[t].lane[l];
}

#endif

// The tap that goes into place `place` of a row, told by where its channel's data and its spans start.
struct ByteTap {
    const std::uint8_t* base;
    const Span* spans;
};

template <Access ACCESS>
using ByteVector = decltype(gather_bytes<ACCESS>(nullptr, nullptr, nullptr, 1));

template <Access ACCESS>
inline void pack_byte_row(const PixelMap& map, const ByteTap* taps, index real, ByteCell* row) {
    for (index v = 0; v < PANEL_VECTORS; ++v, row += LANES<ByteCell>) {
        ByteVector<ACCESS> lanes[sizeof(ByteCell)] = {};
        for (index t = 0; t < real; ++t)
            lanes[t] = gather_bytes<ACCESS>(taps[t].spans + map.start[v], taps[t].spans + map.start[v + 1],
                                            taps[t].base, map.lane_stride);
        store_cells(row, lanes);
    }
}

// The same where the taps of the row are one position of successive channels.
template <Access ACCESS>
inline void pack_channel_row(const PixelMap& map, const Span* spans, const std::uint8_t* x,
                             index channel_stride, ByteCell* row) {
    constexpr int CELL = sizeof(ByteCell);
    for (index v = 0; v < PANEL_VECTORS; ++v, row += LANES<ByteCell>) {
        const Span *first = spans + map.start[v], *last = spans + map.start[v + 1];
        ByteVector<ACCESS> lanes[CELL];
#pragma GCC unroll 8
        for (int k = 0; k < CELL; ++k)
            lanes[k] = gather_bytes<ACCESS>(first, last, x + k * channel_stride, map.lane_stride);
        for (int k = 0; k < CELL && ACCESS != STRIDED && first != last; ++k)
            prefetch(x, (CELL + k) * channel_stride + first->offset);
        store_cells(row, lanes);
    }
}

template <Access ACCESS>
inline void pack_byte_rows(const PixelMap& map, const std::uint8_t* x, index channel_stride,
                           const Block& block, bool by_channel, ByteCell* panel) {
    constexpr index CELL = sizeof(ByteCell), ROW = PANEL_VECTORS * LANES<ByteCell>;
    const index runs = map.start[PANEL_VECTORS];
    ByteTap taps[CELL];
    if (by_channel) {
        for (index c = 0; c < block.channels; c += CELL, x += CELL * channel_stride)
            for (index t = 0; t < block.positions; ++t, panel += ROW)
                pack_channel_row<ACCESS>(map, map.spans + t * runs, x, channel_stride, panel);
        return;
    }
    index position = 0;
    for (index tap = 0; tap < block.taps(); tap += CELL, panel += ROW) {
        const index real = smaller(CELL, block.taps() - tap);
        for (index k = 0; k < real; ++k) {
            taps[k] = {x, map.spans + position * runs};
            if (++position == block.positions) position = 0, x += channel_stride;
        }
        pack_byte_row<ACCESS>(map, taps, real, panel);
    }
}

// Rows of cells in the order that Blocking says; the taps the last row lacks are zero. With SUMS, adds
// every pixel's bytes into sum.
template <bool SUMS>
inline void pack_bytes(const PixelMap& map, const std::uint8_t* x, index channel_stride,
                       const Block& block, bool by_channel, ByteCell* panel, Vec<ByteCell>* sum) {
    const auto run = [&](auto rows) { rows(map, x, channel_stride, block, by_channel, panel); };
    switch (access(map.lane_stride)) {
    case CONTIGUOUS: run(pack_byte_rows<CONTIGUOUS>); break;
    case EVEN: run(pack_byte_rows<EVEN>); break;
    case STRIDED: run(pack_byte_rows<STRIDED>); break;
    }
    if constexpr (SUMS) {
        Vec<ByteCell> s[PANEL_VECTORS] = {};
        const index rows = ceil_div(block.taps(), index(sizeof(ByteCell)));
        for (index r = 0; r < rows; ++r)
            for (int v = 0; v < PANEL_VECTORS; ++v, panel += LANES<ByteCell>)
                s[v] = add_bytes(s[v], load(panel));
        for (int v = 0; v < PANEL_VECTORS; ++v) sum[v] += s[v];
    }
}

}  // namespace mulfree::MULFREE_ISA
