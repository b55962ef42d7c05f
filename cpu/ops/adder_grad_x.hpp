// The gradient of the adder by x: sum clip(w - x, -1, 1) grad.
//
// It is a convolution of grad. With a stride s, pixel q * s + r of x has only the taps of "phase" r, at positions of
// grad around q. So all phases share a packed tile of pixels q, and every phase of a tile of channels is a separate
// tile of filters, which reads the positions of its taps. The interleaved numbers of x and grad_x stay in the L1
// cache until all phases are done.
#pragma once

#include "weight_gradient.hpp"

namespace mulfree::MULFREE_ISA {

// As an operation it has its own inner loop, which keeps two limits per filter in registers.
template <class T>
struct Clip : Operation<T, T, T> {
    static constexpr int MR = REGISTERS / 4;
};

// The phases of both axes that have any tap, and the phase of each filter of the convolution of grad: tiles of
// channels, and for each tile all phases.
template <class T>
struct Phases {
    static constexpr index MR = Clip<T>::MR;

    const AdderGradX<T>& g;
    PhaseAxis height, width;
    index count = 0, positions;
    index *row, *column;    // the first pixel of a phase
    index* entry;           // of the kernel, of a phase at a position of the packed tile, or -1
    index *met, **met_end;  // the positions of a phase's taps, `positions` apart

    explicit Phases(const AdderGradX<T>& g_)
        : g(g_), height(g.height), width(g.width), positions(height.axis.taps * width.axis.taps) {}

    void take(Carver& memory) {
        row = memory.take<index>(most()), column = memory.take<index>(most());
        entry = memory.take<index>(most() * positions), met = memory.take<index>(most() * positions);
        met_end = memory.take<index*>(most());
    }
    void find() {
        for (index k = 0; k < most() * positions; ++k) entry[k] = -1;
        for (index r = 0; r < height.phases; ++r)
            for (index c = 0; c < width.phases; ++c) {
                index *first = met + count * positions, *end = first;
                for (index t = 0; t < positions; ++t) {
                    const index i = height.tap(r, t / width.axis.taps), j = width.tap(c, t % width.axis.taps);
                    if (i >= 0 && j >= 0) entry[count * positions + t] = i * g.width.taps + j, *end++ = t;
                }
                if (end > first) row[count] = r, column[count] = c, met_end[count++] = end;
            }
    }

    index all() const { return height.phases * width.phases; }
    index most() const { return smaller(all(), g.height.taps * g.width.taps); }
    index filters() const { return count == 1 ? g.channels : count * round_up(g.channels, MR); }
    index phase(index filter) const { return filter / MR % count; }
    index channel(index filter) const {
        return filter / MR / count * MR + filter % MR;
    }
};

// The weights as filters of the convolution of grad, minus the channel's centre.
template <class T>
struct PhaseWeights {
    const Phases<T>& phases;
    const T* centre;

    T operator()(index group, index filter, index k, index i, index j) const {
        const AdderGradX<T>& g = phases.g;
        const index c = phases.channel(filter), t = i * phases.width.axis.taps + j;
        const index entry = phases.entry[phases.phase(filter) * phases.positions + t];
        if (c >= g.channels || entry < 0) return 0;
        return g.w[((group * g.filters + k) * g.channels + c) * g.height.taps * g.width.taps + entry] -
               centre[group * g.channels + c];
    }
};

// Calls f(row) for some positions of the rows of a block, channel by channel.
struct MetRows {
    const index *first, *last;
    const Block& block;

    template <class T>
    MetRows(const Phases<T>& phases, index phase, const Block& block_)
        : first(phases.met + phase * phases.positions), last(phases.met_end[phase]), block(block_) {
        while (first < last && *first < block.position) ++first;
        while (first < last && last[-1] >= block.position + block.positions) --last;
    }
    template <class F>
    void each(F f) const {
        for (index row = -block.position; row < block.taps() - block.position; row += block.positions)
            for (const index* t = first; t < last; ++t) f(row + *t);
    }
};

// One vector of pixels, a tile of channels of x ("filters" of this convolution of grad). The limits
// x - 1 and x + 1 stay in registers:
//     clip(w - x, -1, 1) = min(max(w, x - 1), x + 1) - x,
// and the last term, x sum(grad), is subtracted once per pixel: three instructions per term instead of four. EXACT is
// the formula as written. SUMS accumulates grad as well, which one tile of a phase does for all.
enum ClipForm { EXACT, FAST, FAST_AND_SUMS };
template <ClipForm FORM, int FILTERS, class T>
inline void clip_tile(const T* grad, const index* tap, const MetRows& rows, const T* w, const T* x, T* total,
                      index row, bool first, Vec<T>& grad_sum) {
    Vec<T> sum[FILTERS] = {}, low[FILTERS], high[FILTERS], grads{};
    const Vec<T> one = broadcast(T(1));
#pragma GCC unroll 8
    for (int f = 0; f < FILTERS; ++f) {
        const Vec<T> value = load(x + f * row);
        low[f] = FORM == EXACT ? value : value - one;
        high[f] = value + one;
    }
    rows.each([&](index t) {
        const Vec<T> g = load(grad + tap[t]);
        if (FORM == FAST_AND_SUMS) grads += g;
#pragma GCC unroll 8
        for (int f = 0; f < FILTERS; ++f) {
            // This order of operands propagates NaN.
            const Vec<T> weight = broadcast(w[t * Clip<T>::MR + f]);
            const Vec<T> slope = FORM == EXACT ? min(one, max(-one, weight - low[f]))
                                               : min(high[f], max(low[f], weight));
            sum[f] = multiply_add(slope, g, sum[f]);
        }
    });
#pragma GCC unroll 8
    for (int f = 0; f < FILTERS; ++f) {
        T* t = total + f * row;
        store(t, first ? sum[f] : load(t) + sum[f]);
    }
    if (FORM == FAST_AND_SUMS) grad_sum = first ? grads : grad_sum + grads;
}

// A macro-tile of pixels and some tiles of filters.
template <class T>
class ClipMacroTile {
    using S = MacroTile<Clip<T>, PhaseWeights<T>>;
    using P = typename S::Tile;
    static constexpr int MR = Clip<T>::MR;
    static constexpr bool QUICK = sizeof(T) == 4;
    static constexpr T LIMIT = 8;  // for |x|: the fast form's rounding error grows with it
    static constexpr index TILES = CHUNK_FILTERS<Clip<T>> / MR;

    // The filters from `filter` on are channels from `channel` on in a phase. `slot` numbers the phases of a
    // macro-tile.
    struct Tile {
        index filter, filters, channel, phase, slot;
    };

public:
    ClipMacroTile(S& macro_tile, const AdderGradX<T>& g, const Phases<T>& phases, const T* centre)
        : macro_tile(macro_tile), g(g), phases(phases), centre(centre), shifts(macro_tile.p.y_shifts),
          x_spans(macro_tile.packed_tiles->x_spans), y_spans(macro_tile.packed_tiles->y_spans),
          runs(start(*macro_tile.packed_tiles)[macro_tile.source.count * PACKED_VECTORS]),
          few_kinds(shifts && shifts->kinds < MOST_KINDS) {}

    void run() {
        const P& first = *macro_tile.packed_tiles;
        for (index r = 0; r < runs && !shifts; ++r) x_spans[r] = pixel_span(first.runs[r], g.x);
        for (index k = 0; few_kinds && k < shifts->kinds; ++k) {
            find_shifted_spans(first.y_runs, runs, g.x, *shifts, k, k + 1, x_spans + k * runs);
            find_shifted_spans(first.y_runs, runs, g.grad_x, *shifts, k, k + 1, y_spans + k * runs);
        }
        for (index f = 0; f < smaller(macro_tile.filters, phases.count * MR); f += MR)
            for (index q = 0; q < macro_tile.source.count; ++q) prefetch_pixels(macro_tile.packed_tiles[q], tile(f));
        sum<QUICK ? FAST : EXACT, false>();
        if (any) sum<EXACT, true>();
    }

private:
    S& macro_tile;
    const AdderGradX<T>& g;
    const Phases<T>& phases;
    const T* centre;
    const Shifts* shifts;
    Span *x_spans, *y_spans;  // of the macro-tile's pixels, kind by kind if there are few kinds
    const index runs;
    const bool few_kinds;
    bool any = false;  // to be recomputed
    Vec<T> grad_sum[MACRO_PACKED][TILES][PACKED_VECTORS];  // of a packed tile's slots,
    index summed_by[MACRO_PACKED][TILES];                 // and the filter that accumulates it

    const index* start(const P& packed) const { return shifts ? packed.y_start : packed.start; }
    index lane_step() const { return shifts ? shifts->width.step : 1; }

    Tile tile(index f) const {
        const index filter = macro_tile.filter + f, phase = phases.phase(filter), c = phases.channel(filter);
        return {f, smaller(smaller(MR, macro_tile.filters - f), g.channels - c),
                macro_tile.group * g.channels + c, phase, f / MR % phases.count};
    }

    // Sums all tiles, for which x is loaded; marks those for which the fast form is inaccurate.
    template <ClipForm FORM, bool REDO>
    void sum() {
        macro_tile.template reduce<Clip<T>, REDO>([&](P& packed, index f, const T* w, const Block& block, bool first,
                                               bool) {
            const Tile t = tile(f);
            index& summer = summed_by[&packed - macro_tile.packed_tiles][t.slot];
            bool& redo = packed.redo[f / MR];
            if (first && f / MR == t.slot) summer = -1;
            if (first && !REDO) {
                const bool large = !load_pixels(packed, t);
                if (FORM == FAST) any |= redo = large;
            }
            if (FORM == FAST && redo) return;
            if (first && summer < 0) summer = f;
            if (FORM == FAST && summer == f) clip<FAST_AND_SUMS>(packed, t, w, block, first);
            else clip<FORM>(packed, t, w, block, first);
        }, [&](P& packed, index f) {
            const Tile t = tile(f);
            bool& redo = packed.redo[f / MR];
            if (FORM == FAST && redo) return;
            const Vec<T>* grads = grad_sum[&packed - macro_tile.packed_tiles][t.slot];
            Vec<T> infinite{};
            for (index k = 0; k < t.filters; ++k) {
                const T *total = packed.total + (f + k) * packed.ROW, *x = packed.rows + (f + k) * packed.ROW;
                write(packed, t, k, [&](index v) {
                    const Vec<T> sum = load(total + v * LANES<T>);
                    if (FORM == EXACT) return sum;
                    const Vec<T> answer = sum - load(x + v * LANES<T>) * grads[v];
                    infinite += answer * T(0);
                    return answer;
                });
            }
            if (FORM == FAST) any |= redo = below<T>(infinite, Vec<T>{});
        });
    }

    template <ClipForm FORM>
    void clip(P& packed, const Tile& t, const T* w, const Block& block, bool first) {
        const MetRows rows(phases, t.phase, block);
        for (index v = 0; v < packed.vectors; ++v) {
            const index at = t.filter * packed.ROW + v * LANES<T>;
            with_filters<MR, 1>(t.filters, [&](auto filters, auto) {
                clip_tile<FORM, filters.value>(macro_tile.source.pixels + packed.place[v], macro_tile.source.tap, rows, w,
                                               packed.rows + at, packed.total + at, packed.ROW, first,
                                               grad_sum[&packed - macro_tile.packed_tiles][t.slot][v]);
            });
        }
    }

    // The location of a packed tile's pixels in an image of x's shape, for a filter of a tile.
    template <class X>
    const Span* spans(const P& packed, const Tile& t, index k, const Image<X>& x, Span* table) const {
        if (!shifts) return table;
        const index kind = shifts->kind ? shifts->kind[t.channel + k] : t.phase;
        if (few_kinds) return table + kind * runs;
        const index begin = packed.y_start[0], end = packed.y_start[PACKED_VECTORS];
        find_shifted_spans(packed.y_runs + begin, end - begin, x, *shifts, kind, kind + 1, table + begin);
        return table;
    }

    // Prefetches the lines that a tile will read and write.
    void prefetch_pixels(const P& packed, const Tile& t) const {
        const bool again = t.phase > 0 && phases.row[t.phase] == phases.row[t.phase - 1];
        if (again) return;  // the lines are those of the previous phase
        const index line = 64 / index(sizeof(T)), last = (LANES<T> - 1) * lane_step();
        for (index k = 0; k < t.filters; ++k) {
            const T* x = g.x.data + (t.channel + k) * g.x.channel;
            const T* y = g.grad_x.data + (t.channel + k) * g.grad_x.channel;
            const Span* from = spans(packed, t, k, g.x, x_spans);
            for (index r = start(packed)[0]; r < start(packed)[PACKED_VECTORS]; ++r)
                for (index e = 0; e < last + line; e += line) {
                    const index at = from[r].offset + smaller(e, last);
                    prefetch(x, at);
                    if (shifts) prefetch_write(y, at);
                }
        }
    }

    // Stores x minus the channels' centres to packed.rows. Returns whether all are within LIMIT.
    bool load_pixels(P& packed, const Tile& t) {
        const index next = t.filter + phases.count * MR;
        if (next < macro_tile.filters) prefetch_pixels(packed, tile(next));
        const index lane_stride = lane_step() * g.x.column;
        const index* begin = start(packed);
        Vec<T> largest{};
        for (index k = 0; k < t.filters; ++k) {
            const Span* from = spans(packed, t, k, g.x, x_spans);
            const T* x = g.x.data + (t.channel + k) * g.x.channel;
            const Vec<T> shift = broadcast(centre[t.channel + k]);
            for (index v = 0; v < packed.vectors; ++v) {
                const Span *first = from + begin[v], *last = from + begin[v + 1];
                const Vec<T> value = with_access<T>(lane_stride, [&](auto way) {
                    return gather<Access(way.value)>(first, last, x, lane_stride);
                });
                store(packed.rows + (t.filter + k) * packed.ROW + v * LANES<T>, value - shift);
                largest = max(largest, abs(value - shift));
            }
        }
        return !below<T>(broadcast(LIMIT), largest);
    }

    template <class F>
    void write(P& packed, const Tile& t, index k, F value) {
        if (!shifts) return packed.write(t.filter + k, value);
        const Image<T>& y = g.grad_x;
        const Span* to = spans(packed, t, k, y, y_spans);
        T* plane = y.data + (t.channel + k) * y.channel;
        for (index v = 0; v < packed.vectors; ++v)
            scatter(to + packed.y_start[v], to + packed.y_start[v + 1], plane, lane_step() * y.column, value(v));
    }
};

template <class T>
inline void adder_grad_x(const AdderGradX<T>& g) {
    Phases<T> phases(g);
    const index channels = g.groups * g.channels, positions = g.height.taps * g.width.taps;
    T* centre;
    const auto cut = [&](Carver carver) {
        phases.take(carver);
        centre = carver.take<T>(channels);
        return carver.used();
    };
    Workspace workspace;
    workspace.allocate(cut(Carver(nullptr)));
    cut(Carver(workspace.data()));
    phases.find();
    const index image = channels * g.grad_x.channel;
    if (phases.count < phases.all())  // some pixels have no tap
        for_each_unit(g.batch, MOVE * double(g.batch * image), [&](index n) {
            __builtin_memset(g.grad_x.data + n * g.grad_x.batch, 0, std::size_t(image) * sizeof(T));
        });
    if (phases.count == 0) return;
    Axis h = phases.height.axis, w = phases.width.axis;
    h.step = g.height.step, h.size = g.height.size, w.step = g.width.step, w.size = g.width.size;
    const Shifts strided{h, w, phases.count, phases.row, phases.column, nullptr, nullptr, 0};
    for_each_unit(channels, MOVE * double(channels * g.filters * positions), [&](index c) {
        centre[c] = common_offset(
            g.w + (c / g.channels * g.filters * g.channels + c % g.channels) * positions, g.filters,
            g.channels * positions, positions);
    });

    const Convolution<T, T> p{
        g.batch, g.groups, g.filters, phases.filters(), phases.height.axis, phases.width.axis, g.grad,
        g.w, 0, 0, 0, 0, 0, nullptr, g.grad_x, nullptr,
        g.shifts ? g.shifts : phases.all() > 1 ? &strided : nullptr};
    for_each_macro_tile<Clip<T>>(p, PhaseWeights<T>{phases, centre}, [&](auto& macro_tile) {
        ClipMacroTile<T>(macro_tile, g, phases, centre).run();
    });
}

}  // namespace mulfree::MULFREE_ISA
