// Views of an axis: all phases of its stride at once, rows shared by taps, slices.
#pragma once

#include "isa.hpp"

namespace mulfree::MULFREE_ISA {

// Tap i of the forward pass's axis is a = offset + i * tap_step from pixel p * step. So it belongs to phase a mod
// step, and for pixel q of this phase it is at position q - floor(a / step) of grad. The taps of `axis` are these
// positions.
struct PhaseAxis {
    const Axis& forward;
    index phases;
    Axis axis;

    explicit PhaseAxis(const Axis& a) : forward(a), phases(smaller(a.step, a.size)) {
        index apart = 0, reach = 0;  // apart: the greatest common divisor of the distances of positions
        for (index i = 0; i < a.taps; ++i) {
            reach = floor_of(i) - floor_of(0);
            apart = greatest_common_divisor(apart, reach);
        }
        const index places = apart ? reach / apart + 1 : 1;
        axis = {ceil_div(a.size, a.step), 1, -floor_of(0), places, -apart, a.pixels, 0, 0};
    }

    // The kernel tap of a phase at position t, or -1.
    index tap(index phase, index t) const {
        const index away = (floor_of(0) - t * axis.tap_step) * forward.step + phase - forward.offset;
        const bool met = away >= 0 && away % forward.tap_step == 0 && away / forward.tap_step < forward.taps;
        return met ? away / forward.tap_step : -1;
    }

private:
    index floor_of(index tap) const {
        const index a = forward.offset + tap * forward.tap_step;
        return a >= 0 ? a / forward.step : -ceil_div(-a, forward.step);
    }
};

// An axis of the summed pixels. Tap i reads the source where tap i % period does, some pixels further. So if every
// line (every plane) is followed by room for as many pixels as these shifts, all taps of a period share one packed
// row, each at its shift. In the room grad counts as zero.
struct RoomAxis {
    Axis axis;  // of the packed rows: pixels with their room, one period of taps
    index period, shift, reach;

    RoomAxis(const Axis& a, bool shifted) : axis(a), period(a.taps), shift(0), reach(0) {
        if (!shifted) return;
        axis.taps = period = smaller(a.taps, tap_period(a));
        shift = period * a.tap_step / a.step;
        reach = (a.taps - 1) / period * shift;
        // The zeros before a source may double as those after the previous one.
        const index before = ceil_div(-a.offset, a.step);
        const index after = a.pixels + reach - 1 - (a.size - 1 - a.offset) / a.step;
        const index both = period == 1 ? larger(0, smaller(reach, smaller(before, after))) : 0;
        axis.pixels += reach - both;
    }
};

// The source positions read by a slice of an axis's pixels: from, from + every, ..., `size` of them; all positions,
// which are faster to copy, if the slice is the whole axis.
struct SourceAxis {
    index every, from, size;

    // `padded`: include positions outside the source.
    SourceAxis(const Axis& a, index first, index pixels, index taps, bool padded)
        : every(taps == 1 ? a.step : 1), from(first * a.step + a.offset) {
        index end = from + (pixels - 1) * a.step + (taps - 1) * a.tap_step + 1;
        if (!padded) from += round_up(larger(0, -from), every), end = smaller(end, a.size);
        if (!padded && pixels == a.pixels && every == 1) from = 0, end = a.size;
        size = larger(0, ceil_div(end - from, every));
    }
    // The axis of the slice's convolution.
    Axis axis(const Axis& a, index first, index pixels, index taps) const {
        const index offset = (first * a.step + a.offset - from) / every;
        return {pixels, a.step / every, offset, taps, a.tap_step, size, 0, 1};
    }
};

}  // namespace mulfree::MULFREE_ISA
