// The source of a macro-tile: its pixels, and the rows of x that they meet, packed a block at a time by the
// cheapest of the ways in source_*.hpp.
#pragma once

#include "packed_weights.hpp"
#include "source_shared_rows.hpp"
#include "source_shifted.hpp"

namespace mulfree::MULFREE_ISA {

template <class Op>
class Source {
    using X = typename Op::Operand;

public:
    static constexpr index ROW = PACKED_VECTORS * LANES<X>;  // pixels of a packed tile

    index count;               // of packed tiles
    index vectors;             // that have pixels
    X* pixels;                 // the packed block:
    index place[MACRO_VECTORS];  // where in it the vectors start,
    const index* tap;          // and what every tap adds to that
    ColumnSums<Op> sums[MACRO_VECTORS];
    const Run* runs;                 // of the pixels,
    index start[MACRO_VECTORS + 1];  // and the first one of every vector

    template <class Y>
    Source(const Convolution<X, Y>& p, const Blocking& blocking, index most, Carver& scratch)
        : height_(p.height), width_(p.width), x_(p.x), channels_(p.channels), shifts_(p.x_shifts),
          blocking_(blocking), shared_rows_(p.height, p.width, most * ROW, LANES<X>) {
        const index runs_ = most_runs(p.width, most);
        runs = own_runs_ = scratch.take<Run>(runs_);
        spans_ = scratch.take<Span>(larger(shared_rows_.spans(), runs_ * (shifts_
            ? larger(MOST_KINDS, blocking.rows()) : blocking.position_chunk)));
        matrix_tap_ = scratch.take<index>(blocking.rows());
        shared_tap_ = scratch.take<index>(blocking.rows());
        shared_sums_ = scratch.take<X>(Op::COLUMN_SUMS * shared_rows_.channel);
        pixels = scratch.take<X>(most * ROW * blocking.rows());
    }

    static index most_runs(const Axis& width, index most) {
        const index row = most * ROW;
        return smaller(row, most * PACKED_VECTORS + row / larger(1, width.pixels) + 2);
    }

    // Packed tiles that are worth packing side by side, which takes them through the second-level cache: many
    // where their taps share rows, or where x is read along a plane.
    static index most_packed(const Axis& height, const Axis& width) {
        const bool shared = SharedRows(height, width, MACRO_PACKED * ROW, LANES<X>).channel;
        return shared || height.taps * width.taps == 1 ? MACRO_PACKED : 1;
    }

    // Once the scratch memory is there.
    void begin() {
        for (index t = 0; t < blocking_.rows(); ++t) matrix_tap_[t] = t * ROW;
        if (blocking_.position_chunk == blocking_.positions)
            for (index t = 0; t < blocking_.rows(); ++t)
                shared_tap_[t] = t / blocking_.positions * shared_rows_.channel +
                                 shared_rows_.tap(height_, width_, t % blocking_.positions);
    }

    // To the pixels [first, first + length).
    void move_to(index first, index length) {
        vectors = ceil_div(length, LANES<X>);
        count = ceil_div(length, ROW);
        const index all = count * PACKED_VECTORS;
        if (shifts_) find_shifted_runs(*shifts_, first, length, LANES<X>, all, own_runs_, start);
        else find_runs(height_.pixels, width_.pixels, first, length, LANES<X>, all, own_runs_, start);
        spans_at_ = -1;
        straight_ = length % ROW == 0 && start[all] == all && runs[0].image == runs[all - 1].image &&
                    (shifts_ ? shifts_->inside != nullptr : along_a_row());
        shared_ = !shifts_ && blocking_.position_chunk == blocking_.positions &&
                  shared_rows_.cover(runs, start, vectors, height_, width_, place);
        if (shared_) {
            shared_rows_.find_spans(runs, start, vectors, x_, height_, width_, spans_);
            tap = shared_tap_;
        } else {
            for (index v = 0; v < all; ++v)
                place[v] = v / PACKED_VECTORS * blocking_.rows() * ROW + v % PACKED_VECTORS * LANES<X>;
            tap = matrix_tap_;
        }
        for (index q = 0; q < count; ++q) {
            single_[q] = true;
            for (index k = q * PACKED_VECTORS; k < (q + 1) * PACKED_VECTORS; ++k)
                single_[q] &= start[k + 1] == start[k] + 1;
        }
    }

    void clear_sums() {
        for (index v = 0; v < count * PACKED_VECTORS; ++v) sums[v] = {};
    }

    // Packs a block of a group's channels for an operation, which may be another of the same operands.
    template <class Packing>
    void pack(index group, const Block& block) {
        const X* x = x_.data + (group * channels_ + block.channel) * x_.channel;
        if (shared_) {
            with_access<X>(x_.column, [&](auto way) {
                pack_shared_rows<Packing, Access(way.value)>(spans_, shared_rows_, x, x_.channel, x_.column,
                                                             block.channels, pixels, shared_sums_);
            });
            if constexpr (Packing::COLUMN_SUMS > 0) add_shared_sums(block.positions);
            return;
        }
        const index runs_ = start[count * PACKED_VECTORS];
        PixelMap map{count, start, single_, straight_, runs_, spans_, width_.step * x_.column};
        if (shifts_) {
            const BlockKinds kinds(shifts_, block);
            if (spans_at_ != kinds.first)
                find_shifted_spans(runs, runs_, x_, *shifts_, kinds.first, kinds.end, spans_);
            spans_at_ = map.first_kind = kinds.first;
            map.kind = shifts_->kind + block.channel;
        } else if (spans_at_ != block.position) {
            find_spans(runs, runs_, x_, height_, width_, block, spans_);
            spans_at_ = block.position;
        }
        // A block's sums for themselves, as those of shared rows are: however x lies, they are rounded alike.
        const index size = blocking_.rows() * ROW;
        ColumnSums<Packing> block_sums[MACRO_VECTORS] = {};
        if (count > 1) mulfree::MULFREE_ISA::pack<Packing, false>(map, x, x_.channel, block, pixels, size, block_sums);
        else mulfree::MULFREE_ISA::pack<Packing, true>(map, x, x_.channel, block, pixels, size, block_sums);
        if constexpr (Packing::COLUMN_SUMS > 0)
            for (index v = 0; v < count * PACKED_VECTORS; ++v) sums[v] += block_sums[v];
    }

    // Calls f with what a tap adds to a vector's place, as a function that costs little.
    template <class F>
    void with_tap(F f) const {
        if (shared_) f([to = shared_tap_](index t) { return to[t]; });
        else f([](index t) { return t * ROW; });
    }

private:
    const Axis &height_, &width_;
    const Image<const X>& x_;
    const index channels_;
    const Shifts* shifts_;
    const Blocking& blocking_;
    SharedRows shared_rows_;
    Run* own_runs_;
    Span* spans_;
    index *matrix_tap_, *shared_tap_;  // the two tables `tap` may be
    X* shared_sums_;                   // sums of the shared rows over channels
    bool single_[MACRO_PACKED];        // the packed tiles whose every vector is one run
    bool shared_;                      // how x is packed
    bool straight_;                    // the vectors follow one another in x
    index spans_at_;

    // All pixels are one row of x, as flattened() makes them.
    bool along_a_row() const {
        const Axis &h = height_, &w = width_;
        return h.pixels * h.taps * w.taps * w.step * x_.column == 1 && h.offset >= 0 && h.offset < h.size &&
               w.offset == 0 && w.pixels == w.size;
    }

    // The sums over the windows, from the sums over the channels of a block.
    void add_shared_sums(index positions) {
        for (index v = 0; v < vectors; ++v)
            for (index t = 0; t < positions; ++t)
                for (int n = 0; n < Op::COLUMN_SUMS; ++n)
                    sums[v].part[n] += load(shared_sums_ + n * shared_rows_.channel + place[v] + shared_tap_[t]);
    }
};

}  // namespace mulfree::MULFREE_ISA
