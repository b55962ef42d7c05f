// The cheaper source: most taps read the same pixels as another tap, some rows or columns further. So the pixels are
// packed once for all of these, with room after every plane for the rows beyond it, and a tap is an offset. If a row
// is whole vectors, rows have room after them too; otherwise each column of the kernel has its own copy of the
// pixels.
#pragma once

#include "phases.hpp"
#include "source_im2col.hpp"

namespace mulfree::MULFREE_ISA {

class SharedRows {
public:
    Axis height, width;  // of the packed pixels, with their room, and of the taps that share nothing
    index copies;        // of the pixels: one for each of these taps
    index copy;          // elements of a copy, whole vectors; 0 where sharing is not worth it

    // For macro-tiles of at most `pixels` pixels.
    __attribute__((noinline)) SharedRows(const Axis& h, const Axis& w, index pixels, index lanes)
        : height(ascending(h)), width(ascending(w)), copies(0), copy(0) {
        const index plane = h.pixels * w.pixels;
        if (h.taps * w.taps < 2 || plane == 0 || plane % lanes) return;  // a vector's pixels are in one plane
        const bool whole = w.step == 1 && w.pixels % lanes == 0;
        const RoomAxis rows(height, true), columns(width, whole);
        height = rows.axis, width = columns.axis;
        if (whole) width.pixels = round_up(width.pixels, lanes);
        copies = height.taps * width.taps;
        row_shift_ = rows.shift * width.pixels, column_shift_ = columns.shift;
        reach_ = rows.reach * width.pixels + columns.reach;
        const index row_room = width.pixels - w.pixels, plane_room = (height.pixels - h.pixels) * width.pixels;
        const index most = pixels + (pixels + w.pixels - 2) / w.pixels * row_room +
                           (pixels + plane - 2) / plane * plane_room + reach_;
        if (copies * round_up(most, lanes) * 8 <= h.taps * w.taps * pixels * 7) copy = round_up(most, lanes);
    }

    // The number of a run's first pixel among the packed ones,
    index place(const Run& run) const {
        return (run.image * height.pixels + run.row) * width.pixels + run.column;
    }
    // and the number of pixels from the windows of the first run to those of the last.
    index met(const Run& first, const Run& last) const { return place(last) + last.count + reach_ - place(first); }

    // The offset of a tap.
    index tap(const Axis& h, const Axis& w, index position) const {
        const index i = from_first(h, position / w.taps), j = from_first(w, position % w.taps);
        return (i % height.taps * width.taps + j % width.taps) * copy + i / height.taps * row_shift_ +
               j / width.taps * column_shift_;
    }

private:
    index row_shift_, column_shift_, reach_;

    // The axis with its taps in source order, and a tap's number in that order.
    static Axis ascending(Axis a) {
        if (a.tap_step < 0) a.offset += (a.taps - 1) * a.tap_step, a.tap_step = -a.tap_step;
        return a;
    }
    static index from_first(const Axis& a, index tap) { return a.tap_step < 0 ? a.taps - 1 - tap : tap; }
};

}  // namespace mulfree::MULFREE_ISA
