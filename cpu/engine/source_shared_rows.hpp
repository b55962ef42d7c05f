// The cheaper source: where every vector of pixels lies in one row, the taps of a row are the same numbers
// shifted. Then a packed tile is the rows of x that its windows touch, with their padding, each copied once, and a
// tap is an offset into them.
#pragma once

#include "source_im2col.hpp"

namespace mulfree::MULFREE_ISA {

constexpr int SHARED_SPANS = 4;  // spans copied together, so that masks and sums stay in registers

struct SharedRows {
    index width;            // elements of a row, whole vectors
    index channel;          // elements of the rows of one channel
    index lanes;
    index low_row, low_column;  // the least that a tap adds to a row and a column
    index row_reach, column_reach;

    // Room for rows is what makes them cheaper than the matrix (positions rows of `row` elements); a
    // macro-tile that needs more is packed as a matrix.
    SharedRows(const Axis& h, const Axis& w, index row, index lanes_) : lanes(lanes_) {
        row_reach = (larger(h.taps, 1) - 1) * larger(h.tap_step, -h.tap_step);
        column_reach = (larger(w.taps, 1) - 1) * larger(w.tap_step, -w.tap_step);
        low_row = h.tap_step < 0 ? -row_reach : 0;
        low_column = w.tap_step < 0 ? -column_reach : 0;
        width = round_up(smaller(w.pixels, row) + column_reach, lanes);
        channel = h.taps * w.taps * row * 5 / 8 / (SHARED_SPANS * lanes) * (SHARED_SPANS * lanes);
        if (w.step != 1 || w.pixels % lanes || channel < width) channel = 0;
    }

    index spans() const { return channel / lanes + SHARED_SPANS; }

    index tap(const Axis& h, const Axis& w, index position) const {
        const index i = position / w.taps, j = position % w.taps;
        return (i * h.tap_step - low_row) * width + j * w.tap_step - low_column;
    }

    // Whether the rows of these vectors fit; if so, where each vector's window starts.
    bool cover(const Run* runs, const index* start, index vectors, const Axis& h, const Axis& w,
               index* place) {
        if (!channel) return false;
        first_column = runs[0].column;
        count = 0;
        for (index v = 0; v < vectors; ++v) {
            const Run& run = runs[start[v]];
            if (run.count < lanes && v + 1 < vectors) return false;
            const Run& before = runs[start[larger(v, 1) - 1]];
            if (before.image != run.image || before.row != run.row) first_column = 0;
        }
        for (index v = 0; v < vectors; ++v) {
            const Run& run = runs[start[v]];
            const bool follows = v > 0 && runs[start[v - 1]].image == run.image;
            first_row[v] = follows ? first_row[v - 1] + (run.row - runs[start[v - 1]].row) * h.step : count;
            count = first_row[v] + row_reach + 1;
            if (run.column - first_column + lanes + column_reach > width || count * width > channel)
                return false;
            place[v] = first_row[v] * width + (run.column - first_column) * w.step;
        }
        return true;
    }

    // One span for every vector of every row, rounded up to whole groups with empty ones.
    template <class T>
    void find_spans(const Run* runs, const index* start, index vectors, const Image<T>& x, const Axis& h,
                    const Axis& w, Span* spans) {
        const index per_line = width / lanes;
        index done = 0;
        for (index v = 0; v < vectors; ++v) {
            const Run& run = runs[start[v]];
            const index row = run.row * h.step + h.offset + low_row;
            const index column = first_column + w.offset + low_column;
            for (; done < first_row[v] + row_reach + 1; ++done) {
                const index r = row + done - first_row[v];
                for (index k = 0; k < per_line; ++k) {
                    const index c = column + k * lanes;
                    const index first = smaller(lanes, larger(0, -c));
                    const index last = r < 0 || r >= h.size ? 0 : larger(0, smaller(lanes, w.size - c));
                    const index lane_0 = run.image * x.batch + r * x.row + c * x.column;
                    *spans++ = first < last ? make_span(lane_0, first, last) : Span{0, 0, 0};
                }
            }
        }
        groups = ceil_div(count * per_line, SHARED_SPANS);
        for (index k = count * per_line; k < groups * SHARED_SPANS; ++k) *spans++ = {0, 0, 0};
    }

    index groups;  // of LINE_SPANS spans

private:
    index first_row[MACRO_VECTORS], count, first_column;
};

// Copies the rows of `channels` channels; their sums over the channels go to `sums`, one image of rows a sum.
template <class Op, Access ACCESS, class T = typename Op::Operand>
inline void pack_shared_rows(const Span* spans, const SharedRows& rows, const T* x, index channel_stride,
                             index lane_stride, index channels, T* pixels, T* sums) {
    for (index g = 0; g < rows.groups; ++g, spans += SHARED_SPANS) {
        const index at = g * SHARED_SPANS * LANES<T>;
        ColumnSums<Op> sum[SHARED_SPANS] = {};
        const T* from = x;
        T* to = pixels + at;
        for (index c = 0; c < channels; ++c, from += channel_stride, to += rows.channel) {
#pragma GCC unroll 4
            for (int k = 0; k < SHARED_SPANS; ++k) {
                const Vec<T> row = Op::packed(gather<ACCESS>(spans + k, spans + k + 1, from, lane_stride));
                store(to + k * LANES<T>, row);
                sum[k].add(row);
            }
        }
#pragma GCC unroll 4
        for (int k = 0; k < SHARED_SPANS; ++k)
            for (int n = 0; n < Op::COLUMN_SUMS; ++n)
                store(sums + n * rows.channel + at + k * LANES<T>, sum[k].part[n]);
    }
}

}  // namespace mulfree::MULFREE_ISA
