// The gradients that are not themselves convolutions.
#pragma once

#include <cfloat>

#include "../engine/driver.hpp"
#include "../engine/phases.hpp"

namespace mulfree::MULFREE_ISA {

template <class T>
constexpr T LARGEST = sizeof(T) == 4 ? T(FLT_MAX) : T(DBL_MAX);

// A constant near all of w[f], f < n (n numbers `stride` apart), or 0 if they have no significant offset. Gradients
// depend only on x - w, so it can be subtracted from both, to avoid cancellation when they share an offset.
template <class T>
inline T common_offset(const T* w, index outer, index outer_stride, index inner) {
    const double n = double(outer * inner);
    const auto total = [=](auto term) {  // row by row, so that additions of different rows are independent
        double sum = 0;
        for (index o = 0; o < outer; ++o) {
            double row = 0;
            for (index i = 0; i < inner; ++i) row += term(double(w[o * outer_stride + i]));
            sum += row;
        }
        return sum;
    };
    const double mean = total([](double v) { return v; }) / n;
    const double spread = total([=](double v) { return __builtin_fabs(v - mean); });
    const bool shared = __builtin_fabs(mean) > 4 * spread / n && __builtin_fabs(mean) <= LARGEST<T>;
    return shared ? T(mean) : T(0);
}

// ---- grad_w: a product of two tall and skinny matrices ------------------------------------------------------

constexpr int GRAD_VECTORS = 64;     // vectors of pixels packed at a time
constexpr index GRAD_ROWS = 144;     // rows of im2col (channel, tap) per unit of work
constexpr index GRAD_FILTERS = 64;   // filters per unit of work

// All summed pixels, image by image, and their positions in the packed rows.
struct GradGrid {
    bool shifted;
    RoomAxis height, width;
    index pixels, reach;
    index row;     // elements of a packed row: pixels, room for the shifts, and for a last vector
    index pieces;  // most per row

    GradGrid(index batch, const Axis& h, const Axis& w, index count, index lanes, bool shifted_)
        : shifted(shifted_), height(h, shifted), width(w, shifted) {
        pixels = batch * height.axis.pixels * width.axis.pixels;
        reach = height.reach * width.axis.pixels + width.reach;
        row = count + round_up(reach, lanes) + lanes;
        pieces = (row / width.axis.pixels + 2) * ceil_div(width.axis.pixels, lanes);
    }

    index phases() const { return height.axis.taps * width.axis.taps; }

    // Calls f(run, at) for the pieces of lines, at most a vector long, in `count` pixels.
    template <class F>
    void each_piece(index batch, index begin, index count, index lanes, F f) const {
        const index rows = height.axis.pixels, columns = width.axis.pixels;
        Run run{begin / (rows * columns), begin / columns % rows, begin % columns, 0, 0, 0};
        for (index at = 0; at < count;) {
            const index length = smaller(lanes, columns - run.column);
            run.count = run.image < batch ? int(length) : 0;
            f(run, at);
            at += length, run.column += length;
            if (run.column < columns) continue;
            run.column = 0;
            if (++run.row == rows) run.row = 0, ++run.image;
        }
    }
};

// Whether the forward pass's taps can be shifted rows. Not if the rows would be mostly padding.
template <class T>
inline GradGrid grad_grid(const GradW<T>& p, index most_phases) {
    constexpr index COUNT = GRAD_VECTORS * LANES<T>;
    const GradGrid shifted(p.batch, p.height, p.width, COUNT, LANES<T>, true);
    const bool pays = shifted.pixels * 2 <= p.batch * p.height.pixels * p.width.pixels * 3 &&
                      shifted.reach <= COUNT && shifted.phases() <= most_phases;
    return pays ? shifted : GradGrid(p.batch, p.height, p.width, COUNT, LANES<T>, false);
}

// total[f][r] (+)= sum over the pixels of grad[f] * x[tap[r]], kept per lane until the end.
template <int FILTERS, int ROWS, class T>
inline void product_tile(const T* grad, index grad_row, const T* x, const index* tap, index pixels,
                         T* total, index total_row, bool first) {
    Vec<T> sum[FILTERS][ROWS] = {};
    const T* from[ROWS];
    for (int r = 0; r < ROWS; ++r) from[r] = x + tap[r];
    for (index i = 0; i < pixels; i += LANES<T>) {
        Vec<T> row[ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) row[r] = load(from[r] + i);
#pragma GCC unroll 8
        for (int f = 0; f < FILTERS; ++f) {
            Vec<T> g = load(grad + f * grad_row + i);
#if defined(__x86_64__)
            touch(g);
#endif
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) sum[f][r] = multiply_add(g, row[r], sum[f][r]);
        }
    }
#pragma GCC unroll 8
    for (int f = 0; f < FILTERS; ++f)
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            T* t = total + f * total_row + r * LANES<T>;
            store(t, first ? sum[f][r] : load(t) + sum[f][r]);
        }
}

template <class T>
inline void products(index filters, index rows, index pixels, const T* grad, index grad_row, const T* x,
                     const index* tap, T* total, index total_row, bool first = false) {
    for (index f = 0; f < filters; f += MR)
        for (index r = 0; r < rows; r += NR) {
            const auto run = [&](auto n, auto m) {
                product_tile<n.value, m.value>(grad + f * grad_row, grad_row, x, tap + r, pixels,
                                               total + f * total_row + r * LANES<T>, total_row, first);
            };
            if (rows - r >= NR) with_filters<MR, NR>(filters - f, run);
            else if (rows - r == 2) with_filters<MR, 2>(filters - f, run);
            else with_filters<MR, 1>(filters - f, run);
        }
}

// A thread's workspace. Filters are rounded up to whole tiles; the surplus is computed and ignored.
template <class T>
struct GradScratch {
    index pieces;
    index *at, *tap;  // destinations of the pieces; starts of the rows of a block
    Span* spans;
    T *x, *grad, *total;
    GradScratch(const GradGrid& grid, const Blocking& blocking, index filters, bool shifts, Carver& scratch)
        : pieces(grid.pieces), at(scratch.take<index>(pieces)), tap(scratch.take<index>(GRAD_ROWS + 1)) {
        const index positions = grid.shifted ? grid.phases() : blocking.position_chunk;
        const index kinds = larger(positions, shifts ? MOST_KINDS : 0);
        filters = round_up(smaller(filters, GRAD_FILTERS), MR);
        spans = scratch.take<Span>(pieces * kinds);
        x = scratch.take<T>(grid.row * (blocking.channel_chunk * positions + 1));
        grad = scratch.take<T>(grid.row * filters);
        total = scratch.take<T>(LANES<T> * (GRAD_ROWS + 1) * filters);
    }
};

// Packs pixels [begin, begin + count) of the rows (channel, position) of a block, minus centre[channel] if given;
// with shifts the channels are displaced.
template <class T>
inline void pack_grad_rows(const GradGrid& grid, const GradScratch<T>& s, index batch, index begin,
                           index count, const Image<const T>& x, index channel, const Axis& h,
                           const Axis& w, const Shifts* shifts, const T* centre, const Block& block,
                           T* rows) {
    const BlockKinds kinds(shifts, block);
    index pieces = 0;
    grid.each_piece(batch, begin, count, LANES<T>, [&](const Run& run, index at) {
        for (index k = kinds.first; k < kinds.end; ++k)
            find_shifted_spans(&run, 1, x, *shifts, k, k + 1,
                               s.spans + (k - kinds.first) * s.pieces + pieces);
        for (index t = 0; t < block.positions && !shifts; ++t) {
            const index i = (block.position + t) / w.taps, j = (block.position + t) % w.taps;
            s.spans[t * s.pieces + pieces] = source_span(run, x, h, w, i, j);
        }
        s.at[pieces++] = at;
    });
    const index lane_stride = w.step * x.column;
    with_access<T>(lane_stride, [&](auto way) {
        const T* from = x.data + channel * x.channel;
        for (index c = 0; c < block.channels; ++c, from += x.channel) {
            const Vec<T> shift = broadcast(centre ? centre[channel + c] : T(0));
            const index kind = shifts ? shifts->kind[block.channel + c] - kinds.first : 0;
            for (index t = 0; t < block.positions; ++t, rows += grid.row)
                for (index k = 0; k < pieces; ++k) {
                    const Span* span = s.spans + (kind + t) * s.pieces + k;
                    for (index line = 0; line < (way.value == EVEN ? 2 : 1); ++line)
                        prefetch(from, 2 * x.channel + span->offset + line * LANES<T>);
                    store(rows + s.at[k],
                          gather<Access(way.value)>(span, span + 1, from, lane_stride) - shift);
                }
        }
    });
}

// Filters [filter, filter + filters) of a group times the rows of a block: writes the sums to grad_w, and, in the
// first block of the reduction, the sums of grad (products with a row of ones) to grad_sum.
template <class T>
inline void grad_w_unit(const GradW<T>& p, const T* centre, const GradGrid& grid, const GradScratch<T>& s,
                        index group, index filter, index filters, const Block& block, T* grad_sum) {
    constexpr index COUNT = GRAD_VECTORS * LANES<T>;
    const index positions = p.height.taps * p.width.taps;
    const index taps = block.taps(), rows = taps + (block.channel == 0 && block.position == 0);
    const index k = group * p.filters + filter, channel = group * p.channels + block.channel;
    const index total_row = (GRAD_ROWS + 1) * LANES<T>;
    const RoomAxis &h = grid.height, &w = grid.width;
    const Axis grad_h{h.axis.pixels, 1, 0, 1, 0, p.height.pixels, 0, 0};
    const Axis grad_w{w.axis.pixels, 1, 0, 1, 0, p.width.pixels, 0, 0};
    const Block packed = grid.shifted ? Block{block.channel, block.channels, 0, grid.phases()} : block;

    for (index t = 0; t < block.positions; ++t) {
        const index i = (block.position + t) / p.width.taps, j = (block.position + t) % p.width.taps;
        const index row = i % h.period * w.axis.taps + j % w.period - packed.position;
        const index at = row * grid.row + i / h.period * h.shift * w.axis.pixels + j / w.period * w.shift;
        for (index c = 0; c < block.channels; ++c)
            s.tap[c * block.positions + t] = at + c * packed.positions * grid.row;
    }
    s.tap[taps] = packed.taps() * grid.row;
    for (index i = 0; i < COUNT; ++i) s.x[s.tap[taps] + i] = 1;
    for (index begin = 0; begin < grid.pixels; begin += COUNT) {
        const index count = round_up(smaller(COUNT, grid.pixels - begin), LANES<T>);
        pack_grad_rows(grid, s, p.batch, begin, count + grid.reach, p.x, channel, h.axis, w.axis,
                       p.x_shifts, centre, packed, s.x);
        pack_grad_rows(grid, s, p.batch, begin, count, p.grad, k, grad_h, grad_w, nullptr, (const T*)nullptr,
                       Block{0, filters, 0, 1}, s.grad);
        products(filters, rows, count, s.grad, grid.row, s.x, s.tap, s.total, total_row, begin == 0);
    }
    for (index f = 0; f < filters; ++f) {
        const T* total = s.total + f * total_row;
        T* to = p.grad_w + ((k + f) * p.channels + block.channel) * positions + block.position;
        for (index c = 0; c < block.channels; ++c, to += positions)
            for (index t = 0; t < block.positions; ++t, total += LANES<T>) to[t] = sum_lanes<T>(load(total));
        if (rows > taps) grad_sum[k + f] = sum_lanes<T>(load(total));
    }
}

// sum (x - w) grad by definition, where the faster sum is not finite.
template <class T>
inline T grad_w_directly(const GradW<T>& p, index k, index c, index i, index j, T w) {
    const Shifts* s = p.x_shifts;
    const index up = p.height.offset + i * p.height.tap_step + (s ? s->row[s->kind[c]] : 0);
    const index left = p.width.offset + j * p.width.tap_step + (s ? s->column[s->kind[c]] : 0);
    double sum = 0;
    for (index n = 0; n < p.batch; ++n)
        for (index row = 0; row < p.height.pixels; ++row)
            for (index column = 0; column < p.width.pixels && sum == sum; ++column) {
                const index h = row * p.height.step + up, v = column * p.width.step + left;
                const bool inside = h >= 0 && h < p.height.size && v >= 0 && v < p.width.size;
                const T x = inside ? p.x.data[n * p.x.batch + c * p.x.channel + h * p.x.row +
                                              v * p.x.column]
                                   : T(0);
                sum += (double(x) - w) * p.grad.data[n * p.grad.batch + k * p.grad.channel +
                                                     row * p.grad.row + column * p.grad.column];
            }
    return T(sum);
}

// grad_w = sum (x - c) grad - (w - c) sum grad, for any c (conv: w = c = 0).
template <class T>
inline void grad_w(const GradW<T>& p) {
    const index positions = p.height.taps * p.width.taps;
    const index channels = p.groups * p.channels, filters = p.groups * p.filters;
    const index filter_blocks = ceil_div(p.filters, GRAD_FILTERS);
    const double terms = double(p.batch) * p.height.pixels * p.width.pixels * filters * p.channels * positions;

    // A sum depends only on its row and filter, so the split may depend on the threads.
    Blocking blocking(p.channels, positions);
    const GradGrid grid = grad_grid(p, blocking.position_chunk);
    const index most = threads_for(index(1) << 30, terms);
    const index cuts = ceil_div(most, p.groups * filter_blocks * ceil_div(positions, blocking.position_chunk));
    blocking.channel_chunk =
        larger(1, smaller(GRAD_ROWS / blocking.position_chunk, ceil_div(p.channels, cuts)));
    if (p.x_shifts && p.x_shifts->kinds >= MOST_KINDS)  // the size of the table of spans
        blocking.channel_chunk = smaller(blocking.channel_chunk, MOST_KINDS);
    const index units = p.groups * filter_blocks * blocking.count();
    Carver measure(nullptr);
    GradScratch<T>(grid, blocking, p.filters, p.x_shifts, measure);
    const index scratch = measure.used();
    Team team(threads_for(units, terms, scratch));
    Workspace workspace;
    workspace.allocate(team.size() * scratch + (channels + filters) * index(sizeof(T)));
    T* grad_sum = reinterpret_cast<T*>(workspace.data() + team.size() * scratch);
    T* centre = grad_sum + filters;

    for_each_unit(team, channels, [&](index c) {
        const index w = (c / p.channels * p.filters * p.channels + c % p.channels) * positions;
        centre[c] = p.w ? common_offset(p.w + w, p.filters, p.channels * positions, positions) : T(0);
    });
    Units every_unit(units, 1);
    team.run([&](index thread) {
        Carver mine(workspace.data() + thread * scratch);
        const GradScratch<T> own(grid, blocking, p.filters, p.x_shifts, mine);
        every_unit.each([&](index unit) {
            const index f = unit / blocking.count() % filter_blocks * GRAD_FILTERS;
            grad_w_unit(p, p.w ? centre : nullptr, grid, own, unit / (blocking.count() * filter_blocks), f,
                        smaller(GRAD_FILTERS, p.filters - f), blocking[unit % blocking.count()], grad_sum);
        });
    });
    // A sum may be not finite only because of padding zeros, or of an intermediate overflow.
    for_each_unit(team, filters, [&](index k) {
        for (index c = 0; c < p.channels; ++c) {
            const index channel = k / p.filters * p.channels + c, at = (k * p.channels + c) * positions;
            T* to = p.grad_w + at;
            for (index t = 0; p.w && t < positions; ++t) to[t] -= (p.w[at + t] - centre[channel]) * grad_sum[k];
            for (index t = 0; t < positions; ++t)
                if (!(__builtin_fabs(to[t]) <= LARGEST<T>))
                    to[t] = grad_w_directly(p, k, channel, t / p.width.taps, t % p.width.taps,
                                            p.w ? p.w[at + t] : T(0));
        }
    });
}

}  // namespace mulfree::MULFREE_ISA
