// A macro-tile is the unit of work of every convolution: a few packed tiles of pixels, with one chunk of one group's
// filters. Pixels are numbered through rows, planes and images and split into packed tiles, whose rows of one block
// stay in the L1 cache; those of a macro-tile are packed side by side, so that planes are read and written in long
// runs.
#pragma once

#include "epilogue.hpp"
#include "microkernel.hpp"
#include "source.hpp"

namespace mulfree::MULFREE_ISA {

template <class Op>
constexpr index CHUNK_FILTERS = round_up(256, Op::MR);  // filters whose sums are kept per packed tile
template <class Op>  // packed tiles times filters whose sums are kept: less for wider sums
constexpr index MACRO_TOTALS = 4 * CHUNK_FILTERS<Op> / SUM_VECTORS<Op>;

// One packed tile of pixels, with the sums of one chunk of filters, and their destination.
template <class Op>
struct PackedTile {
    using X = typename Op::Operand;
    using Y = typename Op::Output;
    using Accumulator = typename Op::Accumulator;
    static constexpr int MR = Op::MR;
    static constexpr index ROW = PACKED_VECTORS * LANES<X>;  // pixels
    static constexpr index VECTORS = PACKED_VECTORS * SUM_VECTORS<Op>, COUNT = LANES<Accumulator>;  // of y
    using Numbers = Lanes<Y, COUNT>;  // a vector of outputs

    const Convolution<X, Y>* p;
    index vectors, y_vectors;
    const Run *runs, *y_runs;
    const index *start, *y_start;  // the first run of every vector
    Span *y_spans, *x_spans;
    bool solid;          // whether the packed tile is full and its pixels are contiguous in y
    const index* place;  // offsets of the vectors in the packed block
    Accumulator* total;  // [filter][pixel]: the sums,
    X* rows;             // and values kept by the operation
    bool redo[CHUNK_FILTERS<Op> / MR];  // tiles to recompute exactly: the fast form cancelled
    index group, filter, filters;

    index tile_filters(index f) const { return smaller(MR, filters - f); }
    Y bias(index f) const { return p->bias ? p->bias[group * p->filters + filter + f] : Op::NO_BIAS; }

    // Whether vectors may be stored directly to solid_pixels(): the packed tile is solid, and there is no epilogue.
    bool direct() const { return solid && !p->epilogue; }

    // The pixels of filter f, if the packed tile is solid.
    Y* solid_pixels(index f) const { return plane(f) + y_spans[y_start[0]].offset; }

    // Stores value(v) as vector v of the pixels of filter f. Always inlined, to keep the operation's constants in
    // registers.
    template <class F>
    __attribute__((always_inline)) void write(index f, F value) {
        if (direct()) {
            Y* y = solid_pixels(f);
#pragma GCC unroll 12
            for (int v = 0; v < VECTORS; ++v) store_lanes(y + v * COUNT, Numbers(value(v)));
            return;
        }
        index lane_stride = p->y.column;
        if (p->y_shifts) {
            const index kind = p->y_shifts->kind[filter + f], first = y_start[0];
            find_shifted_spans(y_runs + first, y_start[VECTORS] - first, p->y, *p->y_shifts, kind,
                               kind + 1, y_spans + first);
            lane_stride *= p->y_shifts->width.step;
        }
        Y* y = plane(f);
        for (index v = 0; v < y_vectors; ++v)
            scatter<Y, COUNT>(y_spans + y_start[v], y_spans + y_start[v + 1], y, lane_stride, value(v));
    }

    template <class F>
    void write_by_epilogue(index f, F value) {
        using T = decltype(p->epilogue->low + 0);
        const FilterEpilogue<T, COUNT> epilogue(*p->epilogue, channel(f), channel(f) * p->y.channel);
        const index first = y_spans[y_start[0]].offset;
        for (index v = 0; v < y_vectors; ++v)
            if (solid) epilogue.store(first + v * COUNT, Numbers(value(v)));
            else epilogue.store(y_spans + y_start[v], y_spans + y_start[v + 1], p->y.column, Numbers(value(v)));
    }

    // Prefetches the cache lines of y that a tile will write.
    void prefetch_output(index tile) const {
        if (p->y_shifts || p->epilogue) return;
        const index filters_ = tile_filters(tile), channel = p->y.channel;
        if (solid) {
            const Y* y = solid_pixels(tile) + COUNT - 1;
            for (index f = 0; f < filters_; ++f, y += channel)
#pragma GCC unroll 12
                for (int v = 0; v < VECTORS; ++v) prefetch_write(y, v * COUNT);
            return;
        }
        for (index v = 0; v < y_vectors; ++v) {
            const index offset = y_spans[y_start[v]].offset + COUNT - 1;
            for (index f = 0; f < filters_; ++f) prefetch_write(plane(tile), f * channel + offset);
        }
    }

private:
    Y* plane(index f) const { return p->y.data + channel(f) * p->y.channel; }
    index channel(index f) const { return group * p->filters + filter + f; }
};

// The packed tiles that a thread processes at a time, and its scratch memory.
template <class Op, class Weight>
class MacroTile {
    using X = typename Op::Operand;
    using Y = typename Op::Output;
    using Accumulator = typename Op::Accumulator;
    static constexpr int MR = Op::MR;

public:
    using Tile = PackedTile<Op>;
    static constexpr index ROW = Tile::ROW;

    const Convolution<X, Y>& p;
    Tile packed_tiles[MACRO_PACKED];
    Source<Op> source;
    index group, filter, filters;

    MacroTile(const Convolution<X, Y>& p_, const Blocking& blocking, const Weight& weight,
              const PackedWeights<Op>* weights, index most, index chunk, Carver& scratch)
        : p(p_), source(p_, blocking, most, scratch), blocking_(blocking), weight_(weight), weights_(weights),
          chunk_(chunk) {
        const index runs = source.most_runs(p.width, most * ROW, Tile::COUNT);
        y_runs_ = scratch.take<Run>(runs);
        y_spans_ = scratch.take<Span>(runs * (p.y_shifts ? MOST_KINDS : 1));
        x_spans_ = scratch.take<Span>(runs * (p.y_shifts ? MOST_KINDS : 1));
        own_weights_ = scratch.take<X>(MR * blocking.rows());
        total_ = scratch.take<Accumulator>((blocking.count() > 1 ? most : 1) * ROW * chunk);
        rows_ = scratch.take<X>(most * ROW * chunk);
    }

    void move_to(index first, index length) {
        source.move_to(first, length);
        if constexpr (Op::HAS_BORDERS) source.find_kinds(*p.borders);
        const index all = source.count * Tile::VECTORS;
        // Contiguous rows of y are one long row.
        const index height = p.height.pixels, width = p.width.pixels;
        const bool dense = p.y.row == width * p.y.column;
        if (p.y_shifts) find_shifted_runs(*p.y_shifts, first, length, Tile::COUNT, all, y_runs_, y_start_);
        else {
            const index found = find_runs(dense ? 1 : height, dense ? height * width : width, first, length,
                                          Tile::COUNT, all, y_runs_, y_start_);
            for (index r = 0; r < found; ++r) y_spans_[r] = pixel_span(y_runs_[r], p.y);
        }
        for (index q = 0; q < source.count; ++q) {
            Tile& packed = packed_tiles[q];
            const index v = q * PACKED_VECTORS, y_v = q * Tile::VECTORS;
            packed.p = &p;
            packed.vectors = smaller(PACKED_VECTORS, source.vectors - v);
            packed.y_vectors = smaller(Tile::VECTORS, ceil_div(length, Tile::COUNT) - y_v);
            packed.runs = source.runs, packed.start = source.start + v, packed.place = source.place + v;
            packed.y_runs = y_runs_, packed.y_start = y_start_ + y_v, packed.y_spans = y_spans_;
            packed.x_spans = x_spans_;
            packed.rows = rows_ + q * ROW * chunk_;
            packed.solid = !p.y_shifts && dense && p.y.column == 1 && (q + 1) * ROW <= length &&
                           y_start_[y_v + Tile::VECTORS] == y_start_[y_v] + Tile::VECTORS &&
                           y_runs_[y_start_[y_v]].image == y_runs_[y_start_[y_v] + Tile::VECTORS - 1].image;
        }
    }

    void take(index group_, index filter_, index filters_) {
        group = group_, filter = filter_, filters = filters_;
        for (index q = 0; q < source.count; ++q) {
            packed_tiles[q].group = group, packed_tiles[q].filter = filter, packed_tiles[q].filters = filters;
            for (bool& redo : packed_tiles[q].redo) redo = false;
        }
    }

    // Packs every block and calls run(packed, f, weights, block, first, last) for every tile of filters [filter + f,
    // ...) and every packed tile, and finish(packed, f) when a tile is complete; only where packed.redo[tile] is
    // REDO.
    template <class Packing, bool REDO, class Run_, class Finish>
    void reduce(Run_ run, Finish finish) {
        const index blocks = blocking_.count();
        for (index q = 0; q < source.count; ++q)
            packed_tiles[q].total = total_ + (blocks > 1 ? q * ROW * chunk_ : 0);  // filters are rounded up to tiles
        if constexpr (Packing::COLUMN_SUMS > 0) source.clear_sums();
        for (index i = 0; blocks == 0 && i < ROW * filters; ++i) total_[i] = 0;
        for (index b = 0; b < larger(1, blocks); ++b) {
            const Block block = blocking_[b];
            const bool last = b + 1 >= blocks;
            if (blocks) source.template pack<Packing>(group, block);
            for (index f = 0; f < filters; f += MR) {
                const X* w = blocks ? weights(f, b, block) : nullptr;
                for (Tile* packed = packed_tiles; packed != packed_tiles + source.count; ++packed) {
                    if (packed->redo[f / MR] != REDO) continue;
                    if (last) packed->prefetch_output(f);
                    if (blocks) run(*packed, f, w, block, b == 0, last);
                    if (last) finish(*packed, f);
                }
            }
        }
    }

    // y = the outputs from the sums over all taps.
    void answer() {
        if (sum<Op, false>())
            if constexpr (!Same<typename Op::Exact, void>::value) sum<typename Op::Exact, true>();
    }

private:
    const Blocking& blocking_;
    const Weight& weight_;
    const PackedWeights<Op>* weights_;
    const index chunk_;
    Run* y_runs_;
    Span *y_spans_, *x_spans_;
    X *own_weights_, *rows_;
    Accumulator* total_;
    index y_start_[MACRO_VECTORS * SUM_VECTORS<Op> + 1];

    // Whole tiles of contiguous pixels are stored from registers to y, others through their totals. Returns whether
    // an output must be recomputed; its tile is then marked.
    template <class O, bool REDO>
    bool sum() {
        const auto whole = [&](const Tile& packed, index f) {
            return packed.vectors == PACKED_VECTORS && packed.tile_filters(f) == MR && blocking_.count() > 0;
        };
        bool doubtful = false;
        const auto settle = [&](Tile& packed, index f, const typename O::Doubt& doubt) {
            packed.redo[f / MR] = doubt.any();
            doubtful |= packed.redo[f / MR];
        };
        reduce<O, REDO>([&](Tile& packed, index f, const X* w, const Block& block, bool first, bool last) {
            const index terms = block.taps() / Op::PLANES, apart = source.planes_apart(block);
            if (!whole(packed, f))
                return tile_row<O>(packed.tile_filters(f), packed.vectors, source.pixels, source.tap, apart,
                                   packed.place, w, terms, packed.total + f * ROW, ROW, first);
            const bool finish = last && packed.direct();
            const ColumnSums<Op>* sums = source.sums + (&packed - packed_tiles) * Tile::VECTORS;
            constexpr int NR = O::NR;
            static_assert(PACKED_VECTORS % NR == 0, "whole tiles");
            typename O::Doubt doubt;
            for (index v = 0; v < PACKED_VECTORS; v += NR) {
                Accumulator* total = packed.total + f * ROW + v * LANES<X>;
                const auto put = [&](index k) {
                    const auto answer = answer_of<O>(packed, f + k);
                    return [=, &doubt, y = finish ? packed.solid_pixels(f + k) + v * LANES<X> : nullptr](
                               index n, Vec<Accumulator> sum) {
                        Accumulator* t = total + k * ROW + n * Tile::COUNT;
                        if (!first) sum = load(t) + sum;
                        if (finish) store_lanes(y + n * Tile::COUNT, answer(sum, sums[v * SUM_VECTORS<Op> + n], doubt));
                        else store(t, sum);
                    };
                };
                source.with_tap([&](auto tap) {
                    tile<O, MR, NR>(source.pixels, tap, apart, packed.place + v, w, terms, put);
                });
            }
            if (finish) settle(packed, f, doubt);
        }, [&](Tile& packed, index tile) {
            if (whole(packed, tile) && packed.direct()) return;
            if (p.epilogue) return settle(packed, tile, write_by_epilogue<O>(packed, tile));
            typename O::Doubt doubt;
            each_answer<O>(packed, tile, doubt, [&](index f, auto value) __attribute__((always_inline)) {
                packed.write(f, value);
            });
            settle(packed, tile, doubt);
        });
        return doubtful;
    }

    // Calls write(f, value) for the filters of a tile, whose outputs are value(v) from the totals.
    template <class O, class Write>
    __attribute__((always_inline)) void each_answer(const Tile& packed, index tile, typename O::Doubt& doubt,
                                                    Write write) const {
        const ColumnSums<Op>* sums = source.sums + (&packed - packed_tiles) * Tile::VECTORS;
        for (index f = tile; f < tile + packed.tile_filters(tile); ++f) {
            const auto answer = answer_of<O>(packed, f);
            const Accumulator* total = packed.total + f * ROW;
            write(f, [&](index v) { return answer(load(total + v * Tile::COUNT), sums[v], doubt); });
        }
    }
    // Not inlined: the path without epilogue needs the registers.
    template <class O>
    __attribute__((noinline)) typename O::Doubt write_by_epilogue(Tile& packed, index tile) const {
        typename O::Doubt doubt;
        each_answer<O>(packed, tile, doubt, [&](index f, auto value) { packed.write_by_epilogue(f, value); });
        return doubt;
    }

    template <class O>
    auto answer_of(const Tile& packed, index f) const {
        typename O::Constant constant{};
        if constexpr (O::HAS_CONSTANT) constant = weights_->constant(group, filter + f);
        if constexpr (O::HAS_BORDERS) {
            const index channel = group * p.filters + filter + f;
            return O::answer(packed.bias(f), constant,
                             {p.borders->number + channel * p.borders->kinds, p.borders->kinds});
        }
        else return O::answer(packed.bias(f), constant);
    }

    const X* weights(index f, index b, const Block& block) {
        if (weights_->has_tiles()) return weights_->tile(group, b, (filter + f) / MR);
        pack_block<Op>(p, weight_, group, filter + f, block, own_weights_);
        return own_weights_;
    }
};

}  // namespace mulfree::MULFREE_ISA
