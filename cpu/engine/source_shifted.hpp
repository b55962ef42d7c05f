// A source of which every channel is seen displaced: the spans of every distinct displacement.
#pragma once

#include "source_im2col.hpp"

namespace mulfree::MULFREE_ISA {

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

// The kinds of displacement whose spans serve a block: all of them, which then serve every block, or one
// for each of its channels; none without shifts.
struct BlockKinds {
    index first, end;
    BlockKinds(const Shifts* s, const Block& block) : first(0), end(s ? s->kinds : 0) {
        if (end >= MOST_KINDS) first = block.channel, end = block.channel + block.channels;
    }
};

}  // namespace mulfree::MULFREE_ISA
