// The gradients that are not themselves convolutions.
#pragma once

#include <cfloat>

#include "convolution.hpp"

namespace mulfree::MULFREE_ISA {

template <class T>
constexpr T LARGEST = sizeof(T) == 4 ? T(FLT_MAX) : T(DBL_MAX);

// A constant near all of w[f], f < n (n numbers `stride` apart), or 0 where they have no offset worth
// removing. Gradients see only x - w, so both may be shifted by it; that keeps x and w from cancelling
// when they share an offset.
template <class T>
inline T common_offset(const T* w, index outer, index outer_stride, index inner) {
    double sum = 0, spread = 0;
    const double n = double(outer * inner);
    for (index o = 0; o < outer; ++o)
        for (index i = 0; i < inner; ++i) sum += w[o * outer_stride + i];
    const double mean = sum / n;
    for (index o = 0; o < outer; ++o)
        for (index i = 0; i < inner; ++i) spread += __builtin_fabs(w[o * outer_stride + i] - mean);
    const bool shared = __builtin_fabs(mean) > 4 * spread / n && __builtin_fabs(mean) <= LARGEST<T>;
    return shared ? T(mean) : T(0);
}

// ---- grad_x of the adder: sum clip(w - x, -1, 1) grad ------------------------------------------------

// One vector of pixels, a tile of channels of x ("filters" of this convolution of grad). The limits
// x - 1 and x + 1 stay in registers:
//     clip(w - x, -1, 1) = min(max(w, x - 1), x + 1) - x,
// and the last term, x sum(grad), is subtracted once a pixel: three instructions a term instead of four.
// EXACT is the four as they stand.
template <bool EXACT, int FILTERS, class T>
inline void clip_tile(const T* grad, const index* tap, const T* w, index rows, const T* x, T* total,
                      index row, bool first) {
    Vec<T> sum[FILTERS] = {}, low[FILTERS], high[FILTERS];
    const Vec<T> one = broadcast(T(1));
#pragma GCC unroll 8
    for (int f = 0; f < FILTERS; ++f) {
        const Vec<T> value = load(x + f * row);
        low[f] = EXACT ? value : value - one;
        high[f] = value + one;
    }
    for (index t = 0; t < rows; ++t, w += TILE_FILTERS) {
        const Vec<T> g = load(grad + tap[t]);
#pragma GCC unroll 8
        for (int f = 0; f < FILTERS; ++f) {
            // The order of the operands lets a NaN through.
            const Vec<T> weight = broadcast(w[f]);
            const Vec<T> slope = EXACT ? min(one, max(-one, weight - low[f]))
                                       : min(high[f], max(low[f], weight));
            sum[f] = multiply_add(slope, g, sum[f]);
        }
    }
#pragma GCC unroll 8
    for (int f = 0; f < FILTERS; ++f) {
        T* t = total + f * row;
        store(t, first ? sum[f] : load(t) + sum[f]);
    }
}

template <bool EXACT, class P, class Finish>
inline void clip_panel(P& panel, const bool* wanted, Finish finish) {
    using T = typename P::Sum;
    panel.template reduce<!EXACT>(wanted, [&](index f, const T* w, index n, bool first) {
        for (index v = 0; v < panel.vectors; ++v) {
            const index at = f * panel.ROW + v * LANES<T>;
            with_filters<1>(panel.tile_filters(f), [&](auto filters, auto) {
                clip_tile<EXACT, filters.value>(panel.pixels + panel.place[v], panel.tap, w, n,
                                                panel.rows + at, panel.total + at, panel.ROW, first);
            });
        }
    }, finish);
}

// x at the panel's own pixels, less the channel's offset.
template <class P, class T>
inline void load_pixels(P& panel, const Image<const T>& x, const T* centre) {
    for (index r = 0; r < panel.start[PANEL_VECTORS]; ++r)
        panel.x_spans[r] = pixel_span(panel.runs[r], x);
    for (index f = 0; f < panel.filters; ++f) {
        const index channel = panel.group * panel.p.filters + panel.filter + f;
        const T* base = x.data + channel * x.channel;
        for (index v = 0; v < panel.vectors; ++v) {
            const Span* first = panel.x_spans + panel.start[v];
            const Span* last = panel.x_spans + panel.start[v + 1];
            const Vec<T> value = x.column == 1   ? gather<CONTIGUOUS>(first, last, base, 1)
                                 : x.column == 2 ? gather<EVEN>(first, last, base, 2)
                                                 : gather<STRIDED>(first, last, base, x.column);
            store(panel.rows + f * panel.ROW + v * LANES<T>, value - broadcast(centre[channel]));
        }
    }
}

template <class T>
inline void adder_grad_x(const AdderGradX<T>& g) {
    constexpr T LIMIT = 4;  // of |x|: the fast form's rounding error grows with it
    const Convolution<T, T>& p = g.convolution;
    Workspace workspace;
    workspace.allocate(p.groups * p.filters * index(sizeof(T)));
    T* centre = reinterpret_cast<T*>(workspace.data());
    const auto find_offset = [=, &p](index group, index f) {
        const T* w = p.w + group * p.w_group + f * p.w_filter;
        centre[group * p.filters + f] = common_offset(w, p.channels, p.w_channel, p.w_filter);
    };

    const auto exact = [](auto& panel, const bool* wanted) {
        clip_panel<true>(panel, wanted, [&](index tile) {
            for (index f = tile; f < tile + panel.tile_filters(tile); ++f) {
                const T* total = panel.total + f * panel.ROW;
                panel.write(f, [&](index v) { return load(total + v * LANES<T>); });
            }
        });
    };
    for_each_panel(p, Weights<T>{p, centre}, find_offset, [&](auto& panel) {
        load_pixels(panel, g.x, centre);
        if constexpr (sizeof(T) == 8) return exact(panel, nullptr);
        bool any = false;
        clip_panel<false>(panel, nullptr, [&](index tile) {
            Vec<T> largest{}, infinite{};
            for (index f = tile; f < tile + panel.tile_filters(tile); ++f) {
                const T *total = panel.total + f * panel.ROW, *x = panel.rows + f * panel.ROW;
                panel.write(f, [&](index v) {
                    const Vec<T> sum = load(total + v * LANES<T>), value = load(x + v * LANES<T>);
                    largest = max(largest, abs(value));
                    infinite += (value + panel.magnitude[v]) * T(0);
                    return sum - value * panel.sum[v];
                });
            }
            const bool redo = below<T>(broadcast(LIMIT), largest) || below<T>(infinite, Vec<T>{});
            panel.redo[tile / TILE_FILTERS] = redo;
            any |= redo;
        });
        if (any) exact(panel, panel.redo);
    });
}

// ---- grad_w: a product of two long thin matrices ----------------------------------------------------------

constexpr int GRAD_VECTORS = 32;     // vectors of pixels packed at a time
constexpr index GRAD_ROWS = 144;     // rows of im2col (channel, tap) a unit of work
constexpr index GRAD_FILTERS = 64;   // filters a unit of work

constexpr index GRAD_WORKSPACE = 60 << 20;  // bytes, all threads together

// total[f][r] += sum over the pixels of grad[f] * x[r], kept lane by lane until the very end.
template <int FILTERS, int ROWS, class T>
inline void product_tile(const T* grad, const T* x, index pixels, T* total, index total_row) {
    constexpr index ROW = GRAD_VECTORS * LANES<T>;
    Vec<T> sum[FILTERS][ROWS] = {};
    for (index i = 0; i < pixels; i += LANES<T>) {
        Vec<T> row[ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) row[r] = load(x + r * ROW + i);
#pragma GCC unroll 8
        for (int f = 0; f < FILTERS; ++f) {
            const Vec<T> g = load(grad + f * ROW + i);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) sum[f][r] = multiply_add(g, row[r], sum[f][r]);
        }
    }
#pragma GCC unroll 8
    for (int f = 0; f < FILTERS; ++f)
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            T* t = total + f * total_row + r * LANES<T>;
            store(t, load(t) + sum[f][r]);
        }
}

template <class T>
inline void products(index filters, index rows, index pixels, const T* grad, const T* x, T* total,
                     index total_row) {
    constexpr index ROW = GRAD_VECTORS * LANES<T>;
    for (index f = 0; f < filters; f += TILE_FILTERS)
        for (index r = 0; r < rows; r += TILE_VECTORS) {
            const auto run = [&](auto n, auto m) {
                product_tile<n.value, m.value>(grad + f * ROW, x + r * ROW, pixels,
                                               total + f * total_row + r * LANES<T>, total_row);
            };
            if (rows - r >= TILE_VECTORS) with_filters<TILE_VECTORS>(filters - f, run);
            else if (rows - r == 2) with_filters<2>(filters - f, run);
            else with_filters<1>(filters - f, run);
        }
}

// The memory a thread works in. Rows and filters are rounded up to whole tiles, whose surplus is computed
// and ignored.
template <class T>
struct GradScratch {
    static constexpr index ROW = GRAD_VECTORS * LANES<T>;
    Run* runs;
    Span* spans;
    T *x, *grad, *total;
    explicit GradScratch(Carver& scratch)
        : runs(scratch.take<Run>(ROW)),
          spans(scratch.take<Span>(ROW * BLOCK_POSITIONS)),
          x(scratch.take<T>(ROW * (GRAD_ROWS + 1))),
          grad(scratch.take<T>(ROW * GRAD_FILTERS)),
          total(scratch.take<T>(LANES<T> * (GRAD_ROWS + 1) * GRAD_FILTERS)) {}
};

// Filters [filter, filter + filters) of a group times the rows of a block: the sums go to grad_w, and, in
// the block that starts the reduction, the sums of grad (products with a row of ones) to grad_sum.
template <class T>
inline void grad_w_unit(const GradW<T>& p, const T* centre, const GradScratch<T>& s, index group,
                        index filter, index filters, const Block& block, T* grad_sum) {
    constexpr index ROW = GradScratch<T>::ROW;
    const index height = p.height.pixels, width = p.width.pixels, pixels = p.batch * height * width;
    const index positions = p.height.taps * p.width.taps;
    const index taps = block.taps(), rows = taps + (block.channel == 0 && block.position == 0);
    const index k = group * p.filters + filter, c = group * p.channels + block.channel;
    const index total_row = (GRAD_ROWS + 1) * LANES<T>;
    const Axis still{1, 1, 0, 1, 0, 0, 0, 0};
    Axis rows_of_grad = still, columns_of_grad = still;
    rows_of_grad.size = height, columns_of_grad.size = width;

    for (index i = 0; i < filters * total_row; ++i) s.total[i] = 0;
    for (index i = 0; i < ROW; ++i) s.x[taps * ROW + i] = 1;
    index start[GRAD_VECTORS + 1];
    for (index begin = 0; begin < pixels; begin += ROW) {
        const index runs = find_runs(height, width, begin, smaller(ROW, pixels - begin), LANES<T>,
                                     GRAD_VECTORS, s.runs, start);
        const PixelMap x_map{start, s.spans, p.width.step * p.x.column};
        find_spans(s.runs, runs, p.x, p.height, p.width, block, s.spans);
        pack<false, GRAD_VECTORS>(x_map, p.x.data + c * p.x.channel, p.x.channel,
                                  centre ? centre + c : nullptr, block, s.x, (Vec<T>*)nullptr,
                                  (Vec<T>*)nullptr);
        const PixelMap grad_map{start, s.spans, p.grad.column};
        const Block each_filter{0, filters, 0, 1};
        find_spans(s.runs, runs, p.grad, rows_of_grad, columns_of_grad, each_filter, s.spans);
        pack<false, GRAD_VECTORS>(grad_map, p.grad.data + k * p.grad.channel, p.grad.channel,
                                  (const T*)nullptr, each_filter, s.grad, (Vec<T>*)nullptr,
                                  (Vec<T>*)nullptr);
        products(filters, rows, smaller(ROW, pixels - begin), s.grad, s.x, s.total, total_row);
    }
    for (index f = 0; f < filters; ++f) {
        const T* total = s.total + f * total_row;
        T* to = p.grad_w + ((k + f) * p.channels + block.channel) * positions + block.position;
        for (index r = 0; r < taps; ++r)
            to[r / block.positions * positions + r % block.positions] =
                sum_lanes<T>(load(total + r * LANES<T>));
        if (rows > taps) grad_sum[k + f] = sum_lanes<T>(load(total + taps * LANES<T>));
    }
}

// sum (x - w) grad by the definition, for the weights that are not finite.
template <class T>
inline T grad_w_directly(const GradW<T>& p, index k, index c, index i, index j, T w) {
    T sum = 0;
    for (index n = 0; n < p.batch; ++n)
        for (index row = 0; row < p.height.pixels; ++row)
            for (index column = 0; column < p.width.pixels && sum == sum; ++column) {
                const index h = row * p.height.step + p.height.offset + i * p.height.tap_step;
                const index v = column * p.width.step + p.width.offset + j * p.width.tap_step;
                const bool inside = h >= 0 && h < p.height.size && v >= 0 && v < p.width.size;
                const T x = inside ? p.x.data[n * p.x.batch + c * p.x.channel + h * p.x.row +
                                              v * p.x.column]
                                   : T(0);
                sum += (x - w) * p.grad.data[n * p.grad.batch + k * p.grad.channel +
                                             row * p.grad.row + column * p.grad.column];
            }
    return sum;
}

// grad_w = sum (x - c) grad - (w - c) sum grad, for any c (conv: w = c = 0).
template <class T>
inline void grad_w(const GradW<T>& p) {
    const index positions = p.height.taps * p.width.taps;
    const index channels = p.groups * p.channels, filters = p.groups * p.filters;
    const index filter_blocks = ceil_div(p.filters, GRAD_FILTERS);
    const double terms = double(p.batch) * p.height.pixels * p.width.pixels * filters * p.channels * positions;

    // A sum depends on nothing but its own row and filter, so the cut may depend on the threads.
    Blocking blocking(p.channels, positions);
    const index most = threads_for(index(1) << 30, terms);
    const index cuts = ceil_div(2 * most, p.groups * filter_blocks * ceil_div(positions, blocking.position_chunk));
    blocking.channel_chunk = larger(1, smaller(GRAD_ROWS / blocking.position_chunk, p.channels / cuts));
    const index units = p.groups * filter_blocks * blocking.count();
    Carver measure(nullptr);
    GradScratch<T>{measure};
    const index scratch = measure.used();
    const index threads = smaller(threads_for(units, terms), GRAD_WORKSPACE / scratch);
    Workspace workspace;
    workspace.allocate(threads * scratch + (channels + filters) * index(sizeof(T)));
    T* grad_sum = reinterpret_cast<T*>(workspace.data() + threads * scratch);
    T* centre = grad_sum + filters;

#pragma omp parallel num_threads(threads)
    {
        Carver mine(workspace.data() + this_thread() * scratch);
        const GradScratch<T> own(mine);
#pragma omp for
        for (index c = 0; c < channels; ++c) {
            const T* w = p.w + (c / p.channels * p.filters * p.channels + c % p.channels) * positions;
            centre[c] = p.w ? common_offset(w, p.filters, p.channels * positions, positions) : T(0);
        }
#pragma omp for schedule(dynamic)
        for (index unit = 0; unit < units; ++unit) {
            const index f = unit / blocking.count() % filter_blocks * GRAD_FILTERS;
            grad_w_unit(p, p.w ? centre : nullptr, own, unit / (blocking.count() * filter_blocks), f,
                        smaller(GRAD_FILTERS, p.filters - f), blocking[unit % blocking.count()], grad_sum);
        }
#pragma omp for
        for (index k = 0; k < (p.w ? filters : 0); ++k) {
            const bool finite = __builtin_fabs(grad_sum[k]) <= LARGEST<T>;
            for (index t = 0; t < p.channels * positions; ++t) {
                const index c = k / p.filters * p.channels + t / positions;
                const T w = p.w[k * p.channels * positions + t];
                T& to = p.grad_w[k * p.channels * positions + t];
                if (finite && __builtin_fabs(w) <= LARGEST<T>) to -= (w - centre[c]) * grad_sum[k];
                else to = grad_w_directly(p, k, c, t % positions / p.width.taps, t % p.width.taps, w);
            }
        }
    }
}

}  // namespace mulfree::MULFREE_ISA
