// A macro-tile is the unit of work of everything that has the shape of a convolution: a few packed tiles of pixels,
// with one chunk of one group's filters. Pixels are numbered through rows, planes and images and cut into
// packed tiles, whose packed rows of one block stay in the first-level cache; the packed tiles of a macro-tile are packed
// together, so that reading and writing go along a plane in long pieces.
#pragma once

#include "source_shared_rows.hpp"
#include "source_im2col.hpp"
#include "microkernel.hpp"
#include "workspace.hpp"

namespace mulfree::MULFREE_ISA {

constexpr index BLOCK_ROWS = 160;         // packed rows: 160 rows of three 64-byte vectors are 30 KiB
constexpr index BLOCK_POSITIONS = 32;     // kernel positions a block; bounds the table of spans
constexpr index CHUNK_FILTERS = 256;      // filters whose totals are kept for a packed tile
constexpr index MACRO_TOTALS = 1024;      // packed tiles times filters whose totals are kept

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
    // Where the packed weights of a tile start: in the order in which a packed tile meets them.
    index weights(index group, index block, index tile, index tiles) const {
        return ((group * count() + block) * tiles + tile) * rows() * MR;
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
    const index real = smaller(MR, p.filters - filter);
    for (index t = 0; t < block.positions; ++t) {
        const index i = (block.position + t) / p.width.taps, j = (block.position + t) % p.width.taps;
        X* to = packed + t * MR;
        for (index c = 0; c < block.channels; ++c, to += block.positions * MR)
            for (index f = 0; f < MR; ++f)
                to[f] = f < real ? weight(group, filter + f, block.channel + c, i, j) : X(0);
    }
}

// One packed tile of pixels, with the sums of one chunk of filters.
template <class X, class Y>
struct PackedTile {
    static constexpr index ROW = PACKED_VECTORS * LANES<X>;  // pixels in a packed tile

    const Convolution<X, Y>* p;
    index vectors;
    const Run *runs, *y_runs;
    const index *start, *y_start;  // the first run of every vector
    Span *y_spans, *x_spans;
    bool solid;          // whether the packed tile is full and its pixels are contiguous in y
    const index* place;  // where in the macro-tile's pixels the vectors start
    X *total, *rows;     // [filter][pixel]: the sums, and values the operation wants to keep
    Vec<X> *sum, *magnitude;  // of the columns of every vector, where they are asked for
    bool redo[CHUNK_FILTERS / MR];  // tiles to be summed once more, with more care
    index group, filter, filters;

    index tile_filters(index f) const { return smaller(MR, filters - f); }
    Y bias(index f) const { return p->bias ? p->bias[group * p->filters + filter + f] : Y(0); }

    // The pixels of filter f, if the packed tile is solid.
    Y* solid_pixels(index f) const { return plane(f) + y_spans[y_start[0]].offset; }

    // Stores value(v) as vector v of the pixels of filter f. Inlined always, for the operation's constants to
    // stay in registers.
    template <class F>
    __attribute__((always_inline)) void write(index f, F value) {
        if (solid) {
            Y* y = solid_pixels(f);
#pragma GCC unroll 12
            for (int v = 0; v < PACKED_VECTORS; ++v) store(y + v * LANES<Y>, value(v));
            return;
        }
        Y* y = plane(f);
        index lane_stride = p->y.column;
        if (p->y_shifts) {
            const index kind = p->y_shifts->kind[filter + f], first = y_start[0];
            find_shifted_spans(y_runs + first, y_start[PACKED_VECTORS] - first, p->y, *p->y_shifts, kind,
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
                for (int v = 0; v < PACKED_VECTORS; ++v) prefetch_write(y, v * LANES<Y>);
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

// The packed tiles that a thread works on at a time, and the scratch memory that it works in.
template <class X, class Y, class Weight>
struct MacroTile {
    using Sum = X;
    static constexpr index ROW = PackedTile<X, Y>::ROW;

    const Convolution<X, Y>& p;
    const Blocking& blocking;
    const Weight& weight;
    const X* shared_weights;

    PackedTile<X, Y> packed_tiles[MACRO_PACKED];
    index count;       // of packed tiles
    X* pixels;         // the packed block,
    const index* tap;  // and what every tap of it adds to the place of a vector
    index group, filter, filters;

    MacroTile(const Convolution<X, Y>& p_, const Blocking& blocking_, const Weight& weight_,
          const X* shared_weights_, index most_packed, index chunk, Carver& scratch)
        : p(p_),
          blocking(blocking_),
          weight(weight_),
          shared_weights(shared_weights_),
          most_(most_packed),
          chunk_(chunk),
          shared_rows_(p_.height, p_.width, most_packed * ROW, LANES<X>) {
        const index row = most_ * ROW;
        const index most_runs = smaller(row, most_ * PACKED_VECTORS + row / larger(1, p.width.pixels) + 2);
        runs_ = scratch.take<Run>(most_runs);
        y_runs_ = scratch.take<Run>(most_runs);
        spans_ = scratch.take<Span>(larger(shared_rows_.spans(), most_runs * (p.x_shifts
            ? larger(MOST_KINDS, blocking.rows()) : blocking.position_chunk)));
        y_spans_ = scratch.take<Span>(most_runs * (p.y_shifts ? MOST_KINDS : 1));
        x_spans_ = scratch.take<Span>(most_runs * (p.y_shifts ? MOST_KINDS : 1));
        matrix_tap_ = scratch.take<index>(blocking.rows());
        shared_tap_ = scratch.take<index>(blocking.rows());
        shared_sums_ = scratch.take<X>(2 * shared_rows_.channel);
        pixels = scratch.take<X>(row * blocking.rows());
        own_weights_ = scratch.take<X>(MR * blocking.rows());
        total_ = scratch.take<X>((blocking.count() > 1 ? most_ : 1) * ROW * chunk_);
        rows_ = scratch.take<X>(row * chunk_);
    }

    // Once the scratch memory is there.
    void begin() {
        for (index t = 0; t < blocking.rows(); ++t) matrix_tap_[t] = t * ROW;
        if (blocking.position_chunk == blocking.positions)
            for (index t = 0; t < blocking.rows(); ++t)
                shared_tap_[t] = t / blocking.positions * shared_rows_.channel +
                               shared_rows_.tap(p.height, p.width, t % blocking.positions);
    }

    // Packed tiles that are worth packing together, which takes them through the second-level cache: many where
    // their taps share lines, or where x is read along a plane.
    static index most_packed(const Convolution<X, Y>& p) {
        const bool lines = SharedRows(p.height, p.width, MACRO_PACKED * ROW, LANES<X>).channel;
        return lines || p.height.taps * p.width.taps == 1 ? MACRO_PACKED : 1;
    }

    index tiles() const { return ceil_div(p.filters, MR); }

    void move_to(index first, index length) {
        const index height = p.height.pixels, width = p.width.pixels;
        const index vectors = ceil_div(length, LANES<X>);
        count = ceil_div(length, ROW);
        const index all = count * PACKED_VECTORS;
        if (p.x_shifts) find_shifted_runs(*p.x_shifts, first, length, LANES<X>, all, runs_, start_);
        else find_runs(height, width, first, length, LANES<X>, all, runs_, start_);
        spans_at_ = -1;
        straight_ = length % ROW == 0 && start_[all] == all && runs_[0].image == runs_[all - 1].image &&
                    (p.x_shifts ? p.x_shifts->inside != nullptr : along_a_row());
        shared_ = !p.x_shifts && blocking.position_chunk == blocking.positions &&
                    shared_rows_.cover(runs_, start_, vectors, p.height, p.width, place_);
        if (shared_) {
            shared_rows_.find_spans(runs_, start_, vectors, p.x, p.height, p.width, spans_);
            tap = shared_tap_;
        } else {
            for (index v = 0; v < all; ++v)
                place_[v] = v / PACKED_VECTORS * blocking.rows() * ROW + v % PACKED_VECTORS * LANES<X>;
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
            PackedTile<X, Y>& packed = packed_tiles[q];
            const index v = q * PACKED_VECTORS;
            single_[q] = true;
            for (index k = v; k < v + PACKED_VECTORS; ++k) single_[q] &= start_[k + 1] == start_[k] + 1;
            packed.p = &p;
            packed.vectors = smaller(PACKED_VECTORS, vectors - v);
            packed.runs = runs_, packed.start = start_ + v, packed.place = place_ + v;
            packed.y_runs = y_runs_, packed.y_start = y_start_ + v, packed.y_spans = y_spans_;
            packed.x_spans = x_spans_;
            packed.rows = rows_ + q * ROW * chunk_;
            packed.solid = !p.y_shifts && dense && p.y.column == 1 && (q + 1) * ROW <= length &&
                          y_start_[v + PACKED_VECTORS] == y_start_[v] + PACKED_VECTORS &&
                          y_runs_[y_start_[v]].image == y_runs_[y_start_[v] + PACKED_VECTORS - 1].image;
        }
    }

    void take(index group_, index filter_, index filters_) {
        group = group_, filter = filter_, filters = filters_;
        for (index q = 0; q < count; ++q) {
            packed_tiles[q].group = group, packed_tiles[q].filter = filter, packed_tiles[q].filters = filters;
            for (bool& redo : packed_tiles[q].redo) redo = false;
        }
    }

    // Calls run(packed, f, weights, block, first, last) for every block, every tile of filters
    // [filter + f, ...) and every packed tile, the block being in `pixels`, and finish(packed, f) when a tile is
    // complete; only where packed.redo[tile] is REDO. SUMS adds the columns of a packed tile into its sum and
    // magnitude.
    template <bool SUMS, bool REDO, class Run_, class Finish>
    void reduce(Run_ run, Finish finish) {
        const index blocks = blocking.count();
        for (index q = 0; q < count; ++q) {
            PackedTile<X, Y>& packed = packed_tiles[q];
            packed.total = total_ + (blocks > 1 ? q * ROW * chunk_ : 0);  // tiles round filters up
            packed.sum = sum_ + q * PACKED_VECTORS, packed.magnitude = magnitude_ + q * PACKED_VECTORS;
        }
        for (index v = 0; SUMS && v < count * PACKED_VECTORS; ++v) sum_[v] = magnitude_[v] = Vec<X>{};
        for (index i = 0; blocks == 0 && i < ROW * filters; ++i) total_[i] = 0;
        for (index b = 0; b < larger(1, blocks); ++b) {
            const Block block = blocking[b];
            const bool last = b + 1 >= blocks;
            if (blocks) pack_block<SUMS>(block);
            for (index f = 0; f < filters; f += MR) {
                const X* w = blocks ? weights(f, b, block) : nullptr;
                for (PackedTile<X, Y>* packed = packed_tiles; packed != packed_tiles + count; ++packed) {
                    if (packed->redo[f / MR] != REDO) continue;
                    if (last) packed->prefetch_output(f);
                    if (blocks) run(*packed, f, w, block, b == 0, last);
                    if (last) finish(*packed, f);
                }
            }
        }
    }

    // packed.total[f] = sum over all taps of Op::term.
    template <class Op, bool SUMS, bool REDO = false, class Finish>
    void accumulate(Finish finish) {
        reduce<SUMS, REDO>([&](auto& packed, index f, const X* w, const Block& block, bool first, bool) {
            sum_tile<Op>(packed, f, w, block, first);
        }, finish);
    }

    // y = the sum over all taps of Op::term, plus bias. Whole tiles go from registers to y where they can.
    template <class Op>
    void answer() {
        using P = PackedTile<X, Y>;
        static constexpr Y NONE[MR] = {};
        const auto whole = [&](const P& packed, index f) {
            return packed.vectors == PACKED_VECTORS && packed.tile_filters(f) == MR &&
                   blocking.count() > 0;
        };
        reduce<false, false>([&](P& packed, index f, const X* w, const Block& block, bool first, bool last) {
            if (!whole(packed, f)) return sum_tile<Op>(packed, f, w, block, first);
            const bool finish = last && packed.solid;
            const Y* bias = p.bias && finish ? p.bias + group * p.filters + filter + f : NONE;
            for (index v = 0; v < PACKED_VECTORS; v += NR) {
                X* total = packed.total + f * ROW + v * LANES<X>;
                Y* to = finish ? packed.solid_pixels(f) + v * LANES<X> : total;
                const auto put = [=, row = finish ? p.y.channel : ROW](index k) {
                    return [=, b = broadcast(bias[k])](index n, Vec<X> sum) {
                        const index at = n * LANES<X>;
                        if (!first) sum = load(total + k * ROW + at) + sum;
                        store(to + k * row + at, sum + b);
                    };
                };
                const auto run = [&](auto tap) {
                    tile<Op, MR, NR>(pixels, tap, packed.place + v, w, block.taps(), put);
                };
                if (shared_) run([=](index t) { return shared_tap_[t]; });
                else run([](index t) { return t * ROW; });
            }
        }, [&](P& packed, index tile) {
            if (whole(packed, tile) && packed.solid) return;
            for (index f = tile; f < tile + packed.tile_filters(tile); ++f) {
                const Vec<Y> bias = broadcast(packed.bias(f));
                const X* total = packed.total + f * ROW;
                packed.write(f, [&](index v) { return load(total + v * LANES<X>) + bias; });
            }
        });
    }

private:
    const index most_, chunk_;
    Run *runs_, *y_runs_;
    Span *spans_, *y_spans_, *x_spans_;
    X *own_weights_, *total_, *rows_;
    X* shared_sums_;                  // sums of the lines over channels, and of their magnitudes
    index *matrix_tap_, *shared_tap_;  // the two tables `tap` may be
    index start_[MACRO_VECTORS + 1], y_start_[MACRO_VECTORS + 1];
    index place_[MACRO_VECTORS];
    SharedRows shared_rows_;
    Vec<X> sum_[MACRO_VECTORS], magnitude_[MACRO_VECTORS];
    bool single_[MACRO_PACKED];  // the packed tiles whose every vector is one run
    bool shared_;              // how x is packed
    bool straight_;              // the vectors follow one another in x
    index spans_at_;

    template <class Op>
    void sum_tile(PackedTile<X, Y>& packed, index f, const X* w, const Block& block, bool first) {
        tile_row<Op>(packed.tile_filters(f), packed.vectors, pixels, tap, packed.place, w, block.taps(),
                     packed.total + f * ROW, ROW, first);
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
        if (shared_) {
            with_access<X>(p.x.column, [&](auto way) {
                pack_shared_rows<Access(way.value), SUMS>(spans_, shared_rows_, x, p.x.channel, p.x.column, block.channels,
                                                    pixels, shared_sums_);
            });
            for (index q = 0; SUMS && q < count; ++q) sum_windows(packed_tiles[q], block.positions);
            return;
        }
        const index runs = start_[count * PACKED_VECTORS];
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
        Vec<X> sum[MACRO_VECTORS] = {}, magnitude[MACRO_VECTORS] = {};
        if (count > 1) pack<SUMS, false>(map, x, p.x.channel, block, pixels, size, sum, magnitude);
        else pack<SUMS, true>(map, x, p.x.channel, block, pixels, size, sum, magnitude);
        for (index v = 0; SUMS && v < count * PACKED_VECTORS; ++v)
            sum_[v] += sum[v], magnitude_[v] += magnitude[v];
    }

    // The sums over the windows, from the sums over the channels of a block.
    void sum_windows(PackedTile<X, Y>& packed, index positions) {
        for (index v = 0; v < packed.vectors; ++v)
            for (index t = 0; t < positions; ++t) {
                packed.sum[v] += load(shared_sums_ + packed.place[v] + shared_tap_[t]);
                if (HAS_MAGNITUDE<X>)
                    packed.magnitude[v] += load(shared_sums_ + shared_rows_.channel + packed.place[v] + shared_tap_[t]);
            }
    }

    const X* weights(index f, index b, const Block& block) {
        if (shared_weights) {
            const index tile = (filter + f) / MR;
            return shared_weights + blocking.weights(group, b, tile, tiles());
        }
        pack_weights(p, weight, group, filter + f, block, own_weights_);
        return own_weights_;
    }
};

}  // namespace mulfree::MULFREE_ISA
