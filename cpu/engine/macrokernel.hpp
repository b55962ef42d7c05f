// A strip is the unit of work of everything that has the shape of a convolution: a few panels of pixels,
// with one chunk of one group's filters. Pixels are numbered through rows, planes and images and cut into
// panels, whose packed rows of one block stay in the first-level cache; the panels of a strip are packed
// together, so that reading and writing go along a plane in long pieces.
#pragma once

#include "source_shared_rows.hpp"
#include "source_im2col.hpp"
#include "microkernel.hpp"
#include "workspace.hpp"

namespace mulfree::MULFREE_ISA {

constexpr index BLOCK_ROWS = 160;         // panel rows: 160 rows of three 64-byte vectors are 30 KiB
constexpr index BLOCK_POSITIONS = 32;     // kernel positions a block; bounds the table of spans
constexpr index CHUNK_FILTERS = 256;      // filters whose totals are kept for a panel
constexpr index STRIP_TOTALS = 1024;      // panels times filters whose totals are kept

// The reduction cut into blocks: chunks of kernel positions, and in each, chunks of channels.
struct Blocking {
    index channels, positions, channel_chunk, position_chunk;

    Blocking(index channels_, index positions_) : channels(channels_), positions(positions_) {
        position_chunk = ceil_div(larger(positions, 1), ceil_div(larger(positions, 1), BLOCK_POSITIONS));
        const index limit = larger(1, BLOCK_ROWS / position_chunk);
        channel_chunk = ceil_div(channels, ceil_div(channels, limit));
    }
    index channel_chunks() const { return ceil_div(channels, channel_chunk); }
    index count() const { return ceil_div(positions, position_chunk) * channel_chunks(); }
    index rows() const { return channel_chunk * position_chunk; }
    // Where the packed weights of a tile start: in the order in which a panel meets them.
    index weights(index group, index block, index tile, index tiles) const {
        return ((group * count() + block) * tiles + tile) * rows() * TILE_FILTERS;
    }
    Block operator[](index b) const {
        const index c = b % channel_chunks() * channel_chunk;
        const index k = b / channel_chunks() * position_chunk;
        return {c, smaller(channel_chunk, channels - c), k, smaller(position_chunk, positions - k)};
    }
};

// A convolution's own weights.
template <class T>
struct Weights {
    const Convolution<T, T>& p;

    T operator()(index group, index filter, index channel, index i, index j) const {
        return p.w[group * p.w_group + filter * p.w_filter + channel * p.w_channel +
                   (p.height.kernel + i * p.height.kernel_step) * p.w_row +
                   (p.width.kernel + j * p.width.kernel_step) * p.w_column];
    }
};

// The weights of one tile of filters and one block, laid out as the register tile reads them:
// [row][filter], zero where there is none.
template <class X, class Y, class Weight>
inline void pack_weights(const Convolution<X, Y>& p, const Weight& weight, index group, index filter,
                         const Block& block, X* packed) {
    const index real = smaller(TILE_FILTERS, p.filters - filter);
    for (index t = 0; t < block.positions; ++t) {
        const index i = (block.position + t) / p.width.taps, j = (block.position + t) % p.width.taps;
        X* to = packed + t * TILE_FILTERS;
        for (index c = 0; c < block.channels; ++c, to += block.positions * TILE_FILTERS)
            for (index f = 0; f < TILE_FILTERS; ++f)
                to[f] = f < real ? weight(group, filter + f, block.channel + c, i, j) : X(0);
    }
}

// One panel of pixels, with the sums of one chunk of filters.
template <class X, class Y>
struct Panel {
    static constexpr index ROW = PANEL_VECTORS * LANES<X>;  // pixels in a panel

    const Convolution<X, Y>* p;
    index vectors;
    const Run *runs, *y_runs;
    const index *start, *y_start;  // the first run of every vector
    Span *y_spans, *x_spans;
    bool solid;          // whether the panel is full and its pixels are contiguous in y
    const index* place;  // where in the strip's pixels the vectors start
    X *total, *rows;     // [filter][pixel]: the sums, and values the operation wants to keep
    Vec<X> *sum, *magnitude;  // of the columns of every vector, where they are asked for
    bool redo[CHUNK_FILTERS / TILE_FILTERS];  // tiles to be summed once more, with more care
    index group, filter, filters;

    index tile_filters(index f) const { return smaller(TILE_FILTERS, filters - f); }
    Y bias(index f) const { return p->bias ? p->bias[group * p->filters + filter + f] : Y(0); }

    // The pixels of filter f, if the panel is solid.
    Y* solid_pixels(index f) const { return plane(f) + y_spans[y_start[0]].offset; }

    // Stores value(v) as vector v of the pixels of filter f. Inlined always, for the operation's constants to
    // stay in registers.
    template <class F>
    __attribute__((always_inline)) void write(index f, F value) {
        if (solid) {
            Y* y = solid_pixels(f);
#pragma GCC unroll 12
            for (int v = 0; v < PANEL_VECTORS; ++v) store(y + v * LANES<Y>, value(v));
            return;
        }
        Y* y = plane(f);
        index lane_stride = p->y.column;
        if (p->y_shifts) {
            const index kind = p->y_shifts->kind[filter + f], first = y_start[0];
            find_shifted_spans(y_runs + first, y_start[PANEL_VECTORS] - first, p->y, *p->y_shifts, kind,
                               kind + 1, y_spans + first);
            lane_stride *= p->y_shifts->width.step;
        }
        for (index v = 0; v < vectors; ++v)
            scatter(y_spans + y_start[v], y_spans + y_start[v + 1], y, lane_stride, value(v));
    }

    // The same from an array, when lanes of y and lanes of a vector are not alike.
    void write_lanes(index f, const Y* value) {
        Y* y = plane(f);
        for (index v = 0; v < vectors; ++v)
            for (const Span* s = y_spans + y_start[v]; s != y_spans + y_start[v + 1]; ++s)
                for (index l = 0; l < LANES<X>; ++l)
                    if (s->mask >> l & 1) y[s->offset + l * p->y.column] = value[v * LANES<X> + l];
    }

    // Brings in the lines of y that a tile will end up in.
    void prefetch_output(index tile) const {
        if (p->y_shifts) return;
        const index filters_ = tile_filters(tile), channel = p->y.channel;
        if (solid) {
            const Y* y = solid_pixels(tile) + LANES<Y> - 1;
            for (index f = 0; f < filters_; ++f, y += channel)
#pragma GCC unroll 12
                for (int v = 0; v < PANEL_VECTORS; ++v) prefetch_write(y, v * LANES<Y>);
            return;
        }
        for (index v = 0; v < vectors; ++v) {
            const index offset = y_spans[y_start[v]].offset + LANES<X> - 1;
            for (index f = 0; f < filters_; ++f) prefetch_write(plane(tile), f * channel + offset);
        }
    }

private:
    Y* plane(index f) const { return p->y.data + (group * p->filters + filter + f) * p->y.channel; }
};

// The panels that a thread works on at a time, and the scratch memory that it works in.
template <class X, class Y, class Weight>
struct Strip {
    using Sum = X;
    static constexpr index ROW = Panel<X, Y>::ROW;

    const Convolution<X, Y>& p;
    const Blocking& blocking;
    const Weight& weight;
    const X* shared_weights;

    Panel<X, Y> panels[STRIP_PANELS];
    index count;       // of panels
    X* pixels;         // the packed block,
    const index* tap;  // and what every tap of it adds to the place of a vector
    index group, filter, filters;

    Strip(const Convolution<X, Y>& p_, const Blocking& blocking_, const Weight& weight_,
          const X* shared_weights_, index most_panels, index chunk, Carver& scratch)
        : p(p_),
          blocking(blocking_),
          weight(weight_),
          shared_weights(shared_weights_),
          most_(most_panels),
          chunk_(chunk),
          lines_(p_.height, p_.width, most_panels * ROW, LANES<X>) {
        const index row = most_ * ROW;
        const index most_runs = smaller(row, most_ * PANEL_VECTORS + row / larger(1, p.width.pixels) + 2);
        runs_ = scratch.take<Run>(most_runs);
        y_runs_ = scratch.take<Run>(most_runs);
        spans_ = scratch.take<Span>(larger(lines_.spans(), most_runs * (p.x_shifts
            ? larger(MOST_KINDS, blocking.rows()) : blocking.position_chunk)));
        y_spans_ = scratch.take<Span>(most_runs * (p.y_shifts ? MOST_KINDS : 1));
        x_spans_ = scratch.take<Span>(most_runs * (p.y_shifts ? MOST_KINDS : 1));
        matrix_tap_ = scratch.take<index>(blocking.rows());
        line_tap_ = scratch.take<index>(blocking.rows());
        line_sums_ = scratch.take<X>(2 * lines_.channel);
        pixels = scratch.take<X>(row * blocking.rows());
        own_weights_ = scratch.take<X>(TILE_FILTERS * blocking.rows());
        total_ = scratch.take<X>((blocking.count() > 1 ? most_ : 1) * ROW * chunk_);
        rows_ = scratch.take<X>(row * chunk_);
    }

    // Once the scratch memory is there.
    void begin() {
        for (index t = 0; t < blocking.rows(); ++t) matrix_tap_[t] = t * ROW;
        if (blocking.position_chunk == blocking.positions)
            for (index t = 0; t < blocking.rows(); ++t)
                line_tap_[t] = t / blocking.positions * lines_.channel +
                               lines_.tap(p.height, p.width, t % blocking.positions);
    }

    // Panels that are worth packing together, which takes them through the second-level cache: many where
    // their taps share lines, or where x is read along a plane.
    static index most_panels(const Convolution<X, Y>& p) {
        const bool lines = Lines(p.height, p.width, STRIP_PANELS * ROW, LANES<X>).channel;
        return lines || p.height.taps * p.width.taps == 1 ? STRIP_PANELS : 1;
    }

    index tiles() const { return ceil_div(p.filters, TILE_FILTERS); }

    void move_to(index first, index length) {
        const index height = p.height.pixels, width = p.width.pixels;
        const index vectors = ceil_div(length, LANES<X>);
        count = ceil_div(length, ROW);
        const index all = count * PANEL_VECTORS;
        if (p.x_shifts) find_shifted_runs(*p.x_shifts, first, length, LANES<X>, all, runs_, start_);
        else find_runs(height, width, first, length, LANES<X>, all, runs_, start_);
        spans_at_ = -1;
        straight_ = length % ROW == 0 && start_[all] == all && runs_[0].image == runs_[all - 1].image &&
                    (p.x_shifts ? p.x_shifts->inside != nullptr : along_a_row());
        in_lines_ = !p.x_shifts && blocking.position_chunk == blocking.positions &&
                    lines_.cover(runs_, start_, vectors, p.height, p.width, place_);
        if (in_lines_) {
            lines_.find_spans(runs_, start_, vectors, p.x, p.height, p.width, spans_);
            tap = line_tap_;
        } else {
            for (index v = 0; v < all; ++v)
                place_[v] = v / PANEL_VECTORS * blocking.rows() * ROW + v % PANEL_VECTORS * LANES<X>;
            tap = matrix_tap_;
        }
        // Rows of y without gaps are one long row.
        const bool dense = p.y.row == width * p.y.column;
        if (p.y_shifts) find_shifted_runs(*p.y_shifts, first, length, LANES<X>, all, y_runs_, y_start_);
        else {
            const index found = find_runs(dense ? 1 : height, dense ? height * width : width, first, length,
                                          LANES<X>, all, y_runs_, y_start_);
            for (index r = 0; r < found; ++r) y_spans_[r] = pixel_span(y_runs_[r], p.y);
        }
        for (index q = 0; q < count; ++q) {
            Panel<X, Y>& panel = panels[q];
            const index v = q * PANEL_VECTORS;
            single_[q] = true;
            for (index k = v; k < v + PANEL_VECTORS; ++k) single_[q] &= start_[k + 1] == start_[k] + 1;
            panel.p = &p;
            panel.vectors = smaller(PANEL_VECTORS, vectors - v);
            panel.runs = runs_, panel.start = start_ + v, panel.place = place_ + v;
            panel.y_runs = y_runs_, panel.y_start = y_start_ + v, panel.y_spans = y_spans_;
            panel.x_spans = x_spans_;
            panel.rows = rows_ + q * ROW * chunk_;
            panel.solid = !p.y_shifts && dense && p.y.column == 1 && (q + 1) * ROW <= length &&
                          y_start_[v + PANEL_VECTORS] == y_start_[v] + PANEL_VECTORS &&
                          y_runs_[y_start_[v]].image == y_runs_[y_start_[v] + PANEL_VECTORS - 1].image;
        }
    }

    void take(index group_, index filter_, index filters_) {
        group = group_, filter = filter_, filters = filters_;
        for (index q = 0; q < count; ++q) {
            panels[q].group = group, panels[q].filter = filter, panels[q].filters = filters;
            for (bool& redo : panels[q].redo) redo = false;
        }
    }

    // Calls run(panel, f, weights, block, first, last) for every block, every tile of filters
    // [filter + f, ...) and every panel, the block being in `pixels`, and finish(panel, f) when a tile is
    // complete; only where panel.redo[tile] is REDO. SUMS adds the columns of a panel into its sum and
    // magnitude.
    template <bool SUMS, bool REDO, class Run_, class Finish>
    void reduce(Run_ run, Finish finish) {
        const index blocks = blocking.count();
        for (index q = 0; q < count; ++q) {
            Panel<X, Y>& panel = panels[q];
            panel.total = total_ + (blocks > 1 ? q * ROW * chunk_ : 0);  // tiles round filters up
            panel.sum = sum_ + q * PANEL_VECTORS, panel.magnitude = magnitude_ + q * PANEL_VECTORS;
        }
        for (index v = 0; SUMS && v < count * PANEL_VECTORS; ++v) sum_[v] = magnitude_[v] = Vec<X>{};
        for (index i = 0; blocks == 0 && i < ROW * filters; ++i) total_[i] = 0;
        for (index b = 0; b < larger(1, blocks); ++b) {
            const Block block = blocking[b];
            const bool last = b + 1 >= blocks;
            if (blocks) pack_block<SUMS>(block);
            for (index f = 0; f < filters; f += TILE_FILTERS) {
                const X* w = blocks ? weights(f, b, block) : nullptr;
                for (Panel<X, Y>* panel = panels; panel != panels + count; ++panel) {
                    if (panel->redo[f / TILE_FILTERS] != REDO) continue;
                    if (last) panel->prefetch_output(f);
                    if (blocks) run(*panel, f, w, block, b == 0, last);
                    if (last) finish(*panel, f);
                }
            }
        }
    }

    // panel.total[f] = sum over all taps of Op::term.
    template <class Op, bool SUMS, bool REDO = false, class Finish>
    void accumulate(Finish finish) {
        reduce<SUMS, REDO>([&](auto& panel, index f, const X* w, const Block& block, bool first, bool) {
            sum_tile<Op>(panel, f, w, block, first);
        }, finish);
    }

    // y = the sum over all taps of Op::term, plus bias. Whole tiles go from registers to y where they can.
    template <class Op>
    void answer() {
        using P = Panel<X, Y>;
        static constexpr Y NONE[TILE_FILTERS] = {};
        const auto whole = [&](const P& panel, index f) {
            return panel.vectors == PANEL_VECTORS && panel.tile_filters(f) == TILE_FILTERS &&
                   blocking.count() > 0;
        };
        reduce<false, false>([&](P& panel, index f, const X* w, const Block& block, bool first, bool last) {
            if (!whole(panel, f)) return sum_tile<Op>(panel, f, w, block, first);
            const bool finish = last && panel.solid;
            const Y* bias = p.bias && finish ? p.bias + group * p.filters + filter + f : NONE;
            for (index v = 0; v < PANEL_VECTORS; v += TILE_VECTORS) {
                X* total = panel.total + f * ROW + v * LANES<X>;
                Y* to = finish ? panel.solid_pixels(f) + v * LANES<X> : total;
                const auto put = [=, row = finish ? p.y.channel : ROW](index k) {
                    return [=, b = broadcast(bias[k])](index n, Vec<X> sum) {
                        const index at = n * LANES<X>;
                        if (!first) sum = load(total + k * ROW + at) + sum;
                        store(to + k * row + at, sum + b);
                    };
                };
                const auto run = [&](auto tap) {
                    tile<Op, TILE_FILTERS, TILE_VECTORS>(pixels, tap, panel.place + v, w, block.taps(), put);
                };
                if (in_lines_) run([=](index t) { return line_tap_[t]; });
                else run([](index t) { return t * ROW; });
            }
        }, [&](P& panel, index tile) {
            if (whole(panel, tile) && panel.solid) return;
            for (index f = tile; f < tile + panel.tile_filters(tile); ++f) {
                const Vec<Y> bias = broadcast(panel.bias(f));
                const X* total = panel.total + f * ROW;
                panel.write(f, [&](index v) { return load(total + v * LANES<X>) + bias; });
            }
        });
    }

private:
    const index most_, chunk_;
    Run *runs_, *y_runs_;
    Span *spans_, *y_spans_, *x_spans_;
    X *own_weights_, *total_, *rows_;
    X* line_sums_;                  // sums of the lines over channels, and of their magnitudes
    index *matrix_tap_, *line_tap_;  // the two tables `tap` may be
    index start_[STRIP_VECTORS + 1], y_start_[STRIP_VECTORS + 1];
    index place_[STRIP_VECTORS];
    Lines lines_;
    Vec<X> sum_[STRIP_VECTORS], magnitude_[STRIP_VECTORS];
    bool single_[STRIP_PANELS];  // the panels whose every vector is one run
    bool in_lines_;              // how x is packed
    bool straight_;              // the vectors follow one another in x
    index spans_at_;

    template <class Op>
    void sum_tile(Panel<X, Y>& panel, index f, const X* w, const Block& block, bool first) {
        tile_row<Op>(panel.tile_filters(f), panel.vectors, pixels, tap, panel.place, w, block.taps(),
                     panel.total + f * ROW, ROW, first);
    }

    // All pixels are one row of x, as flattened() makes them.
    bool along_a_row() const {
        const Axis &h = p.height, &w = p.width;
        return h.pixels * h.taps * w.taps * w.step * p.x.column == 1 && h.offset >= 0 && h.offset < h.size &&
               w.offset == 0 && w.pixels == w.size;
    }

    template <bool SUMS>
    void pack_block(const Block& block) {
        const X* x = p.x.data + (group * p.channels + block.channel) * p.x.channel;
        if (in_lines_) {
            with_access<X>(p.x.column, [&](auto way) {
                pack_lines<Access(way.value), SUMS>(spans_, lines_, x, p.x.channel, p.x.column, block.channels,
                                                    pixels, line_sums_);
            });
            for (index q = 0; SUMS && q < count; ++q) sum_windows(panels[q], block.positions);
            return;
        }
        const index runs = start_[count * PANEL_VECTORS];
        PixelMap map{count, start_, single_, straight_, runs, spans_, p.width.step * p.x.column};
        if (p.x_shifts) {
            const BlockKinds kinds(p.x_shifts, block);
            if (spans_at_ != kinds.first)
                find_shifted_spans(runs_, runs, p.x, *p.x_shifts, kinds.first, kinds.end, spans_);
            spans_at_ = map.first_kind = kinds.first;
            map.kind = p.x_shifts->kind + block.channel;
        } else if (spans_at_ != block.position) {
            find_spans(runs_, runs, p.x, p.height, p.width, block, spans_);
            spans_at_ = block.position;
        }
        // A block's sums for themselves, as those of lines are: however x lies, they are rounded alike.
        const index size = blocking.rows() * ROW;
        Vec<X> sum[STRIP_VECTORS] = {}, magnitude[STRIP_VECTORS] = {};
        if (count > 1) pack<SUMS, false>(map, x, p.x.channel, block, pixels, size, sum, magnitude);
        else pack<SUMS, true>(map, x, p.x.channel, block, pixels, size, sum, magnitude);
        for (index v = 0; SUMS && v < count * PANEL_VECTORS; ++v)
            sum_[v] += sum[v], magnitude_[v] += magnitude[v];
    }

    // The sums over the windows, from the sums over the channels of a block.
    void sum_windows(Panel<X, Y>& panel, index positions) {
        for (index v = 0; v < panel.vectors; ++v)
            for (index t = 0; t < positions; ++t) {
                panel.sum[v] += load(line_sums_ + panel.place[v] + line_tap_[t]);
                if (HAS_MAGNITUDE<X>)
                    panel.magnitude[v] += load(line_sums_ + lines_.channel + panel.place[v] + line_tap_[t]);
            }
    }

    const X* weights(index f, index b, const Block& block) {
        if (shared_weights) {
            const index tile = (filter + f) / TILE_FILTERS;
            return shared_weights + blocking.weights(group, b, tile, tiles());
        }
        pack_weights(p, weight, group, filter + f, block, own_weights_);
        return own_weights_;
    }
};

}  // namespace mulfree::MULFREE_ISA
