// The bare shift and its adjoint: moves of bits, plane by plane (a plane is a channel of an image). Caches
// and memory bound them, so no instruction set is needed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../kernels.hpp"
#include "../engine/prefetch.hpp"
#include "../engine/threads.hpp"

namespace mulfree {

// Channel c of every image moves by table[2 * c] rows and table[2 * c + 1] columns. The axes hold the
// pixels of the moved image, the step between those of them that are wanted, and the size of the image,
// beyond which no entry of the table goes.
struct Shift {
    index batch, channels;
    Axis height, width;
    std::vector<index> table;
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

// to = from & mask. Beyond the second-level cache it keeps up with memcpy because the lines of `to` are
// asked for well before they are written, and because no load follows a store to its place in another
// page: the processor compares the last twelve bits only, and waits. So where the places of `to` lie
// shortly after those of `from` the copy runs backwards. Wider vectors would not help.
inline void copy_masked(const void* from_data, const std::uint8_t* mask, void* to_data, index bytes) {
    const auto* from = static_cast<const std::uint8_t*>(from_data);
    auto* to = static_cast<std::uint8_t*>(to_data);
    constexpr index LINE = 64, PAGE = 4096, AHEAD = 8 * LINE;
    if (bytes < LINE) {
        for (index i = 0; i < bytes; ++i) to[i] = from[i] & mask[i];
        return;
    }
    const auto place = [](const void* p) { return index(reinterpret_cast<std::uintptr_t>(p) % PAGE); };
    const index after = (place(to) - place(from) + PAGE) % PAGE;
    const bool backwards = after > 0 && after < AHEAD;
    const index ahead = backwards ? -AHEAD : AHEAD;
    const auto copy_line = [&](index line) {
        typedef std::uint8_t Vector __attribute__((vector_size(16)));
        constexpr index SIZE = sizeof(Vector);
        Vector x[LINE / SIZE], m;
        prefetch_write(to, line + ahead);
#pragma GCC unroll 4
        for (index i = 0; i < LINE / SIZE; ++i) std::memcpy(&x[i], from + line + i * SIZE, SIZE);
#pragma GCC unroll 4
        for (index i = 0; i < LINE / SIZE; ++i) {
            std::memcpy(&m, mask + line + i * SIZE, SIZE);
            x[i] &= m;
            std::memcpy(to + line + i * SIZE, &x[i], SIZE);
        }
    };
    const index last = bytes - LINE;
    for (index line = 0; line < last; line += LINE) copy_line(backwards ? last - line : line);
    copy_line(backwards ? 0 : last);
}

template <class T>
inline void copy_row(const T* from, index step, T* to, index count) {
    if (step == 1) std::memcpy(static_cast<void*>(to), from, std::size_t(count) * sizeof(T));
    else for (index q = 0; q < count; ++q) to[q] = from[q * step];
}

// Moves planes without gaps between rows, at stride 1. All rows of a plane, or as many as are 4096 bytes, move
// in one piece, with the ends of other rows in the place of pixels from outside; a mask clears these.
template <class T>
class PlaneMover {
public:
    PlaneMover(const Shift& p, int sign, const Image<const T>& x)
        : height_(p.height.pixels), width_(p.width.pixels), rows_(std::min(height_, 4096 / (width_ * SIZE))) {
        const bool dense = x.column == 1 && x.row == width_ && p.height.step == 1 && p.width.step == 1;
        if (!dense || rows_ == 0) return;
        const index image = (p.batch - 1) * x.batch, channel = (p.channels - 1) * x.channel;
        first_ = std::min<index>(image, 0) + std::min<index>(channel, 0);
        last_ = std::max<index>(image, 0) + std::max<index>(channel, 0);
        masks_.resize(2 * width_);
        channels_.resize(p.channels);
        for (index c = 0; c < p.channels; ++c) {
            const index dh = sign * p.table[2 * c], dw = sign * p.table[2 * c + 1];
            if (std::abs(dw) >= width_) continue;
            std::vector<std::uint8_t>& mask = masks_[width_ + dw];
            if (mask.empty()) mask = mask_of(dw);
            channels_[c] = {dh, dh * width_ + dw, mask.data(), mask_from(mask.data(), dh)};
        }
    }

    // Whether channel c of the plane at offset `from` can be moved: what a copy reads, if only to mask it
    // away, has to lie between the first and the last pixel of x.
    bool serves(index from, index c) const {
        if (channels_.empty() || !channels_[c].mask) return false;
        from += channels_[c].offset;
        return first_ <= from && from <= last_;
    }

    void move(const T* from, index c, T* to) const {
        const Channel& channel = channels_[c];
        from += channel.offset;
        copy_masked(from, channel.first_mask, to, rows_ * width_ * SIZE);
        for (index row = rows_; row < height_; row += rows_)
            copy_masked(from + row * width_, mask_from(channel.mask, channel.row + row), to + row * width_,
                        std::min(rows_, height_ - row) * width_ * SIZE);
    }

private:
    static constexpr index SIZE = sizeof(T);

    struct Channel {
        index row, offset;  // of the place that the first pixel shows
        const std::uint8_t *mask, *first_mask;  // null where all places are outside
    };

    // Bytes of ones where the place is inside, with as many rows of zeros before and after.
    std::vector<std::uint8_t> mask_of(index dw) const {
        std::vector<std::uint8_t> mask(3 * rows_ * width_ * SIZE);
        for (index r = rows_; r < 2 * rows_; ++r)
            std::memset(&mask[(r * width_ + std::max<index>(0, -dw)) * SIZE], 255,
                        std::size_t((width_ - std::abs(dw)) * SIZE));
        return mask;
    }

    // The part of a mask for a piece whose first row shows that `row` of x.
    const std::uint8_t* mask_from(const std::uint8_t* mask, index row) const {
        const index above = std::clamp<index>(row, -rows_, 0);
        const index below = std::clamp<index>(row + rows_ - height_, 0, rows_);
        return mask + (rows_ + above + below) * width_ * SIZE;
    }

    const index height_, width_, rows_;             // rows_ of a piece
    index first_ = 0, last_ = 0;                    // offsets of planes of x
    std::vector<std::vector<std::uint8_t>> masks_;  // by displacement of columns
    std::vector<Channel> channels_;
};

// y[n, c, p, q] = x[n, c, p * step + dh, q * step + dw], zero outside; y is C-contiguous. SIGN -1 negates
// the table. T stands for any type of its size.
template <int SIGN, class T>
void shift(const Shift& p, const Image<const T>& x, T* y) {
    const index height = p.height.pixels, width = p.width.pixels;
    const PlaneMover<T> mover(p, SIGN, x);
    for_each_unit(p.batch * p.channels, MOVE * double(p.batch * p.channels * height * width), [&](index plane) {
        const index c = plane % p.channels, from = plane / p.channels * x.batch + c * x.channel;
        T* to = y + plane * height * width;
        if (mover.serves(from, c)) return mover.move(x.data + from, c, to);
        const index dh = SIGN * p.table[2 * c], dw = SIGN * p.table[2 * c + 1];
        const Shown rows(p.height, dh), columns(p.width, dw);
        if (rows.none() || columns.none()) return clear(to, to + height * width);
        const index step = p.width.step * x.column, column = columns.first * step + dw * x.column;
        for (index r = rows.first; r < rows.end; ++r)
            copy_row(x.data + from + (r * p.height.step + dh) * x.row + column, step,
                     to + r * width + columns.first, columns.end - columns.first);
        clear_around(to, height, width, rows, columns);
    });
}

// The pixels of x (C-contiguous) that the shifted image does not show become zero.
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

// The adjoint: x (C-contiguous) receives every pixel of grad at the place it shows, and zeros elsewhere.
template <class T>
void shift_backward(const Shift& p, const Image<const T>& grad, T* x) {
    if (p.height.step == 1 && p.width.step == 1) return shift<-1>(p, grad, x);
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
