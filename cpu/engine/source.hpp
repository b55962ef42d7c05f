// The source of a macro-tile: its pixels, and the rows of x that they read, packed a block at a time by the cheapest
// method in source_*.hpp.
#pragma once

#include "packed_weights.hpp"
#include "source_shared_rows.hpp"
#include "source_shifted.hpp"

namespace mulfree::MULFREE_ISA {

template <class Op>
class Source {
    using X = typename Op::Operand;
    using Sum = typename Op::Accumulator;

public:
    static constexpr index ROW = PACKED_VECTORS * LANES<X>;  // pixels of a packed tile

    index count;               // of packed tiles
    index vectors;  // not empty
    X* pixels;                 // the packed block:
    index place[MACRO_VECTORS];  // offsets of the vectors in it,
    index* tap;                // and of every term relative to these
    ColumnSums<Op> sums[MACRO_VECTORS * SUM_VECTORS<Op>];
    const Run* runs;                 // of the pixels,
    index start[MACRO_VECTORS + 1];  // and the first one of every vector

    template <class Y>
    Source(const Convolution<X, Y>& p, const Blocking& blocking, index most, Carver& scratch)
        : height_(p.height), width_(p.width), x_(p.x), channels_(p.channels), shifts_(p.x_shifts),
          blocking_(blocking), shared_rows_(p.height, p.width, most * ROW, LANES<X>),
          shared_(shared_rows_.copy && !shifts_ && blocking.position_chunk == blocking.positions),
          packed_height_(shared_ ? shared_rows_.height : height_),
          packed_width_(shared_ ? shared_rows_.width : width_) {
        const index size = shared_ ? shared_rows_.copy : most * ROW;  // of a packed row
        const index rows = shared_ ? shared_rows_.copies : blocking.position_chunk;
        runs = own_runs_ = scratch.take<Run>(most_runs(p.width, most * ROW));
        packed_runs_ = shared_ ? scratch.take<Run>(most_runs(packed_width_, size)) : own_runs_;
        span_start_ = scratch.take<index>(size / LANES<X> + 1);
        single_ = scratch.take<bool>(ceil_div(size, ROW));
        spans_ = scratch.take<Span>(most_runs(packed_width_, size) *
                                    (shifts_ ? larger(MOST_KINDS, blocking.rows()) : rows));
        tap = scratch.take<index>(blocking.rows());
        block_sums_ = scratch.take<X>(Op::COLUMN_SUMS * size * (shared_ ? rows : 1));
        pixels = scratch.take<X>(most * ROW * blocking.rows());
    }

    // Of `count` pixels.
    static index most_runs(const Axis& width, index pixels, index lanes = LANES<X>) {
        return smaller(pixels, pixels / lanes + pixels / larger(1, width.pixels) + 2);
    }

    // Number of packed tiles worth packing side by side, which uses the L2 cache: many if their taps share rows, or x
    // is read along a plane.
    static index most_packed(const Axis& height, const Axis& width) {
        const bool shared = SharedRows(height, width, MACRO_PACKED * ROW, LANES<X>).copy;
        return shared || height.taps * width.taps == 1 ? MACRO_PACKED : 1;
    }

    // After the scratch memory is allocated.
    void begin() { find_taps(larger(1, blocking_.position_chunk)); }

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
        if (shared_) {
            const Run *begin = runs, *end = runs + start[vectors] - 1;
            const index met = shared_rows_.met(*begin, *end), from = shared_rows_.place(*begin);
            packed_vectors_ = ceil_div(met, LANES<X>);
            find_runs(packed_height_.pixels, packed_width_.pixels, from, met, LANES<X>, packed_vectors_, packed_runs_,
                      span_start_);
            for (index v = 0; v < vectors; ++v) place[v] = shared_rows_.place(runs[start[v]]) - from;
        } else {
            packed_vectors_ = all;
            for (index v = 0; v <= all; ++v) span_start_[v] = start[v];
            for (index v = 0; v < all; ++v)
                place[v] = v / PACKED_VECTORS * blocking_.rows() * ROW + v % PACKED_VECTORS * LANES<X>;
        }
        join_spans();
    }

    // The kinds of the pixels.
    void find_kinds(const Borders<Sum>& borders) {
        const bool dense = borders.row == width_.pixels;
        for (index v = 0; v < vectors; ++v) {
            const Run *first = runs + start[v], *end = runs + start[v + 1];
            const auto place = [&](const Run& run) { return borders.kind + run.row * borders.row + run.column; };
            const auto find = [&](const Sum* kinds) {
                for (index k = 0; k < SUM_VECTORS<Op>; ++k)
                    sums[v * SUM_VECTORS<Op> + k].kind() = load(kinds + k * LANES<Sum>);
            };
            if (first->count == LANES<X> ||
                (dense && end[-1].lane + end[-1].count == LANES<X> && first->image == end[-1].image)) {
                find(place(*first));
                continue;
            }
            Sum kinds[LANES<X>] = {};
            for (; first != end; ++first)
                for (index l = 0; l < first->count; ++l) kinds[first->lane + l] = place(*first)[l];
            find(kinds);
        }
    }

    void clear_sums() {
        for (index v = 0; v < count * PACKED_VECTORS * SUM_VECTORS<Op>; ++v) sums[v].clear();
    }

    // Packs a block of a group's channels for an operation with the same operands.
    template <class Packing>
    void pack(index group, const Block& block) {
        const X* x = x_.data + (group * channels_ + block.channel) * x_.channel;
        if (Op::PLANES > 1 && !shared_) find_taps(block.positions);
        Block packed = block;
        PixelMap map{packed_vectors_, span_start_, single_, straight_, span_start_[packed_vectors_], spans_,
                     width_.step * x_.column, ROW, blocking_.rows() * ROW, count * ROW, 0};
        if (shared_) {
            packed.positions = shared_rows_.copies;
            map.row = map.sums_row = shared_rows_.copy, map.group = ROW, map.sums = packed.positions * map.row;
        }
        if (shifts_) {
            const BlockKinds kinds(shifts_, block);
            if (spans_at_ != kinds.first)
                find_shifted_spans(runs, map.spans_a_row, x_, *shifts_, kinds.first, kinds.end, spans_);
            spans_at_ = map.first_kind = kinds.first;
            map.kind = shifts_->kind + block.channel;
        } else if (spans_at_ != packed.position) {
            find_spans(packed_runs_, runs_, x_, packed_height_, packed_width_, packed, joined_, spans_);
            spans_at_ = packed.position;
        }
        if constexpr (Packing::COLUMN_SUMS > 0)
            __builtin_memset(block_sums_, 0, std::size_t(Packing::COLUMN_SUMS * map.sums) * sizeof(X));
        mulfree::MULFREE_ISA::pack<Packing>(map, x, x_.channel, packed, pixels, block_sums_);
        if constexpr (Packing::COLUMN_SUMS > 0) add_block_sums(shared_ ? block.positions : 1, map.sums);
    }

    // Calls f with a cheap function that returns a term's offset from a vector's place.
    template <class F>
    void with_tap(F f) const {
        if (shared_ || Op::PLANES > 1) f([to = tap](index t) { return to[t]; });
        else f([](index t) { return t * ROW; });
    }
    // From a term's row of one plane to that of the next.
    index planes_apart(const Block& block) const { return channel_rows(block.positions); }

private:
    const Axis &height_, &width_;
    const Image<const X>& x_;
    const index channels_;
    const Shifts* shifts_;
    const Blocking& blocking_;
    const SharedRows shared_rows_;
    const bool shared_;    // how x is packed
    const Axis &packed_height_, &packed_width_;  // of the packed pixels; the pixels themselves if nothing is shared
    Run *own_runs_, *packed_runs_;
    index packed_vectors_, runs_;  // and their runs
    index* span_start_;    // the first span of every packed vector
    Span* spans_;
    bool* single_;         // the whole groups in which every vector is one span
    X* block_sums_;
    bool joined_;          // a vector's runs of an image are one span
    bool straight_;        // the vectors are contiguous in x
    index spans_at_;

    // The packed rows of a channel, as elements.
    index channel_rows(index positions) const {
        return shared_ ? shared_rows_.copies * shared_rows_.copy : positions * ROW;
    }
    void find_taps(index positions) {
        index* to = tap;
        for (index c = 0; c < blocking_.channel_chunk; c += Op::PLANES)
            for (index t = 0; t < positions; ++t)
                *to++ = c * channel_rows(positions) + (shared_ ? shared_rows_.tap(height_, width_, t) : t * ROW);
    }

    // All pixels are one row of x, as made by flattened().
    bool along_a_row() const {
        const Axis &h = height_, &w = width_;
        return h.pixels * h.taps * w.taps * w.step * x_.column == 1 && h.offset >= 0 && h.offset < h.size &&
               w.offset == 0 && w.pixels == w.size;
    }

    // The sums over the windows, from a block's sums over its channels; these are computed separately, so that
    // rounding does not depend on the layout of x.
    void add_block_sums(index positions, index apart) {
        for (index v = 0; v < vectors * SUM_VECTORS<Op>; ++v)
            for (index t = 0; t < positions; ++t) {
                const index whole = v / SUM_VECTORS<Op>;
                const X* from = block_sums_ + (shared_ ? place[whole] + tap[t] : whole * LANES<X>) +
                                v % SUM_VECTORS<Op> * LANES<Sum>;
                for (int n = 0; n < Op::COLUMN_SUMS; ++n) sums[v].part[n] += load_as<Sum>(from + n * apart);
            }
    }

    // From the first run of every packed vector to its first span.
    void join_spans() {
        runs_ = span_start_[packed_vectors_];
        joined_ = !shifts_ && rows_join(x_, packed_height_, packed_width_);
        if (joined_)
            for (index v = 0, run = 0, spans = 0; v < packed_vectors_; ++v) {
                const index first = run, end = span_start_[v + 1];
                span_start_[v] = spans;
                for (; run < end; ++run) spans += run == first || !same_span(packed_runs_[run - 1], packed_runs_[run]);
                span_start_[v + 1] = v + 1 == packed_vectors_ ? spans : end;
            }
        for (index v = 0; v < packed_vectors_; v += PACKED_VECTORS) {
            bool& single = single_[v / PACKED_VECTORS] = v + PACKED_VECTORS <= packed_vectors_;
            for (index k = v; single && k < v + PACKED_VECTORS; ++k) single = span_start_[k + 1] == span_start_[k] + 1;
        }
    }
};

}  // namespace mulfree::MULFREE_ISA
