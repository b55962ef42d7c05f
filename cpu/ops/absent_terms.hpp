// Correction of gradients by x that are NaN because of padding.
//
// Where a tap of a pixel has no output, the kernels multiply by zero instead of grad, which adds nothing unless the
// other factor is infinite or NaN. Pixels that are NaN are recomputed by definition: over the taps that have an
// output.
#pragma once

#include <cmath>

#include "../engine/threads.hpp"

namespace mulfree {

// The pixel of the forward pass whose tap t reads source position h, or -1.
inline index met_by(const Axis& a, index h, index t) {
    const index away = h - a.offset - t * a.tap_step;
    return away >= 0 && away % a.step == 0 && away / a.step < a.pixels ? away / a.step : -1;
}

// Whether some source position has no output only because it is outside the range.
inline bool passes_over(const Axis& a) {
    for (index h = 0; h < a.size; ++h) {
        bool could = false, does = false;
        for (index t = 0; t < a.taps; ++t) {
            could |= (h - a.offset - t * a.tap_step) % a.step == 0;
            does |= met_by(a, h, t) >= 0;
        }
        if (could && !does) return true;
    }
    return false;
}

template <class T>
bool all_finite(const T* w, index count) {
    index others = 0;
    for (index i = 0; i < count; ++i) others += !std::isfinite(w[i]);
    return others == 0;
}

// The sum of slope(w, x) * grad over the terms of a pixel of channel c of a group.
template <class T, class Slope>
T sum_of_terms(const AdderGradX<T>& g, index n, index group, index c, index h, index v, T x, Slope slope) {
    const index taps = g.height.taps * g.width.taps;
    double sum = 0;
    for (index k = group * g.filters; k < (group + 1) * g.filters; ++k)
        for (index t = 0; t < taps && sum == sum; ++t) {
            const index row = met_by(g.height, h, t / g.width.taps);
            const index column = met_by(g.width, v, t % g.width.taps);
            if (row < 0 || column < 0) continue;
            const T* grad = g.grad.data + n * g.grad.batch + k * g.grad.channel;
            sum += slope(double(g.w[(k * g.channels + c) * taps + t]), double(x)) *
                   grad[row * g.grad.row + column * g.grad.column];
        }
    return T(sum);
}

template <class T, class Slope>
void mend_nan(const AdderGradX<T>& g, Slope slope) {
    const index channels = g.groups * g.channels, planes = g.batch * channels;
    for_each_unit(planes, MOVE * double(planes * g.height.size * g.width.size), [&](index plane) {
        const index n = plane / channels, channel = plane % channels;
        const T* x = g.x.data + n * g.x.batch + channel * g.x.channel;
        T* grad_x = g.grad_x.data + n * g.grad_x.batch + channel * g.grad_x.channel;
        for (index h = 0; h < g.height.size; ++h)
            for (index v = 0; v < g.width.size; ++v) {
                T& to = grad_x[h * g.grad_x.row + v * g.grad_x.column];
                if (std::isnan(to))
                    to = sum_of_terms(g, n, channel / g.channels, channel % g.channels, h, v,
                                      x[h * g.x.row + v * g.x.column], slope);
            }
    });
}

}  // namespace mulfree
