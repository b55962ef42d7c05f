// Convolutions with several taps per word: x is converted to an image of words, in slices of bounded size; then a
// word is an element like any other. A Layout has:
//     Element, Output, Word   the numbers of x and w, those of y, what the operation works on;
//     word_channels(), taps() words of a pixel and group; columns of the kernel that are left as taps;
//     meets_padding           whether places outside of x have words of their own, which may reach into x;
//     prepare(p, memory)      what the words of weights are made of, in prepared_bytes();
//     weight(...), fill(...)  the word of weights at a tap; the words of a slice.
#pragma once

#include "driver.hpp"
#include "phases.hpp"
#include "words.hpp"

namespace mulfree::MULFREE_ISA {

constexpr index WORD_IMAGE = 8 << 20;  // bytes of x's slices as words

// The convolution of words equivalent to one of elements, without its pixels, which are set slice by slice.
template <class Layout>
struct WordConvolution {
    using Element = typename Layout::Element;
    using Output = typename Layout::Output;
    using W = typename Layout::Word;

    const Convolution<Element, Output>& elements;
    Layout layout;
    const Borders<BorderNumber<Output>>* borders;
    Convolution<W, Output> words;
    typename EpilogueOf<Output>::type epilogue;  // of a slice,
    Borders<BorderNumber<Output>> slice_borders;

    explicit WordConvolution(const Convolution<Element, Output>& p)
        : elements(p), layout(p), borders(nullptr),
          words{0, p.groups, layout.word_channels(), p.filters, {}, {}, {}, nullptr, 0, 0, 0, 0, 0, p.bias, {}} {
        words.height.taps = p.height.taps, words.width.taps = layout.taps();
        words.packed = p.packed;
    }

    // Called once before weights are requested; the workspace must outlive them.
    void prepare(Workspace& workspace) {
        workspace.allocate(layout.prepared_bytes());
        layout.prepare(elements, workspace.data());
    }
    // The weight of a word.
    W operator()(index group, index f, index word, index i, index j) const {
        return layout.weight(elements, group, f, word, i, j);
    }

    // Calls f for every slice, with its words in memory from allocate(bytes).
    template <class Allocate, class F>
    void each_slice(Allocate allocate, F f) {
        const auto& p = elements;
        const index channels = words.channels, taps = words.width.taps;
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
        char* memory = static_cast<char*>(allocate(most_words() * index(sizeof(W)) + 2 * ROOM));
        auto* image = reinterpret_cast<W*>(memory + ROOM);
        for (index n = 0; n < p.batch; n += images)
            for (index r = 0; r < p.height.pixels; r += rows)
                for (index c = 0; c < p.width.pixels; c += columns) {
                    const index slice_rows = smaller(rows, p.height.pixels - r);
                    const index slice_columns = smaller(columns, p.width.pixels - c);
                    const SourceAxis h(p.height, r, slice_rows, p.height.taps, false);
                    const SourceAxis w(p.width, c, slice_columns, taps, layout.meets_padding());
                    words.batch = smaller(images, p.batch - n);
                    layout.fill(p, n, words.batch, h, w, image);
                    words.height = h.axis(p.height, r, slice_rows, p.height.taps);
                    words.width = w.axis(p.width, c, slice_columns, taps);
                    const index plane = h.size * w.size;
                    words.x = {image, p.groups * channels * plane, plane, w.size, 1};
                    words.y = p.y;
                    const index first = n * p.y.batch + r * p.y.row + c * p.y.column;
                    if (p.epilogue) epilogue = moved(*p.epilogue, first), words.epilogue = &epilogue;
                    if (p.y.data) words.y.data += first;
                    if (borders) {
                        slice_borders = *borders, words.borders = &slice_borders;
                        slice_borders.kind += r * borders->row + c;
                    }
                    f();
                }
    }
};

// The kernel table's row of an operation on words.
template <class Layout, class Op>
struct WordKernel {
    using C = Convolution<typename Layout::Element, typename Layout::Output>;
    using Words = WordConvolution<Layout>;

    static void run(const C& p) {
        Words c(p);
        Workspace prepared;
        if (!p.packed) c.prepare(prepared);
        run(c);
    }
    static void run(Words& c) {
        const index bytes = round_up(MULFREE_ISA::packed_bytes<Op>(c.words), 64);
        const index packed = c.words.packed || bytes > SHARED_WEIGHTS ? 0 : bytes;
        Workspace workspace;
        c.each_slice([&](index image) {
            workspace.allocate(packed + image);
            return static_cast<void*>(workspace.data() + packed);
        }, [&] {
            if (packed && !c.words.packed) {
                pack_weights<Op>(c.words, c, workspace.data());
                c.words.packed = workspace.data();
            }
            convolve<Op>(c.words, c);
        });
    }
    static index packed_bytes(const C& p) { return MULFREE_ISA::packed_bytes<Op>(Words(p).words); }
    static void pack(const C& p, void* to) {
        Words c(p);
        Workspace prepared;
        c.prepare(prepared);
        pack_weights<Op>(c.words, c, to);
    }
    static constexpr ConvolutionKernel<typename Layout::Element, typename Layout::Output> row() {
        return {run, packed_bytes, pack};
    }
};

}  // namespace mulfree::MULFREE_ISA
