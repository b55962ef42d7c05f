// A source with displaced channels: the spans of every distinct displacement.
#pragma once

#include "source_im2col.hpp"

namespace mulfree::MULFREE_ISA {

// Runs of the pixels of a displaced image: if all pixels are inside or have an inside bit, a plane is one row.
inline index find_shifted_runs(const Shifts& s, index begin, index count, index lanes, index vectors,
                               Run* runs, index* start) {
    const index height = s.height.pixels, width = s.width.pixels;
    return s.inside ? find_runs(1, height * width, begin, count, lanes, vectors, runs, start)
                    : find_runs(height, width, begin, count, lanes, vectors, runs, start);
}

// The spans of every run, displacement by displacement.
template <class T>
__attribute__((noinline)) inline void find_shifted_spans(const Run* runs, index count, const Image<T>& x,
                                                         const Shifts& s, index first, index last, Span* spans) {
    if (!s.inside) {
        Axis h = s.height, w = s.width;
        for (index k = first; k < last; ++k) {
            h.offset = s.row[k], w.offset = s.column[k];
            for (index r = 0; r < count; ++r) *spans++ = source_span(runs[r], x, h, w, 0, 0);
        }
        return;
    }
    for (index r = 0; r < count; ++r) {
        const Run& run = runs[r];
        const std::uint8_t* inside = s.inside + first * s.inside_bytes + run.column / 8;
        const std::uint32_t lanes = bits(0, run.count);
        const index offset = run.image * x.batch + run.column - run.lane;
        Span* span = spans + r;
        for (index k = first; k < last; ++k, span += count, inside += s.inside_bytes) {
            std::uint32_t mask;
            __builtin_memcpy(&mask, inside, sizeof mask);
            *span = {offset + s.row[k] * x.row + s.column[k] * x.column,
                     (mask >> run.column % 8 & lanes) << run.lane, 0};
        }
    }
}

// The kinds of displacement whose spans a block uses: all of them, shared by every block, or one for each of its
// channels; none without shifts.
struct BlockKinds {
    index first, end;
    BlockKinds(const Shifts* s, const Block& block) : first(0), end(s ? s->kinds : 0) {
        if (end >= MOST_KINDS) first = block.channel, end = block.channel + block.channels;
    }
};

}  // namespace mulfree::MULFREE_ISA
