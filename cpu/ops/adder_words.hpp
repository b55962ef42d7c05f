// The adder on small integers: x is turned into an image of words (engine/words.hpp), a bounded slice at a time;
// from there on a word is a number like any other.
#pragma once

#include "../engine/driver.hpp"
#include "../engine/phases.hpp"
#include "../engine/words.hpp"

namespace mulfree::MULFREE_ISA {

constexpr index WORD_IMAGE = 8 << 20;  // bytes of x's slices as words

// The source of a slice as words: [image][group][word channel][row][column].
template <class Element, class W>
inline void fill_words(const Convolution<Element, std::int32_t>& p, const WordShape& shape, index image,
                       index images, const SourceAxis& h, const SourceAxis& w, W* words) {
    constexpr index PER_WORD = sizeof(W) / sizeof(Element);
    const index channels = shape.word_channels(), planes = images * p.groups * channels;
    // Rows without gaps are one long row.
    const bool dense = shape.along == 1 && h.every * w.every == 1 && p.x.row == w.size * p.x.column;
    const index rows = dense ? 1 : h.size, columns = dense ? h.size * w.size : w.size;
    for_each_unit(planes, MOVE * double(planes * rows * columns), [&](index plane) {
        const index word = plane % channels, group = plane / channels % p.groups;
        const index channel = shape.channel(word);
        const Element* x = p.x.data + (image + plane / (channels * p.groups)) * p.x.batch +
                                (group * p.channels + channel) * p.x.channel + h.from * p.x.row;
        ElementRow<Element> places[PER_WORD];
        for (index k = 0; k < PER_WORD; ++k) {
            const index tap = shape.column(word) + shape.place_column(k);
            places[k] = {x, 0, 0};
            if (tap >= shape.columns || channel + shape.place_channel(k) >= p.channels) continue;
            const index from = w.from + tap * p.width.tap_step;
            places[k] = {x + shape.place_channel(k) * p.x.channel + from * p.x.column,
                         smaller(columns, ceil_div(larger(0, -from), w.every)),
                         dense ? columns : smaller(columns, ceil_div(p.width.size - from, w.every))};
        }
        for (index r = 0; r < rows; ++r) {
            interleave(places, w.every * p.x.column, columns, shape.across * p.x.channel,
                       words + (plane * rows + r) * columns);
            for (auto& place : places) place.base += h.every * p.x.row;
        }
    });
}

// The convolution of words that stands for one of elements, but for its pixels, which come slice by slice.
template <class Element, class W>
struct WordConvolution {
    const Convolution<Element, std::int32_t>& elements;
    const WordShape shape;
    Convolution<W, std::int32_t> words;
    Epilogue<float> epilogue;  // of a slice

    explicit WordConvolution(const Convolution<Element, std::int32_t>& p)
        : elements(p), shape(p.channels, p.width.taps, sizeof(W) / sizeof(Element)),
          words{0, p.groups, shape.word_channels(), p.filters, {}, {}, {}, nullptr, 0, 0, 0, 0, 0, p.bias, {}} {
        words.height.taps = p.height.taps, words.width.taps = shape.taps();
        words.packed = p.packed;
    }

    // The weight of a word.
    W operator()(index group, index f, index word, index i, index j) const {
        const auto& p = elements;
        return shape.template weights<W>(p.w + group * p.w_group + f * p.w_filter + i * p.w_row, p.w_channel, word, j);
    }

    // Calls f for every slice, whose words fit the memory that allocate(bytes) has given.
    template <class Allocate, class F>
    void each_slice(Allocate allocate, F f) {
        const auto& p = elements;
        const index channels = words.channels, taps = words.width.taps;
        const bool padded = shape.along > 1;  // a word that starts in the padding may reach into x
        index images = p.batch, rows = p.height.pixels, columns = p.width.pixels;
        const auto most_words = [&] {
            const auto most = [](const Axis& a, index pixels, index taps) {
                const SourceAxis slice(a, 0, pixels, taps, true);
                return larger(pixels == a.pixels && slice.every == 1 ? a.size : 0, slice.size);
            };
            return images * p.groups * channels * most(p.height, rows, p.height.taps) * most(p.width, columns, taps);
        };
        while (most_words() * index(sizeof(W)) > WORD_IMAGE && images * rows * columns > 1) {
            index& cut = images > 1 ? images : rows > 1 ? rows : columns;
            cut = ceil_div(cut, 2);
        }
        auto* image = static_cast<W*>(allocate(most_words() * index(sizeof(W))));
        for (index n = 0; n < p.batch; n += images)
            for (index r = 0; r < p.height.pixels; r += rows)
                for (index c = 0; c < p.width.pixels; c += columns) {
                    const index slice_rows = smaller(rows, p.height.pixels - r);
                    const index slice_columns = smaller(columns, p.width.pixels - c);
                    const SourceAxis h(p.height, r, slice_rows, p.height.taps, false);
                    const SourceAxis w(p.width, c, slice_columns, taps, padded);
                    words.batch = smaller(images, p.batch - n);
                    fill_words(p, shape, n, words.batch, h, w, image);
                    words.height = h.axis(p.height, r, slice_rows, p.height.taps);
                    words.width = w.axis(p.width, c, slice_columns, taps);
                    const index plane = h.size * w.size;
                    words.x = {image, p.groups * channels * plane, plane, w.size, 1};
                    words.y = p.y;
                    const index first = n * p.y.batch + r * p.y.row + c * p.y.column;
                    if (p.epilogue) epilogue = moved(*p.epilogue, first), words.epilogue = &epilogue;
                    if (p.y.data) words.y.data += first;
                    f();
                }
    }
};

// The row of the kernel table of an operation on words of elements.
template <class Element, class Op>
struct AdderWords {
    using C = Convolution<Element, std::int32_t>;
    using Words = WordConvolution<Element, typename Op::Operand>;

    static void run(const C& p) {
        Words c(p);
        const index bytes = round_up(packed_bytes(p), 64);
        const index packed = p.packed || bytes > SHARED_WEIGHTS ? 0 : bytes;
        Workspace workspace;
        c.each_slice([&](index image) {
            workspace.allocate(packed + image);
            return static_cast<void*>(workspace.data() + packed);
        }, [&] {
            if (packed && !c.words.packed) pack(p, workspace.data()), c.words.packed = workspace.data();
            convolve<Op>(c.words, c);
        });
    }
    static index packed_bytes(const C& p) { return MULFREE_ISA::packed_bytes<Op>(Words(p).words); }
    static void pack(const C& p, void* to) {
        const Words c(p);
        pack_weights<Op>(c.words, c, to);
    }
    static constexpr ConvolutionKernel<Element, std::int32_t> row() { return {run, packed_bytes, pack}; }
};

}  // namespace mulfree::MULFREE_ISA
