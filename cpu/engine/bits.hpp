// Numbers as bits, 32 or 64 of them in a word: an exclusive or and a population count sum up as many terms.
#pragma once

#include "word_convolution.hpp"

namespace mulfree::MULFREE_ISA {

// word | bit in the lanes of a mask, which is a comparison's answer.
template <class W, class Mask>
inline Vec<W> set_bit(Vec<W> word, Mask mask, Vec<W> bit) {
#if defined(__AVX512F__)
    if constexpr (sizeof(W) == 4) return (Vec<W>)_mm512_mask_or_epi32((__m512i)word, mask, (__m512i)word, (__m512i)bit);
    else return (Vec<W>)_mm512_mask_or_epi64((__m512i)word, mask, (__m512i)word, (__m512i)bit);
#else
    return word | ((Vec<W>)mask & bit);
#endif
}

// What bits a number becomes: LEVELS of them, bit t being is_set(number, t). A word of so many lanes is filled from
// a vector of as many numbers.

// Its sign: of T, one bit, set where it is not negative.
template <class T>
struct IntegersOf {
    using Word = std::uint32_t;
    using Whole = std::int32_t;
};
template <>
struct IntegersOf<double> {
    using Word = std::uint64_t;
    using Whole = std::int64_t;
};
template <class T>
struct Sign : IntegersOf<T> {
    using Element = T;
    using Word = typename IntegersOf<T>::Word;
    static constexpr index LEVELS = 1;

    static bool is_set(T x, index) { return x >= 0; }
    static Vec<T> read(const T* p) { return load(p); }
    static Vec<Word> set(Vec<Word> word, Vec<T> x, index, Vec<Word> bit) {
#if defined(__AVX512F__)
        if constexpr (sizeof(T) == 4)
            return set_bit<Word>(word, _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_GE_OQ), bit);
        else return set_bit<Word>(word, _mm512_cmp_pd_mask((__m512d)x, _mm512_setzero_pd(), _CMP_GE_OQ), bit);
#else
        return set_bit<Word>(word, x >= Vec<T>{}, bit);
#endif
    }
};

// Its thermometer code: of a byte as many ones as its value, at most 2^BITS - 1.
template <int BITS>
struct Thermometer {
    using Element = std::uint8_t;
    using Word = std::uint32_t;
    static constexpr index LEVELS = (1 << BITS) - 1;
    using Numbers = Vec<std::int32_t>;

    static bool is_set(std::uint8_t x, index level) { return x > level; }
    static Numbers read(const std::uint8_t* p) { return load_bytes<LANES<std::int32_t>>(p); }
    static Vec<Word> set(Vec<Word> word, Numbers x, index level, Vec<Word> bit) {
        const Numbers limit = broadcast(std::int32_t(level));
#if defined(__AVX512F__)
        return set_bit<Word>(word, _mm512_cmpgt_epi32_mask((__m512i)x, (__m512i)limit), bit);
#else
        return set_bit<Word>(word, x > limit, bit);
#endif
    }
};

// to[i] = bits [first, first + count) of the codes of all channels of pixel i, channel by channel, the first of them
// in the least bit. Pixels lie `stride` apart.
template <class Code, class W = typename Code::Word>
inline void pack_bits(const typename Code::Element* x, index channel_stride, index stride, index first, index count,
                      index pixels, W* to) {
    using Element = typename Code::Element;
    constexpr int SIDE_BY_SIDE = 4;  // vectors: a run of each channel
    constexpr index RUN = SIDE_BY_SIDE * LANES<W>;
    const auto each_bit = [=](auto set) {
        const Element* channel = x + first / Code::LEVELS * channel_stride;
        index level = first % Code::LEVELS;
        for (index k = 0; k < count; ++k) {
            set(channel, level, broadcast(W(W(1) << k)));
            if (++level == Code::LEVELS) level = 0, channel += channel_stride;
        }
    };
    index i = 0;
    for (; stride == 1 && i + RUN <= pixels; i += RUN) {
        Vec<W> word[SIDE_BY_SIDE] = {};
        each_bit([&](const Element* channel, index level, Vec<W> bit) {
#pragma GCC unroll 4
            for (int v = 0; v < SIDE_BY_SIDE; ++v)
                word[v] = Code::set(word[v], Code::read(channel + i + v * LANES<W>), level, bit);
            prefetch(channel, i + RUN);
        });
        __builtin_memcpy(to + i, word, sizeof word);
    }
    for (; i < pixels; i += LANES<W>) {
        const index lanes = smaller(LANES<W>, pixels - i);
        Vec<W> word{};
        each_bit([&](const Element* channel, index level, Vec<W> bit) {
            Element lane[LANES<W>] = {};
            for (index l = 0; l < lanes; ++l) lane[l] = channel[(i + l) * stride];
            word = Code::set(word, Code::read(lane), level, bit);
        });
        __builtin_memcpy(to + i, &word, std::size_t(lanes) * sizeof(W));
    }
}

// Words of bits: as many successive bits of a pixel's codes as fit a word, or with few channels those of a few columns
// of the kernel beside one another. What lies outside of x, or of the kernel, has no bit set.
template <class Code, class Output_>
struct BitWords {
    using Element = typename Code::Element;
    using Output = Output_;
    using Word = typename Code::Word;
    static constexpr index BITS = 8 * sizeof(Word);

    const WordShape shape;  // whose channels are the bits of all codes of a pixel

    explicit BitWords(const Convolution<Element, Output>& p) : shape(p.channels * Code::LEVELS, p.width.taps, BITS) {}

    index word_channels() const { return shape.word_channels(); }
    index taps() const { return shape.taps(); }
    bool meets_padding() const { return shape.along > 1; }

    Word weight(const Element* w, index w_channel, index word, index tap) const {
        Word bits = 0;
        const index first = shape.channel(word), count = smaller(shape.across, shape.channels - first);
        for (index q = 0; q < columns_of(word); ++q)
            for (index k = 0; k < count; ++k) {
                const Element number = w[(first + k) / Code::LEVELS * w_channel + shape.column(word) + q + tap];
                bits |= Word(Code::is_set(number, (first + k) % Code::LEVELS)) << (q * shape.across + k);
            }
        return bits;
    }

    // The source of a slice as words: [image][group][word channel][row][column].
    void fill(const Convolution<Element, Output>& p, index image, index images, const SourceAxis& h,
              const SourceAxis& w, Word* words) const {
        const index starts = shape.starts, blocks = word_channels() / starts, units = images * p.groups * blocks;
        const bool direct = shape.along == 1 && w.every == 1;
        // Rows without gaps are one long row.
        const bool dense = direct && h.every == 1 && p.x.row == w.size * p.x.column;
        const index rows = dense ? 1 : h.size, columns = dense ? h.size * w.size : w.size;
        // Else a row of codes is packed as it lies, from `from` to where the windows end, and words made of that.
        const index met = (w.size - 1) * w.every + (shape.along == 1 ? 0 : (shape.columns - 1) * p.width.tap_step) + 1;
        const index reach = w.size ? met : 0, before = smaller(reach, larger(0, -w.from));
        const index inside = larger(0, smaller(reach, p.width.size - w.from) - before);
        const index scratch = direct ? 0 : round_up(reach * index(sizeof(Word)), 64);
        Team team(threads_for(units, MOVE * double(units * rows) * double(larger(columns, reach)) *
                                         double(shape.across) / Code::LEVELS, scratch));
        Workspace workspace;
        workspace.allocate(team.size() * scratch);
        Units every_unit(units, ceil_div(units, 8 * team.size()));
        team.run([&](index thread) {
            auto* codes = reinterpret_cast<Word*>(workspace.data() + thread * scratch);
            for (index i = 0; !direct && i < reach; ++i) codes[i] = 0;
            every_unit.each([&](index unit) {
                const index first = unit % blocks * shape.across, count = smaller(shape.across, shape.channels - first);
                const index group = unit / blocks % p.groups;
                const Element* x = p.x.data + (image + unit / (blocks * p.groups)) * p.x.batch +
                                   group * p.channels * p.x.channel + h.from * p.x.row;
                Word* to = words + unit * starts * rows * columns;
                for (index r = 0; r < rows; ++r, x += h.every * p.x.row, to += columns) {
                    pack_bits<Code>(x + (w.from + before) * p.x.column, p.x.channel, p.x.column, first, count,
                                    direct ? columns : inside, direct ? to : codes + before);
                    for (index s = 0; !direct && s < starts; ++s)
                        join(codes, w.every, p.width.tap_step, s, columns, to + s * rows * columns);
                }
            });
        });
    }

private:
    // Of the kernel, that a word stands for.
    index columns_of(index word) const {
        return shape.along == 1 ? 1 : smaller(shape.along, shape.columns - shape.column(word));
    }

    // to[i] = the codes that word s of pixel i holds, which are `every` apart, and so far those of its columns.
    void join(const Word* codes, index every, index apart, index s, index pixels, Word* to) const {
        codes += shape.column(s) * apart;
        for (index q = 0; q < columns_of(s); ++q, codes += apart) {
            const index shift = q * shape.across;
            const auto add = [&](index step) __attribute__((always_inline)) {
                for (index i = 0; i < pixels; ++i) to[i] = (q ? to[i] : 0) | codes[i * step] << shift;
            };
            if (every == 1) add(1);
            else add(every);
        }
    }
};

}  // namespace mulfree::MULFREE_ISA
