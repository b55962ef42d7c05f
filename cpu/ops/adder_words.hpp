// The layout of the adder on small integers: as many elements, of one pixel or a few adjacent ones, as fit a word.
#pragma once

#include "../engine/word_convolution.hpp"

namespace mulfree::MULFREE_ISA {

template <class Element_, class W>
struct ElementWords {
    using Element = Element_;
    using Output = std::int32_t;
    using Word = W;
    static constexpr index PER_WORD = sizeof(W) / sizeof(Element);

    const WordShape shape;

    explicit ElementWords(const Convolution<Element, Output>& p) : shape(p.channels, p.width.taps, PER_WORD) {}

    index word_channels() const { return shape.word_channels(); }
    index taps() const { return shape.taps(); }
    bool meets_padding() const { return shape.along > 1; }
    index prepared_bytes() const { return 0; }
    void prepare(const Convolution<Element, Output>&, void*) {}
    W weight(const Convolution<Element, Output>& p, index group, index f, index word, index i, index tap) const {
        const Element* w = p.w + group * p.w_group + f * p.w_filter + i * p.w_row;
        return shape.template weights<W>(w, p.w_channel, word, tap);
    }

    // The source of a slice as words: [image][group][word channel][row][column].
    void fill(const Convolution<Element, Output>& p, index image, index images, const SourceAxis& h,
              const SourceAxis& w, W* words) const {
        const index channels = word_channels(), planes = images * p.groups * channels;
        // Contiguous rows are one long row.
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
};

template <class Element, class Op>
using AdderWords = WordKernel<ElementWords<Element, typename Op::Operand>, Op>;

}  // namespace mulfree::MULFREE_ISA
