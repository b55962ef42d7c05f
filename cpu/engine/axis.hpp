// One spatial axis of a convolution, and the phases of a stride. Functions are static: none that is compiled for one
// instruction set can stand in for another's.
#pragma once

#include <cstddef>

namespace mulfree {

using index = std::ptrdiff_t;

// One spatial axis of a convolution. Pixel p and tap t meet at source position
//     p * step + offset + t * tap_step,
// which reads as zero outside [0, size). Tap t is entry `kernel + t * kernel_step` of the kernel.
// The forward pass has step = stride and tap_step = dilation; the gradient by x splits the pixels of
// x into stride phases, and then every phase is again such an axis, with step = 1.
struct Axis {
    index pixels, step, offset;
    index taps, tap_step;
    index size;
    index kernel, kernel_step;
};

static inline index greatest_common_divisor(index a, index b) { return b ? greatest_common_divisor(b, a % b) : a; }

// Taps that are so many apart meet the source at places whole pixels apart, and no nearer ones do.
static inline index tap_period(const Axis& a) { return a.step / greatest_common_divisor(a.step, a.tap_step); }

// With the stride of a forward pass's axis, its gradient by x falls into phases: the axis of the pixels first,
// first + stride, ... of x. Pixel h meets tap i at place (h - offset - i * dilation) / stride of the gradient, where
// that is whole.
static inline Axis phase_axis(const Axis& a, index first) {
    const index stride = a.step, dilation = a.tap_step, from = first - a.offset, period = tap_period(a);
    index tap = 0;
    while (tap < period && tap < a.taps && tap * dilation % stride != from % stride) ++tap;
    const index met = tap < period && tap < a.taps ? (a.taps - tap + period - 1) / period : 0;
    return {(a.size - first + stride - 1) / stride, 1, (from - tap * dilation) / stride, met,
            -period * dilation / stride, a.pixels, tap, period};
}

}  // namespace mulfree
