// Implicit im2col: a packed tile holds, for a few dozen consecutive pixels, one row of vectors per (channel,
// tap), gathered straight from the strided source. What lies outside of it counts as zero.
#pragma once

#include "operation.hpp"
#include "spans.hpp"

namespace mulfree::MULFREE_ISA {

constexpr index MACRO_PACKED = 8;  // packed tiles that are packed side by side, at most
constexpr index MACRO_VECTORS = MACRO_PACKED * PACKED_VECTORS;

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

// Rows (channel, position) of the packed tiles, `packed_size` apart; the columns are added up into the sums of
// every vector. A row of all packed tiles, and then the next: so x is read along its planes. ONE packed tile keeps
// its sums in registers.
template <class Op, Access ACCESS, bool ONE, class T = typename Op::Operand>
inline void pack_rows(const PixelMap& map, const T* x, index channel_stride, const Block& block, T* pixels,
                      index packed_size, ColumnSums<Op>* sums) {
    const bool close = map.lane_stride == 1 || map.lane_stride == 2;
    const index ahead = close && ONE ? 2 * channel_stride : 0;
    ColumnSums<Op> own[PACKED_VECTORS] = {};
    for (index c = 0; c < block.channels; ++c, x += channel_stride) {
        const Span* spans = map.spans + (map.kind ? (map.kind[c] - map.first_kind) * map.runs : 0);
        for (index t = 0; t < block.positions; ++t, spans += map.runs, pixels += PACKED_VECTORS * LANES<T>) {
            T* to = pixels;
            const index* start = map.start;
            for (index q = 0; q < (ONE ? 1 : map.packed_tiles); ++q, start += PACKED_VECTORS, to += packed_size) {
                const auto put = [&](int v, const Span* first, const Span* last) {
                    const Vec<T> row = Op::packed(gather<ACCESS>(first, last, x, map.lane_stride));
                    store(to + v * LANES<T>, row);
                    if (ahead && first != last) prefetch(x, ahead + first->offset);
                    if constexpr (ONE) own[v].add(row);
                    else sums[q * PACKED_VECTORS + v].add(row);
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
    if constexpr (ONE && Op::COLUMN_SUMS > 0)
#pragma GCC unroll 12
        for (int v = 0; v < PACKED_VECTORS; ++v) sums[v] = own[v];
}

// The same for a straight macro-tile; MASKED: the spans say which pixels are inside.
template <class Op, bool MASKED, class T = typename Op::Operand>
inline void pack_straight(const PixelMap& map, const T* x, index channel_stride, const Block& block, T* pixels,
                          index packed_size, ColumnSums<Op>* sums) {
    for (index c = 0; c < block.channels; ++c, x += channel_stride, pixels += PACKED_VECTORS * LANES<T>) {
        const Span* span = map.spans + (MASKED ? (map.kind[c] - map.first_kind) * map.runs : 0);
        const T* from = x + span->offset;
        T* to = pixels;
        index vector = 0;
        for (index q = 0; q < map.packed_tiles; ++q, to += packed_size)
#pragma GCC unroll 12
            for (int v = 0; v < PACKED_VECTORS; ++v, ++vector, from += LANES<T>) {
                const Vec<T> row = Op::packed(MASKED ? load_masked(from, span[vector].mask) : load(from));
                store(to + v * LANES<T>, row);
                sums[vector].add(row);
            }
    }
}

template <class Op, bool ONE, class T = typename Op::Operand>
inline void pack(const PixelMap& map, const T* x, index channel_stride, const Block& block, T* pixels,
                 index packed_size, ColumnSums<Op>* sums) {
    const auto rows = [&] {
        if (map.straight) return map.kind ? pack_straight<Op, true> : pack_straight<Op, false>;
        return with_access<T>(map.lane_stride, [](auto way) { return pack_rows<Op, Access(way.value), ONE>; });
    }();
    rows(map, x, channel_stride, block, pixels, packed_size, sums);
}

}  // namespace mulfree::MULFREE_ISA
