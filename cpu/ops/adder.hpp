// AdderNet's forward pass: y = bias - sum |x - w|.
#pragma once

#include "../engine/words.hpp"
#include "../engine/driver.hpp"

namespace mulfree::MULFREE_ISA {

// Up to here, and where a distance is one instruction, the sum of maxima saves nothing; and it cancels.
constexpr index FEW_TAPS = 4;

// Sum and magnitude sum of n contiguous numbers; the vectors are summed in stretches to keep the error
// of long sums down.
inline void sum_contiguous(const float* w, index n, float* sum, float* magnitude) {
    double total = 0, size = 0;
    index i = 0;
    while (n - i >= LANES<float>) {
        Vec<float> s{}, m{};
        for (index k = 0; k < 64 && n - i >= LANES<float>; ++k, i += LANES<float>) {
            const Vec<float> v = load(w + i);
            s += v, m += abs(v);
        }
        total += sum_lanes<float>(s), size += sum_lanes<float>(m);
    }
    for (; i < n; ++i) total += w[i], size += __builtin_fabsf(w[i]);
    *sum = float(total), *magnitude = float(size);
}

// y = bias - sum |x - w|, term by term; REDO: only the tiles that packed.redo names.
template <bool REDO, class S>
inline void exact_macro_tile(S& macro_tile) {
    using T = typename S::Sum;
    macro_tile.template accumulate<AbsDiff<T>, false, REDO>([](auto& packed, index tile) {
        for (index f = tile; f < tile + packed.tile_filters(tile); ++f) {
            const Vec<T> bias = broadcast(packed.bias(f));
            const T* total = packed.total + f * packed.ROW;
            packed.write(f, [&](index v) { return bias - load(total + v * LANES<T>); });
        }
    });
}

template <class T>
inline void adder_conv_exact(const Convolution<T, T>& p) {
    for_each_macro_tile(flattened(p), Weights<T>{p}, [](index, index) {},
                   [](auto& macro_tile) { exact_macro_tile<false>(macro_tile); });
}

inline void adder_conv(const Convolution<double, double>& p) { adder_conv_exact(p); }

// sum |x - w| = (sum max(x, w) - sum x) + (sum max(x, w) - sum w), which takes two instructions a term
// instead of three but cancels when x and w are close compared with their size. The rounding error is a
// few float32 epsilons of size = sum |x| + sum |w|, so a result of at least size / 8 is good to 1e-6; the
// tiles that hold a smaller one, or a NaN, or an overflow, are summed again term by term.
inline void adder_conv(const Convolution<float, float>& p) {
    const index taps = p.channels * p.height.taps * p.width.taps;
    if (DISTANCE_IN_ONE || taps <= FEW_TAPS) return adder_conv_exact(p);

    Workspace workspace;
    workspace.allocate(2 * p.groups * p.filters * index(sizeof(float)));
    float* w_sum = reinterpret_cast<float*>(workspace.data());
    float* w_size = w_sum + p.groups * p.filters;
    const auto sum_weights = [=, &p](index group, index f) {
        const index k = group * p.filters + f;
        sum_contiguous(p.w + group * p.w_group + f * p.w_filter, taps, w_sum + k, w_size + k);
    };

    for_each_macro_tile(flattened(p), Weights<float>{p}, sum_weights, [=](auto& macro_tile) {
        bool any = false;
        macro_tile.template accumulate<Max<float>, true>([&](auto& packed, index tile) {
            Vec<float> negative{}, infinite{};  // the sign of a lane, a NaN in it, say: redo
            for (index f = tile; f < tile + packed.tile_filters(tile); ++f) {
                const index k = packed.group * packed.p->filters + packed.filter + f;
                const Vec<float> sum = broadcast(w_sum[k]), size = broadcast(w_size[k]);
                const Vec<float> bias = broadcast(packed.bias(f));
                const float* total = packed.total + f * packed.ROW;
                packed.write(f, [&](index v) {
                    const Vec<float> m = load(total + v * LANES<float>);
                    const Vec<float> distance = (m - packed.sum[v]) + (m - sum);
                    const Vec<float> margin = distance - 0.125f * (packed.magnitude[v] + size);
                    negative = either(negative, margin);
                    infinite += margin * 0.0f;
                    return bias - distance;
                });
            }
            const bool redo = any_negative(negative) || below<float>(infinite, Vec<float>{});
            packed.redo[tile / MR] = redo;
            any |= redo;
        });
        if (any) exact_macro_tile<true>(macro_tile);
    });
}

// ---- uint8 --------------------------------------------------------------------------------------------

constexpr index WORD_IMAGE = 8 << 20;  // bytes of x's slices as words

// The source positions that a slice of an axis's pixels meets, `every` apart: from, from + every, ...,
// `size` of them; all positions, which are quicker to copy, where the slice is the whole axis.
struct SourceAxis {
    index every, from, size;

    // `padded`: positions outside the source are wanted too.
    SourceAxis(const Axis& a, index first, index pixels, index taps, bool padded)
        : every(taps == 1 ? a.step : 1), from(first * a.step + a.offset) {
        index end = from + (pixels - 1) * a.step + (taps - 1) * a.tap_step + 1;
        if (!padded) from += round_up(larger(0, -from), every), end = smaller(end, a.size);
        if (!padded && pixels == a.pixels && every == 1) from = 0, end = a.size;
        size = larger(0, ceil_div(end - from, every));
    }
    // The axis on which the slice is a convolution.
    Axis axis(const Axis& a, index first, index pixels, index taps) const {
        const index offset = (first * a.step + a.offset - from) / every;
        return {pixels, a.step / every, offset, taps, a.tap_step, size, 0, 1};
    }
};

// The source of a slice as words: [image][group][word channel][row][column].
inline void fill_words(const Convolution<std::uint8_t, std::int32_t>& p, const WordShape& shape,
                       index image, index images, const SourceAxis& h, const SourceAxis& w,
                       Word* words) {
    const index channels = shape.word_channels(), planes = images * p.groups * channels;
    // Rows without gaps are one long row.
    const bool dense = shape.along == 1 && h.every * w.every == 1 && p.x.row == w.size * p.x.column;
    const index rows = dense ? 1 : h.size, columns = dense ? h.size * w.size : w.size;
    for_each_unit(planes, MOVE * double(planes * rows * columns), [&](index plane) {
        const index word = plane % channels, group = plane / channels % p.groups;
        const index channel = shape.channel(word);
        const std::uint8_t* x = p.x.data + (image + plane / (channels * p.groups)) * p.x.batch +
                                (group * p.channels + channel) * p.x.channel + h.from * p.x.row;
        ByteRow places[PER_WORD];
        for (index k = 0; k < PER_WORD; ++k) {
            const index tap = shape.column(word) + shape.place_column[k];
            places[k] = {x, 0, 0};
            if (tap >= shape.columns || channel + shape.place_channel[k] >= p.channels) continue;
            const index from = w.from + tap * p.width.tap_step;
            places[k] = {x + shape.place_channel[k] * p.x.channel + from * p.x.column,
                         smaller(columns, ceil_div(larger(0, -from), w.every)),
                         dense ? columns : smaller(columns, ceil_div(p.width.size - from, w.every))};
        }
        for (index r = 0; r < rows; ++r) {
            interleave(places, w.every * p.x.column, columns, shape.across * p.x.channel,
                       words + (plane * rows + r) * columns);
            for (ByteRow& place : places) place.base += h.every * p.x.row;
        }
    });
}

// All sums are taken modulo 2^32, and the answer fits.
inline void adder_conv_words(const Convolution<Word, std::int32_t>& p,
                             const Convolution<std::uint8_t, std::int32_t>& bytes, const WordShape& shape,
                             std::uint32_t* w_sum) {
    const index taps = bytes.channels * bytes.height.taps * bytes.width.taps;
    const auto sum_weights = [=, &bytes](index group, index f) {
        const std::uint8_t* w = bytes.w + group * bytes.w_group + f * bytes.w_filter;
        std::uint32_t sum = 0;
        for (index i = 0; i < taps; ++i) sum += w[i];
        w_sum[group * bytes.filters + f] = sum;
    };
    const auto weight = [&](index group, index f, index word, index i, index j) {
        return shape.weights(bytes.w + group * bytes.w_group + f * bytes.w_filter + i * bytes.w_row,
                             bytes.w_channel, word, j);
    };
    for_each_macro_tile(flattened(p), weight, sum_weights, [=](auto& macro_tile) {
        macro_tile.template accumulate<Bytes, BYTE_SUMS>([&](auto& packed, index tile) {
            for (index f = tile; f < tile + packed.tile_filters(tile); ++f) {
                const std::uint32_t bias = packed.bias(f);
                const Word* total = packed.total + f * packed.ROW;
                if constexpr (BYTE_SUMS) {
                    const index k = packed.group * packed.p->filters + packed.filter + f;
                    const Vec<Word> constant = broadcast<Word>(bias + w_sum[k]);
                    packed.write(f, [&](index v) {
                        const Vec<Word> m = load(total + v * LANES<Word>);
                        return (Vec<std::int32_t>)(constant + packed.sum[v] - m - m);
                    });
                } else if constexpr (sizeof(Word) == sizeof(std::int32_t)) {
                    packed.write(f, [&](index v) {
                        return (Vec<std::int32_t>)(broadcast(bias) - load(total + v * LANES<Word>));
                    });
                } else {
                    std::int32_t y[packed.ROW];
                    for (index i = 0; i < packed.ROW; ++i)
                        y[i] = std::int32_t(bias - std::uint32_t(total[i]));
                    packed.write_lanes(f, y);
                }
            }
        });
    });
}

// Slice by slice: turns the bytes that the slice needs into words, then runs the engine on them.
inline void adder_conv_u8(const Convolution<std::uint8_t, std::int32_t>& p) {
    const WordShape shape(p.channels, p.width.taps);
    const index channels = shape.word_channels(), columns_met = shape.taps();
    const bool padded = shape.along > 1;  // a word that starts in the padding may reach into x
    index images = p.batch, rows = p.height.pixels, columns = p.width.pixels;
    const auto most_words = [&] {
        const auto most = [](const Axis& a, index pixels, index taps) {
            const SourceAxis slice(a, 0, pixels, taps, true);
            return larger(pixels == a.pixels && slice.every == 1 ? a.size : 0, slice.size);
        };
        return images * p.groups * channels * most(p.height, rows, p.height.taps) *
               most(p.width, columns, columns_met);
    };
    while (most_words() * PER_WORD > WORD_IMAGE && images * rows * columns > 1) {
        index& cut = images > 1 ? images : rows > 1 ? rows : columns;
        cut = ceil_div(cut, 2);
    }
    Workspace workspace;
    workspace.allocate(most_words() * PER_WORD + p.groups * p.filters * index(sizeof(std::uint32_t)));
    auto* words = reinterpret_cast<Word*>(workspace.data());
    auto* w_sum = reinterpret_cast<std::uint32_t*>(words + most_words());

    for (index n = 0; n < p.batch; n += images)
        for (index r = 0; r < p.height.pixels; r += rows)
            for (index c = 0; c < p.width.pixels; c += columns) {
                const index slice_images = smaller(images, p.batch - n);
                const index slice_rows = smaller(rows, p.height.pixels - r);
                const index slice_columns = smaller(columns, p.width.pixels - c);
                const SourceAxis h(p.height, r, slice_rows, p.height.taps, false);
                const SourceAxis w(p.width, c, slice_columns, columns_met, padded);
                fill_words(p, shape, n, slice_images, h, w, words);
                const Image<std::int32_t>& y = p.y;
                const index plane = h.size * w.size;
                adder_conv_words({slice_images, p.groups, channels, p.filters,
                                  h.axis(p.height, r, slice_rows, p.height.taps),
                                  w.axis(p.width, c, slice_columns, columns_met),
                                  {words, p.groups * channels * plane, plane, w.size, 1},
                                  nullptr, 0, 0, 0, 0, 0, p.bias,
                                  {y.data + n * y.batch + r * y.row + c * y.column, y.batch, y.channel,
                                   y.row, y.column}},
                                 p, shape, w_sum);
            }
}

}  // namespace mulfree::MULFREE_ISA
