// The plain shift and its adjoint: copies of bits, plane by plane (a plane is a channel of an image).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../kernels.hpp"
#include "../engine/threads.hpp"

namespace mulfree {

// Channel c of every image is shifted by table[2 * c] rows and table[2 * c + 1] columns. The axes have the pixels of
// the output, their step, and the size of the image, which bounds the entries of the table.
struct Shift {
    index batch, channels;
    Axis height, width;
    std::vector<index> table;
};

inline index ceil_div(index x, index y) { return (x + y - 1) / y; }

// The pixels p of an axis with 0 <= p * step + offset < size.
struct Shown {
    index first, end;

    Shown(const Axis& a, index offset) {
        first = ceil_div(std::max<index>(-offset, 0), a.step);
        end = ceil_div(std::max<index>(a.size - offset, 0), a.step);
        if (end > a.pixels) end = a.pixels;
        if (first > end) first = end;
    }
    bool none() const { return first == end; }
};

template <class T>
inline void clear(T* from, T* end) {
    std::memset(static_cast<void*>(from), 0, std::size_t(end - from) * sizeof(T));
}

// Clears a plane outside `rows` and `columns`.
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

template <class T>
inline void copy_row(const T* from, index step, T* to, index count) {
    if (step == 1) std::memcpy(static_cast<void*>(to), from, std::size_t(count) * sizeof(T));
    else for (index q = 0; q < count; ++q) to[q] = from[q * step];
}

// Shifts of contiguous planes with stride 1.
template <class T>
class DenseMoves {
public:
    DenseMoves(const Shift& p, int sign, const Image<const T>& x) {
        const index height = p.height.pixels, width = p.width.pixels, row = width * SIZE;
        const bool dense = x.column == 1 && x.row == width && p.height.step == 1 && p.width.step == 1;
        if (!dense || row > 4 * PIECE) return;
        const index pieces = ceil_div(height, std::max<index>(1, PIECE / row));
        const index rows = ceil_div(height, pieces);
        masks_.resize(2 * width + 1);
        offsets_.resize(p.channels), pieces_.reserve(p.channels * pieces);
        for (index c = 0; c < p.channels; ++c) {
            const index dh = sign * p.table[2 * c], dw = sign * p.table[2 * c + 1];
            std::vector<std::uint8_t>& mask = masks_[width + dw];
            if (mask.empty()) mask = mask_of(dw, width, rows);
            offsets_[c] = (dh * width + dw) * SIZE;
            for (index r = 0; r < height; r += rows) {
                const index above = std::clamp<index>(dh + r, -rows, 0);
                const index below = std::clamp<index>(dh + r + rows - height, 0, rows);
                pieces_.push_back(mask.data() + (rows + above + below) * row);
            }
        }
        const index image = (p.batch - 1) * x.batch, channel = (p.channels - 1) * x.channel;
        planes_ = {height * row, rows * row, offsets_.data(), pieces_.data(),
                  bytes(x.data + std::min<index>(image, 0) + std::min<index>(channel, 0)),
                  bytes(x.data + std::max<index>(image, 0) + std::max<index>(channel, 0))};
    }

    // Calls the kernel; copies nothing if the planes do not qualify.
    index move(const Kernels& kernels, const T* from, index channel, T* to, index first, index end) const {
        if (pieces_.empty()) return first;
        return kernels.move_planes(planes_, bytes(from), channel * SIZE, reinterpret_cast<std::uint8_t*>(to),
                                   first, end);
    }

private:
    // In bytes. Masks of pieces of this size stay in the L1 cache.
    static constexpr index SIZE = sizeof(T), PIECE = 1024;
    static const std::uint8_t* bytes(const T* p) { return reinterpret_cast<const std::uint8_t*>(p); }

    // All-ones bytes where the column is inside, for `rows` rows, with as many rows of zeros before and after.
    static std::vector<std::uint8_t> mask_of(index dw, index width, index rows) {
        std::vector<std::uint8_t> mask(3 * rows * width * SIZE);
        for (index r = rows; r < 2 * rows; ++r)
            std::memset(&mask[(r * width + std::max<index>(0, -dw)) * SIZE], 255,
                        std::size_t((width - std::abs(dw)) * SIZE));
        return mask;
    }

    PlaneMoves planes_{};
    std::vector<index> offsets_;
    std::vector<std::vector<std::uint8_t>> masks_;  // by displacement of columns
    std::vector<const std::uint8_t*> pieces_;       // the mask of every channel's every piece
};

// y[n, c, p, q] = x[n, c, p * step + dh, q * step + dw], zero outside; y is C-contiguous. SIGN -1 negates the table.
// T is any type of the element's size.
template <int SIGN, class T>
void shift(const Kernels& kernels, const Shift& p, const Image<const T>& x, T* y) {
    const index height = p.height.pixels, width = p.width.pixels, plane = height * width;
    const auto move_rows = [&](const T* from, index c, T* to) {
        const index dh = SIGN * p.table[2 * c], dw = SIGN * p.table[2 * c + 1];
        const Shown rows(p.height, dh), columns(p.width, dw);
        if (rows.none() || columns.none()) return clear(to, to + plane);
        const index step = p.width.step * x.column, column = columns.first * step + dw * x.column;
        for (index r = rows.first; r < rows.end; ++r)
            copy_row(from + (r * p.height.step + dh) * x.row + column, step,
                     to + r * width + columns.first, columns.end - columns.first);
        clear_around(to, height, width, rows, columns);
    };
    const DenseMoves<T> dense(p, SIGN, x);
    constexpr index UNIT = 32 << 10;  // bytes
    const index units = std::min(p.channels, ceil_div(p.channels * plane * index(sizeof(T)), UNIT));  // per image
    for_each_unit(p.batch * units, MOVE * double(p.batch * p.channels * plane), [&](index unit) {
        const index n = unit / units, end = (unit % units + 1) * p.channels / units;
        const T* from = x.data + n * x.batch;
        T* to = y + n * p.channels * plane;
        for (index c = unit % units * p.channels / units; c < end; ++c) {
            c = dense.move(kernels, from + c * x.channel, x.channel, to + c * plane, c, end);
            if (c < end) move_rows(from + c * x.channel, c, to + c * plane);
        }
    });
}

// Zeroes the pixels of x (C-contiguous) that the shifted image does not contain.
template <class T>
void clear_hidden(const Shift& p, T* x) {
    const index height = p.height.size, width = p.width.size;
    Axis h = p.height, w = p.width;
    h.pixels = height, w.pixels = width, h.step = w.step = 1;
    const bool strided = p.height.step > 1 || p.width.step > 1;
    for_each_unit(p.batch * p.channels, MOVE * double(p.batch * p.channels * height * width), [&](index plane) {
        const index c = plane % p.channels;
        const Shown rows(h, -p.table[2 * c]), columns(w, -p.table[2 * c + 1]);
        T* to = x + plane * height * width;
        if (strided || rows.none() || columns.none()) clear(to, to + height * width);
        else clear_around(to, height, width, rows, columns);
    });
}

// The adjoint: writes every pixel of grad to its source position in x (C-contiguous), and zeros elsewhere.
template <class T>
void shift_backward(const Kernels& kernels, const Shift& p, const Image<const T>& grad, T* x) {
    if (p.height.step == 1 && p.width.step == 1) return shift<-1>(kernels, p, grad, x);
    const index height = p.height.size, width = p.width.size;
    for_each_unit(p.batch * p.channels, MOVE * double(p.batch * p.channels * height * width), [&](index plane) {
        const index c = plane % p.channels, dh = p.table[2 * c], dw = p.table[2 * c + 1];
        const Shown rows(p.height, dh), columns(p.width, dw);
        const T* from = grad.data + plane / p.channels * grad.batch + c * grad.channel;
        T* to = x + plane * height * width;
        clear(to, to + height * width);
        for (index r = rows.first; r < rows.end; ++r)
            for (index q = columns.first; q < columns.end; ++q)
                to[(r * p.height.step + dh) * width + q * p.width.step + dw] =
                    from[r * grad.row + q * grad.column];
    });
}

}  // namespace mulfree
