// Implicit im2col: a packed tile holds, for a few dozen consecutive pixels, one row of vectors per (channel,
// tap), gathered straight from the strided source. Outside it is zero.
#pragma once

#include "operation.hpp"
#include "spans.hpp"

namespace mulfree::MULFREE_ISA {

constexpr index MACRO_PACKED = 8;  // most packed tiles packed side by side
constexpr index MACRO_VECTORS = MACRO_PACKED * PACKED_VECTORS;

// A block of the reduction: channels [channel, channel + channels) at kernel positions
// [position, position + positions); position i * taps_w + j is tap (i, j).
struct Block {
    index channel, channels, position, positions;
    index taps() const { return channels * positions; }
};

// Whether rows of pixels are contiguous in x. Then lanes of a plane are one span.
template <class T>
inline bool rows_join(const Image<T>& x, const Axis& h, const Axis& w) {
    return h.step * x.row == w.pixels * w.step * x.column;
}

// Spans of every run at every kernel position of a block, position by position; `join`: one span for a vector's runs
// of an image.
template <class T>
__attribute__((noinline)) inline void find_spans(const Run* runs, index count, const Image<T>& x, const Axis& h,
                                                 const Axis& w, const Block& block, bool join, Span* spans) {
    for (index t = 0; t < block.positions; ++t) {
        const index i = (block.position + t) / w.taps, j = (block.position + t) % w.taps;
        for (index r = 0; r < count; ++r) {
            const Span span = source_span(runs[r], x, h, w, i, j);
            if (!join || r == 0 || !same_span(runs[r - 1], runs[r])) *spans++ = span;
            else if (span.mask) spans[-1] = {span.offset, spans[-1].mask | span.mask, spans[-1].wide | span.wide};
        }
    }
}

// Arguments of pack: the pixels of a macro-tile, and the layout of a packed block: groups of PACKED_VECTORS vectors,
// of which the last may have fewer, row by row.
struct PixelMap {
    index vectors;
    const index* start;  // first span of each vector
    const bool* single;  // the whole groups in which every vector is one span
    bool straight;       // the vectors are whole and contiguous in x
    index spans_a_row;
    const Span* spans;   // [position][span]
    index lane_stride;
    index row, group;    // elements from a packed row, or group, to the next
    index sums, sums_row;  // elements from one kind of sum, or the sums of one position, to the next
    const index* kind = nullptr;  // where spans are [kind][span], that of every channel,
    index first_kind = 0;         // and the kind of the first span
};

// Adds a row of a vector to its sums in memory, which are `apart`.
template <class Op, class T = typename Op::Operand>
inline void add_to_sums(T* sums, index apart, Vec<T> row, index channel) {
    if constexpr (Op::COLUMN_SUMS > 0) {
        ColumnSums<Op, T> sum;
        for (int n = 0; n < Op::COLUMN_SUMS; ++n) sum.part[n] = load(sums + n * apart);
        sum.add(row, channel);
        for (int n = 0; n < Op::COLUMN_SUMS; ++n) store(sums + n * apart, sum.part[n]);
    }
}

// Packs rows (channel, position) of the groups, and accumulates the column sums of every vector. Row by row over all
// groups, so that x is read along its planes. ONE whole group keeps its sums in registers.
template <class Op, Access ACCESS, bool ONE, class T = typename Op::Operand>
inline void pack_rows(const PixelMap& map, const T* x, index channel_stride, const Block& block, T* pixels, T* sums) {
    const bool close = map.lane_stride == 1 || map.lane_stride == 2;
    const index ahead = close ? 2 * channel_stride : 0;
    const index groups = ONE ? 1 : ceil_div(map.vectors, PACKED_VECTORS);
    ColumnSums<Op, T> own[PACKED_VECTORS] = {};
    for (index c = 0; c < block.channels; ++c, x += channel_stride) {
        const Span* spans = map.spans + (map.kind ? (map.kind[c] - map.first_kind) * map.spans_a_row : 0);
        for (index t = 0; t < block.positions; ++t, spans += map.spans_a_row, pixels += map.row) {
            T *to = pixels, *sum = sums + t * map.sums_row;
            const index* start = map.start;
            for (index q = 0; q < groups; ++q, start += PACKED_VECTORS, to += map.group) {
                const index size = ONE ? PACKED_VECTORS : smaller(PACKED_VECTORS, map.vectors - q * PACKED_VECTORS);
                const auto put = [&](index v, const Span* first, const Span* last) {
                    const Vec<T> row = Op::packed(gather<ACCESS>(first, last, x, map.lane_stride));
                    store(to + v * LANES<T>, row);
                    if (ahead && first != last) prefetch(x, ahead + first->offset);
                    if constexpr (ONE) own[v].add(row, c);
                    else add_to_sums<Op>(sum + (q * PACKED_VECTORS + v) * LANES<T>, map.sums, row, c);
                };
                const Span* single = spans + *start;
                if (map.single[q])
#pragma GCC unroll 12
                    for (int v = 0; v < PACKED_VECTORS; ++v) put(v, single + v, single + v + 1);
                else
#pragma GCC unroll 3
                    for (index v = 0; v < size; ++v) put(v, spans + start[v], spans + start[v + 1]);
            }
        }
    }
    if constexpr (ONE && Op::COLUMN_SUMS > 0)
        for (int v = 0; v < PACKED_VECTORS; ++v)
#pragma GCC unroll 12
            for (int n = 0; n < Op::COLUMN_SUMS; ++n) store(sums + n * map.sums + v * LANES<T>, own[v].part[n]);
}

// The same for a straight macro-tile; MASKED: with the spans' masks of pixels inside.
template <class Op, bool MASKED, class T = typename Op::Operand>
inline void pack_straight(const PixelMap& map, const T* x, index channel_stride, const Block& block, T* pixels,
                          T* sums) {
    for (index c = 0; c < block.channels; ++c, x += channel_stride, pixels += map.row) {
        const Span* span = map.spans + (MASKED ? (map.kind[c] - map.first_kind) * map.spans_a_row : 0);
        const T* from = x + span->offset;
        T *to = pixels, *sum = sums;
        for (index q = 0; q < map.vectors / PACKED_VECTORS; ++q, to += map.group)
#pragma GCC unroll 12
            for (int v = 0; v < PACKED_VECTORS; ++v, ++span, from += LANES<T>, sum += LANES<T>) {
                const Vec<T> row = Op::packed(MASKED ? load_masked(from, span->mask) : load(from));
                store(to + v * LANES<T>, row);
                add_to_sums<Op>(sum, map.sums, row, c);
            }
    }
}

// Operations whose packed rows are those of x, without sums, share their code, which is long.
template <class Op, class T = typename Op::Operand>
using SharedPacking = std::conditional_t<Op::CONVERTS || Op::COLUMN_SUMS, Op, Operation<T, T, T>>;

// Packs a block; its sums are zeroed and accumulated in memory.
template <class Op, class T = typename Op::Operand>
inline void pack(const PixelMap& map, const T* x, index channel_stride, const Block& block, T* pixels, T* sums) {
    using Packing = SharedPacking<Op>;
    const auto rows = [&] {
        if (map.straight) return map.kind ? pack_straight<Packing, true> : pack_straight<Packing, false>;
        return with_access<T>(map.lane_stride, [&](auto way) {
            const bool one = map.vectors == PACKED_VECTORS && !map.sums_row;
            return one ? pack_rows<Packing, Access(way.value), true> : pack_rows<Packing, Access(way.value), false>;
        });
    }();
    rows(map, x, channel_stride, block, pixels, sums);
}

}  // namespace mulfree::MULFREE_ISA
