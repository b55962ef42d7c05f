// The loop nest around the register tile, shared by every operation that has the shape of a
// convolution: pixels are cut into panels, the reduction into blocks of taps whose panel stays in the
// first-level cache, the filters into tiles. None of the cuts depends on the number of threads, and no
// sum is shared between threads, so answers do not depend on it either.
#pragma once

#include <new>
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "lines.hpp"
#include "panel.hpp"
#include "tile.hpp"

namespace mulfree::MULFREE_ISA {

constexpr index BLOCK_ROWS = 160;         // panel rows: 160 rows of three 64-byte vectors are 30 KiB
constexpr index BLOCK_POSITIONS = 32;     // kernel positions a block; bounds the table of spans
constexpr index CHUNK_FILTERS = 256;      // filters whose totals are kept for a panel
constexpr index SHARED_WEIGHTS = 24 << 20;  // bytes; above it every thread packs tiles as it goes
constexpr index MAX_THREADS = 64;         // bounds the workspace: less than 512 KiB a thread
constexpr index MOST_AHEAD = 64;          // lines of a channel that are fetched for the next panel
constexpr index SMALL_WORK = 100000;      // terms below which waking threads costs more than it saves

inline index threads_for(index units, double terms) {
#if defined(_OPENMP)
    if (terms < SMALL_WORK) return 1;
    return larger(1, smaller(smaller(omp_get_max_threads(), MAX_THREADS), units));
#else
    return 1;
#endif
}

inline index this_thread() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// The memory of a call.
class Workspace {
public:
    Workspace() = default;
    Workspace(const Workspace&) = delete;
    ~Workspace() { ::operator delete(base_, std::align_val_t(64)); }
    void allocate(index bytes) {
        base_ = static_cast<char*>(::operator new(std::size_t(bytes), std::align_val_t(64)));
    }
    char* data() const { return base_; }

private:
    char* base_ = nullptr;
};

// Cuts memory into cache-line aligned pieces; from null, only measures what the pieces take.
class Carver {
public:
    explicit Carver(char* base) : base_(reinterpret_cast<std::uintptr_t>(base)) {}
    template <class T>
    T* take(index count) {
        const std::uintptr_t at = base_ + used_;
        used_ += round_up(count * index(sizeof(T)), 64);
        return reinterpret_cast<T*>(at);
    }
    index used() const { return used_; }

private:
    std::uintptr_t base_;
    index used_ = 0;
};

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

// A convolution's own weights, less centre[filter] where centres are given.
template <class T>
struct Weights {
    const Convolution<T, T>& p;
    const T* centre;

    T operator()(index group, index filter, index channel, index i, index j) const {
        const T w = p.w[group * p.w_group + filter * p.w_filter + channel * p.w_channel +
                        (p.height.kernel + i * p.height.kernel_step) * p.w_row +
                        (p.width.kernel + j * p.width.kernel_step) * p.w_column];
        return centre ? w - centre[group * p.filters + filter] : w;
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

// One panel of pixels with one chunk of one group's filters: the unit of work a thread takes, and the
// scratch memory it works in.
template <class X, class Y, class Weight>
struct Panel {
    using Sum = X;
    static constexpr index ROW = PANEL_VECTORS * LANES<X>;  // pixels in a panel

    const Convolution<X, Y>& p;
    const Blocking& blocking;
    const Weight& weight;
    const X* shared_weights;

    Run *runs, *y_runs;
    Span *spans, *y_spans, *x_spans;
    X *pixels, *own_weights;
    X* line_sums;     // sums of the lines over channels, and of their magnitudes
    X *total, *rows;  // [filter][pixel]: the sums, and values the operation wants to keep
    index start[PANEL_VECTORS + 1], y_start[PANEL_VECTORS + 1];
    index place[PANEL_VECTORS];          // where in `pixels` the vectors of the panel start,
    const index* tap;                    // and what every tap of a block adds to that
    index *matrix_tap, *line_tap;        // the two tables `tap` may be
    Lines lines;
    Vec<X> sum[PANEL_VECTORS], magnitude[PANEL_VECTORS];
    bool redo[CHUNK_FILTERS / TILE_FILTERS];
    bool in_lines, solid;  // how x was packed; whether the pixels of y are contiguous
    index first_pixel, vectors, spans_at, group, filter, filters;
    index ahead[MOST_AHEAD], lines_ahead;  // what the next panel adds to the source of this one

    Panel(const Convolution<X, Y>& p_, const Blocking& blocking_, const Weight& weight_,
          const X* shared_weights_, Carver& scratch)
        : p(p_),
          blocking(blocking_),
          weight(weight_),
          shared_weights(shared_weights_),
          lines(p_.height, p_.width, ROW, LANES<X>) {
        runs = scratch.take<Run>(ROW);
        y_runs = scratch.take<Run>(ROW);
        spans = scratch.take<Span>(
            ROW * (p.x_shifts ? larger(MOST_KINDS, blocking.rows()) : blocking.position_chunk));
        y_spans = scratch.take<Span>(ROW);
        x_spans = scratch.take<Span>(ROW);
        matrix_tap = scratch.take<index>(blocking.rows());
        line_tap = scratch.take<index>(blocking.rows());
        line_sums = scratch.take<X>(2 * lines.channel);
        pixels = scratch.take<X>(ROW * blocking.rows());
        own_weights = scratch.take<X>(TILE_FILTERS * blocking.rows());
        total = scratch.take<X>(ROW * CHUNK_FILTERS);
        rows = scratch.take<X>(ROW * CHUNK_FILTERS);
    }

    // Once the scratch memory is there.
    void begin() {
        for (index t = 0; t < blocking.rows(); ++t) matrix_tap[t] = t * ROW;
        if (blocking.position_chunk == blocking.positions)
            for (index t = 0; t < blocking.rows(); ++t)
                line_tap[t] = t / blocking.positions * lines.channel +
                              lines.tap(p.height, p.width, t % blocking.positions);
    }

    index tiles() const { return ceil_div(p.filters, TILE_FILTERS); }
    index tile_filters(index f) const { return smaller(TILE_FILTERS, filters - f); }
    bool dense() const { return p.y.row == p.width.pixels * p.y.column; }

    void move_to(index panel) {
        const index height = p.height.pixels, width = p.width.pixels;
        first_pixel = panel * ROW;
        const index count = smaller(ROW, p.batch * height * width - first_pixel);
        vectors = ceil_div(count, LANES<X>);
        if (p.x_shifts)
            find_shifted_runs(*p.x_shifts, first_pixel, count, LANES<X>, PANEL_VECTORS, runs, start);
        else find_runs(height, width, first_pixel, count, LANES<X>, PANEL_VECTORS, runs, start);
        spans_at = -1;
        look_ahead();
        in_lines = !p.x_shifts && blocking.position_chunk == blocking.positions && p.x.column == 1 &&
                   lines.cover(runs, start, vectors, p.height, p.width, place);
        if (in_lines) {
            lines.find_spans(runs, start, vectors, p.x, p.height, p.width, spans);
            tap = line_tap;
        } else {
            for (index v = 0; v < PANEL_VECTORS; ++v) place[v] = v * LANES<X>;
            tap = matrix_tap;
        }
        if (p.y_shifts) {
            find_shifted_runs(*p.y_shifts, first_pixel, count, LANES<X>, PANEL_VECTORS, y_runs, y_start);
            solid = false;
            return;
        }
        // Rows of y without gaps are one long row.
        const index found = dense() ? find_runs(1, height * width, first_pixel, count, LANES<X>,
                                                PANEL_VECTORS, y_runs, y_start)
                                    : find_runs(height, width, first_pixel, count, LANES<X>,
                                                PANEL_VECTORS, y_runs, y_start);
        for (index r = 0; r < found; ++r) y_spans[r] = pixel_span(y_runs[r], p.y);
        solid = dense() && p.y.column == 1 && count == ROW && found == PANEL_VECTORS &&
                y_runs[0].image == y_runs[PANEL_VECTORS - 1].image;
    }

    // The panel of a block; SUMS adds its columns into sum and magnitude.
    template <bool SUMS>
    void pack_block(const Block& block) {
        const X* x = p.x.data + (group * p.channels + block.channel) * p.x.channel;
        if (in_lines) {
            pack_lines<SUMS>(spans, lines, x, p.x.channel, block.channels, pixels, line_sums);
            if (SUMS) sum_windows(block.positions);
            return;
        }
        PixelMap map{start, spans, p.width.step * p.x.column};
        if (p.x_shifts) {
            const BlockKinds kinds(p.x_shifts, block);
            if (spans_at != kinds.first)
                find_shifted_spans(runs, start[PANEL_VECTORS], p.x, *p.x_shifts, kinds.first, kinds.end, spans);
            spans_at = map.first_kind = kinds.first;
            map.kind = p.x_shifts->kind + block.channel;
        } else if (spans_at != block.position) {
            find_spans(runs, start[PANEL_VECTORS], p.x, p.height, p.width, block, spans);
            spans_at = block.position;
        }
        pack<SUMS, PANEL_VECTORS>(map, x, p.x.channel, block, pixels, sum, magnitude);
    }

    // Calls run(f, weights, rows, first) for every block and every wanted tile of filters
    // [filter + f, ...), the panel of the block being in `pixels`, and finish(f) when a tile is complete.
    template <bool SUMS, class Run_, class Finish>
    void reduce(const bool* wanted, Run_ run, Finish finish) {
        for (index v = 0; v < PANEL_VECTORS; ++v) sum[v] = magnitude[v] = Vec<X>{};
        const index blocks = blocking.count();
        for (index i = 0; blocks == 0 && i < ROW * filters; ++i) total[i] = 0;
        for (index b = 0; b < larger(1, blocks); ++b) {
            const Block block = blocking[b];
            if (blocks) pack_block<SUMS>(block);
            for (index f = 0; f < filters; f += TILE_FILTERS) {
                if (wanted && !wanted[f / TILE_FILTERS]) continue;
                const bool last = b + 1 >= blocks;
                prefetch_input(block, f);
                if (last) prefetch_output(f);
                if (blocks) run(f, weights(f, b, block), block.taps(), b == 0);
                if (last) finish(f);
            }
        }
    }

    // total[f] = sum over all taps of Op::term.
    template <class Op, bool SUMS, class Finish>
    void accumulate(const bool* wanted, Finish finish) {
        reduce<SUMS>(wanted, [&](index f, const X* w, index n, bool first) {
            tile_row<Op>(tile_filters(f), vectors, pixels, tap, place, w, n, total + f * ROW, ROW, first);
        }, finish);
    }

    // Stores value(v) as vector v of the pixels of filter f.
    template <class F>
    void write(index f, F value) {
        Y* y = p.y.data + (group * p.filters + filter + f) * p.y.channel;
        if (solid) {
            y += y_spans[0].offset;
#pragma GCC unroll 12
            for (int v = 0; v < PANEL_VECTORS; ++v) store(y + v * LANES<Y>, value(v));
            return;
        }
        index lane_stride = p.y.column;
        if (p.y_shifts) {
            const index kind = p.y_shifts->kind[filter + f];
            find_shifted_spans(y_runs, y_start[PANEL_VECTORS], p.y, *p.y_shifts, kind, kind + 1, y_spans);
            lane_stride *= p.y_shifts->width.step;
        }
        for (index v = 0; v < vectors; ++v)
            scatter(y_spans + y_start[v], y_spans + y_start[v + 1], y, lane_stride, value(v));
    }

    // The same from an array, when lanes of y and lanes of a vector are not alike.
    void write_lanes(index f, const Y* value) {
        Y* y = p.y.data + (group * p.filters + filter + f) * p.y.channel;
        for (index v = 0; v < vectors; ++v)
            for (const Span* s = y_spans + y_start[v]; s != y_spans + y_start[v + 1]; ++s)
                for (index l = 0; l < LANES<X>; ++l)
                    if (s->mask >> l & 1) y[s->offset + l * p.y.column] = value[v * LANES<X> + l];
    }

    Y bias(index f) const { return p.bias ? p.bias[group * p.filters + filter + f] : Y(0); }

private:
    // The sums over the windows, from the sums over the channels of a block.
    void sum_windows(index positions) {
        for (index v = 0; v < vectors; ++v)
            for (index t = 0; t < positions; ++t) {
                sum[v] += load(line_sums + place[v] + line_tap[t]);
                if (HAS_MAGNITUDE<X>)
                    magnitude[v] += load(line_sums + lines.channel + place[v] + line_tap[t]);
            }
    }

    // Where the rows start that the windows of the next panel meet and those of this one do not.
    void look_ahead() {
        const Axis &h = p.height, &w = p.width;
        const index line = 64 / index(sizeof(X));
        lines_ahead = 0;
        for (index r = 0; r < start[PANEL_VECTORS]; ++r) {
            const Run& run = runs[r];
            index at = run.image * p.x.batch + (run.row * h.step + h.offset) * p.x.row +
                       run.column * w.step * p.x.column + ROW * h.step * p.x.row / w.pixels;
            if (run.row * w.pixels + run.column + ROW >= h.pixels * w.pixels)
                at += p.x.batch - h.pixels * h.step * p.x.row;
            for (index i = larger(0, h.taps - h.step); i < h.taps; ++i)
                for (index e = 0; e < run.count * w.step * p.x.column; e += line)
                    if (lines_ahead < MOST_AHEAD) ahead[lines_ahead++] = at + i * h.tap_step * p.x.row + e;
        }
    }

    // While a tile is computed: brings in its share of the next panel's source,
    void prefetch_input(const Block& block, index tile) {
        const index tiles = ceil_div(filters, TILE_FILTERS), share = ceil_div(block.channels, tiles);
        const index first = block.channel + tile / TILE_FILTERS * share;
        const index last = smaller(first + share, block.channel + block.channels);
        for (index c = first; c < last; ++c)
            for (index k = 0; k < lines_ahead; ++k)
                prefetch<2>(p.x.data, (group * p.channels + c) * p.x.channel + ahead[k]);
    }

    // and the lines of y that it will end up in.
    void prefetch_output(index tile) {
        if (p.y_shifts) return;
        for (index f = tile; f < tile + tile_filters(tile); ++f) {
            const Y* y = p.y.data + (group * p.filters + filter + f) * p.y.channel;
            for (index v = 0; v < vectors; ++v)
                prefetch_write(y, y_spans[y_start[v]].offset + LANES<X> - 1);
        }
    }

    const X* weights(index f, index b, const Block& block) {
        if (shared_weights) {
            const index tile = (filter + f) / TILE_FILTERS;
            return shared_weights + blocking.weights(group, b, tile, tiles());
        }
        pack_weights(p, weight, group, filter + f, block, own_weights);
        return own_weights;
    }
};

// Runs prepare(group, filter) once for every filter and then, tile by tile, packs its weights, which
// weight(group, filter, channel, i, j) gives; after that runs work(panel) for every panel of pixels and
// chunk of filters.
template <class X, class Y, class Weight, class Prepare, class Work>
inline void for_each_panel(const Convolution<X, Y>& p, const Weight& weight, Prepare prepare, Work work) {
    using P = Panel<X, Y, Weight>;
    const index positions = p.height.taps * p.width.taps;
    const Blocking blocking(p.channels, positions);
    const index tiles = ceil_div(p.filters, TILE_FILTERS);
    const index pixels = p.batch * p.height.pixels * p.width.pixels;
    const index panels = ceil_div(pixels, P::ROW);
    const double terms = double(pixels) * p.groups * p.filters * p.channels * larger(positions, 1);

    // Few panels: cut the filters as well, so that every thread has something to do.
    const index most = threads_for(index(1) << 30, terms);
    const index cuts = smaller(tiles, ceil_div(2 * most, panels * p.groups));
    const index chunk = smaller(CHUNK_FILTERS, ceil_div(tiles, cuts) * TILE_FILTERS);
    const index chunks = ceil_div(p.filters, chunk);
    const index parts = p.groups * chunks;
    const index splits = smaller(parts, ceil_div(4 * most, panels));  // units a panel is split into
    const index threads = threads_for(panels * splits, terms);

    const index grain = larger(1, smaller(8, panels * splits / (16 * threads)));

    const index packed = blocking.weights(p.groups, 0, 0, tiles) * index(sizeof(X));
    const bool share = packed <= SHARED_WEIGHTS;
    Carver measure(nullptr);
    P(p, blocking, weight, nullptr, measure);
    const index scratch = measure.used();

    Workspace workspace;
    workspace.allocate(threads * scratch + (share ? packed : 0) + 64);
    X* weights = share ? reinterpret_cast<X*>(workspace.data() + threads * scratch) : nullptr;

#pragma omp parallel num_threads(threads)
    {
        Carver mine(workspace.data() + this_thread() * scratch);
        P panel(p, blocking, weight, weights, mine);
        panel.begin();

#pragma omp for schedule(dynamic)
        for (index tile = 0; tile < p.groups * tiles; ++tile) {
            const index group = tile / tiles, filter = tile % tiles * TILE_FILTERS;
            for (index f = filter; f < smaller(filter + TILE_FILTERS, p.filters); ++f) prepare(group, f);
            for (index b = 0; share && b < blocking.count(); ++b)
                pack_weights(p, weight, group, filter, blocking[b],
                             weights + blocking.weights(group, b, tile % tiles, tiles));
        }

        // Neighbouring panels share rows of x: a thread takes a few in a row.
#pragma omp for schedule(dynamic, grain) nowait
        for (index unit = 0; unit < panels * splits; ++unit) {
            const index split = unit % splits;
            panel.move_to(unit / splits);
            for (index part = parts * split / splits; part < parts * (split + 1) / splits; ++part) {
                panel.group = part / chunks;
                panel.filter = part % chunks * chunk;
                panel.filters = smaller(chunk, p.filters - panel.filter);
                work(panel);
            }
        }
    }
}

template <class T>
inline void conv(const Convolution<T, T>& p) {
    for_each_panel(p, Weights<T>{p, nullptr}, [](index, index) {}, [](auto& panel) {
        panel.template accumulate<Dot<T>, false>(nullptr, [&](index tile) {
            for (index f = tile; f < tile + panel.tile_filters(tile); ++f) {
                const Vec<T> bias = broadcast(panel.bias(f));
                const T* total = panel.total + f * panel.ROW;
                panel.write(f, [&](index v) { return load(total + v * LANES<T>) + bias; });
            }
        });
    });
}

}  // namespace mulfree::MULFREE_ISA
