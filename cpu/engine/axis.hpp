// One spatial axis of a convolution, and the phases of a stride. Functions are static, so that the linker cannot
// merge versions compiled for different instruction sets.
#pragma once

#include <cstddef>

namespace mulfree {

using index = std::ptrdiff_t;

// One spatial axis of a convolution. Tap t of pixel p reads source position
//     p * step + offset + t * tap_step,
// which is zero outside [0, size). Tap t is entry `kernel + t * kernel_step` of the kernel. The forward pass has
// step = stride and tap_step = dilation; the gradient by x splits the pixels of x into stride phases, and then every
// phase is again such an axis, with step = 1.
struct Axis {
    index pixels, step, offset;
    index taps, tap_step;
    index size;
    index kernel, kernel_step;
};

static inline index greatest_common_divisor(index a, index b) { return b ? greatest_common_divisor(b, a % b) : a; }

// The smallest distance of taps whose source positions are whole pixels apart.
static inline index tap_period(const Axis& a) { return a.step / greatest_common_divisor(a.step, a.tap_step); }

// With a stride, the gradient by x splits into phases: this is the axis of the pixels first, first + stride, ... of
// x. Tap i of pixel h is position (h - offset - i * dilation) / stride of the gradient, if that is an integer.
static inline Axis phase_axis(const Axis& a, index first) {
    const index stride = a.step, dilation = a.tap_step, from = first - a.offset, period = tap_period(a);
    index tap = 0;
    while (tap < period && tap < a.taps && tap * dilation % stride != from % stride) ++tap;
    const index met = tap < period && tap < a.taps ? (a.taps - tap + period - 1) / period : 0;
    return {(a.size - first + stride - 1) / stride, 1, (from - tap * dilation) / stride, met,
            -period * dilation / stride, a.pixels, tap, period};
}

}  // namespace mulfree
