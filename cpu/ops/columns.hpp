// im2col and col2im: copies and sums, parallel over channels and images, without SIMD.
#pragma once

#include <cstring>

#include "../engine/threads.hpp"

namespace mulfree {

struct Columns {
    index batch, channels;
    Axis height, width;
};

// cols[n, (c, i, j), (row, column)] = x[n, c, ...], zero outside. T is any type of the element's size.
template <class T>
void im2col(const Columns& p, const Image<const T>& x, T* cols) {
    const index pixels = p.height.pixels * p.width.pixels;
    const index taps = p.height.taps * p.width.taps;
    for_each_unit(p.batch * p.channels, MOVE * double(p.batch * p.channels * taps * pixels), [&](index plane) {
        const T* from = x.data + plane / p.channels * x.batch + plane % p.channels * x.channel;
        T* to = cols + plane * taps * pixels;
        for (index i = 0; i < p.height.taps; ++i)
            for (index j = 0; j < p.width.taps; ++j)
                for (index r = 0; r < p.height.pixels; ++r) {
                    const index row = r * p.height.step + p.height.offset + i * p.height.tap_step;
                    const bool inside = row >= 0 && row < p.height.size;
                    for (index c = 0; c < p.width.pixels; ++c) {
                        const index column = c * p.width.step + p.width.offset + j * p.width.tap_step;
                        *to++ = inside && column >= 0 && column < p.width.size
                                    ? from[row * x.row + column * x.column]
                                    : T{};
                    }
                }
    });
}

// x (C-contiguous) = the sums of the columns at the positions that im2col reads. `tap` is the stride of cols along
// (c, i, j), `pixel` along (row, column).
template <class T>
void col2im(const Columns& p, const T* cols, index cols_batch, index tap, index pixel, T* x) {
    const index plane_size = p.height.size * p.width.size, taps = p.height.taps * p.width.taps;
    const double moves = double(p.batch * p.channels * taps * p.height.pixels * p.width.pixels);
    for_each_unit(p.batch * p.channels, MOVE * moves, [&](index plane) {
        T* to = x + plane * plane_size;
        const T* from = cols + plane / p.channels * cols_batch + plane % p.channels * taps * tap;
        for (index k = 0; k < plane_size; ++k) to[k] = 0;
        for (index i = 0; i < p.height.taps; ++i)
            for (index j = 0; j < p.width.taps; ++j)
                for (index r = 0; r < p.height.pixels; ++r) {
                    const index row = r * p.height.step + p.height.offset + i * p.height.tap_step;
                    if (row < 0 || row >= p.height.size) continue;
                    for (index c = 0; c < p.width.pixels; ++c) {
                        const index column = c * p.width.step + p.width.offset + j * p.width.tap_step;
                        if (column >= 0 && column < p.width.size)
                            to[row * p.width.size + column] +=
                                from[(i * p.width.taps + j) * tap + (r * p.width.pixels + c) * pixel];
                    }
                }
    });
}

}  // namespace mulfree
