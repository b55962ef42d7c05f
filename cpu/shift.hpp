// The bare shift and its adjoint: moves of bits, one thread a channel of an image, no instruction set needed.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.hpp"

namespace mulfree {

// Channel c of every image moves by table[2 * c] rows and table[2 * c + 1] columns. The axes hold the
// pixels of the moved image, the step between those of them that are wanted, and the size of the image.
struct Shift {
    index batch, channels;
    Axis height, width;
    const std::int32_t* table;
};

// The pixels p of an axis with 0 <= p * step + offset < size.
struct Shown {
    index first, end;

    Shown(const Axis& a, index offset) {
        const auto ceil_div = [](index x, index y) { return x > 0 ? (x + y - 1) / y : 0; };
        first = ceil_div(-offset, a.step);
        end = ceil_div(a.size - offset, a.step);
        if (end > a.pixels) end = a.pixels;
        if (first > end) first = end;
    }
    bool none() const { return first == end; }
};

template <class T>
inline void clear(T* from, T* end) {
    std::memset(static_cast<void*>(from), 0, std::size_t(end - from) * sizeof(T));
}

// Clears what lies before, between and after the `rows` and `columns` of a plane.
template <class T>
inline void clear_around(T* plane, index height, index width, const Shown& rows, const Shown& columns) {
    clear(plane, plane + rows.first * width + columns.first);
    const index gap = width - (columns.end - columns.first);
    T* to = plane + rows.first * width + columns.end;
    if (gap > 0)
        for (index r = rows.first; r + 1 < rows.end; ++r, to += width)
            for (index k = 0; k < gap; ++k) to[k] = T{};
    clear(plane + (rows.end - 1) * width + columns.end, plane + height * width);
}

// y[n, c, p, q] = x[n, c, p * step + dh, q * step + dw], zero outside; y is C-contiguous. SIGN -1 negates
// the table. T stands for any type of its size.
template <int SIGN, class T>
void shift(const Shift& p, const Image<const T>& x, T* y) {
    const index height = p.height.pixels, width = p.width.pixels;
    const index step = p.width.step * x.column;
    const bool dense = x.column == 1 && x.row == p.width.size && p.height.step == 1 && p.width.step == 1;
#pragma omp parallel for schedule(static) if (p.batch * p.channels * height * width > 100000)
    for (index plane = 0; plane < p.batch * p.channels; ++plane) {
        const index c = plane % p.channels;
        const index dh = SIGN * p.table[2 * c], dw = SIGN * p.table[2 * c + 1];
        const Shown rows(p.height, dh), columns(p.width, dw);
        T* to = y + plane * height * width;
        if (rows.none() || columns.none()) {
            clear(to, to + height * width);
            continue;
        }
        const T* from = x.data + plane / p.channels * x.batch + c * x.channel;
        if (dense) {  // one piece, with neighbours' pixels in the gaps between rows
            const index first = rows.first * width + columns.first;
            const index end = (rows.end - 1) * width + columns.end;
            std::memcpy(static_cast<void*>(to + first), from + first + dh * width + dw,
                        std::size_t(end - first) * sizeof(T));
        } else {
            for (index r = rows.first; r < rows.end; ++r) {
                const T* row = from + (r * p.height.step + dh) * x.row + dw * x.column;
                for (index q = columns.first; q < columns.end; ++q) to[r * width + q] = row[q * step];
            }
        }
        clear_around(to, height, width, rows, columns);
    }
}

// The pixels of x (C-contiguous) that the shifted image does not show become zero.
template <class T>
void clear_hidden(const Shift& p, T* x) {
    const index height = p.height.size, width = p.width.size;
    Axis h = p.height, w = p.width;
    h.pixels = height, w.pixels = width, h.step = w.step = 1;
    const bool strided = p.height.step > 1 || p.width.step > 1;
#pragma omp parallel for schedule(static) if (p.batch * p.channels * height * width > 100000)
    for (index plane = 0; plane < p.batch * p.channels; ++plane) {
        const index c = plane % p.channels;
        const Shown rows(h, -index(p.table[2 * c])), columns(w, -index(p.table[2 * c + 1]));
        T* to = x + plane * height * width;
        if (strided || rows.none() || columns.none()) clear(to, to + height * width);
        else clear_around(to, height, width, rows, columns);
    }
}

// The adjoint: x (C-contiguous) receives every pixel of grad at the place it shows, and zeros elsewhere.
template <class T>
void shift_backward(const Shift& p, const Image<const T>& grad, T* x) {
    if (p.height.step == 1 && p.width.step == 1) return shift<-1>(p, grad, x);
    const index height = p.height.size, width = p.width.size;
#pragma omp parallel for schedule(static) if (p.batch * p.channels * height * width > 100000)
    for (index plane = 0; plane < p.batch * p.channels; ++plane) {
        const index c = plane % p.channels, dh = p.table[2 * c], dw = p.table[2 * c + 1];
        const Shown rows(p.height, dh), columns(p.width, dw);
        const T* from = grad.data + plane / p.channels * grad.batch + c * grad.channel;
        T* to = x + plane * height * width;
        clear(to, to + height * width);
        for (index r = rows.first; r < rows.end; ++r)
            for (index q = columns.first; q < columns.end; ++q)
                to[(r * p.height.step + dh) * width + q * p.width.step + dw] =
                    from[r * grad.row + q * grad.column];
    }
}

}  // namespace mulfree
